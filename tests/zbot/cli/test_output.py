"""What the files are called and where they may go."""

from pathlib import Path

import pytest

from zbot.cli.batch import Wanted
from zbot.cli.output import MAX_PROMPT_NAME_BYTES, Output, allowed, file_name, fill_in, pattern_of
from zbot.errors import ConfigError
from zbot.request import ImageRequest


def wanted(prompt: str = "a fox", seed: int = 7) -> Wanted:
    return Wanted(request=ImageRequest(prompt=prompt, seed=seed, width=64, height=64))


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("a red fox", "a-red-fox"),
        ("../../etc/passwd", "etc-passwd"),
        ('a<b>c:d"e/f\\g|h?i*j', "a-b-c-d-e-f-g-h-i-j"),
        ("tab\there\0nul\x7f", "tab-here-nul"),
        ("CON", "CON-"),
        ("lpt1", "lpt1-"),
        ("  . trailing . ", "trailing"),
        ("~", "picture"),
        ("🦊🦊", "picture"),
        ("一只可爱的熊猫", "一只可爱的熊猫"),
        ("हिन्दी", "हिन्दी"),
        ("cafe\u0301", "caf\u00e9"),
        ("\ud800half", "half"),
    ],
)
def test_a_prompt_becomes_a_name_that_every_file_system_takes(prompt: str, name: str) -> None:
    assert file_name(prompt) == name


def test_a_long_prompt_is_cut_between_characters() -> None:
    name = file_name("熊" * 1000)
    assert name == "熊" * (MAX_PROMPT_NAME_BYTES // 3)


def test_a_reserved_name_that_only_the_pattern_makes_is_changed() -> None:
    assert fill_in("c{prompt}.png", seed=1, index=1, prompt="on") == Path("con-.png")


def test_a_prompt_leads_into_no_other_directory() -> None:
    filled = fill_in("{prompt}/{index}-{seed}.png", seed=42, index=3, prompt="../..")
    assert filled == Path("picture/003-42.png")


@pytest.mark.parametrize(
    ("output", "several_by", "pattern"),
    [
        ("fox.png", "", "fox.png"),
        ("fox", "", "fox.png"),
        ("v1.5", "", "v1.5.png"),
        ("fox.PNG", "", "fox.PNG"),
        ("out/", "", "out/result.png"),
        ("fox.png", "{seed}", "fox-{seed}.png"),
        ("fox.png", "{index}", "fox-{index}.png"),
        ("{prompt}.png", "{seed}", "{prompt}.png"),
    ],
)
def test_the_pattern_that_an_output_stands_for(output: str, several_by: str, pattern: str) -> None:
    assert pattern_of(output, several_by=several_by) == pattern


def test_a_directory_that_is_there_takes_the_usual_name(here: Path) -> None:
    (here / "out").mkdir()
    assert pattern_of("out") == "out/result.png"


@pytest.mark.parametrize("output", ["fox.jpg", "fox.webp", "{steps}.png", "{prompt}/{Seed}.png"])
def test_another_format_or_placeholder_is_refused(output: str) -> None:
    with pytest.raises(ConfigError, match=r"are PNG files; write fox\.png|unknown \{\w+\}; known are"):
        pattern_of(output)


@pytest.mark.parametrize("path", ["../x.png", "a/../../x.png", "/x.png", "link/x.png", "file.png"])
def test_no_way_leads_out_of_the_working_directory_unasked(here: Path, path: str) -> None:
    (here / "link").symlink_to(here.parent)
    (here / "file.png").symlink_to(here.parent / "elsewhere.png")
    with pytest.raises(ConfigError, match="outside the working directory; add --anywhere"):
        allowed(Path(path), anywhere=False)


def test_what_stays_inside_is_allowed_however_it_is_written(here: Path) -> None:
    (here / "inner").symlink_to(here)
    for path in ("x.png", "a/b/x.png", "a/../x.png", str(here / "x.png"), "inner/x.png"):
        allowed(Path(path), anywhere=False)
    allowed(Path("../x.png"), anywhere=True)


def test_what_cannot_be_made_is_refused_before_anything_is_drawn(here: Path) -> None:
    (here / "file").touch()
    with pytest.raises(ConfigError, match="is not a directory"):
        allowed(Path("file/x.png"), anywhere=False)
    with pytest.raises(ConfigError, match="is a directory; name a file"):
        allowed(here, anywhere=False)


@pytest.mark.parametrize("names", [("a fox", "A Fox"), ("cafe\u0301", "caf\u00e9"), ("a fox", "a fox!")])
def test_two_pictures_never_get_names_that_some_file_system_takes_for_one(names: tuple[str, str]) -> None:
    output = Output(pattern="{prompt}.png")
    with pytest.raises(ConfigError, match=r"two pictures would have the name .*; add \{index\} or \{seed\}"):
        output.plan([wanted(name) for name in names])


def test_a_name_that_is_too_long_is_refused() -> None:
    with pytest.raises(ConfigError, match="too long for a file's name"):
        fill_in("{prompt}" * 3 + ".png", seed=1, index=1, prompt="x" * 80)
    fill_in("{prompt}" * 2 + ".png", seed=1, index=1, prompt="x" * 80)


def test_a_file_that_is_there_is_replaced_only_by_force(here: Path) -> None:
    (here / "x.png").symlink_to(here / "nowhere")
    with pytest.raises(ConfigError, match=r"x\.png is there already; choose another name or add --force"):
        Output(pattern="x.png").plan([wanted()])
    (picture,) = Output(pattern="x.png", force=True).plan([wanted()])
    assert not picture.is_there


def test_the_sheet_of_a_sweep_is_named_after_its_seeds() -> None:
    assert Output(pattern="s/{seed}.png").sheet(range(40, 45), wanted()) == Path("s/40-44-sheet.png")
