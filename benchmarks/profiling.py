"""What the card does while a block or a function runs: how busy it is, and with which kernels."""

import contextlib
import subprocess
import threading
from collections.abc import Callable, Iterator

import torch
from torch.profiler import ProfilerActivity, profile

KINDS = {
    "cutlass": "matrix products",
    "nvjet": "matrix products",
    "in_form": "attention output to fp8",
    "gemm": "matrix products",
    "splitK": "matrix products",
    "sdpa": "attention",
    "attention_kernel": "attention",
    "flash": "attention",
    "add_rms_norm": "residual and norm",
    "rms_norm": "residual and norm",
    "norm_and_rotate": "norm and rotary",
    "gated_silu": "gated SiLU",
}


@contextlib.contextmanager
def watch_card() -> Iterator[list[tuple[float, ...]]]:
    """Sample how busy the card is, its power and its clock, while the block runs."""
    samples: list[tuple[float, ...]] = []
    try:
        watcher = subprocess.Popen(
            [
                "nvidia-smi",
                "--query-gpu=utilization.gpu,power.draw,clocks.sm",
                "--format=csv,noheader,nounits",
                "--loop-ms=200",
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
    except FileNotFoundError:
        yield samples
        return

    def read() -> None:
        for line in watcher.stdout or ():
            with contextlib.suppress(ValueError):
                samples.append(tuple(float(value) for value in line.split(",")))

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield samples
    finally:
        watcher.terminate()
        reader.join()
        watcher.wait()


def busy_share(work: Callable[[], object]) -> float:
    """Return the share of the time, while `work` runs, in which at least one kernel or copy ran."""
    with profile(activities=[ProfilerActivity.CUDA]) as traced:
        work()
        torch.cuda.synchronize()
    spans = sorted(
        (event.time_range.start, event.time_range.end)
        for event in traced.events()
        if event.device_type == torch.autograd.DeviceType.CUDA
    )
    busy, end = 0.0, spans[0][0]
    for start, stop in spans:
        busy += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return busy / (end - spans[0][0])


def kernel_times(work: Callable[[], object]) -> dict[str, float]:
    """Return the milliseconds that each kind of kernel takes while `work` runs."""
    with profile(activities=[ProfilerActivity.CUDA]) as traced:
        work()
        torch.cuda.synchronize()
    kinds: dict[str, float] = {}
    for event in traced.key_averages():
        kind = next((kind for part, kind in KINDS.items() if part in event.key), "the rest")
        kinds[kind] = kinds.get(kind, 0.0) + event.device_time_total / 1e3
    return kinds
