"""What many tests start from: a data directory, a real database in it, and time in the test's hands."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.fakes import Clock
from tests.hub import IMPATIENT_CLIENT
from tests.nursery import Nursery
from zbot import writer
from zbot.store import Store

# Before whichever test imports ModelScope's client first: it reads its patience then, and never again.
os.environ.update(IMPATIENT_CLIENT)

# The machines that run this differ in speed; a slow example is no failure. A failing one prints how to repeat it.
settings.register_profile("zbot", deadline=None, max_examples=60, print_blob=True)
settings.load_profile("zbot")


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A data directory as the bot makes it."""
    directory = tmp_path / "data"
    (directory / "images").mkdir(parents=True)
    return directory


@pytest.fixture
async def store(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Store]:
    """An open database in a real file; a change that has no haste waits for no other."""
    monkeypatch.setattr(writer, "PATIENCE_S", 0.0)
    async with Store(data_dir / "zbot.db") as store:
        yield store


@pytest.fixture
async def clock() -> Clock:
    """The event loop's time in the test's hands."""
    return Clock(asyncio.get_running_loop())


@pytest.fixture(scope="session")
def _nursery() -> Iterator[Nursery]:
    """The process that forks bots, for `nursery` fixtures to open in their event loop."""
    nursery = Nursery()
    yield nursery
    nursery.close()
