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
]


@pytest.fixture
def hopper(monkeypatch):
    """Pretend that there is such a card, and return a function that says what its library refuses."""
    card = type("Card", (), {"major": 9, "multi_processor_count": HOPPER})
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    cublaslt._product.cache_clear()
    yield lambda call: monkeypatch.setattr(cublaslt, "_opened", lambda: (Library(call), ctypes.c_void_p(1)))
    cublaslt._product.cache_clear()


@pytest.mark.parametrize("call", CALLS)
def test_a_library_that_refuses_leaves_the_choice_to_cublas_and_says_so(hopper, caplog, call):
    hopper(call)
    with caplog.at_level(logging.INFO):
        product = cublaslt._product(1_088, 3_840, 3_840, torch.bfloat16, torch.device("cuda", 0))
    assert product is None
    assert f"cublasLt{call}: status 7" in caplog.text


def test_a_library_that_does_not_exist_leaves_the_choice_to_cublas(hopper, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "1.0")
    assert cublaslt._product(1_088, 3_840, 3_840, torch.bfloat16, torch.device("cuda", 0)) is None


@pytest.mark.parametrize(
    ("dtype", "device"), [(torch.float32, 0), (torch.float8_e4m3fn, 0), (torch.bfloat16, 1)]
)
def test_other_numbers_and_other_cards_are_cublass(hopper, dtype, device):
    hopper(None)
    assert cublaslt._product(1_088, 3_840, 3_840, dtype, torch.device("cuda", device)) is None
    assert cublaslt._product(1_088, 3_840, 3_840, torch.bfloat16, torch.device("cuda", 0)) is not None


@pytest.fixture
def numbers():
    rng = torch.Generator().manual_seed(1)
    return tuple(torch.randn(size, 64, generator=rng).bfloat16() for size in (600, 32))


@pytest.fixture
def product(monkeypatch):
    """Return a function that makes a product of `numbers` with a library."""
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: type("Stream", (), {"cuda_stream": 0}))

    def made(library):
        monkeypatch.setattr(cublaslt, "_opened", lambda: (library, ctypes.c_void_p(1)))
        return cublaslt._Product(600, 32, 64, SMALL, 128)

    return made


def test_a_product_with_torchs_bits_is_taken_and_compared_only_once(numbers, product, monkeypatch):
    expected = torch.nn.functional.linear(*numbers)
    made = product(Library(None, expected))
    assert torch.equal(made(*numbers), expected)
    monkeypatch.setattr(cublaslt.functional, "linear", None)
    assert torch.equal(made(*numbers), expected)


def test_a_product_with_other_bits_is_never_taken_again_and_the_log_says_so(numbers, product, caplog):
    other = torch.nn.functional.linear(*numbers)
    other[-1, -1] += 1
    made = product(library := Library(None, other))
    assert made(*numbers) is None
    assert made(*numbers) is None
    assert library.products == 1
    assert "cuBLAS multiplies 600 rows itself" in caplog.text


def test_a_library_that_fails_to_multiply_is_not_asked_again(numbers, product, caplog):
    made = product(library := Library("Matmul"))
    assert made(*numbers) is None
    assert made(*numbers) is None
    assert library.products == 1
    assert "status 7" in caplog.text
