"""Matrix products on Hopper cards by a cuBLASLt kernel that we choose: torch's bits, in less time and energy.

Left to itself, cuBLAS takes tiles of 192x192 or 320x128 numbers for this model's shapes. They fit neither the rows of a
picture nor the card's multiprocessors; the tiles chosen here take 2 to 10 % less time (docs/decisions/0012). The choice is
arithmetic and no race, and every kernel sums in the same order: it is not seen in a picture's bytes, and the first product
of each shape is held to that.
"""

import ctypes
import functools
import logging
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn import functional

log = logging.getLogger(__name__)

# Values of cublasLt.h. A library that does not know one of them says so, and torch's way serves.
_BFLOAT16 = 14
_FLOAT32 = 0
_SUMS_IN_FLOAT32 = 68
_TRANSPOSE_FIRST = 3  # of the attributes of a product
_TILE, _OPTION, _STAGES, _CLUSTER = 1, 5, 6, 8  # of the attributes of an algorithm
_HOPPER_ALGORITHM = 66
_STAGES_OF_64 = 35
_CLUSTERS = {(2, 1): 3, (1, 2): 5}


class Kind(NamedTuple):
    """Kernels that differ only in how many rows of the result a tile has."""

    columns: int
    """Of the result, in a tile."""
    rows: dict[int, int]
    """The tiles there are: their rows, and the name of each in cublasLt.h."""
    cluster: tuple[int, int]
    """How many tiles beside and below each other share what they read."""
    option: int
    """A number without a name in cublasLt.h."""
    cost: float
    """Of a number of the result, beside the other kind's."""


# Small tiles waste less at the edges. Large ones read less, which is time too on a card at its power limit.
# Overhead and cost were fitted to 60 shapes on an H200 (benchmarks/tiles.py); neighbouring values choose nearly alike.
SMALL = Kind(
    columns=128,
    rows={104: 402, 112: 403, 120: 404, 128: 20, 136: 405, 144: 406, 152: 407, 160: 29, 168: 408, 176: 409},
    cluster=(2, 1),
    option=1,
    cost=1.0,
)
LARGE = Kind(
    columns=256,
    rows={104: 496, 112: 497, 120: 498, 128: 24, 136: 499, 144: 500, 152: 501, 160: 502, 168: 503, 176: 504},
    cluster=(1, 2),
    option=7,
    cost=0.93,
)
_TILE_OVERHEAD = 8  # what a tile takes beside its numbers, in rows
_LEAST_ROWS = 513  # at 320 rows other tiles are better, at 576 these are


# By rows, width, depth, dtype and card; None where cuBLAS chooses.
_products: "dict[tuple[int, int, int, torch.dtype, torch.device], _Product | None]" = {}


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """Return `functional.linear(x, weight)` of x [rows, depth] and weight [width, depth], bit by bit."""
    if not x.is_cuda or len(x) < _LEAST_ROWS or not x.is_contiguous() or not weight.is_contiguous():
        return functional.linear(x, weight)
    return _multiply(x, weight)


def _multiply(x: Tensor, weight: Tensor) -> Tensor:
    rows, depth = x.shape
    shape = rows, len(weight), depth, x.dtype, x.device
    try:
        if shape not in _products:
            _products[shape] = _product(*shape)
        product = _products[shape]
        if product is not None:
            return product(x, weight)
    except _Refused as refusal:
        _products[shape] = None
        log.info("cuBLAS chooses the kernel for %d x %d x %d itself: %s", *shape[:3], refusal)
    return functional.linear(x, weight)


