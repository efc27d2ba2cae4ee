"""Measures the kernels among which `zbot.engine._cublaslt` chooses, each against cuBLAS's own choice, in turn, on a Hopper card.

    python -m benchmarks.tiles --rows 1088 4160

Every kernel is run for `--seconds` before and while it is timed: a tenth of a second brings the card to its power limit, a
hundredth measures it at its full clock. A ratio below 1 is time saved; the kernel that is chosen is marked.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from itertools import cycle, product

import torch
from torch.nn import functional

from zbot.engine import _cublaslt as cublaslt

# Of the products of a block: width and depth.
SHAPES = {"qkv": (11_520, 3_840), "out": (3_840, 3_840), "halves": (20_480, 3_840), "down": (3_840, 10_240)}
WEIGHTS = 4  # so many in turn that none is still in the L2 cache
TURNS = 3


def seconds_of(work: Callable[[], object], within_s: float) -> float:
    """Return how long one call takes, of as many as take `within_s`, after as many others."""
    torch.cuda.synchronize()
    begin = time.perf_counter()
    work()
    torch.cuda.synchronize()
    calls = max(3, round(within_s / (time.perf_counter() - begin)))
    for _ in range(2):
        begin = time.perf_counter()
        for _ in range(calls):
            work()
        torch.cuda.synchronize()
    return (time.perf_counter() - begin) / calls


def ratios(rows: int, width: int, depth: int, within_s: float) -> dict[tuple[int, int], float]:
    """Return the time of each kernel, by columns and rows of its tile, beside that of cuBLAS's choice before and after it."""
    x = torch.randn(rows, depth, device="cuda", dtype=torch.bfloat16)
    weights = [torch.randn(width, depth, device="cuda", dtype=torch.bfloat16) * 0.02 for _ in range(WEIGHTS)]
    following = cycle(weights)
    found: dict[tuple[int, int], list[float]] = {}
    before = seconds_of(lambda: functional.linear(x, next(following)), within_s)
    for _, kind in product(range(TURNS), (cublaslt.SMALL, cublaslt.LARGE)):
        for height in kind.rows:
            ours = cublaslt._Product(rows, width, depth, kind, height)
            took = seconds_of(lambda ours=ours: ours(x, next(following)), within_s)
            after = seconds_of(lambda: functional.linear(x, next(following)), within_s)
            found.setdefault((kind.columns, height), []).append(2 * took / (before + after))
            before = after
    return {tile: statistics.median(values) for tile, values in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[576, 832, 1088, 1664, 2368, 3104, 4160, 4608])
    parser.add_argument("--seconds", type=float, default=0.1)
    arguments = parser.parse_args()
    multiprocessors = torch.cuda.get_device_properties(0).multi_processor_count
    for rows, (name, (width, depth)) in product(arguments.rows, SHAPES.items()):
        kind, height = cublaslt.choose(rows, width, depth, multiprocessors)
        found = ratios(rows, width, depth, arguments.seconds)
        best = sorted(found.items(), key=lambda item: item[1])[:5]
        shown = ", ".join(f"{columns}x{tall} {ratio:.3f}" for (columns, tall), ratio in best)
        chosen = f"{kind.columns}x{height} {found[kind.columns, height]:.3f}"
        print(f"{rows} rows, {name}: chosen {chosen}; best {shown}", flush=True)


if __name__ == "__main__":
    main()
