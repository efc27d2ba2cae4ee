"""The bot's engine finds the model and looks at the card at every load, and says what stands in the way."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import FakeEngine
from zbot import weights
from zbot.card import Build
from zbot.config import Settings
from zbot.engine import start
from zbot.engine.start import LocatingEngine
from zbot.errors import ConfigError, EngineDead, OutOfMemory, WeightsError
from zbot.request import ImageRequest

TINY = Path(weights.__file__).parent.parent / "models" / "tiny"
GOOD = "NVIDIA H200, 580.95.05, 143771, 143000"


class Made:
    """The engines that were made, and the directory of each one's model."""

    def __init__(self) -> None:
        self.engines: list[FakeEngine] = []
        self.directories: list[Path] = []
        self.load_error: Exception | None = None

    def __call__(self, settings: Settings, files: weights.ModelFiles) -> FakeEngine:
        engine = FakeEngine()
        if self.load_error is not None:
            engine.load_errors.append(self.load_error)
        self.engines.append(engine)
        self.directories.append(files.directory)
        return engine


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Made:
    """Take note of every engine instead of starting a process, with a torch that is made for CUDA 13."""
    made = Made()
    monkeypatch.setattr(start, "process_engine", made)
    monkeypatch.setattr(start.card, "torch_build", lambda: Build(cuda=13, is_rocm=False))
    return made


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return shutil.copytree(TINY, tmp_path / "model")


@pytest.fixture
def settings(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name in ("MODELSCOPE_CACHE", "HF_HOME"):
        monkeypatch.setenv(name, "")  # so that what `load` sets is taken back
    (tmp_path / "data").mkdir()
    tools = tmp_path / "bin"
    tools.mkdir()
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    values: dict[str, Any] = {
        "discord_token": "t",
        "model": str(model),
        "data_dir": tmp_path / "data",
        "cache_dir": tmp_path / "cache",
    }
    return Settings(_env_file=None, **values)


def card_says(tmp_path: Path, answer: str) -> None:
    """Put a tool where nvidia-smi is looked for."""
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\necho '{answer}'\n")
    tool.chmod(0o755)


def nothing(_: object) -> None:
    """Take no notice."""


async def test_a_model_that_is_mended_or_lies_elsewhere_is_taken_up_at_the_next_load(
    made: Made, settings: Settings, model: Path, tmp_path: Path
) -> None:
    engine = LocatingEngine(settings)
    model.rename(tmp_path / "away")
    with pytest.raises(WeightsError, match="no such directory"):
        await engine.load(nothing)
    with pytest.raises(EngineDead):
        await engine.draw(ImageRequest(prompt="a fox", seed=1, width=64, height=64), nothing)
    (tmp_path / "away").rename(model)
    await engine.load(nothing)
    await engine.load(nothing)
    assert len(made.engines) == 1 and made.engines[0].loads == 2  # nothing has changed: the same engine
    (model / "vae/config.json").write_bytes((model / "vae/config.json").read_bytes() + b"\n")
    await engine.load(nothing)
    assert len(made.engines) == 2 and made.engines[0].closed
    await engine.close()
    assert made.engines[1].closed


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ("NVIDIA A10, 570.10, 23028, 23000", "driver 570.10, too old for this torch.*install a driver of 580"),
        ("Failed to initialize NVML: Driver/library version mismatch", "version mismatch.*ZBOT_DEVICE=cpu"),
    ],
)  # fmt: skip
async def test_a_card_that_torch_cannot_use_is_named_and_used_once_it_can_be(
    made: Made, settings: Settings, tmp_path: Path, answer: str, says: str
) -> None:
    engine = LocatingEngine(settings)
    card_says(tmp_path, answer)
    with pytest.raises(ConfigError, match=says):
        await engine.load(nothing)
    assert made.engines == []
    card_says(tmp_path, GOOD)
    await engine.load(nothing)
    assert made.engines[0].loads == 1


@pytest.mark.parametrize("change", [{"device": "cpu"}, {"model": "tiny"}])
async def test_who_draws_without_the_card_is_not_kept_by_it(
    made: Made, settings: Settings, tmp_path: Path, change: dict[str, str]
) -> None:
    card_says(tmp_path, "NVIDIA A10, 470.10, 23028, 23000")
    await LocatingEngine(settings.model_copy(update=change)).load(nothing)
    assert made.engines[0].loads == 1


async def test_another_program_on_the_card_is_named_where_memory_is_wanting(
    made: Made, settings: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    card_says(tmp_path, "NVIDIA H200, 580.95.05, 143771, 3000")
    made.load_error = OutOfMemory("the model does not fit with placement sequential_offload")
    engine = LocatingEngine(settings)
    with pytest.raises(
        OutOfMemory, match=r"does not fit.*other programs hold 137.5 GiB of the card.*end them"
    ):
        await engine.load(nothing)
    assert "other programs hold 137.5 GiB" in caplog.text
    card_says(tmp_path, GOOD)
    caplog.clear()
    await engine.load(nothing)
    assert caplog.text == ""
