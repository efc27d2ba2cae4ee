"""Fixtures of the fault matrix; `pytest tests/crash --crash-all` runs all of it, three times."""

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from tests.crash.stage import TOKEN, Stage
from tests.nursery import Nursery
from zbot.sandbox import Sandbox

OpenStage = Callable[[str], AbstractAsyncContextManager[Stage]]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--crash-all",
        action="store_true",
        help="kill at every point, in three different backlogs, instead of a sample",
    )


@pytest.fixture
def crash_all(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--crash-all", default=False))


@pytest.fixture
async def nursery(_nursery: Nursery) -> AsyncGenerator[Nursery]:
    async with _nursery.open():
        yield _nursery


@pytest.fixture
def open_stage(nursery: Nursery, tmp_path: Path) -> OpenStage:
    """Return what opens a stage of its own, with a sandbox on a port of its own."""

    @asynccontextmanager
    async def opened(name: str) -> AsyncGenerator[Stage]:
        data = tmp_path / name
        data.mkdir()
        async with Sandbox(port=0, token=TOKEN) as sandbox:
            stage = Stage(nursery=nursery, sandbox=sandbox, data=data)
            try:
                yield stage
            finally:
                for victim in stage.victims:
                    await victim.end(9)

    return opened


@pytest.fixture
async def stage(open_stage: OpenStage) -> AsyncGenerator[Stage]:
    async with open_stage("data") as stage:
        yield stage
