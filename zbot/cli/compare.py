"""Is a picture that was drawn again the same, and if not, what is the first cause that can be named?"""

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from zbot.images import Recipe

# The same arithmetic in another order (other library, card or thread count) moves few values, and by little.
TOLERANCE_LEVELS = 8
TOLERANCE_MEAN = 0.5
_CAUSES = ("model", "revision", "dtype", "device", "placement")


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a comparison found."""

    is_equal: bool  # identical, or within the tolerance
    sentence: str


def compare(before: bytes, recipe: Recipe, after: bytes, again: Recipe) -> Verdict:
    """Compare the pixels of two pictures [height, width, 3] in grey levels of 255, and name the first cause."""
    one, two = _pixels(before), _pixels(after)
    if one.shape != two.shape:
        return Verdict(
            is_equal=False, sentence=f"different: the sizes are {one.shape[:2]} and {two.shape[:2]}."
        )
    distance = np.abs(one.astype(np.int16) - two.astype(np.int16))
    largest, mean = int(distance.max()), float(distance.mean())
    if largest == 0:
        return Verdict(is_equal=True, sentence="identical: every pixel is the same.")
    found = f"largest distance {largest} of 255, mean {mean:.3f}; {_cause(recipe, again)}"
    if largest <= TOLERANCE_LEVELS and mean <= TOLERANCE_MEAN:
        return Verdict(is_equal=True, sentence=f"equal within tolerance: {found}")
    return Verdict(is_equal=False, sentence=f"different: {found}")


def _pixels(png: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image.convert("RGB"))


def _cause(before: Recipe, after: Recipe) -> str:
    for name in _CAUSES:
        if getattr(before, name) != getattr(after, name):
            return f"another {name}: {getattr(before, name)} then, {getattr(after, name)} now."
    for kind, then, now in (
        ("library", before.versions, after.versions),
        ("setting", before.options, after.options),
    ):
        for name in sorted(then.keys() | now.keys()):
            if then.get(name) != now.get(name):
                return f"another {kind}: {name} {then.get(name, 'none')} then, {now.get(name, 'none')} now."
    return "model, libraries, settings and device are the same: the file itself may have been changed."
