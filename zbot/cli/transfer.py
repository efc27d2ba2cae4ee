"""The display of long work on the model's files: bytes, rate and time left, on a terminal or line by line."""

import sys
import time
from collections.abc import Generator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from zbot import weights
from zbot.cli.problems import tell

_PLAIN_INTERVAL_S = 10.0  # between lines where there is no terminal to draw a bar on


@contextmanager
def shown() -> Generator[weights.OnProgress]:
    """Show one line for the whole work: bytes, rate and time left; plain lines where there is no terminal."""
    if not sys.stderr.isatty():
        yield _plain_lines()
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[path]}", style="dim"),
    )
    with Progress(*columns, console=Console(stderr=True)) as display:
        tasks: dict[str, TaskID] = {}

        def show(progress: weights.Progress) -> None:
            task = tasks.get(progress.action)
            if task is None:
                # Begin at what is there already: only what comes now counts for the rate.
                tasks[progress.action] = display.add_task(
                    progress.action,
                    total=progress.total_bytes,
                    completed=progress.done_bytes,
                    path=progress.path,
                )
            else:
                display.update(
                    task, completed=progress.done_bytes, total=progress.total_bytes, path=progress.path
                )

        yield show


def _plain_lines() -> weights.OnProgress:
    begun: dict[str, tuple[float, int]] = {}
    told: dict[str, float] = {}

    def report(progress: weights.Progress) -> None:
        now = time.monotonic()
        begun_at, begun_bytes = begun.setdefault(progress.action, (now, progress.done_bytes))
        finished = progress.done_bytes >= progress.total_bytes
        if not finished and now - told.get(progress.action, begun_at) < _PLAIN_INTERVAL_S:
            return
        if told.get(progress.action) == float("inf"):
            return
        told[progress.action] = float("inf") if finished else now
        rate = (progress.done_bytes - begun_bytes) / max(now - begun_at, 1e-3)
        left = (
            f", {(progress.total_bytes - progress.done_bytes) / rate / 60:.0f} min left"
            if rate and not finished
            else ""
        )
        tell(
            f"{progress.action}: {weights.gigabytes(progress.done_bytes)} of "
            f"{weights.gigabytes(progress.total_bytes)}, {rate / 1e6:.1f} MB/s{left}"
        )

    return report
