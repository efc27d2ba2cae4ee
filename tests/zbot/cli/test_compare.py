"""Is a picture that was drawn again the same, and what is the first cause if not?"""

from dataclasses import replace

import numpy as np
import pytest

from tests.zbot.cli.painting import CARD, paint
from zbot import images, png
from zbot.cli.compare import Original, compare, first_cause
from zbot.errors import InvalidRequest
from zbot.images import Recipe
from zbot.request import ImageRequest

REQUEST = ImageRequest(prompt="a fox", seed=7, width=256, height=256)
RECIPE = Recipe.of(REQUEST, CARD)


def moved(levels: int) -> bytes:
    """Return the picture with every value moved by so many levels, within the range."""
    pixels = np.asarray(images.safe_open(paint(REQUEST)), dtype=np.int16)
    nearer = np.where(pixels > 127, pixels - levels, pixels + levels).astype(np.uint8)
    return png.encode(nearer, images.text_chunks(REQUEST, CARD))


def original(data: bytes) -> Original:
    return Original.of(data, images.read_recipe(data))


def test_the_same_pixels_are_identical_whatever_else_changed() -> None:
    verdict = compare(original(paint(REQUEST)), paint(REQUEST), replace(RECIPE, device="cuda: NVIDIA H200"))
    assert verdict.word == "identical"


def test_a_small_distance_is_within_the_tolerance_and_names_the_library() -> None:
    pixels = np.asarray(images.safe_open(paint(REQUEST))).copy()
    pixels[0, 0, 0] ^= 4
    nearly = png.encode(pixels, images.text_chunks(REQUEST, CARD))
    verdict = compare(
        original(paint(REQUEST)), nearly, replace(RECIPE, versions={"torch": "2.14.0", "zbot": "0.1.0"})
    )
    assert verdict.is_equal
    assert verdict.sentence.startswith(
        "equal within tolerance: another library, torch: 2.13.0 then, 2.14.0 now ("
    )


def test_a_large_distance_is_different_and_the_file_is_blamed_when_nothing_else_is() -> None:
    verdict = compare(original(moved(9)), paint(REQUEST), RECIPE)
    assert not verdict.is_equal
    assert verdict.sentence == (
        "different: model, libraries, device and settings are as they were: the file has been changed "
        "(the pixels are 9.00 of 255 apart, 9 at most)."
    )
    assert not compare(original(moved(1)), paint(REQUEST), RECIPE).is_equal  # every value, so the mean counts


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"model": "a", "device": "b"}, "another model: tiny then, a now"),
        ({"revision": "2"}, "another revision: 1 then, 2 now"),
        ({"lora_sha256": "ab" * 32, "dtype": "x"}, "another LoRA file: none then, abababababababab now"),
        ({"dtype": "bfloat16", "versions": {}}, "another dtype: float32 then, bfloat16 now"),
        ({"device": "cuda: X"}, "another device: cpu then, cuda: X now"),
        ({"placement": "tiled"}, "another placement: resident then, tiled now"),
        ({"versions": {"zbot": "0.1.0"}}, "another library, torch: 2.13.0 then, none now"),
        ({"options": {"threads": "4"}}, "another setting, threads: 2 then, 4 now"),
        ({}, ""),
    ],
)
def test_the_first_cause_that_can_be_named(change: dict[str, object], cause: str) -> None:
    assert first_cause(RECIPE, replace(RECIPE, **change)) == cause


def test_a_smaller_or_reencoded_copy_is_known_as_one() -> None:
    whole = paint(replace(REQUEST, width=512, height=512))
    for limit in (len(whole) - 1, 800):
        data, suffix = images.fit(whole, limit)
        copy = Original(pixels=images.safe_open(data), recipe=RECIPE, is_copy=True)
        assert suffix == ".webp"
        verdict = compare(copy, whole, RECIPE)
        assert "re-encoded or smaller copy" in verdict.sentence
    assert original(images.fit(whole, len(whole) - 1)[0]).is_copy


def test_another_seed_is_different_from_a_copy_too() -> None:
    copy = Original(pixels=images.safe_open(paint(REQUEST)), recipe=RECIPE, is_copy=True)
    assert compare(copy, paint(replace(REQUEST, seed=8)), RECIPE).word == "different"


def test_a_damaged_picture_is_refused_before_anything_is_drawn() -> None:
    data = paint(REQUEST)
    with pytest.raises(InvalidRequest) as problem:
        original(data[: len(data) // 2 + 400])
    assert problem.value.code == "image_damaged"
