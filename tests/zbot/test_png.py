import io
import os
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from zbot import png


def picture(height, width, seed=0):
    """Half smooth, half noise, so that each filter is the best one somewhere."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    smooth = np.stack([x * 3 + y, x * y // 7, 255 - y * 2], axis=-1)
    noise = rng.integers(0, 256, (height, width, 3))
    return np.where((x + y)[..., None] % 64 < 40, smooth, noise).astype(np.uint8)


def opened(data):
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (63, 2), (64, 64), (65, 3), (128, 16), (200, 333)])
def test_pillow_reads_the_same_pixels(size):
    rgb = picture(*size)
    image = opened(png.encode(rgb, {}))
    assert image.mode == "RGB"
    assert np.array_equal(np.asarray(image), rgb)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 140), st.integers(1, 40), st.integers(0, 2**32 - 1), st.sampled_from([2, 16, 256]))
def test_any_pixels_survive(height, width, seed, levels):
    rgb = np.random.default_rng(seed).integers(0, levels, (height, width, 3)).astype(np.uint8)
    assert np.array_equal(np.asarray(opened(png.encode(rgb, {}))), rgb)


@pytest.mark.parametrize("value", [0, 127, 128, 255])
def test_a_flat_picture_survives_and_is_small(value):
    rgb = np.full((256, 256, 3), value, dtype=np.uint8)
    data = png.encode(rgb, {})
    assert np.array_equal(np.asarray(opened(data)), rgb)
    assert len(data) < 2500


def test_the_checksum_of_the_whole_stream_is_right():
    data = png.encode(picture(300, 50), {})
    stream, at = b"", len(png.SIGNATURE)
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        name, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + size]
        assert zlib.crc32(name + body) == int.from_bytes(data[at + 8 + size : at + 12 + size], "big")
        stream += body if name == b"IDAT" else b""
        at += 12 + size
    inflate = zlib.decompressobj()
    assert len(inflate.decompress(stream)) == 300 * (1 + 150)
    assert inflate.eof
    assert not inflate.unused_data


def test_every_filter_is_used_and_read_back():
    y, x = np.mgrid[0:64, 0:64]
    rng = np.random.default_rng(1)
    columns = rng.integers(0, 256, (1, 64, 3)).repeat(64, axis=0)
    lines = rng.integers(0, 256, (64, 1, 3)).repeat(64, axis=1)
    plane = np.stack([x * 2 + y * 2] * 3, axis=-1) + rng.integers(0, 2, (64, 64, 3))
    edges = np.where((x > y)[..., None], lines, columns)
    used = set()
    for rgb in (columns, lines, plane, edges, picture(64, 64)):
        rgb = rgb.astype(np.uint8)
        used |= set(png.filter_rows(rgb.reshape(64, -1), 0, 64)[:, 0].tolist())
        assert np.array_equal(np.asarray(opened(png.encode(rgb, {}))), rgb)
    assert used == {png.SUB, png.UP, png.AVERAGE, png.PAETH}


def test_the_bytes_do_not_depend_on_the_number_of_threads(monkeypatch):
    rgb = picture(500, 100)
    whole = png.encode(rgb, {"parameters": "a"})
    for threads in (1, 3):
        with ThreadPoolExecutor(threads) as pool:
            monkeypatch.setattr(png, "_pool", lambda pool=pool: pool)
            assert png.encode(rgb, {"parameters": "a"}) == whole


def test_rows_filtered_elsewhere_give_the_same_bytes():
    rgb = picture(200, 30)
    filtered = png.filter_rows(rgb.reshape(200, -1), 0, 200)
    assert png.encode(rgb, {}, filtered=filtered) == png.encode(rgb, {})
    with pytest.raises(ValueError, match="filtered"):
        png.encode(rgb, {}, filtered=filtered[:, 1:])


def test_rows_that_do_not_lie_behind_one_another_are_taken():
    rgb = picture(90, 80)
    turned = rgb[::-1, ::2]
    assert np.array_equal(np.asarray(opened(png.encode(turned, {}))), turned)


def test_text_is_read_back_in_order():
    text = {"parameters": "a café\nSteps: 8", "zbot": '{"prompt": "一只猫 🐈"}', "Comment": ""}
    image = opened(png.encode(picture(70, 10), text))
    assert isinstance(image, PngImagePlugin.PngImageFile)
    assert image.text == text
    assert list(image.text) == list(text)


def test_latin_text_is_a_text_chunk_and_other_text_an_international_one():
    assert b"tEXtparameters\0caf\xe9" in png.encode(picture(2, 2), {"parameters": "café"})
    assert b"iTXtzbot\0\0\0\0\0\xe7\x8c\xab" in png.encode(picture(2, 2), {"zbot": "猫"})


@pytest.mark.parametrize("keyword", ["", " a", "a ", "a  b", "a\nb", "a" * 80, "猫", "a\0b", "\xa0"])
def test_a_bad_keyword_is_refused(keyword):
    with pytest.raises(ValueError, match="keyword"):
        png.encode(picture(2, 2), {keyword: "x"})


def test_a_nul_in_the_text_is_refused():
    with pytest.raises(ValueError, match="NUL"):
        png.encode(picture(2, 2), {"a": "x\0y"})


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((4, 0, 3), np.uint8),
    ],
)
def test_other_pixels_are_refused(pixels):
    with pytest.raises(ValueError, match="uint8"):
        png.encode(pixels, {})


def test_a_picture_is_not_larger_than_pillow_makes_it():
    rng = np.random.default_rng(3)
    frequency = np.hypot(np.fft.fftfreq(256)[:, None], np.fft.fftfreq(256)[None])
    frequency[0, 0] = 1
    waves = [
        np.fft.ifft2(np.fft.fft2(rng.standard_normal((256, 256))) / frequency**1.3).real for _ in range(3)
    ]
    rgb = np.stack([128 + 40 * wave / wave.std() for wave in waves], axis=-1).clip(0, 255).astype(np.uint8)
    pillow = io.BytesIO()
    Image.fromarray(rgb).save(pillow, "png")
    assert len(png.encode(rgb, {})) < 1.01 * len(pillow.getvalue())


def test_torch_and_pillow_are_not_imported():
    code = "import sys, zbot.png; sys.exit(any(name in sys.modules for name in ('torch', 'PIL')))"
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": "."})
