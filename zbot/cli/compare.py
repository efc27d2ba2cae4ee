"""Is a picture that was drawn again the same, and if not, what is the first cause that can be named?"""

from dataclasses import dataclass

from PIL import Image

from zbot.images import Recipe, safe_open

# The same arithmetic in another order (other library, card or thread count) moves few values, and by little.
TOLERANCE_LEVELS = 8
TOLERANCE_MEAN = 0.5
# What `images.fit` makes of a picture too large for a server is near it, but no pixel need be the same.
TOLERANCE_MEAN_OF_A_COPY = 3.0
_FIRST = ("model", "revision")
_THEN = ("dtype", "device", "placement")
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Original:
    """A picture that is to be drawn again: its pixels, and whether they are as they were drawn."""

    pixels: Image.Image
    recipe: Recipe
    is_copy: bool

    @classmethod
    def of(cls, data: bytes, recipe: Recipe) -> "Original":
        """Decode a file. Raises: InvalidRequest (`image_damaged`, …)."""
        pixels = safe_open(data)
        is_copy = not data.startswith(_PNG) or pixels.size != (recipe.width, recipe.height)
        return cls(pixels=pixels, recipe=recipe, is_copy=is_copy)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a comparison found: the largest and the mean distance of two pictures, in levels of 255."""

    largest: int
    mean: float
    is_copy: bool
    cause: str  # the first that can be named; "" for a file that was changed after it was drawn

    @property
    def is_equal(self) -> bool:
        """Whether the pictures are identical, or within the tolerance."""
        if self.is_copy:
            return self.mean <= TOLERANCE_MEAN_OF_A_COPY
        return self.largest <= TOLERANCE_LEVELS and self.mean <= TOLERANCE_MEAN

    @property
    def word(self) -> str:
        """The verdict itself."""
        if self.largest == 0:
            return "identical"
        return "equal within tolerance" if self.is_equal else "different"

    @property
    def sentence(self) -> str:
        """The verdict with its reason."""
        if self.largest == 0:
            return "identical: every pixel is the same."
        cause = (
            self.cause or "model, libraries, device and settings are as they were: the file has been changed"
        )
        return f"{self.word}: {cause} (the pixels are {self.mean:.2f} of 255 apart, {self.largest} at most)."


def compare(original: Original, after: bytes, again: Recipe) -> Verdict:
    """Compare the pixels of a picture with those of the PNG that was drawn again."""
    import numpy as np

    now = safe_open(after)
    if now.size != original.pixels.size:
        now = now.resize(original.pixels.size, Image.Resampling.LANCZOS)  # as a copy is made smaller
    one, two = (np.asarray(image, dtype=np.int16) for image in (original.pixels, now))
    distance = np.abs(one - two)
    return Verdict(
        largest=int(distance.max()),
        mean=float(distance.mean()),
        is_copy=original.is_copy,
        cause=first_cause(original.recipe, again, is_copy=original.is_copy),
    )


def first_cause(before: Recipe, after: Recipe, *, is_copy: bool = False) -> str:
    """Return the first thing that is not as it was when the picture was drawn; "" when everything is."""
    for name in _FIRST:
        if (cause := _differs(name, getattr(before, name), getattr(after, name))) is not None:
            return cause
    if (cause := _differs("LoRA file", before.lora_sha256[:16], after.lora_sha256[:16])) is not None:
        return cause
    if is_copy:
        return "the file is a re-encoded or smaller copy, not the PNG that was drawn"
    for name in _THEN:
        if (cause := _differs(name, getattr(before, name), getattr(after, name))) is not None:
            return cause
    for kind, then, now in (
        ("library", before.versions, after.versions),
        ("setting", before.options, after.options),
    ):
        for name in sorted(then.keys() | now.keys()):
            if (cause := _differs(f"{kind}, {name}", then.get(name, ""), now.get(name, ""))) is not None:
                return cause
    return ""


def _differs(name: str, then: str, now: str) -> str | None:
    return None if then == now else f"another {name}: {then or 'none'} then, {now or 'none'} now"