def choose(rows: int, width: int, depth: int, multiprocessors: int) -> tuple[Kind, int]:
    """Return the kind and the rows of the tile for a result [rows, width] of sums of `depth` products.

    Each multiprocessor takes one tile after the other: what counts is how many rounds that makes, and how long one is.
    Only where sums are long beside the result is reading so much of the work that large tiles are worth it.
    """
    kinds = (SMALL, LARGE) if depth >= width else (SMALL,)

    def time(tile: tuple[Kind, int]) -> tuple[float, int]:
        kind, height = tile
        beside = _up(-(-width // kind.columns), kind.cluster[0])
        below = _up(-(-rows // height), kind.cluster[1])
        rounds = -(-beside * below // multiprocessors)
        return rounds * kind.columns * (height + _TILE_OVERHEAD) * kind.cost, -height

    return min(((kind, height) for kind in kinds for height in kind.rows), key=time)


def _up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


class _Refused(Exception):
    """CuBLASLt does not do what it was asked, or not as torch does it."""


class _Product:
    """A product of one shape, ready to be launched."""

    def __init__(self, rows: int, width: int, depth: int, kind: Kind, height: int) -> None:
        """Raise _Refused if this cuBLASLt has no such kernel."""
        self._library, self._handle = _opened()
        self._rows, self._width = rows, width
        self._one, self._zero = ctypes.c_float(1.0), ctypes.c_float(0.0)
        self._operation = self._made("MatmulDesc", ctypes.c_int(_SUMS_IN_FLOAT32), ctypes.c_int(_FLOAT32))
        # cuBLASLt counts by columns: its product is that of the transposed weight and x.
        self._set("MatmulDesc", self._operation, _TRANSPOSE_FIRST, ctypes.c_int32(1))
        self._of_weight = self._layout(depth, width)
        self._of_x = self._layout(depth, rows)
        self._of_out = self._layout(width, rows)
        self._algorithm = self._configured(kind, height)
        self._is_proven = False

    def __call__(self, x: Tensor, weight: Tensor) -> Tensor:
        """Return the result [rows, width]; raise _Refused if it cannot be had, or the first one has other bits than torch's."""
        out = torch.empty(self._rows, self._width, device=x.device, dtype=x.dtype)
        size = self._algorithm.workspace
        workspace = torch.empty(max(1, size), device=x.device, dtype=torch.uint8)
        status = self._library.cublasLtMatmul(
            self._handle,
            self._operation,
            ctypes.addressof(self._one),
            *(weight.data_ptr(), self._of_weight),
            *(x.data_ptr(), self._of_x),
            ctypes.addressof(self._zero),
            *(out.data_ptr(), self._of_out) * 2,
            ctypes.addressof(self._algorithm),
            *(workspace.data_ptr(), size),
            torch.cuda.current_stream(x.device).cuda_stream,
        )
        _check(status, "Matmul")
        if not self._is_proven:
            # What is true of the library that was measured need not be true of another.
            if not torch.equal(out, functional.linear(x, weight)):
                raise _Refused("its sums have other bits than torch's")
            self._is_proven = True
        return out

    def _configured(self, kind: Kind, height: int) -> "_Algorithm":
        chosen, checked = _Algorithm(), _Algorithm()
        kinds = (_SUMS_IN_FLOAT32, _FLOAT32, *[_BFLOAT16] * 4, _HOPPER_ALGORITHM)
        self._call("MatmulAlgoInit", self._handle, *map(ctypes.c_int, kinds), ctypes.byref(chosen))
        self._set("MatmulAlgoConfig", ctypes.byref(chosen), _TILE, ctypes.c_uint32(kind.rows[height]))
        self._set("MatmulAlgoConfig", ctypes.byref(chosen), _STAGES, ctypes.c_uint32(_STAGES_OF_64))
        self._set("MatmulAlgoConfig", ctypes.byref(chosen), _OPTION, ctypes.c_uint32(kind.option))
        self._set(
            "MatmulAlgoConfig", ctypes.byref(chosen), _CLUSTER, ctypes.c_uint16(_CLUSTERS[kind.cluster])
        )
        layouts = self._of_weight, self._of_x, self._of_out, self._of_out
        asked = (self._handle, self._operation, *layouts, ctypes.byref(chosen), ctypes.byref(checked))
        self._call("MatmulAlgoCheck", *asked)
        chosen.workspace = checked.workspace
        return chosen

    def _layout(self, rows: int, columns: int) -> ctypes.c_void_p:
        sizes = ctypes.c_uint64(rows), ctypes.c_uint64(columns), ctypes.c_int64(rows)
        return self._made("MatrixLayout", ctypes.c_int(_BFLOAT16), *sizes)

    # Never destroyed: a few hundred bytes for each shape, and shapes are kept for the life of the process.
    def _made(self, what: str, *arguments: object) -> ctypes.c_void_p:
        made = ctypes.c_void_p()
        self._call(f"{what}Create", ctypes.byref(made), *arguments)
        return made

    def _set(self, what: str, target: object, attribute: int, value: Any) -> None:
        size = ctypes.c_size_t(ctypes.sizeof(value))
        self._call(f"{what}SetAttribute", target, ctypes.c_int(attribute), ctypes.byref(value), size)

    def _call(self, name: str, *arguments: object) -> None:
        function = getattr(self._library, f"cublasLt{name}", None)
        if function is None:
            raise _Refused(f"it has no cublasLt{name}")
        _check(function(*arguments), name)


class _Algorithm(ctypes.Structure):
    """CuBLASLt's algorithm with what it says of it: cublasLtMatmulHeuristicResult_t."""

    _fields_ = (
        ("algorithm", ctypes.c_uint64 * 8),
        ("workspace", ctypes.c_size_t),
        ("state", ctypes.c_int),
        ("waves", ctypes.c_float),
        ("reserved", ctypes.c_int * 4),
    )
    workspace: int


def _product(rows: int, width: int, depth: int, dtype: torch.dtype, device: torch.device) -> _Product | None:
    """Return the product for a shape, or None if this card or dtype is not one that was measured; raise _Refused."""
    is_ours = torch.version.cuda is not None and device.index == torch.cuda.current_device()
    if not is_ours or dtype is not torch.bfloat16:
        return None
    card: Any = cast("Any", torch.cuda).get_device_properties(device)
    if card.major != 9:
        return None
    return _Product(rows, width, depth, *choose(rows, width, depth, card.multi_processor_count))


@functools.cache
def _opened() -> tuple[ctypes.CDLL, ctypes.c_void_p]:
    """Return the library that torch has loaded, and a handle of our own for the current card."""
    major = (torch.version.cuda or "").partition(".")[0]
    try:
        library = ctypes.CDLL(f"libcublasLt.so.{major}")
    except OSError as error:
        raise _Refused(str(error)) from error
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    library.cublasLtMatmul.argtypes = [pointer] * 14 + [size, pointer]
    handle = ctypes.c_void_p()
    _check(library.cublasLtCreate(ctypes.byref(handle)), "Create")
    return library, handle


def _check(status: int, name: str) -> None:
    if status:
        raise _Refused(f"cublasLt{name} ended with status {status}")
