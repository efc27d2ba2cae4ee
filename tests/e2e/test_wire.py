"""What goes over the wire and into the log; every test of these modules checks its own requests besides (`watched`)."""

import asyncio

import pytest

from tests import openapi
from tests.bot_process import BotProcess
from tests.e2e.conftest import faults_of, message_payload
from tests.e2e.desk import Desk
from tests.e2e.scene import E2E, job_for, refusal, result, settled
from zbot.sandbox import Sandbox
from zbot.sandbox.journal import BotRequest
from zbot.sandbox.people import Person

pytestmark = E2E

PING = "@everyone @here <@&1100000000000000100> <@1100000000000000011> <#1100000000000000110> look"


def requests_of(sandbox: Sandbox, *routes: str) -> list[BotRequest]:
    """Return the requests of these routes."""
    return [request for request in sandbox.requests if request.route in routes]


@pytest.mark.skipif(openapi.document_path() is None, reason=f"{openapi.SETTING} names no document")
async def test_every_request_of_a_whole_round_is_what_discords_document_describes(
    sandbox: Sandbox, bot: BotProcess, desk: Desk, ada: Person, bo: Person
) -> None:
    desk.on("held a while", hold_at=2)
    message = await result(await ada.slash("imagine", prompt="a whole round", count=4))
    await (await bo.press(message, "Details")).message()
    await result(await bo.press(message, "Re-roll"))
    form = await (await ada.press(message, "Edit")).modal()
    await result(await ada.submit(form))
    handle = await ada.slash("imagine", prompt="held a while")
    await desk.held("held a while")
    await bo.autocomplete("cancel", job="")
    await ada.press(await handle.message(), "Cancel")
    await handle.message(lambda m: m.content == "Taken back.")
    for command in ("queue", "usage", "help"):
        await (await ada.slash(command)).message()
    await (await ada.press(message, "Delete")).message(lambda m: m.ephemeral)
    kinds = {(request.method, request.template) for request in sandbox.requests}
    assert len(kinds) >= 8
    assert [sentence for request in sandbox.requests for sentence in faults_of(request)] == []


async def test_the_check_itself_sees_a_wrong_request() -> None:
    wrong = BotRequest(
        method="POST",
        path="/channels/1/messages",
        route="channel_send",
        template="/channels/{channel_id}/messages",
        query={},
        headers={},
        at=0.0,
        json={"content": "@everyone", "allowed_mentions": {"parse": ["everyone"]}},
        status=200,
    )
    assert any("may ping" in sentence for sentence in faults_of(wrong))


async def test_a_prompt_full_of_mentions_pings_nobody_anywhere(
    sandbox: Sandbox, bot: BotProcess, desk: Desk, ada: Person
) -> None:
    before = len(sandbox.requests)
    message = await result(await ada.slash("imagine", prompt=PING))
    await (await ada.press(message, "Details")).message()
    await result(await ada.press(message, "Re-roll"))
    await refusal(await ada.slash("imagine", prompt=f"{PING} --ar @everyone"))
    desk.on(PING[:9], hold_at=1)
    handle = await ada.slash("imagine", prompt=PING)
    held = await desk.held(PING[:9])
    assert (await ada.autocomplete("cancel", job=""))[0]["name"].endswith("look")
    sandbox.messages_store.delete(await handle.message())
    held.go_on()
    await settled(bot)
    payloads = [
        payload
        for request in list(sandbox.requests)[before:]
        if (payload := message_payload(request)) is not None
    ]
    assert len(payloads) >= 6
    assert all(payload["allowed_mentions"]["parse"] == [] for payload in payloads)


async def test_what_the_person_alone_is_meant_to_read_is_ephemeral(
    sandbox: Sandbox, bot: BotProcess, ada: Person, bo: Person
) -> None:
    message = await result(await ada.slash("imagine", prompt="public"))
    assert not message.ephemeral
    for handle in (
        await ada.slash("queue"),
        await ada.slash("usage"),
        await ada.slash("help"),
        await ada.slash("cancel", job="77777"),
        await ada.slash("imagine", prompt="a fox --v 6"),
        await ada.press(message, "Details"),
        await bo.press(message, "Delete"),
    ):
        answer = await handle.message()
        assert answer.ephemeral, answer.text


async def test_no_secret_is_left_in_the_files_once_a_job_is_over(
    sandbox: Sandbox, bot: BotProcess, ada: Person
) -> None:
    handle = await ada.slash("imagine", prompt="leaves no token")
    message = await result(handle)
    await settled(bot)
    assert job_for(bot, handle)["interaction_token"] is None
    for attachment in message.attachments:
        assert handle.interaction.token.encode() not in attachment.data
        assert sandbox.token.encode() not in attachment.data
    for path in (bot.data_dir / "images").iterdir():
        assert path.stat().st_mode & 0o077 == 0


async def test_rate_limits_are_kept_while_many_jobs_show_their_progress(
    sandbox: Sandbox, bot: BotProcess, desk: Desk
) -> None:
    people = [sandbox.add_person(f"R{number}") for number in range(15)]
    exceeded = sandbox.buckets.exceeded
    handles = [await person.slash("imagine", prompt="at once") for person in people]
    await asyncio.gather(*(result(handle) for handle in handles))
    await settled(bot)
    assert sandbox.buckets.exceeded == exceeded
    # Third parties measured 30 edits a minute for one server; results need none of the progress' share.
    assert all(handle.acked_after_s is not None and handle.acked_after_s < 1.5 for handle in handles)


async def test_the_bot_asks_for_no_more_than_it_needs(sandbox: Sandbox, bot: BotProcess) -> None:
    (session,) = sandbox.gateway._sessions.values()
    assert session.intents == 1  # guilds: neither messages nor members
    commands = {command["name"]: command for _, command in sandbox.commands.everywhere()}
    assert all(command["integration_types"] == [0] for command in commands.values())
    assert {name for name, command in commands.items() if 1 in command["contexts"]} == {"help"}
