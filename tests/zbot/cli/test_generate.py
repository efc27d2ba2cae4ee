"""`python -m zbot generate` as a person meets it, with an engine that draws at once."""

import json
import operator
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin

from tests.zbot.cli.conftest import Run
from tests.zbot.cli.painting import PaintingEngine
from zbot import images, weights
from zbot.errors import EngineDead, NonFiniteOutput, OutOfMemory


def names(directory: Path) -> list[str]:
    return sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())


def test_nothing_given_draws_the_default_prompt_to_result_png(
    run: Run, engine: PaintingEngine, here: Path
) -> None:
    done = run("generate")
    assert (done.exit_code, done.stdout) == (0, "")
    recipe = images.read_recipe(here / "result.png")
    assert recipe.prompt == "a red fox in the snow, morning light"
    assert (recipe.steps, recipe.width, recipe.height) == (8, 256, 256)
    assert done.stderr == f"result.png: seed {recipe.seed}, 0.25 s\n"
    assert not engine.is_open


def test_what_the_options_say_is_drawn(run: Run, engine: PaintingEngine, here: Path) -> None:
    run(
        "generate",
        "--prompt",
        "a cat",
        "--seed",
        7,
        "--width",
        128,
        "--height",
        64,
        "--steps",
        3,
        "-o",
        "a/b/cat",
    )
    assert images.read_recipe(here / "a/b/cat.png").to_request() == engine.drawn[0]
    (drawn,) = engine.drawn
    assert (drawn.prompt, drawn.seed, drawn.width, drawn.height, drawn.steps) == ("a cat", 7, 128, 64, 3)
    run("generate", "--prompt", "a cat --ar 9:16", "--aspect", "16:9", "--seed", 4294967295, "--count", 2)
    assert [(one.width, one.height, one.seed) for one in engine.drawn[1:]] == [
        (176, 320, 4294967295),
        (176, 320, 0),
    ]
    assert names(here) == ["a/b/cat.png", "result-0.png", "result-4294967295.png"]


def test_a_sweep_makes_its_pictures_and_one_labelled_sheet(
    run: Run, engine: PaintingEngine, here: Path
) -> None:
    done = run("generate", "--seeds", "40:45", "-o", "fox/{seed}.png")
    assert names(here) == ["fox/40-44-sheet.png", *(f"fox/{seed}.png" for seed in range(40, 45))]
    assert done.stderr.splitlines()[-1] == "fox/40-44-sheet.png: all of them side by side"
    with Image.open(here / "fox/40-44-sheet.png") as sheet, Image.open(here / "fox/43.png") as picture:
        colour = picture.getpixel((10, 10))
        assert (
            sheet.getpixel((8 + 10, 8 + 256 + 21 + 8 + 10)) == colour
        )  # the fourth is the first of the second row
        label = sheet.crop((8, 8 + 256, 8 + 80, 8 + 256 + 21)).convert("L")
        assert label.getextrema()[0] < 100  # something dark is written under it


def test_a_sweep_goes_on_where_it_stopped(run: Run, engine: PaintingEngine, here: Path) -> None:
    run("generate", "--seeds", "40:43")
    (here / "result-41.png").unlink()
    (here / "result-40-42-sheet.png").unlink()
    before = (here / "result-40.png").stat().st_mtime_ns
    again = run("generate", "--seeds", "40:43")
    assert again.stderr.splitlines()[0] == "2 of 3 are drawn already."
    assert [one.seed for one in engine.drawn] == [40, 41, 42, 41]
    assert (here / "result-40.png").stat().st_mtime_ns == before
    done = run("generate", "--seeds", "40:43")
    assert done.exit_code == 2 and "result-40-42-sheet.png is there already" in done.stderr


