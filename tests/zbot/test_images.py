"""Recipes in pictures, atomic files, pictures made to fit, strangers' pictures, contact sheets."""

import io
import json
import signal
import stat
import struct
import subprocess
import sys
import textwrap
import threading
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from zbot import images, png
from zbot.engine import ModelCard
from zbot.errors import InvalidRequest
from zbot.images import Recipe
from zbot.request import ImageRequest

CARD = ModelCard(
    model="Tongyi-MAI/Z-Image-Turbo",
    revision="abc123",
    dtype="bfloat16",
    device="cuda: NVIDIA H200",
    placement="resident",
    native_size=1024,
    versions={"zbot": "0.1.0", "torch": "2.13.0"},
    options={"path": "fast-triton"},
)
REQUEST = ImageRequest(prompt="a fox, 雪中的狐狸 🦊", seed=4294967295, width=64, height=48)


def noise(width: int = 64, height: int = 48, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def picture(width: int = 64, height: int = 48, request: ImageRequest = REQUEST) -> bytes:
    return png.encode(noise(width, height), images.text_chunks(request, CARD))


def code_of(data: bytes) -> str:
    with pytest.raises(InvalidRequest) as caught:
        images.safe_open(data)
    return caught.value.code


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def encoded(image: Image.Image, kind: str, **settings: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **settings)
    return buffer.getvalue()


# --- recipes ---


def test_a_recipe_comes_back_from_the_picture_it_made(tmp_path: Path) -> None:
    recipe = images.read_recipe(picture())
    assert recipe == Recipe.of(REQUEST, CARD)
    assert recipe.to_request() == REQUEST
    (tmp_path / "fox.png").write_bytes(picture())
    assert images.read_recipe(tmp_path / "fox.png") == recipe


@given(prompt=st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=300))
def test_any_prompt_survives_the_text_chunks(prompt: str) -> None:
    request = replace(REQUEST, prompt=prompt)
    assert images.read_recipe(picture(16, 16, request)).prompt == prompt


def test_the_parameters_are_what_automatic1111_writes() -> None:
    assert images.text_chunks(REQUEST, CARD)["parameters"] == (
        "a fox, 雪中的狐狸 🦊\nSteps: 8, Sampler: Euler, CFG scale: 0, Seed: 4294967295, Size: 64x48, "
        "Model: Tongyi-MAI/Z-Image-Turbo, Version: zbot 0.1.0"
    )
    odd = replace(CARD, model="C:models, mine")
    assert 'Model: "C:models, mine"' in images.text_chunks(REQUEST, odd)["parameters"]


def test_text_stands_before_the_pixels() -> None:
    data = picture()
    assert 0 < data.index(b"parameters") < data.index(b"IDAT")


def test_a_picture_without_a_recipe_says_so() -> None:
    for data in (png.encode(noise(), {}), encoded(Image.new("RGB", (9, 9)), "JPEG")):
        with pytest.raises(InvalidRequest) as caught:
            images.read_recipe(data)
        assert caught.value.code == "recipe_missing"


