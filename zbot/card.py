"""What NVIDIA's own tool says of the cards; it answers also where torch and the driver do not fit together."""

import asyncio
import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

ANSWER_WITHIN_S = 10.0
OTHERS_MIB = 1024  # what a desktop takes is no news
# The oldest driver for each CUDA that torch may be built for: NVIDIA's release notes.
OLDEST_DRIVER = {12: 525, 13: 580}
_QUERY = "--query-gpu=name,driver_version,memory.total,memory.free"


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """One card; the memory in MiB is None where a card shares the machine's and has none of its own."""

    name: str
    driver: str
    total_mib: int | None
    free_mib: int | None

    @property
    def taken_mib(self) -> int:
        """What programs hold of it, 0 where nobody can tell."""
        return 0 if self.total_mib is None or self.free_mib is None else self.total_mib - self.free_mib


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """Why torch cannot draw on a card that is there: a fact and its repair."""

    fact: str
    repair: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """What torch is made for: a generation of CUDA, ROCm, or neither."""

    cuda: int | None
    is_rocm: bool


async def ask() -> str | None:
    """Return what the tool answers for all cards, in the words it fails with if it does; None where there is no tool.

    Raises: TimeoutError: the driver does not answer.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            "nvidia-smi", _QUERY, "--format=csv,noheader,nounits",
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
    except OSError:
        return None
    try:
        async with asyncio.timeout(ANSWER_WITHIN_S):
            output, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise
    return output.decode(errors="replace")


def read(answer: str) -> tuple[Card, ...]:
    """Return the cards of an answer; none where it is a complaint."""
    rows = [[part.strip() for part in line.split(",")] for line in answer.strip().splitlines()]
    if not all(len(row) == 4 for row in rows):
        return ()
    return tuple(
        Card(name=name, driver=driver, total_mib=_mib(total), free_mib=_mib(free))
        for name, driver, total, free in rows
    )


def trouble(answer: str, build: Build) -> Trouble | None:
    """Return why torch, built as it is, cannot draw on the first card of an answer; None if nothing is in the way."""
    cards = read(answer)
    if not cards:
        lines = answer.strip().splitlines()
        return Trouble(
            fact=f"the driver sees no card ({lines[0].strip() if lines else 'it names no card'})",
            repair="Install NVIDIA's driver again, then restart the machine.",
        )
    name, driver = cards[0].name, cards[0].driver
    oldest = OLDEST_DRIVER.get(build.cuda or 0, 0)
    if driver.split(".")[0].isdigit() and int(driver.split(".")[0]) < oldest:
        return Trouble(
            fact=f"{name} has driver {driver}, too old for this torch, which is made for CUDA {build.cuda}",
            repair=f"Install a driver of {oldest} or newer, then restart the machine.",
        )
    if build.cuda is None and not build.is_rocm:
        return Trouble(
            fact=f"{name} is there, but this torch is built for the CPU alone",
            repair="Install the CUDA build: `python -m pip install --force-reinstall torch`.",
        )
    return None


def torch_build() -> Build:
    """Return what torch is built for, read from its files: it is not imported."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return Build(cuda=None, is_rocm=False)
    try:
        text = Path(spec.origin).with_name("version.py").read_text("utf-8")
    except OSError:
        return Build(cuda=None, is_rocm=False)
    cuda = re.search(r"^cuda\b.*=\s*'(\d+)", text, re.MULTILINE)
    is_rocm = re.search(r"^hip\b.*=\s*'", text, re.MULTILINE) is not None
    return Build(cuda=int(cuda[1]) if cuda else None, is_rocm=is_rocm)


def _mib(text: str) -> int | None:
    return int(text) if text.isdigit() else None
