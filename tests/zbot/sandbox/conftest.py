"""A sandbox with the demo bot in it, and the check of everything that passed between them."""

import pytest

from tests import openapi
from tests.zbot.sandbox.demo_bot import running
from zbot.sandbox import Sandbox


def check_all(sandbox: Sandbox) -> None:
    """Fail if a request of the bot's, or an answer of the sandbox's, is not as Discord's document says."""
    check = openapi.load()
    if check is not None:
        wrong = [sentence for request in sandbox.requests for sentence in check.check(request)]
        assert not wrong, "\n".join(wrong)


@pytest.fixture
async def sandbox():
    async with Sandbox(port=0) as sandbox:
        yield sandbox
        check_all(sandbox)


@pytest.fixture
async def bot(sandbox):
    async with running(sandbox) as bot:
        yield bot