@pytest.mark.parametrize(
    "change",
    [
        {"seed": -1},
        {"seed": 2**32},
        {"seed": "seven"},
        {"steps": 0},
        {"steps": 1000},
        {"width": 0},
        {"width": 100_000},
        {"height": 100},
        {"guidance_scale": float("nan")},
        {"guidance_scale": float("inf")},
        {"options": []},
        {"model": None, "versions": "none"},
    ],
    ids=str,
)
def test_a_recipe_that_nobody_can_draw_is_unreadable(change: dict[str, object]) -> None:
    value = json.loads(Recipe.of(REQUEST, CARD).to_json()) | change
    with pytest.raises(InvalidRequest) as caught:
        Recipe.from_json(json.dumps(value))
    assert caught.value.code == "recipe_unreadable"


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", "{" * 100_000, "7"])
def test_garbage_is_no_recipe(text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        Recipe.from_json(text)
    assert caught.value.code == "recipe_unreadable"


def test_a_recipe_of_a_later_version_is_read() -> None:
    value = json.loads(Recipe.of(REQUEST, CARD).to_json()) | {"upscaler": ["x"]}
    assert Recipe.from_json(json.dumps(value)) == Recipe.of(REQUEST, CARD)


def test_a_recipe_tells_the_lora_its_strength_and_its_file() -> None:
    styled = replace(REQUEST, lora="ink", lora_scale=-0.8)
    recipe = Recipe.from_json(images.text_chunks(styled, CARD, lora_sha256="ab" * 32)["zbot"])
    assert recipe.to_request() == styled
    assert recipe.lora_sha256 == "ab" * 32
    assert "LoRA: ink -0.8," in recipe.to_parameters()
    assert "LoRA" not in Recipe.of(REQUEST, CARD).to_parameters()


def test_a_recipe_from_before_there_were_loras_has_none() -> None:
    value = json.loads(Recipe.of(REQUEST, CARD).to_json())
    older = {key: entry for key, entry in value.items() if not key.startswith("lora")}
    assert Recipe.from_json(json.dumps(older)) == Recipe.of(REQUEST, CARD)


@pytest.mark.parametrize("scale", [4.1, float("inf"), float("nan")])
def test_a_strength_that_no_request_can_have_is_unreadable(scale: float) -> None:
    value = json.loads(Recipe.of(REQUEST, CARD).to_json()) | {"lora": "ink", "lora_scale": scale}
    with pytest.raises(InvalidRequest):
        Recipe.from_json(json.dumps(value))


# --- files ---


def test_a_file_is_whole_private_and_alone(tmp_path: Path) -> None:
    path = tmp_path / "7.png"
    images.write_atomic(path, b"first")
    images.write_atomic(path, b"second")
    assert path.read_bytes() == b"second"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert names_in(tmp_path) == ["7.png"]


def test_a_full_disk_leaves_the_old_file_and_no_leftovers(tmp_path: Path) -> None:
    path = tmp_path / "7.png"
    path.write_bytes(b"old")
    script = """
        import resource, signal, sys
        from pathlib import Path
        from zbot import images
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            images.write_atomic(Path(sys.argv[1]), bytes(100_000))
        except OSError as error:
            print(error.errno)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip()
    assert path.read_bytes() == b"old"
    assert names_in(tmp_path) == ["7.png"]


def test_a_missing_directory_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        images.write_atomic(tmp_path / "gone" / "7.png", b"x")


def test_kill_while_writing_leaves_the_old_or_the_new_file_and_what_is_left_is_swept(tmp_path: Path) -> None:
    path = tmp_path / "7.png"
    path.write_bytes(b"0" * 300_000)
    script = """
        import sys
        from pathlib import Path
        from zbot import images
        print("ready", flush=True)
        while True:
            for letter in b"ab":
                images.write_atomic(Path(sys.argv[1]), bytes([letter]) * 300_000)
                print("written", flush=True)
    """
    for kill_after in range(5):
        writer = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(script), str(path)], stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        for _ in range(kill_after + 1):
            writer.stdout.readline()
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        content = path.read_bytes()
        assert len(content) == 300_000 and len(set(content)) == 1
        images.remove_leftovers(tmp_path)
        assert names_in(tmp_path) == ["7.png"]


def test_sweeping_touches_temporary_files_only(tmp_path: Path) -> None:
    for name in ("7.png", ".hidden", ".7.png.0a1b.zbot-part", "zbot-part"):
        (tmp_path / name).write_bytes(b"x")
    assert images.remove_leftovers(tmp_path) == 1
    assert names_in(tmp_path) == [".hidden", "7.png", "zbot-part"]


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "7.png"
    contents = [bytes([number]) * 50_000 for number in range(8)]
    threads = [threading.Thread(target=images.write_atomic, args=(path, content)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_bytes() in contents
    assert names_in(tmp_path) == ["7.png"]


# --- fitting ---


def test_what_fits_is_untouched() -> None:
    data = picture()
    assert images.fit(data, len(data)) == (data, ".png")


@pytest.mark.parametrize("part", [0.9, 0.3, 0.1, 0.03])
def test_what_is_too_large_becomes_a_webp_within_the_limit(part: float) -> None:
    data = picture(640, 480)
    limit_bytes = int(len(data) * part)
    fitted, suffix = images.fit(data, limit_bytes)
    assert suffix == ".webp" and len(fitted) <= limit_bytes
    with Image.open(io.BytesIO(fitted)) as image:
        assert image.format == "WEBP"
        assert image.width * 480 == image.height * 640
    assert images.read_recipe(fitted) == Recipe.of(REQUEST, CARD)


def test_other_tools_find_the_parameters_in_a_fitted_picture() -> None:
    fitted, _ = images.fit(picture(640, 480), 200_000)
    with Image.open(io.BytesIO(fitted)) as image:
        comment = image.getexif().get_ifd(0x8769)[0x9286]
    assert comment.removeprefix(b"UNICODE\0").decode("utf-16-be").startswith("a fox, 雪中的狐狸 🦊\nSteps: 8")


def test_a_limit_with_no_room_for_the_recipe_still_gets_the_picture() -> None:
    long = replace(REQUEST, prompt="word " * 1200)
    fitted, _ = images.fit(picture(640, 480, long), 12_000)
    assert len(fitted) <= 12_000


def test_a_limit_for_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="fits into 20 bytes"):
        images.fit(picture(), 20)


# --- strangers' pictures ---


def test_good_pictures_are_opened_as_plain_rgb() -> None:
    for kind in ("PNG", "JPEG", "WEBP"):
        opened = images.safe_open(encoded(Image.new("RGB", (30, 20), "red"), kind))
        assert (opened.mode, opened.size) == ("RGB", (30, 20))
        assert opened.info == {} and not opened.getexif()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "YCbCr"])
def test_every_kind_of_pixel_is_turned_into_rgb(mode: str) -> None:
    kind = "JPEG" if mode in ("CMYK", "YCbCr") else "PNG"
    image = Image.new("RGB", (16, 16), "white").convert("L" if mode == "I;16" else mode)
    if mode == "I;16":
        image = Image.fromarray(np.full((16, 16), 65535, dtype=np.uint16))
    opened = images.safe_open(encoded(image, kind))
    assert opened.mode == "RGB"
    assert min(opened.getpixel((8, 8))) > 250


def test_what_is_transparent_becomes_white() -> None:
    image = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    assert images.safe_open(encoded(image, "PNG")).getpixel((4, 4)) == (255, 255, 255)
    palette = Image.new("P", (8, 8), 3)
    palette.putpalette([10, 20, 30] * 4)
    assert images.safe_open(encoded(palette, "PNG", transparency=3)).getpixel((4, 4)) == (255, 255, 255)


def test_exif_turns_the_picture_and_is_dropped() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    exif.get_ifd(0x8825)[1] = "N"  # where it was taken
    opened = images.safe_open(encoded(Image.new("RGB", (30, 20)), "JPEG", exif=exif))
    assert opened.size == (20, 30)
    assert not opened.getexif()


def test_only_the_first_frame_counts() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for kind in ("PNG", "WEBP"):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=10, loop=0)
        red, _, blue = images.safe_open(data).getpixel((4, 4))
        assert red > 200 > 100 > blue


def bomb(width: int, height: int) -> bytes:
    """A PNG of one bit per pixel: a few bytes that claim many pixels."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    rows = zlib.compress(bytes((width // 8 + 1) * height))
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_bombs_are_refused_by_their_header() -> None:
    assert len(bomb(8000, 8000)) < 10_000
    for side in (4112, 8000, 12_000, 30_000):
        assert code_of(bomb(side, side)) == "image_too_large"
    assert images.safe_open(bomb(4096, 4096)).size == (4096, 4096)


def test_what_is_no_picture_is_refused() -> None:
    red = Image.new("RGB", (16, 16), "red")
    assert code_of(b"") == "image_empty"
    assert code_of(b"not a picture") == "image_format"
    assert code_of(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n") == "image_format"
    assert code_of(b"<svg xmlns='http://www.w3.org/2000/svg'/>") == "image_format"
    for kind in ("GIF", "BMP", "TIFF", "PPM", "ICO", "PDF"):
        assert code_of(encoded(red, kind)) == "image_format"


def test_damaged_pictures_are_refused() -> None:
    for kind in ("PNG", "JPEG"):
        whole = encoded(Image.fromarray(noise(200, 200)), kind)
        assert code_of(whole[: len(whole) // 2]) == "image_damaged"
    assert code_of(encoded(Image.new("RGB", (16, 16)), "WEBP")[:30]) in ("image_format", "image_damaged")


def test_too_many_bytes_are_refused_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_STRANGER_BYTES", 1000)
    assert code_of(encoded(Image.fromarray(noise(200, 200)), "PNG")) == "image_too_large"


def test_a_text_bomb_in_a_png_is_refused() -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("zbot", "x" * (PngImagePlugin.MAX_TEXT_CHUNK + 10), zip=True)
    data = encoded(Image.new("RGB", (8, 8)), "PNG", pnginfo=info)
    assert code_of(data) == "image_format"
    with pytest.raises(InvalidRequest):
        images.read_recipe(data)


@given(
    cut=st.integers(0, 400),
    flip=st.integers(0, 400),
    bit=st.integers(0, 7),
    kind=st.sampled_from(["PNG", "JPEG", "WEBP"]),
)
def test_no_damage_gets_out_as_anything_but_a_refusal(cut: int, flip: int, bit: int, kind: str) -> None:
    data = bytearray(encoded(Image.fromarray(noise(12, 12)), kind))
    data[flip % len(data)] ^= 1 << bit
    try:
        images.safe_open(bytes(data[: len(data) - cut % len(data)]))
    except InvalidRequest as error:
        assert error.code.startswith("image_")


# --- contact sheets ---


def test_a_contact_sheet_holds_every_picture_in_order() -> None:
    colours = ["red", "green", "blue", "black", "orange"]
    pictures = [
        (f"seed {index}", encoded(Image.new("RGB", (64, 32), colour), "PNG"))
        for index, colour in enumerate(colours)
    ]
    with Image.open(io.BytesIO(images.contact_sheet(pictures, columns=3, side=64))) as sheet:
        middles = [
            sheet.getpixel((4 + 68 * (index % 3) + 32, 4 + 82 * (index // 3) + 32)) for index in range(5)
        ]
        expected = [Image.new("RGB", (1, 1), colour).getpixel((0, 0)) for colour in colours]
    assert middles == expected


def test_a_contact_sheet_takes_one_picture_and_any_label() -> None:
    sheet = images.contact_sheet([("雪中的狐狸 " * 40, picture())], side=32)
    with Image.open(io.BytesIO(sheet)) as image:
        assert image.width < 60
    with pytest.raises(ValueError, match="at least one"):
        images.contact_sheet([])
