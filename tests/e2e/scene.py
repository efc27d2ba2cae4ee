"""What the end-to-end tests share: the marks of a module, what a message shows, and what the database says."""

import asyncio
import io
import re
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.bot_process import BotProcess
from zbot.sandbox import Sandbox
from zbot.sandbox.faults import Fault
from zbot.sandbox.interactions import COMMAND
from zbot.sandbox.people import Handle, Person
from zbot.sandbox.world import Message

# One bot lives as long as a module, so the tests of the module share its event loop.
E2E = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.usefixtures("watched")]
PATIENCE_S = 30.0
OVER = ("delivered", "failed", "cancelled", "undeliverable")


def has_pictures(message: Message) -> bool:
    """Say whether a message holds finished pictures; a preview is none."""
    return any(attachment.filename.endswith((".png", ".webp")) for attachment in message.attachments)


def seeds_of(message: Message) -> list[int]:
    """Return the seeds that a result shows."""
    return [int(seed) for seed in re.findall(r"`(\d+)`", facts_of(message))]


def facts_of(message: Message) -> str:
    """Return what a result says below its prompt."""
    return message.embeds[0]["description"].rpartition("```\n")[2]


def prompt_of(message: Message) -> str:
    """Return the prompt that an answer shows."""
    return message.embeds[0]["description"].removeprefix("```\n").rpartition("\n```")[0]


def job_of(message: Message) -> int:
    """Return the job whose buttons a message has."""
    return int(message.buttons[0]["custom_id"].split(":")[2])


def labels_of(message: Message) -> list[str]:
    """Return what stands on the buttons."""
    return [button["label"] for button in message.buttons]


def sizes_of(message: Message) -> list[tuple[int, int]]:
    """Return width and height of every picture, as the files themselves say."""
    return [Image.open(io.BytesIO(attachment.data)).size for attachment in message.attachments]


def files_of(message: Message) -> list[bytes]:
    """Return the posted files."""
    return [attachment.data for attachment in message.attachments]


async def result(handle: Handle) -> Message:
    """Wait for the pictures that answer an interaction."""
    return await handle.message(has_pictures)


async def refusal(handle: Handle) -> str:
    """Wait for an answer, check that its person alone can read it, and return it."""
    message = await handle.message()
    assert message.ephemeral, f"told in public: {message.text}"
    assert not message.embeds and not message.attachments and not message.components
    return message.content


def send_raw(
    sandbox: Sandbox,
    person: Person,
    command: str,
    options: list[dict[str, Any]],
    *,
    channel: str | int = "pictures",
    **payload: Any,
) -> Handle:
    """Send a slash command past every check of the person's client: an old one, a broken one, one from elsewhere."""
    place = sandbox.channel(channel, person=person)
    found = next(
        (known for _, known in sandbox.commands.everywhere() if known["name"] == command), {"id": "1"}
    )
    genuine = sandbox.interactions._payload
    sandbox.interactions._payload = lambda interaction: genuine(interaction) | payload  # type: ignore[method-assign]
    try:
        interaction = sandbox.interactions.create(
            type=COMMAND,
            user=person.user,
            channel=place,
            data={"id": found["id"], "name": command, "type": 1, "options": options},
            name=command,
            text=f"/{command}",
        )
    finally:
        sandbox.interactions._payload = genuine  # type: ignore[method-assign]
    return Handle(sandbox, interaction)


# --- the database ---


def rows(bot: BotProcess, sql: str, *values: Any) -> list[Any]:
    """Ask the bot's database, beside the bot."""
    with _open(bot.data_dir / "zbot.db") as connection:
        return connection.execute(sql, values).fetchall()


def change(bot: BotProcess, sql: str, *values: Any) -> None:
    """Change the bot's database behind its back, as time and accidents would."""
    with _open(bot.data_dir / "zbot.db") as connection:
        connection.execute(sql, values)
        connection.commit()


class _open:
    """A connection for the time of a block; sqlite3's own `with` only commits."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, timeout=5)
        self._connection.row_factory = sqlite3.Row

    def __enter__(self) -> sqlite3.Connection:
        return self._connection

    def __exit__(self, *_: object) -> None:
        self._connection.close()


def jobs(bot: BotProcess) -> list[Any]:
    """Return all jobs, oldest first."""
    return rows(bot, "SELECT * FROM job ORDER BY id")


def job(bot: BotProcess, job_id: int) -> Any:
    """Return one job."""
    return rows(bot, "SELECT * FROM job WHERE id = ?", job_id)[0]


def job_for(bot: BotProcess, handle: Handle) -> Any:
    """Return the job of an interaction, None if there is none."""
    found = rows(bot, "SELECT * FROM job WHERE interaction_id = ?", handle.id)
    return found[0] if found else None


async def in_state(bot: BotProcess, handle: Handle, *states: str) -> Any:
    """Wait until the job of an interaction stands in one of these states, and return it."""
    # Another process's commits make no sound, so this one place looks again and again.
    until = time.monotonic() + PATIENCE_S
    while (found := job_for(bot, handle)) is None or found["state"] not in states:
        assert time.monotonic() < until, (
            f"job is {found['state'] if found else 'absent'}, not {states}:\n{bot.log}"
        )
        await asyncio.sleep(0.01)
    return found


async def struck(fault: Fault) -> None:
    """Wait until a request, read to its end, has met a fault: a bot killed while it still sends leaves half of one."""
    until = time.monotonic() + PATIENCE_S
    while not fault.hits:
        assert time.monotonic() < until, f"nothing met {fault}"
        await asyncio.sleep(0.01)


async def settled(bot: BotProcess) -> None:
    """Wait until every job of the bot is over and told."""
    until = time.monotonic() + PATIENCE_S
    while open_ones := rows(bot, "SELECT id, state FROM job WHERE told_at IS NULL"):
        assert time.monotonic() < until, f"not over: {[tuple(row) for row in open_ones]}\n{bot.log}"
        await asyncio.sleep(0.01)
