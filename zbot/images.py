"""PNG with the recipe inside, atomic files, pictures made to fit, contact sheets, and the safe decode of a stranger's picture."""

import io
import json
import math
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self, cast

from PIL import Image, ImageDraw, ImageFont, ImageOps

from zbot.engine import ModelCard
from zbot.errors import InvalidRequest
from zbot.request import MAX_LORA_SCALE, MAX_SEED, MAX_STEPS, SIZE_MULTIPLE, ImageRequest

PARAMETERS_KEY = "parameters"  # where AUTOMATIC1111, and the tools that read its pictures, look
RECIPE_KEY = "zbot"

MAX_STRANGER_BYTES = 25 * 2**20
MAX_STRANGER_PIXELS = 4096 * 4096  # a 7.8 kB file of 8000x8000 takes 320 MB, within Pillow's own limit
LARGEST_SIDE_PIXELS = 8192  # the end of the transformer's position tables
STRANGER_FORMATS = ("PNG", "JPEG", "WEBP")

_LEFTOVER_SUFFIX = ".zbot-part"
_USER_COMMENT, _IMAGE_DESCRIPTION, _EXIF_IFD = 0x9286, 0x010E, 0x8769
_FIT_QUALITIES = (95, 90, 82, 74, 65, 50)
_SMALLEST_FIT_PIXELS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """All that decides the bytes of one picture."""

    prompt: str
    seed: int
    steps: int
    guidance_scale: float
    width: int
    height: int
    model: str
    revision: str
    dtype: str
    device: str
    placement: str
    lora: str = ""  # the name of the LoRA file, "" for none
    lora_scale: float = 1.0
    lora_sha256: str = ""  # of the file that was read; "" where none was, as at strength 0
    options: dict[str, str] = field(default_factory=dict[str, str])
    versions: dict[str, str] = field(default_factory=dict[str, str])  # of zbot and the libraries

    @classmethod
    def of(cls, request: ImageRequest, card: ModelCard, *, lora_sha256: str = "") -> Self:
        """Return the recipe of a picture that this model draws for a request."""
        return cls(
            prompt=request.prompt,
            seed=request.seed,
            steps=request.steps,
            guidance_scale=request.guidance_scale,
            width=request.width,
            height=request.height,
            model=card.model,
            revision=card.revision,
            dtype=card.dtype,
            device=card.device,
            placement=card.placement,
            lora=request.lora,
            lora_scale=request.lora_scale,
            lora_sha256=lora_sha256,
            options=dict(card.options),
            versions=dict(card.versions),
        )

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return the recipe that `to_json` wrote, ignoring what a later version may have added.

        Raises: InvalidRequest (`recipe_unreadable`).
        """
        try:
            value: Any = json.loads(text)
            recipe = cls(
                prompt=str(value["prompt"]),
                seed=int(value["seed"]),
                steps=int(value["steps"]),
                guidance_scale=float(value["guidance_scale"]),
                width=int(value["width"]),
                height=int(value["height"]),
                model=str(value["model"]),
                revision=str(value["revision"]),
                dtype=str(value["dtype"]),
                device=str(value["device"]),
                placement=str(value["placement"]),
                lora=str(value.get("lora", "")),
                lora_scale=float(value.get("lora_scale", 1.0)),
                lora_sha256=str(value.get("lora_sha256", "")),
                options=_string_table(value.get("options", {})),
                versions=_string_table(value.get("versions", {})),
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise InvalidRequest(code="recipe_unreadable") from error
        if not recipe._is_drawable():
            raise InvalidRequest(code="recipe_unreadable")
        return recipe

    def _is_drawable(self) -> bool:
        """Tell whether any model of ours could have drawn this: a file may say what it likes."""
        sides = (self.width, self.height)
        return (
            0 <= self.seed <= MAX_SEED
            and 1 <= self.steps <= MAX_STEPS
            and 0 <= self.guidance_scale < math.inf
            and -MAX_LORA_SCALE <= self.lora_scale <= MAX_LORA_SCALE
            and all(0 < side <= LARGEST_SIDE_PIXELS and side % SIZE_MULTIPLE == 0 for side in sides)
        )

    def to_json(self) -> str:
        """Return the recipe as one line of JSON."""
        return json.dumps(asdict(self), ensure_ascii=False, separators=(",", ":"))

    def to_request(self) -> ImageRequest:
        """Return the request that draws the picture again, on the same model."""
        return ImageRequest(
            prompt=self.prompt,
            seed=self.seed,
            width=self.width,
            height=self.height,
            steps=self.steps,
            guidance_scale=self.guidance_scale,
            lora=self.lora,
            lora_scale=self.lora_scale,
        )

    def to_parameters(self) -> str:
        """Return the recipe as AUTOMATIC1111 writes it: the prompt, then one line of settings."""
        settings = {
            "Steps": self.steps,
            "Sampler": "Euler",
            "CFG scale": f"{self.guidance_scale:g}",
            "Seed": self.seed,
            "Size": f"{self.width}x{self.height}",
            "Model": self.model,
            **({"LoRA": f"{self.lora} {self.lora_scale:g}"} if self.lora else {}),
            "Version": f"zbot {self.versions.get('zbot', '')}".rstrip(),
        }
        return f"{self.prompt}\n" + ", ".join(
            f"{name}: {_quoted(str(value))}" for name, value in settings.items()
        )


def text_chunks(request: ImageRequest, card: ModelCard, *, lora_sha256: str = "") -> dict[str, str]:
    """Return the text chunks of a picture: `parameters` for other tools, `zbot` with the whole recipe."""
    recipe = Recipe.of(request, card, lora_sha256=lora_sha256)
    return {PARAMETERS_KEY: recipe.to_parameters(), RECIPE_KEY: recipe.to_json()}


def read_recipe(source: Path | bytes) -> Recipe:
    """Read how a picture of zbot was made, from a PNG or from what `fit` made of one. Decodes no pixels.

    Raises: InvalidRequest (`recipe_missing`, `recipe_unreadable`, `image_format`), OSError for a file that cannot
    be read.
    """
    data = source.read_bytes() if isinstance(source, Path) else source
    with _open_header(data) as image:
        text: Any = image.info.get(RECIPE_KEY)
        if text is None:
            text = image.getexif().get(_IMAGE_DESCRIPTION)
    if not isinstance(text, str):
        raise InvalidRequest(code="recipe_missing")
    return Recipe.from_json(text)


def write_atomic(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Write a file so that a crash at any point leaves the old one or the whole new one, readable by us alone.

    `mode` is less what the process's umask takes away.

    The bytes are on the disk before they get their name, and the name is on the disk when this returns.

    Raises: OSError; then no file of that name was touched and no temporary one is left.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{_LEFTOVER_SUFFIX}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def remove_leftovers(directory: Path) -> int:
    """Remove the temporary files that a killed process left in a directory; return how many.

    Call only while nobody writes there.
    """
    leftovers = [path for path in directory.glob(f".*{_LEFTOVER_SUFFIX}") if path.is_file()]
    for path in leftovers:
        path.unlink(missing_ok=True)
    return len(leftovers)


def fit(png: bytes, limit_bytes: int) -> tuple[bytes, str]:
    """Return a picture of at most `limit_bytes` and its suffix: as it is, else as WebP, else smaller too.

    The recipe travels along in the Exif data, except into a limit that has no room for it.

    Raises: ValueError when the limit is too small for any picture.
    """
    if len(png) <= limit_bytes:
        return png, ".png"
    with Image.open(io.BytesIO(png), formats=("PNG",)) as image:
        exif = _exif_of(image.info)
        rgb = image.convert("RGB")
    while True:
        for quality in _FIT_QUALITIES:
            for metadata in (exif, b""):
                data = _webp(rgb, quality, metadata)
                if len(data) <= limit_bytes:
                    return data, ".webp"
                if len(data) - len(exif) > limit_bytes:
                    break  # it is not the metadata that is too much
        if min(rgb.size) <= _SMALLEST_FIT_PIXELS:
            raise ValueError(f"no picture fits into {limit_bytes} bytes")
        rgb = rgb.resize((max(1, rgb.width // 2), max(1, rgb.height // 2)), Image.Resampling.LANCZOS)


def safe_open(data: bytes) -> Image.Image:
    """Return a stranger's picture as plain RGB: the first frame, upright, on white, without any metadata.

    Run it where a memory limit holds: decoders have bugs.

    Raises: InvalidRequest (`image_empty`, `image_too_large`, `image_format`, `image_damaged`).
    """
    with _open_header(data) as image:
        try:
            image.load()
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I"):
                # 16-bit grey: Pillow's own conversion clips everything above 255.
                upright = upright.convert("I").point(lambda value: value / 256).convert("L")
            layers = upright.convert("RGBA")
        except (OSError, ValueError, SyntaxError, MemoryError, OverflowError, ZeroDivisionError) as error:
            raise InvalidRequest(code="image_damaged") from error
    clean = Image.new("RGB", layers.size, "white")
    clean.paste(layers, mask=layers.getchannel("A"))
    return clean


def contact_sheet(
    pictures: Sequence[tuple[str, bytes]], *, columns: int | None = None, side: int = 256
) -> bytes:
    """Return one PNG with every (label, PNG) in a grid, each picture fitted into a square of `side` pixels.

    Raises: ValueError for no pictures.
    """
    if not pictures:
        raise ValueError("a contact sheet needs at least one picture")
    columns = columns or math.ceil(math.sqrt(len(pictures)))
    rows = math.ceil(len(pictures) / columns)
    gap, label_height = max(4, side // 32), max(14, side // 12)
    font = ImageFont.load_default(size=label_height - 4)
    cell_width, cell_height = side + gap, side + label_height + gap
    sheet = Image.new("RGB", (columns * cell_width + gap, rows * cell_height + gap), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (label, png) in enumerate(pictures):
        left, top = gap + index % columns * cell_width, gap + index // columns * cell_height
        with Image.open(io.BytesIO(png), formats=("PNG",)) as image:
            thumbnail = ImageOps.contain(image.convert("RGB"), (side, side), Image.Resampling.LANCZOS)
        sheet.paste(thumbnail, (left + (side - thumbnail.width) // 2, top + (side - thumbnail.height) // 2))
        draw.text((left, top + side), _shortened(label, font, side), fill="black", font=font)
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()


def _string_table(value: Any) -> dict[str, str]:
    return {str(key): str(entry) for key, entry in cast("dict[Any, Any]", value).items()}


def _open_header(data: bytes) -> Image.Image:
    """Read what kind of picture it is and how large, without decoding it."""
    if not data:
        raise InvalidRequest(code="image_empty")
    if len(data) > MAX_STRANGER_BYTES:
        raise InvalidRequest(code="image_too_large", limit=f"{MAX_STRANGER_BYTES // 2**20} MB")
    limit = f"{math.isqrt(MAX_STRANGER_PIXELS)}x{math.isqrt(MAX_STRANGER_PIXELS)}"
    try:
        image = Image.open(io.BytesIO(data), formats=STRANGER_FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InvalidRequest(code="image_too_large", limit=limit) from error
    except (OSError, ValueError, SyntaxError, MemoryError, OverflowError) as error:
        raise InvalidRequest(code="image_format", known="PNG, JPEG, WebP") from error
    if image.width * image.height > MAX_STRANGER_PIXELS:
        image.close()
        raise InvalidRequest(code="image_too_large", limit=limit)
    return image


def _exif_of(info: Mapping[Any, Any]) -> bytes:
    exif = Image.Exif()
    parameters, recipe = info.get(PARAMETERS_KEY), info.get(RECIPE_KEY)
    if isinstance(parameters, str):
        exif.get_ifd(_EXIF_IFD)[_USER_COMMENT] = b"UNICODE\0" + parameters.encode("utf-16-be")
    if isinstance(recipe, str):
        # The field is ASCII; JSON can say everything in it.
        exif[_IMAGE_DESCRIPTION] = json.dumps(json.loads(recipe), separators=(",", ":"))
    return exif.tobytes()


def _webp(rgb: Image.Image, quality: int, exif: bytes) -> bytes:
    buffer = io.BytesIO()
    rgb.save(buffer, "WEBP", quality=quality, exif=exif)
    return buffer.getvalue()


def _shortened(label: str, font: Any, width: int) -> str:
    if font.getlength(label) <= width:
        return label
    while label and font.getlength(f"{label}...") > width:
        label = label[:-1]
    return f"{label}..."


def _quoted(value: str) -> str:
    """Quote a value as AUTOMATIC1111 does when it holds what separates values."""
    return json.dumps(value, ensure_ascii=False) if any(char in value for char in ",:\n") else value