def test_a_batch_goes_on_where_it_stopped_also_with_seeds_that_nobody_chose(
    run: Run, engine: PaintingEngine, here: Path
) -> None:
    Path("prompts.txt").write_text('a fox\na fox\n{"prompt": "a cat", "seed": 5, "count": 2}\n')
    first = run("generate", "--prompts", "prompts.txt", "-o", "out/{prompt}-{seed}.png")
    assert first.exit_code == 0, first.output
    seeds = [one.seed for one in engine.drawn]
    assert names(here / "out") == sorted(
        ["a-cat-5.png", "a-cat-6.png", f"a-fox-{seeds[0]}.png", f"a-fox-{seeds[1]}.png"]
    )
    (here / f"out/a-fox-{seeds[1]}.png").unlink()
    (here / "out/a-cat-6.png").unlink()
    again = run("generate", "--prompts", "prompts.txt", "-o", "out/{prompt}-{seed}.png", "--json")
    assert again.stderr == "2 of 4 are drawn already.\n"
    assert len(names(here / "out")) == 4
    lines = [json.loads(line) for line in again.stdout.splitlines()]
    assert [(line["prompt"], line["drawn"]) for line in lines] == [
        ("a fox", False), ("a cat", False), ("a fox", True), ("a cat", True),
    ]  # fmt: skip
    assert lines[0]["seed"] == seeds[0] and lines[0]["file"] == f"out/a-fox-{seeds[0]}.png"
    assert run("generate", "--prompts", "prompts.txt", "-o", "out/{prompt}-{seed}.png").exit_code == 0
    assert len(engine.drawn) == 6


@pytest.mark.parametrize(
    ("pattern", "lost"),
    [("out/{index}.png", [1, 2]), ("out/{index}.png", [0, 1]), ("out/{prompt}-{seed}.png", [1, 2])],
)
def test_the_seeds_of_one_line_follow_each_other_also_after_it_was_stopped(
    run: Run, engine: PaintingEngine, here: Path, pattern: str, lost: list[int]
) -> None:
    Path("prompts.txt").write_text("a cat\na fox --n 3\n")
    arguments = ("generate", "--prompts", "prompts.txt", "-o", pattern, "--json")
    before = [json.loads(line) for line in run(*arguments).stdout.splitlines()]
    assert [line["seed"] - before[1]["seed"] for line in before[1:]] == [0, 1, 2]
    for number in lost:
        (here / before[1 + number]["file"]).unlink()
    again = [json.loads(line) for line in run(*arguments).stdout.splitlines()]
    key = operator.itemgetter("file", "seed")
    assert sorted(map(key, again)) == sorted(map(key, before))
    assert len(engine.drawn) == 4 + len(lost)


def test_a_batch_numbers_its_pictures_so_that_lines_can_be_added(
    run: Run, engine: PaintingEngine, here: Path
) -> None:
    prompts = here / "prompts.txt"
    prompts.write_text("a fox\n")
    run("generate", "--prompts", "prompts.txt")
    prompts.write_text("a fox\na cat\n")
    assert run("generate", "--prompts", "prompts.txt").exit_code == 0
    assert names(here) == ["prompts.txt", "result-001.png", "result-002.png"]
    assert [one.prompt for one in engine.drawn] == ["a fox", "a cat"]


def test_a_batch_never_takes_another_picture_for_its_own(
    run: Run, engine: PaintingEngine, here: Path
) -> None:
    prompts = here / "prompts.txt"
    prompts.write_text("a fox --seed 1\n")
    run("generate", "--prompts", "prompts.txt")
    for change in ("a cat --seed 1", "a fox --seed 2", "a fox --seed 1 --steps 4"):
        prompts.write_text(f"{change}\n")
        done = run("generate", "--prompts", "prompts.txt")
        assert done.exit_code == 2 and "result-001.png is there already" in done.stderr
    prompts.write_text("a fox --seed 1\n")
    engine.card = engine.card.__class__(**{**_fields(engine), "revision": "another"})
    run("generate", "--prompts", "prompts.txt", "--force")  # drawn by another model
    assert run("generate", "--prompts", "prompts.txt").exit_code == 2


def _fields(engine: PaintingEngine) -> dict[str, object]:
    return {name: getattr(engine.card, name) for name in engine.card.__dataclass_fields__}


