import ctypes
import logging

import pytest
import torch

from zbot.engine import _cublaslt as cublaslt
from zbot.engine._cublaslt import LARGE, SMALL, choose

HOPPER = 132  # multiprocessors of an H100 and an H200
WIDE = (11_520, 3_840), (20_480, 3_840)
DEEP = (3_840, 3_840), (3_840, 10_240)


@pytest.mark.parametrize(
    ("rows", "width", "depth", "kind", "height"),
    [
        # What was the fastest of the kernels measured on an H200, or within 1 % of it.
        (576, 11_520, 3_840, SMALL, 144),
        (1_088, 11_520, 3_840, SMALL, 160),
        (1_088, 20_480, 3_840, SMALL, 136),
        (1_088, 3_840, 10_240, LARGE, 136),
        (3_104, 3_840, 10_240, LARGE, 120),
        (4_160, 11_520, 3_840, SMALL, 160),
        (4_160, 20_480, 3_840, SMALL, 160),
        (4_160, 3_840, 10_240, LARGE, 160),
        (4_608, 3_840, 10_240, LARGE, 136),
    ],
)
def test_the_tile_is_the_one_that_was_measured_to_be_fastest(rows, width, depth, kind, height):
    assert choose(rows, width, depth, HOPPER) == (kind, height)


def test_large_tiles_are_only_for_long_sums():
    for rows in range(513, 10_000, 32):
        assert all(choose(rows, width, depth, HOPPER)[0] is SMALL for width, depth in WIDE)
    assert all(choose(4_160, width, depth, HOPPER)[0] is LARGE for width, depth in DEEP)


def test_an_odd_number_of_tiles_is_counted_as_the_cluster_fills_it_up():
    # 17 rows of large tiles are launched as 18: 270 tiles are three rounds, where 255 would be two (1.3 times the time).
    kind, height = choose(2_368, 3_840, 10_240, HOPPER)
    assert (kind, height) != (LARGE, 144)
    tiles = -(-2_368 // height) * (3_840 // kind.columns)
    assert kind is SMALL or tiles % 2 == 0


def test_a_processor_multiplies_as_torch_does():
    x, weight = torch.randn(600, 16), torch.randn(8, 16)
    assert torch.equal(cublaslt.linear(x, weight), torch.nn.functional.linear(x, weight))


class Library:
    """Answers every call with success, but one; its product is `result`."""

    def __init__(self, refused, result=None):
        self.refused, self.result, self.products = refused, result, 0

    def __getattr__(self, name):
        return lambda *arguments: 7 if name == f"cublasLt{self.refused}" else 0

    def cublasLtMatmul(self, *arguments):
        self.products += 1
        if self.refused == "Matmul":
            return 7
        ctypes.memmove(arguments[8], self.result.data_ptr(), self.result.nbytes)
        return 0


CALLS = [
    "MatmulDescCreate",
    "MatmulDescSetAttribute",
    "MatrixLayoutCreate",
    "MatmulAlgoInit",
    "MatmulAlgoConfigSetAttribute",
    "MatmulAlgoCheck",
    "Matmul",
]


@pytest.fixture
def hopper(monkeypatch):
    """Pretend that there is such a card, and return a function that gives it a library."""
    card = type("Card", (), {"major": 9, "multi_processor_count": HOPPER})
    stream = type("Stream", (), {"cuda_stream": 0})
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: None)  # as a processor's tensors have it
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    monkeypatch.setattr(cublaslt, "_products", {})

    def give(library):
        monkeypatch.setattr(cublaslt, "_opened", lambda: (library, ctypes.c_void_p(1)))
        return library

    return give


@pytest.fixture
def numbers():
    rng = torch.Generator().manual_seed(1)
    return tuple(torch.randn(size, 64, generator=rng).bfloat16() for size in (600, 32))


@pytest.mark.parametrize("call", CALLS)
def test_a_library_that_refuses_leaves_the_choice_to_cublas_and_says_so(hopper, numbers, caplog, call):
    caplog.set_level(logging.INFO)
    library = hopper(Library(call))
    for _ in range(2):
        assert torch.equal(cublaslt._multiply(*numbers), torch.nn.functional.linear(*numbers))
    assert len(caplog.records) == 1
    assert f"cublasLt{call} ended with status 7" in caplog.text
    assert library.products == (call == "Matmul")


def test_a_library_without_such_functions_leaves_the_choice_to_cublas(hopper, numbers, caplog):
    caplog.set_level(logging.INFO)
    hopper(object())
    assert torch.equal(cublaslt._multiply(*numbers), torch.nn.functional.linear(*numbers))
    assert "it has no cublasLtMatmulDescCreate" in caplog.text


def test_a_library_that_does_not_exist_leaves_the_choice_to_cublas(hopper, numbers, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(torch.version, "cuda", "1.0")
    assert torch.equal(cublaslt._multiply(*numbers), torch.nn.functional.linear(*numbers))
    assert "libcublasLt.so.1" in caplog.text


def test_other_numbers_are_cublass(hopper, numbers):
    library = hopper(Library(None))
    wide = [one.float() for one in numbers]
    assert torch.equal(cublaslt._multiply(*wide), torch.nn.functional.linear(*wide))
    assert library.products == 0


def test_another_card_than_the_current_one_is_cublass(hopper, numbers, monkeypatch):
    library = hopper(Library(None))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert torch.equal(cublaslt._multiply(*numbers), torch.nn.functional.linear(*numbers))
    assert library.products == 0


def test_a_product_with_torchs_bits_is_taken_and_compared_only_once(hopper, numbers, monkeypatch):
    expected = torch.nn.functional.linear(*numbers)
    library = hopper(Library(None, expected))
    assert torch.equal(cublaslt._multiply(*numbers), expected)
    monkeypatch.setattr(cublaslt.functional, "linear", None)
    assert torch.equal(cublaslt._multiply(*numbers), expected)
    assert library.products == 2


def test_a_product_with_other_bits_is_never_taken_and_the_log_says_so(hopper, numbers, caplog):
    caplog.set_level(logging.INFO)
    expected = torch.nn.functional.linear(*numbers)
    other = expected.clone()
    other[-1, -1] += 1
    library = hopper(Library(None, other))
    for _ in range(2):
        assert torch.equal(cublaslt._multiply(*numbers), expected)
    assert library.products == 1
    assert "600 x 32 x 64 itself: its sums have other bits" in caplog.text
