"""`--lora`: a name from the settings' directory, or any file by its path."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.zbot.cli.conftest import Run
from tests.zbot.cli.painting import PaintingEngine
from zbot import images
from zbot.cli.batch import Asked, batch_of, pictures_of, read_prompts
from zbot.cli.lora import Rack
from zbot.config import load_settings
from zbot.engine.start import process_engine
from zbot.errors import ConfigError, InvalidRequest, LoraError
from zbot.weights import locate


@pytest.fixture(autouse=True)
def shelf(tmp_path: Path, here: Path) -> Iterator[Path]:
    """The settings' directory with one LoRA, and others elsewhere."""
    directory = tmp_path / "data" / "loras"
    (here / "mine").mkdir()
    directory.mkdir(parents=True)
    for path in (directory / "Ink", here / "near", here / "mine" / "my style", here / "mine" / "near"):
        path.with_name(f"{path.name}.safetensors").touch()
    (here / "pickle.pt").touch()
    yield directory


@pytest.fixture
def given(engine: PaintingEngine, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the engine is started with."""
    given: dict[str, Any] = {}

    def start(*_: Any, **options: Any) -> PaintingEngine:
        given.update(options)
        return engine

    monkeypatch.setattr("zbot.engine.start.process_engine", start)
    return given


@pytest.mark.parametrize(
    ("typed", "drawn", "file"),
    [
        ("ink", ("Ink", 1.0), None),
        ("INK:0.8", ("Ink", 0.8), None),
        ("near.safetensors", ("near", 1.0), "near.safetensors"),
        ("./near.safetensors:-1.5", ("near", -1.5), "near.safetensors"),
        ("mine/my style.safetensors:2", ("my_style", 2.0), "mine/my style.safetensors"),
    ],
)
def test_a_name_and_a_path_reach_the_engine(
    run: Run,
    engine: PaintingEngine,
    given: dict[str, Any],
    here: Path,
    typed: str,
    drawn: tuple[str, float],
    file: str,
) -> None:
    done = run("generate", "--lora", typed, "--seed", 7)
    assert done.exit_code == 0, done.stderr
    assert [(one.lora, one.lora_scale) for one in engine.drawn] == [drawn]
    assert given["lora_files"] == ({drawn[0]: here / file} if file else {})
    recipe = images.read_recipe(here / "result.png")
    assert (recipe.lora, recipe.lora_scale) == drawn


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("oil", "There is no LoRA “oil”. These there are: Ink\n"),
        ("ink:5", "The LoRA strength 5 is out of range"),
        ("ink:x", "“ink:x” is no LoRA with a strength"),
        ("gone.safetensors:1", "--lora gone.safetensors: there is no .safetensors file of that name.\n"),
        ("./pickle.pt", "--lora pickle.pt: there is no .safetensors file of that name.\n"),
        ("mine/", "--lora mine: there is no .safetensors file of that name.\n"),
    ],
)
def test_what_there_is_not_is_one_sentence(run: Run, engine: PaintingEngine, typed: str, says: str) -> None:
    done = run("generate", "--lora", typed)
    assert done.exit_code == 2 and done.stderr.startswith(says) and done.stderr.count("\n") == 1
    assert not engine.drawn


def test_a_picture_drawn_again_keeps_its_lora_so_that_no_other_fits_beside(
    run: Run, engine: PaintingEngine, here: Path
) -> None:
    run("generate", "--lora", "ink:0.5", "--seed", 7, "-o", "first.png")
    assert run("generate", "--like", "first.png", "-o", "again.png").exit_code == 0
    assert (here / "again.png").read_bytes() == (here / "first.png").read_bytes()
    refused = run("generate", "--like", "first.png", "--lora", "ink")
    assert refused.exit_code == 2 and "--like leaves no room for --lora" in refused.stderr


def test_a_lora_that_cannot_be_used_is_named_without_a_detour(run: Run, engine: PaintingEngine) -> None:
    engine.fails[7] = LoraError("the LoRA file ink.safetensors does not fit this model")
    done = run("generate", "--lora", "ink", "--seed", 7)
    assert done.stderr == "result.png: The LoRA file ink.safetensors does not fit this model.\n"


def test_every_line_of_a_batch_may_have_its_own(here: Path, shelf: Path) -> None:
    lines = [
        "a cat",
        "a cat --lora ink",
        json.dumps({"prompt": "a dog", "lora": "near.safetensors:0.5"}),
        json.dumps({"prompt": "a dog", "lora": None}),
    ]
    Path("prompts.txt").write_text("\n".join(lines), "utf-8")
    rack = Rack(directory=shelf)
    asked = read_prompts(Path("prompts.txt"), Asked(prompt="", lora="ink:2"))
    drawn = [(one.request.lora, one.request.lora_scale) for one in batch_of(asked, 256, rack)]
    assert drawn == [("Ink", 2.0), ("Ink", 1.0), ("near", 0.5), ("", 1.0)]
    for line, says in (
        ('{"prompt": "x", "lora": 1}', "prompts.txt:1: “lora” must be a text"),
        ("x --lora oil", "prompts.txt:1: There is no LoRA “oil”"),
        ("x --lora mine/gone.safetensors", "prompts.txt:1: --lora mine/gone.safetensors: there is no"),
    ):
        Path("prompts.txt").write_text(line, "utf-8")
        with pytest.raises(ConfigError, match=says):
            batch_of(read_prompts(Path("prompts.txt"), Asked(prompt="")), 256, rack)


def test_two_files_of_one_name_are_refused(here: Path) -> None:
    rack = Rack()
    pictures_of(Asked(prompt="x", lora="near.safetensors"), 256, rack)
    with pytest.raises(ConfigError, match=r"mine/near\.safetensors.*has the same name"):
        pictures_of(Asked(prompt="x", lora="mine/near.safetensors"), 256, rack)
    with pytest.raises(InvalidRequest):
        pictures_of(Asked(prompt="x", lora="ink"), 256)


def test_the_engine_is_told_the_directory_and_the_files(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, here: Path, shelf: Path
) -> None:
    monkeypatch.setenv("DISCORD_TOKEN", "a.b.c")
    files = locate("tiny", tmp_path)
    engine = process_engine(load_settings(), files, lora_files={"near": Path("near.safetensors")})
    assert engine._options.lora_dir == str(shelf)
    assert engine._options.lora_files == {"near": str(here / "near.safetensors")}
    monkeypatch.setenv("ZBOT_LORA_DIR", "")
    assert load_settings().loras == shelf
    monkeypatch.setenv("ZBOT_LORA_DIR", str(here / "mine"))
    assert load_settings().loras == here / "mine"
    monkeypatch.setenv("ZBOT_LORA_DIR", "styles")
    assert load_settings().loras == Path(__file__).parents[3] / "styles"
