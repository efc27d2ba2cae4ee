"""A Discord of our own, an engine in the test's hands, the real bot between them, and what must hold after every test."""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests import openapi
from tests.bot_process import BotProcess
from tests.e2e.desk import Desk
from tests.e2e.fake_bot import DESK
from tests.e2e.scene import settled
from tests.nursery import Nursery
from zbot.sandbox import Sandbox
from zbot.sandbox.journal import BotRequest
from zbot.sandbox.people import Person

MESSAGE_ROUTES = ("followup", "original_edit", "webhook_edit", "channel_send", "channel_edit")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sandbox() -> AsyncIterator[Sandbox]:
    """A Discord on this machine."""
    async with Sandbox(port=0) as sandbox:
        yield sandbox


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def desk() -> AsyncIterator[Desk]:
    """The engine's commander."""
    async with Desk() as desk:
        yield desk


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def nursery(_nursery: Nursery) -> AsyncIterator[Nursery]:
    """What forks the bots with the fake engine."""
    async with _nursery.open():
        yield _nursery


@pytest.fixture(scope="module")
def bots() -> list[BotProcess]:
    """All bots of a module."""
    return []


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bot(
    sandbox: Sandbox,
    desk: Desk,
    nursery: Nursery,
    bots: list[BotProcess],
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[BotProcess]:
    """One bot with the fake engine for all tests of a module."""
    bot = BotProcess(
        tmp_path_factory.mktemp("bot"), sandbox=sandbox, nursery=nursery, settings={DESK: desk.address}
    )
    bots.append(bot)
    try:
        await bot.start()
        yield bot
    finally:
        await bot.close()


StartBot = Callable[..., Awaitable[BotProcess]]


@pytest_asyncio.fixture(loop_scope="module")
async def start_bot(
    sandbox: Sandbox, desk: Desk, nursery: Nursery, bots: list[BotProcess], tmp_path: Path
) -> AsyncIterator[StartBot]:
    """Starts bots of a test's own, with the fake engine unless told otherwise; they end with the test."""
    mine: list[BotProcess] = []

    async def start(
        *, start: bool = True, real: bool = False, directory: Path | None = None, **settings: str
    ) -> BotProcess:
        bot = BotProcess(
            directory or tmp_path / "bot",
            sandbox=sandbox,
            nursery=None if real else nursery,
            settings={DESK: "" if real else desk.address, **settings},
        )
        mine.append(bot)
        bots.append(bot)
        if start:
            await bot.start()
        return bot

    yield start
    for bot in mine:
        await bot.close()


@dataclass(kw_only=True)
class Watch:
    """What a test may change about what is checked after it."""

    may_fail: list[str] = field(default_factory=list)  # words of errors that the test provokes


@pytest_asyncio.fixture(loop_scope="module")
async def watched(sandbox: Sandbox, desk: Desk, bots: list[BotProcess]) -> AsyncIterator[Watch]:
    """Check after a test: every request was right, nothing pinged, nothing leaked, nothing unforeseen was logged."""
    watch = Watch()
    requests, lines = len(sandbox.requests), {id(bot): len(bot.lines) for bot in bots}
    yield watch
    sandbox.faults.clear()
    desk.forget()
    if bots and bots[-1].running:
        await settled(bots[-1])
    wrong = [sentence for request in list(sandbox.requests)[requests:] for sentence in faults_of(request)]
    assert not wrong, "\n".join(wrong)
    secrets = {sandbox.token} | {
        request.path.split("/")[3] for request in sandbox.requests if _has_token(request)
    }
    prompts = {
        text for text in (interaction_prompt(request) for request in sandbox.requests) if len(text) > 12
    }
    for bot in bots:
        told = "\n".join(bot.lines[lines.get(id(bot), 0) :])
        assert not [secret for secret in secrets if secret in told], told
        assert not [prompt for prompt in prompts if prompt in told], told
        errors = [
            line
            for line in told.splitlines()
            if " ERROR " in line or "Traceback" in line or " CRITICAL " in line
        ]
        errors = [line for line in errors if not any(word in line for word in watch.may_fail)]
        assert not errors, told


def _has_token(request: BotRequest) -> bool:
    return request.template.startswith(("/interactions/", "/webhooks/"))


def interaction_prompt(request: BotRequest) -> str:
    """Return the prompt that a message of the bot shows."""
    body = request.json if isinstance(request.json, dict) else {}
    data = body.get("data") or body
    embeds = data.get("embeds") if isinstance(data, dict) else None
    description = (embeds[0].get("description") or "") if embeds else ""
    return (
        description.removeprefix("```\n").rpartition("\n```")[0].rpartition("\n```")[0] or description[4:-4]
    )


def faults_of(request: BotRequest) -> list[str]:
    """Return what is wrong with one request of the bot: by Discord's document, and because it could ping somebody."""
    check = openapi.load()
    wrong = check.check(request) if check is not None else []
    if (payload := message_payload(request)) is not None:
        mentions = payload.get("allowed_mentions")
        if mentions is None or mentions.get("parse") != [] or mentions.get("users") or mentions.get("roles"):
            wrong.append(f"{request.method} {request.template} may ping somebody: {mentions}")
    return wrong


def message_payload(request: BotRequest) -> dict[str, Any] | None:
    """Return the message that a request makes or changes, None if it is about something else."""
    if request.route in MESSAGE_ROUTES:
        return request.json
    if request.route == "callback" and request.json.get("type") in (4, 7):
        return request.json["data"]
    return None


@pytest.fixture(scope="module")
def ada(sandbox: Sandbox) -> Person:
    """Ada: English, an ordinary member."""
    return sandbox.person("Ada")


@pytest.fixture(scope="module")
def bo(sandbox: Sandbox) -> Person:
    """Bo: Chinese, an ordinary member."""
    return sandbox.person("Bo")


@pytest.fixture(scope="module")
def mo(sandbox: Sandbox) -> Person:
    """Mo: a moderator."""
    return sandbox.person("Mo")