def test_nothing_is_replaced_without_force(run: Run, engine: PaintingEngine, here: Path) -> None:
    (here / "result.png").write_bytes(b"mine")
    refused = run("generate")
    assert refused.exit_code == 2
    assert refused.stderr == "result.png is there already; choose another name or add --force.\n"
    assert (here / "result.png").read_bytes() == b"mine" and not engine.drawn
    assert run("generate", "--force").exit_code == 0
    assert images.read_recipe(here / "result.png")


def test_a_file_that_comes_into_being_meanwhile_is_not_replaced(
    run: Run, engine: PaintingEngine, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = engine.draw

    async def draw_slowly(*arguments: object) -> object:
        (here / "result.png").write_bytes(b"another's")
        return await draw(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(engine, "draw", draw_slowly)
    done = run("generate")
    assert (done.exit_code, done.stderr) == (2, "result.png: another program has made this file meanwhile.\n")
    assert names(here) == ["result.png"] and (here / "result.png").read_bytes() == b"another's"


def test_json_is_one_line_per_picture_and_nothing_else_on_standard_output(
    run: Run, engine: PaintingEngine
) -> None:
    done = run("generate", "--prompt", "一只狐狸", "--seed", 7, "--count", 2, "--json")
    first, second = (json.loads(line) for line in done.stdout.splitlines())
    assert first == {
        "file": "result-7.png", "prompt": "一只狐狸", "seed": 7, "steps": 8, "width": 256, "height": 256,
        "drawn": True, "gpu_s": 0.25, "unused_prompt": "",
    }  # fmt: skip
    assert second["seed"] == 8 and done.stderr == ""


def test_one_picture_that_fails_costs_the_others_nothing(
    run: Run, engine: PaintingEngine, here: Path
) -> None:
    engine.fails = {41: NonFiniteOutput("the latents are not finite"), 42: OutOfMemory("4 GiB wanted")}
    done = run("generate", "--seeds", "40:44")
    assert done.exit_code == 2
    assert names(here) == ["result-40.png", "result-43.png"]
    assert (
        "result-41.png: The numbers went wrong on the way (the latents are not finite); try another seed."
        in (done.stderr.splitlines())
    )
    assert "result-42.png: The memory is too small for this (4 GiB wanted); take a smaller" in done.stderr
    engine.fails = {}
    assert run("generate", "--seeds", "40:44").exit_code == 0
    assert len(names(here)) == 5


def test_the_end_of_the_engine_ends_the_batch_in_one_sentence(
    run: Run, engine: PaintingEngine, here: Path
) -> None:
    engine.fails = {41: EngineDead("the engine's process was ended by SIGKILL")}
    done = run("generate", "--seeds", "40:44")
    assert done.exit_code == 2
    assert done.stderr.splitlines()[-1] == (
        "The drawing process has ended (the engine's process was ended by SIGKILL); "
        "`python -m zbot doctor` looks for the cause."
    )
    assert names(here) == ["result-40.png"] and not engine.is_open


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("--verify", "--verify compares with a picture: add --like FILE.png."),
        ("--like x.png --seed 4", "--like leaves no room for --seed; leave one of them out."),
        (
            "--like x.png --prompts y --count 2",
            "--like leaves no room for --prompts, --count; leave one of them out.",
        ),
        ("--seeds 1:2 --seed 4", "--seeds leaves no room for --seed; leave one of them out."),
        ("--prompts y --seeds 1:2", "--prompts leaves no room for --seeds; leave one of them out."),
        ("--aspect 1:1 --height 64", "--aspect leaves no room for --height; leave one of them out."),
        ("--like x.png", "x.png: No such file or directory."),
        ("-o /x.png", "/x.png lies outside the working directory; add --anywhere if you mean it."),
        ("-o ../x.png", "../x.png lies outside the working directory; add --anywhere if you mean it."),
        ("--seeds 1:3 -o ../x.png", "../x-1-2-sheet.png lies outside the working directory; add --anywhere"),
        ("--width 100", "100×256 cannot be drawn: both sides must be multiples of 16."),
        ("--seed -1", "Seed -1 is out of range: take a whole number from 0 to 4294967295."),
        ("--count 5", "5 pictures cannot be drawn at once: take 1 to 4."),
        ("--steps 99", "99 steps cannot be done: take 1 to 50; 8 is what the model is made for."),
        ("--model nobody/nothing", "nobody/nothing is not in the cache"),
        ("--model /nowhere", "ZBOT_MODEL=/nowhere: there is no such directory; correct the setting."),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(
    run: Run, engine: PaintingEngine, here: Path, arguments: str, says: str
) -> None:
    done = run("generate", *arguments.split())
    assert done.exit_code == 2
    assert done.stderr.startswith(says) and done.stderr.count("\n") == 1
    assert not engine.drawn and names(here) == []


def test_outside_of_the_working_directory_with_anywhere(
    run: Run, engine: PaintingEngine, tmp_path: Path
) -> None:
    done = run("generate", "-o", tmp_path / "deep/down/x.png", "--anywhere")
    assert done.exit_code == 0 and (tmp_path / "deep/down/x.png").is_file()


def test_like_makes_a_picture_again_and_says_what_is_not_as_it_was(
    run: Run, engine: PaintingEngine, here: Path
) -> None:
    run("generate", "--prompt", "a fox", "--seed", 7, "--steps", 3, "-o", "fox.png")
    quiet = run("generate", "--like", "fox.png", "-o", "again.png")
    assert quiet.stderr == "again.png: seed 7, 0.25 s\n"
    assert (here / "again.png").read_bytes() == (here / "fox.png").read_bytes()
    engine.card = engine.card.__class__(**{**_fields(engine), "device": "cuda: NVIDIA H200"})
    warned = run("generate", "--like", "fox.png", "-o", "third.png")
    assert warned.exit_code == 0
    assert (
        "This may not be the same picture: another device: cpu then, cuda: NVIDIA H200 now." in warned.stderr
    )


def test_verify_writes_nothing_unless_told_where(run: Run, engine: PaintingEngine, here: Path) -> None:
    run("generate", "--seed", 7, "-o", "fox.png")
    same = run("generate", "--like", "fox.png", "--verify")
    assert (same.exit_code, same.stdout) == (0, "identical: every pixel is the same.\n")
    assert names(here) == ["fox.png"]
    assert run("generate", "--like", "fox.png", "--verify", "-o", "again.png").exit_code == 0
    assert (here / "again.png").read_bytes() == (here / "fox.png").read_bytes()
    refused = run("generate", "--like", "fox.png", "--verify", "-o", "again.png")
    assert refused.exit_code == 2 and "again.png is there already" in refused.stderr


def test_verify_of_another_picture_leaves_with_exit_code_1(
    run: Run, engine: PaintingEngine, here: Path
) -> None:
    run("generate", "--seed", 7, "-o", "fox.png")
    recipe = images.read_recipe(here / "fox.png")
    with Image.open(here / "fox.png") as picture:
        text = PngImagePlugin.PngInfo()
        text.add_itxt(images.RECIPE_KEY, recipe.to_json())
        picture.rotate(180).save(here / "turned.png", pnginfo=text)
    done = run("generate", "--like", "turned.png", "--verify")
    assert done.exit_code == 1
    assert done.stdout.startswith(
        "different: model, libraries, device and settings are as they were: the file has"
    )
    as_json = json.loads(run("generate", "--like", "turned.png", "--verify", "--json").stdout)
    assert as_json == {"file": "turned.png", "verdict": "different", "cause": ""}


def test_a_card_that_torch_cannot_use_is_named_instead_of_drawing_for_minutes_without_it(
    run: Run, engine: PaintingEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'Failed to initialize NVML: Driver/library version mismatch'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    model = shutil.copytree(weights.locate("tiny", tmp_path).directory, tmp_path / "model")
    done = run("generate", "--model", model)
    assert done.exit_code == 2 and engine.drawn == []
    assert "version mismatch" in done.stderr and "ZBOT_DEVICE=cpu" in done.stderr
    monkeypatch.setenv("ZBOT_DEVICE", "cpu")
    assert run("generate", "--model", model).exit_code == 0
