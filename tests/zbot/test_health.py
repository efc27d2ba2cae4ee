import json
import time
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import Clock, eventually, running
from zbot import health

WELL = {"connected": True, "engine": "ready", "problem": "", "waiting": 3}


async def facts() -> dict[str, Any]:
    return dict(WELL)


async def test_a_bot_that_writes_is_well(tmp_path: Path):
    path = tmp_path / "health.json"
    async with running(health.keep_writing(path, facts)):
        await eventually(path.exists)
    is_well, sentence = health.check(path)
    assert is_well and "ready" in sentence and "3 jobs" in sentence


async def test_it_is_written_again_and_again(tmp_path: Path, clock: Clock):
    path = tmp_path / "health.json"
    async with running(health.keep_writing(path, facts)):
        await eventually(path.exists)
        path.unlink()
        await clock.advance(health.WRITE_EVERY_S)
        await eventually(path.exists)


def test_where_nothing_was_written_no_bot_runs(tmp_path: Path):
    assert health.check(tmp_path / "health.json") == (False, "The bot does not run here.")


@pytest.mark.parametrize("content", ["", "{", "null", "[]", "{}", '{"written_at": "now"}'])
def test_a_file_that_is_none_of_ours_is_no_sign_of_life(tmp_path: Path, content: str):
    path = tmp_path / "health.json"
    path.write_text(content)
    assert not health.check(path)[0]


def test_an_old_file_is_a_bot_that_hangs(tmp_path: Path):
    path = tmp_path / "health.json"
    path.write_text(json.dumps(WELL | {"written_at": time.time() - health.TOO_OLD_S - 1}))
    is_well, sentence = health.check(path)
    assert not is_well and "46 s" in sentence


def test_a_bot_without_discord_is_not_well(tmp_path: Path):
    path = tmp_path / "health.json"
    path.write_text(json.dumps(WELL | {"written_at": time.time(), "connected": False}))
    assert "not connected" in health.check(path)[1]


async def test_a_full_disk_ends_nothing(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "missing" / "health.json"
    async with running(health.keep_writing(path, facts)) as task:
        await clock.advance(health.WRITE_EVERY_S)
        assert not task.done()
        path.parent.mkdir()
        await clock.advance(health.WRITE_EVERY_S)
        await eventually(path.exists)
