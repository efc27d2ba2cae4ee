"""Results as plain tables and as JSON."""

import json
import math
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

Cell = str | int | float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """One result: rows under columns, and a note on how it was measured."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""

    def text(self) -> str:
        """Return the table for a terminal and for Markdown alike."""
        cells = [self.columns, *(tuple(_shown(cell) for cell in row) for row in self.rows)]
        widths = [max(len(row[index]) for row in cells) for index in range(len(self.columns))]
        lines = [_line(cells[0], widths), _line(tuple("-" * width for width in widths), widths)]
        lines += [_line(row, widths) for row in cells[1:]]
        return "\n".join([f"### {self.title}", "", *lines, *(["", self.note] if self.note else [])])


def write_json(path: Path, tables: Sequence[Table]) -> None:
    """Write all tables with the machine they were measured on."""
    path.write_text(
        json.dumps({"machine": machine(), "tables": [asdict(table) for table in tables]}, indent=2)
    )


def machine() -> str:
    """Return one line on what this was measured with."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{cores} cores {platform.machine()}, {platform.system()}, Python {platform.python_version()}"


def load_of_others() -> str:
    """Return a warning when the machine is busy with something else, else nothing."""
    average = os.getloadavg()[0]
    return (
        f"The machine was busy before the start (load {average:.1f}); repeat when it is quiet."
        if average > 0.7
        else ""
    )


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the value that `percent` of the values do not exceed (nearest rank)."""
    ranked = sorted(values)
    return ranked[max(0, math.ceil(percent / 100 * len(ranked)) - 1)]


def _shown(cell: Cell) -> str:
    if cell is None:
        return "–"
    if isinstance(cell, float):
        return f"{cell:,.0f}" if abs(cell) >= 100 else f"{cell:.1f}" if abs(cell) >= 10 else f"{cell:.2f}"
    return f"{cell:,}" if isinstance(cell, int) else cell


def _line(cells: tuple[str, ...], widths: list[int]) -> str:
    return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"


def say(text: str) -> None:
    """Tell on standard error what is being measured."""
    print(text, file=sys.stderr, flush=True)
