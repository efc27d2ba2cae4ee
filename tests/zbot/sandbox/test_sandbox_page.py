"""The page's JSON and WebSocket, the CDN, and who may ask at all."""

import asyncio
import json
import sys

import aiohttp
import pytest

from tests.zbot.sandbox.demo_bot import PNG
from zbot.sandbox import Sandbox


class Page:
    """What the page does, without a browser."""

    def __init__(self, session, sandbox, name: str) -> None:
        self.session = session
        self.sandbox = sandbox
        self.id = str(sandbox.person(name).id)

    async def state(self):
        async with self.session.get("/sandbox/state", params={"user": self.id}) as response:
            assert response.status == 200
            return await response.json()

    async def act(self, **wish):
        async with self.session.post("/sandbox/interactions", json={"user": self.id} | wish) as response:
            return response.status, await response.json()

    async def command(self, name: str, *options, channel: str = "pictures", kind: str = "command"):
        commands = (await self.state())["commands"]
        command = next(c for c in commands if c["name"] == name)
        place = str(self.sandbox.channel(channel).id)
        return await self.act(kind=kind, channel=place, command_id=command["id"], options=list(options))

    async def events(self):
        return await self.session.ws_connect("/sandbox/events", params={"user": self.id})


async def until(socket, kind: str, fits=lambda event: True):
    async with asyncio.timeout(30):
        while True:
            event = await socket.receive_json()
            if event["type"] == kind and fits(event):
                return event


@pytest.fixture
async def session(sandbox):
    async with aiohttp.ClientSession(sandbox.url) as session:
        yield session


@pytest.fixture
def ada(session, sandbox):
    return Page(session, sandbox, "Ada")


async def test_the_state_shows_people_channels_and_commands(ada, bot):
    state = await ada.state()
    assert [u["display_name"] for u in state["users"]] == ["Ada", "Bo", "Mo"]
    assert [u["moderator"] for u in state["users"]] == [False, False, True]
    assert [(c["name"], c["kind"], c["guild"]) for c in state["channels"]] == [
        ("pictures", "text", "Picture Team"),
        ("drafts", "text", "Picture Team"),
        ("quiet", "text", "Picture Team"),
        ("general", "text", "Elsewhere"),
        ("zbot", "dm", None),
    ]
    assert state["bot"]["online"] is True and state["me"]["locale"] == "en-US"
    imagine = next(c for c in state["commands"] if c["name"] == "imagine")
    assert len(imagine["channel_ids"]) == 5 and imagine["options"][0]["required"] is True


async def test_a_command_shows_loading_then_the_picture_with_an_address_that_loads(ada, bot, session):
    socket = await ada.events()
    status, sent = await ada.command("imagine", {"name": "prompt", "value": "a fox"})
    assert status == 200
    loading = await until(socket, "message", lambda e: e["message"]["loading"])
    assert loading["message"]["interaction"]["text"] == "/imagine prompt: a fox"
    assert loading["message"]["interaction"]["id"] == sent["id"]
    done = await until(socket, "message", lambda e: not e["message"]["loading"])
    assert done["message"]["id"] == loading["message"]["id"]
    image = done["message"]["embeds"][0]["image"]
    assert (image["width"], image["height"]) == (4, 3)
    async with session.get(image["url"]) as response:
        assert response.status == 200 and response.content_type == "image/png"
        assert await response.read() == PNG
    await socket.close()


async def test_an_ephemeral_message_is_pushed_to_its_reader_alone(ada, bot, session, sandbox):
    mine, other = await ada.events(), await Page(session, sandbox, "Bo").events()
    await ada.command("whisper")
    assert (await until(mine, "message"))["message"]["ephemeral"] is True
    await ada.command("twice")
    assert (await until(other, "message"))["message"]["content"] == "one"
    states = [await page.state() for page in (ada, Page(session, sandbox, "Bo"))]
    pictures = str(sandbox.channel("pictures").id)
    shown = [[m["content"] for m in state["messages"][pictures]] for state in states]
    assert "only you" in shown[0] and "only you" not in shown[1]
    await mine.close()
    await other.close()


async def test_a_modal_goes_through_the_page(ada, bot, sandbox):
    socket = await ada.events()
    await ada.command("panel")
    message = (await until(socket, "message"))["message"]
    place = message["channel_id"]
    await ada.act(kind="component", channel=place, message_id=message["id"], custom_id="demo:open")
    opened = await until(socket, "modal")
    assert opened["modal"]["components"][0]["type"] in (1, 18)
    wrong = await ada.act(
        kind="modal", channel=place, interaction_id=opened["interaction_id"], values={"x": "y"}
    )
    assert wrong == (400, {"error": "The form has no field 'x'."})
    values = {"prompt": "a hare", "how": ["slow"]}
    await ada.act(kind="modal", channel=place, interaction_id=opened["interaction_id"], values=values)
    answer = await until(socket, "message", lambda e: e["message"]["ephemeral"])
    assert answer["message"]["content"] == "a hare ['slow']"
    await socket.close()


