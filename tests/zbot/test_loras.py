"""LoRA files by name, and a LoRA with its strength as people write it."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zbot import loras
from zbot.errors import InvalidRequest
from zbot.request import MAX_LORA_SCALE, build_request


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A directory with files that are LoRAs and some that are none."""
    directory = tmp_path / "loras"
    directory.mkdir()
    for name in (
        "Ink.safetensors",
        "my old  style: v2.safetensors",
        "水墨.safetensors",
        ".hidden.safetensors",
    ):
        (directory / name).touch()
    for name in (
        "pickle.pt",
        "notes.txt",
        "a\nb.safetensors.bak",
        "x" * 81 + ".safetensors",
        "\x07.safetensors",
    ):
        (directory / name).touch()
    (directory / "folder.safetensors").mkdir()
    (tmp_path / "outside.safetensors").touch()
    return directory


def test_the_files_are_named_by_what_can_be_typed(directory: Path):
    assert list(loras.shelf(directory)) == ["Ink", "my_old_style_v2", "水墨"]
    assert loras.shelf(directory)["my_old_style_v2"].name == "my old  style: v2.safetensors"


def test_a_directory_that_is_not_there_holds_none(tmp_path: Path):
    assert loras.shelf(tmp_path / "nowhere") == {} == loras.shelf(Path(__file__))


def test_a_name_is_found_whatever_its_case(directory: Path):
    assert loras.find(directory, "INK") == directory / "Ink.safetensors"
    assert loras.find(directory, "ink2") is None


def test_of_two_names_that_differ_in_case_alone_the_first_counts(tmp_path: Path):
    for name in ("a.safetensors", "A.safetensors"):
        (tmp_path / name).touch()
    assert list(loras.shelf(tmp_path)) == ["A"]


@pytest.mark.parametrize(
    "name",
    ["../outside", "..", ".", "", "/etc/passwd", "Ink.safetensors", "./Ink", "x/../Ink", ".hidden", "pickle"],
)
def test_a_name_is_never_a_path(directory: Path, name: str):
    assert loras.find(directory, name) is None


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("ink", ("ink", None)),
        (" ink : 0.8 ", ("ink", 0.8)),
        ("ink:1", ("ink", 1.0)),
        ("ink:.5", ("ink", 0.5)),
        ("ink:-1.25", ("ink", -1.25)),
        ("ink:+2.", ("ink", 2.0)),
        ("水墨\uff1a0.8", ("水墨", 0.8)),
        ("../x:3", ("../x", 3.0)),  # found nowhere
    ],
)
def test_a_name_with_a_strength_is_read(text: str, read: tuple[str, float | None]):
    assert loras.split(text) == read


def test_a_strength_of_minus_nothing_is_nothing():
    assert str(loras.split("ink:-0")[1]) == "0.0"


@pytest.mark.parametrize(
    "text", ["", ":", ":1", "ink:", "ink:strong", "ink:nan", "ink:inf", "ink:1e3", "ink:٣", "a:b:c"]
)
def test_what_is_no_name_with_a_strength_is_refused(text: str):
    with pytest.raises(InvalidRequest) as caught:
        loras.split(text)
    assert caught.value.code == "lora_text"


@given(
    name=st.text(st.characters(exclude_characters=":\uff1a"), min_size=1).filter(
        lambda name: name == name.strip() != ""
    ),
    hundredths=st.integers(-400, 400),
)
def test_what_is_written_is_read_again(name: str, hundredths: int):
    scale = hundredths / 100
    assert loras.split(loras.written(name, scale)) == (name, scale)


# --- in a request ---


def test_a_known_lora_gets_its_own_spelling_and_strength_1():
    request = build_request(prompt="a fox", native_size=1024, lora="INK", known_loras=["Ink", "Oil"])
    assert (request.lora, request.lora_scale) == ("Ink", 1.0)
    for scale in (-MAX_LORA_SCALE, 0.0, MAX_LORA_SCALE):
        request = build_request(
            prompt="a fox", native_size=64, lora="ink", lora_scale=scale, known_loras=["Ink"]
        )
        assert request.lora_scale == scale


def test_without_a_lora_there_is_no_strength():
    request = build_request(prompt="a fox", native_size=1024, lora_scale=3.0, known_loras=["Ink"])
    assert (request.lora, request.lora_scale) == ("", 1.0)


def refused(**fields: object) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        build_request(prompt="a fox", native_size=1024, **fields)  # type: ignore[arg-type]
    return caught.value


def test_an_unknown_lora_is_refused_with_those_that_there_are():
    error = refused(lora="oil" * 50, known_loras=["Ink", "Sea"])
    assert (error.code, error.facts["known"]) == ("lora_unknown", "Ink, Sea")
    assert len(str(error.facts["value"])) == 40
    many = refused(lora="oil", known_loras=[f"style{number:02}" for number in range(99)])
    assert str(many.facts["known"]).endswith("style14, …")
    assert refused(lora="oil").code == "lora_none"


@pytest.mark.parametrize("scale", [4.01, -4.01, 999999.0, float("nan"), float("inf")])
def test_a_strength_out_of_range_is_refused_with_the_range(scale: float):
    error = refused(lora="ink", lora_scale=scale, known_loras=["Ink"])
    assert (error.code, error.facts["low"], error.facts["high"]) == ("lora_scale_range", "-4", "4")
