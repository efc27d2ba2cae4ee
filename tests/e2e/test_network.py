"""Serving opens no connection but the bot's to Discord: every process of the real bot is listened to from its start."""

from pathlib import Path
from urllib.parse import urlsplit

from tests.bot_process import REPOSITORY
from tests.e2e.conftest import StartBot
from tests.e2e.scene import E2E, result, seeds_of
from tests.e2e.test_real import LOADED_S
from zbot.sandbox import Sandbox
from zbot.sandbox.people import Person

pytestmark = E2E

# Python imports a module of this name before anything else, in the bot as in its child.
LISTENER = """
import os, sys

role = "child" if "zbot.engine.child" in sys.orig_argv else "bot"
with open(os.environ["CONNECTIONS"], "a") as log:
    print(role, "started", file=log)

def hear(event, arguments):
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        where = arguments[1]
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        where = arguments
    else:
        return
    if where is not None:  # on a socket that is connected, as the two processes have one between them
        with open(os.environ["CONNECTIONS"], "a") as log:
            print(role, event, *(where[:2] if isinstance(where, tuple) else [where]), file=log)

sys.addaudithook(hear)
"""


async def test_serving_connects_to_discord_alone_and_drawing_to_nothing(
    start_bot: StartBot, sandbox: Sandbox, ada: Person, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(LISTENER)
    heard = tmp_path / "connections"
    bot = await start_bot(real=True, PYTHONPATH=f"{tmp_path}:{REPOSITORY}", CONNECTIONS=str(heard))
    await bot.logged("the engine is ready", within_s=LOADED_S)
    assert seeds_of(await result(await ada.slash("imagine", prompt="a red circle", seed=5, count=2))) == [
        5,
        6,
    ]
    lines = heard.read_text().splitlines()
    assert {"bot started", "child started"} <= set(lines)
    discord = urlsplit(sandbox.api_url)
    connections = [line for line in lines if not line.endswith(" started")]
    assert (
        f"bot socket.connect {discord.hostname} {discord.port}" in connections
    )  # what is listened with hears
    assert {line for line in connections if str(discord.hostname) not in line.split()} == set()
    assert [line for line in connections if line.startswith("child")] == []
