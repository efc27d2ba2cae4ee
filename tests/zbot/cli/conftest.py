"""A working directory of the test's own, settings without a token, and an engine that draws at once."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from tests.zbot.cli.painting import PaintingEngine
from zbot import weights
from zbot.__main__ import app

Run = Callable[..., Result]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, beside the data directory."""
    for name in [name for name in os.environ if name.startswith(("ZBOT_", "DISCORD_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("ZBOT_MODEL", "tiny")
    monkeypatch.setenv("ZBOT_DATA_DIR", str(tmp_path / "data"))
    directory = tmp_path / "here"
    directory.mkdir()
    monkeypatch.chdir(directory)
    return directory


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> PaintingEngine:
    """The engine that every command of this test draws with."""
    engine = PaintingEngine(revision=weights.locate("tiny", tmp_path).revision)
    monkeypatch.setattr("zbot.engine.start.process_engine", lambda *_, **__: engine)
    return engine


@pytest.fixture
def run() -> Run:
    """Run one command line; what nobody expects is raised."""

    def run(*arguments: object) -> Result:
        return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)

    return run