async def test_autocomplete_waits_for_the_bots_choices(ada, bot):
    option = {"name": "job", "value": "1", "focused": True}
    status, answer = await ada.command("find", option, kind="autocomplete")
    assert status == 200 and [c["value"] for c in answer["choices"]] == ["17", "18"]


async def test_an_uploaded_file_is_an_option_of_a_command(ada, bot, session):
    async with session.post("/sandbox/attachments", params={"filename": "p q.png"}, data=PNG) as response:
        kept = await response.json()
    assert (kept["filename"], kept["size"], kept["content_type"]) == ("p_q.png", len(PNG), "image/png")
    socket = await ada.events()
    await ada.command("imagine", {"name": "prompt", "value": "x"}, {"name": "reference", "value": kept["id"]})
    done = await until(socket, "message", lambda e: not e["message"]["loading"])
    assert f" {len(PNG)} " in done["message"]["content"]
    await socket.close()


async def test_an_unanswered_command_is_told_to_its_person(ada, bot, sandbox):
    socket = await ada.events()
    _, sent = await ada.command("slow")
    sandbox.clock.advance(3.1)
    failed = await until(socket, "failed")
    assert failed["interaction_id"] == sent["id"] and failed["text"] == "The application did not respond"
    await socket.close()


@pytest.mark.parametrize(
    ("wish", "sentence"),
    [
        ({"kind": "dance"}, "The kind is one of"),
        ({"kind": "command", "channel": "1", "command_id": "1"}, "no such channel"),
        ({"kind": "command", "command_id": "1"}, "no such command"),
        ({"kind": "component", "message_id": "1", "custom_id": "x"}, "message is not there"),
        ({"kind": "modal", "interaction_id": "1"}, "form is not open"),
        ({"kind": "command", "user": "1"}, "no such person"),
        ({"kind": "command", "options": "x"}, "list of objects"),
    ],
)
async def test_a_wish_that_is_not_right_gets_400_and_a_sentence(ada, bot, sandbox, wish, sentence):
    status, answer = await ada.act(**({"channel": str(sandbox.channel("pictures").id)} | wish))
    assert status == 400 and sentence in answer["error"]


async def test_without_a_bot_a_wish_is_a_conflict_and_its_coming_is_told(ada, sandbox, session):
    assert await ada.act(kind="command") == (409, {"error": "The bot is offline."})


async def test_a_cdn_address_is_signed_and_expires(sandbox, session):
    kept = sandbox.person("Ada").upload(PNG)
    address = sandbox.world.sign(kept)
    for path, status in ((address, 200), (address[:-1] + "x", 404), (address.split("?")[0], 404)):
        async with session.get(path) as response:
            assert response.status == status
    sandbox.clock.advance(25 * 3600)
    async with session.get(address) as response:
        assert response.status == 404


async def test_a_strangers_html_or_svg_is_a_download_that_runs_nothing(sandbox, session):
    for name in ("x.html", "x.svg"):
        kept = sandbox.person("Ada").upload(b"<script>alert(1)</script>", name)
        async with session.get(sandbox.world.sign(kept)) as response:
            assert response.headers["Content-Disposition"].startswith("attachment")
            assert "sandbox" in response.headers["Content-Security-Policy"]
            assert response.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize("path", ["/", "/sandbox/state", "/api/v10/users/@me", "/gateway", "/sandbox/events"])
@pytest.mark.parametrize(
    "headers",
    [{"Host": "evil.example"}, {"Host": "127.0.0.1.evil.example"}, {"Origin": "http://evil.example"}],
)
async def test_another_sites_name_or_page_is_refused(session, path, headers):
    async with session.get(path, headers=headers) as response:
        assert response.status == 403
        assert "Access-Control-Allow-Origin" not in response.headers


async def test_the_server_listens_on_the_loopback_address_alone(sandbox):
    assert sandbox._socket.getsockname()[0] == "127.0.0.1"


@pytest.mark.parametrize("name", ["..%2fserver.py", ".hidden", "nothing.js", "%2e%2e%2fserver.py"])
async def test_static_files_are_the_pages_own_only(session, name):
    async with session.get(f"/static/{name}") as response:
        assert response.status == 404


async def test_a_port_in_use_is_an_error_at_once(sandbox):
    with pytest.raises(OSError):
        Sandbox(port=sandbox.port)


async def test_the_module_serves_alone_and_says_where():
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "zbot.sandbox", "--port", "0", stdout=asyncio.subprocess.PIPE
    )
    try:
        line = (await asyncio.wait_for(process.stdout.readline(), 30)).decode()
        address = next(word for word in line.split() if word.startswith("http://"))
        async with aiohttp.ClientSession() as session, session.get(f"{address}/sandbox/state") as response:
            assert json.loads(await response.text())["bot"]["online"] is False
    finally:
        process.terminate()
        await process.communicate()
