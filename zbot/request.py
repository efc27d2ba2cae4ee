"""What a person may ask for: pure validation, normalisation and cost of an `ImageRequest`."""

import math
import re
import secrets
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from zbot.errors import InvalidRequest

MAX_PROMPT_CHARACTERS = 6_000  # Discord's own limit for a string option
MAX_SEED = 2**32 - 1  # the range that other tools show; torch takes more
MAX_STEPS = 50
MAX_IMAGES = 4
MAX_LORA_SCALE = 4.0  # either way; files are made for 1, and some for less or for the opposite
DEFAULT_STEPS = 8  # Z-Image-Turbo is distilled for 8 steps
LORAS_LISTED = 15  # in the answer to a name that there is not: a message holds 2,000 characters
SIZE_MULTIPLE = 16  # 8x of the VAE times the transformer's patch of 2
MAX_PIXELS_OF_NATIVE = 4  # nothing in the model caps the area: 2048x2048 for a native 1024

# Landscape sizes near one megapixel at a native side of 1024; the upright twins are these turned.
_LANDSCAPE = {
    "1:1": (1024, 1024),
    "4:3": (1152, 864),
    "3:2": (1248, 832),
    "16:9": (1280, 720),
    "21:9": (1344, 576),
}
ASPECTS: dict[str, tuple[int, int]] = _LANDSCAPE | {
    ":".join(reversed(name.split(":"))): (height, width)
    for name, (width, height) in _LANDSCAPE.items()
    if width != height
}

# Control tokens of the text encoder's chat template, `<|im_end|>` and the like: a space makes them plain text.
_CONTROL_TOKEN = re.compile(r"<\|(?=[^|<>]{1,40}\|>)")


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRequest:
    """One request as it is stored and drawn; picture k of `num_images` has the seed `seed + k`."""

    prompt: str
    seed: int
    width: int
    height: int
    steps: int = DEFAULT_STEPS
    guidance_scale: float = 0.0
    num_images: int = 1
    lora: str = ""  # the name of a LoRA file, "" for none
    lora_scale: float = 1.0

    @property
    def cost(self) -> int:
        """Work on the card in pixel-steps: width x height x steps x pictures."""
        return self.width * self.height * self.steps * self.num_images

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seed of every picture; after the largest seed comes 0."""
        return tuple((self.seed + index) % (MAX_SEED + 1) for index in range(self.num_images))

    def pictures(self) -> Iterator["ImageRequest"]:
        """Yield one single-picture request per picture: each is drawn alone, so it can be made again alone."""
        for seed in self.seeds:
            yield replace(self, seed=seed, num_images=1)


def random_seed() -> int:
    """Return a fresh seed in 0..MAX_SEED."""
    return secrets.randbelow(MAX_SEED + 1)


def size_for(aspect: str, native_size: int) -> tuple[int, int]:
    """Return (width, height) in pixels of an aspect for a model whose square side is `native_size`.

    Raises:
        InvalidRequest: `aspect_unknown`, with the list of known ones.
    """
    key = re.sub(r"\s*[:x/]\s*", ":", aspect.strip().replace("\uff1a", ":"))  # a full-width colon is a colon
    if key not in ASPECTS:
        raise InvalidRequest(code="aspect_unknown", value=aspect[:40], known=", ".join(ASPECTS))
    width, height = (
        max(SIZE_MULTIPLE, round(side * native_size / 1024 / SIZE_MULTIPLE) * SIZE_MULTIPLE)
        for side in ASPECTS[key]
    )
    return width, height


def aspect_of(width: int, height: int, native_size: int) -> str | None:
    """Return the aspect whose size this is, or None for a free size."""
    return next((name for name in ASPECTS if size_for(name, native_size) == (width, height)), None)


def normalise_prompt(prompt: str) -> str:
    """Return the prompt as it will be drawn and recorded: one line, NFC, without control characters and tokens.

    Raises:
        InvalidRequest: `prompt_empty` or `prompt_too_long`.
    """
    text = unicodedata.normalize("NFC", prompt)
    # Cc are controls, Cs lone surrogates (not encodable). Zero-width joiners (Cf) stay: they build emoji.
    text = "".join(" " if unicodedata.category(char) in ("Cc", "Cs") else char for char in text)
    text = _CONTROL_TOKEN.sub("< |", " ".join(text.split()))
    if not any(unicodedata.category(char)[0] not in "ZC" for char in text):
        raise InvalidRequest(code="prompt_empty")
    if len(text) > MAX_PROMPT_CHARACTERS:
        raise InvalidRequest(code="prompt_too_long", length=len(text), limit=MAX_PROMPT_CHARACTERS)
    return text


def build_request(
    *,
    prompt: str,
    native_size: int,
    aspect: str | None = None,
    width: int | None = None,
    height: int | None = None,
    seed: int | None = None,
    steps: int | None = None,
    num_images: int | None = None,
    lora: str | None = None,
    lora_scale: float | None = None,
    known_loras: Iterable[str] = (),
) -> ImageRequest:
    """Build a valid request; what is None gets its default (a random seed, 1:1, 8 steps, one picture, no LoRA at 1).

    `known_loras` are the names that there are; case does not matter.

    Raises:
        InvalidRequest: the first rule that is broken, by `code`.
    """
    text = normalise_prompt(prompt)
    if width is None and height is None:
        width, height = size_for(aspect or "1:1", native_size)
    width = native_size if width is None else width
    height = native_size if height is None else height
    if width % SIZE_MULTIPLE or height % SIZE_MULTIPLE or width < SIZE_MULTIPLE or height < SIZE_MULTIPLE:
        raise InvalidRequest(code="size_multiple", width=width, height=height, multiple=SIZE_MULTIPLE)
    if width * height > MAX_PIXELS_OF_NATIVE * native_size**2 or max(width, height) > 4 * native_size:
        largest = math.isqrt(MAX_PIXELS_OF_NATIVE) * native_size
        raise InvalidRequest(
            code="size_too_large", width=width, height=height, largest=f"{largest}x{largest}"
        )
    return ImageRequest(
        prompt=text,
        seed=_within("seed", random_seed() if seed is None else seed, 0, MAX_SEED),
        width=width,
        height=height,
        steps=_within("steps", DEFAULT_STEPS if steps is None else steps, 1, MAX_STEPS),
        num_images=_within("count", 1 if num_images is None else num_images, 1, MAX_IMAGES),
        lora=_known_lora(lora, known_loras) if lora else "",
        lora_scale=_lora_scale(lora_scale) if lora else 1.0,
    )


def _known_lora(name: str, known: Iterable[str]) -> str:
    names = {each.casefold(): each for each in known}
    if not names:
        raise InvalidRequest(code="lora_none", value=name[:40])
    if name.casefold() not in names:
        listed = list(names.values())
        more = ["…"] if len(listed) > LORAS_LISTED else []
        raise InvalidRequest(
            code="lora_unknown", value=name[:40], known=", ".join(listed[:LORAS_LISTED] + more)
        )
    return names[name.casefold()]


def _lora_scale(scale: float | None) -> float:
    if scale is None:
        return 1.0
    if not -MAX_LORA_SCALE <= scale <= MAX_LORA_SCALE:  # false for NaN, too
        low, high = f"{-MAX_LORA_SCALE:g}", f"{MAX_LORA_SCALE:g}"
        raise InvalidRequest(code="lora_scale_range", value=f"{scale:g}", low=low, high=high)
    return scale


def _within(name: str, value: int, low: int, high: int) -> int:
    if not low <= value <= high:
        raise InvalidRequest(code=f"{name}_range", value=value, low=low, high=high)
    return value
