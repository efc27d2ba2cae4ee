"""Looks at the machine: disk, database, cache, weights, card and memory."""

import re
import shutil
import sqlite3
import sys
import tempfile
from contextlib import closing
from importlib.resources import files as resource_files
from pathlib import Path

from zbot import card as cards
from zbot import database as databases
from zbot import weights as models
from zbot.config import Settings
from zbot.doctor.finding import Finding, bad, halves, note, ok
from zbot.errors import ConfigError, WeightsError
from zbot.weights import ModelFiles

PICTURE_BYTES = 1_600_000  # a PNG of 1024x1024
LITTLE_SPACE_BYTES = 2 * 10**9
NO_SPACE_BYTES = 50 * 10**6


def disk(data: Path) -> Finding:
    """Say whether the data directory can be written, and how much goes into it."""
    try:
        data.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=data) as file:
            file.write(b"zbot")
        databases.check_platform(data)
        free = shutil.disk_usage(data).free
    except OSError as error:
        return bad(
            "disk",
            f"{data} cannot be written ({error.strerror})",
            "Set ZBOT_DATA_DIR to a directory that this user may write.",
        )
    except ConfigError as error:
        return bad("disk", *halves(error))
    fact = f"{data}, {free / 1e9:.1f} GB free, room for about {free // PICTURE_BYTES:,} pictures"
    if free < NO_SPACE_BYTES:
        return bad("disk", fact, "Make room, or set ZBOT_DATA_DIR to a larger disk.")
    if free < LITTLE_SPACE_BYTES:
        return note("disk", fact, "Make room soon, or set ZBOT_DATA_DIR to a larger disk.")
    return ok("disk", fact)


def database(path: Path) -> Finding:
    """Say whether the database is whole and of a schema that this zbot knows; it is only read."""
    if not path.exists():
        return ok("database", f"{path} will be made at the first start")
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
            (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
            (schema,) = connection.execute("PRAGMA user_version").fetchone()
    except sqlite3.Error as error:
        return bad("database", *halves(databases.unusable(path, str(error))))
    if verdict != "ok":
        return bad("database", *halves(databases.unusable(path, " ".join(verdict.split()))))
    known = sum(entry.name.endswith(".sql") for entry in resource_files("zbot.migrations").iterdir())
    if schema > known:
        return bad(
            "database",
            f"{path} was written by a newer zbot (schema {schema}, this one knows {known})",
            "Update zbot.",
        )
    return ok("database", f"{path} is whole, {path.stat().st_size / 1e6:.1f} MB")


def cache(root: Path) -> Finding:
    """Say whether the one cache root can be used, and point the libraries at it as the bot does."""
    try:
        models.prepare_environment(root)
    except WeightsError as error:
        return bad("cache", *halves(error))
    return ok(
        "cache", f"{root} is the one place for model files, {shutil.disk_usage(root).free / 1e9:.1f} GB free"
    )


def weights(settings: Settings) -> tuple[Finding, ModelFiles | None]:
    """Say whether the model's files are all there; their bytes are what `weights verify` reads."""
    try:
        files = models.locate(settings.model, settings.cache)
    except WeightsError as error:
        return bad("weights", *halves(error)), None
    fact = f"{files.model} in {files.directory}, {models.gigabytes(files.size_bytes)}, {files.dtype}"
    if files.dtype == "float32" and files.model != models.TINY:
        repair = "`python -m zbot weights convert` once makes them smaller by a third and quicker to load."
        return note("weights", fact, repair), files
    return ok("weights", fact), files


async def card(*, is_needed: bool) -> list[Finding]:
    """Say how the card and its driver stand."""
    if sys.platform == "darwin":
        return [ok("GPU", "Apple's own, through MPS")]
    try:
        answer = await cards.ask()
    except TimeoutError:
        say = bad if is_needed else note
        return [say("GPU", "the driver does not answer", "Restart the machine.")]
    build = cards.torch_build()
    return (
        [_without_nvidia(build, is_needed=is_needed)]
        if answer is None
        else findings_of_card(answer, build, is_needed)
    )


def findings_of_card(answer: str, build: cards.Build, is_needed: bool) -> list[Finding]:
    """Return what the answer of NVIDIA's tool means for a torch that is built so."""
    found, trouble = cards.read(answer), cards.trouble(answer, build)
    findings: list[Finding] = []
    if trouble is not None:
        say = bad if is_needed else note
        findings.append(say("GPU", trouble.fact, trouble.repair))
    for first in found[:1]:
        if trouble is None:
            several = f", the first of {len(found)}" if len(found) > 1 else ""
            findings.append(ok("GPU", f"{first.name}, driver {first.driver}{several}"))
        if first.total_mib is not None and first.free_mib is not None:
            fact = f"{first.free_mib / 1024:.1f} of {first.total_mib / 1024:.1f} GiB of the card are free"
            findings.append(
                note(
                    "memory", fact, "Fine if that is the bot itself; else end the other program on the card."
                )
                if first.taken_mib > cards.OTHERS_MIB
                else ok("memory", fact)
            )
    return findings


def memory(files: ModelFiles | None) -> Finding:
    """Say how much of the machine's own memory is available, and whether the model would go into it."""
    try:
        text = Path("/proc/meminfo").read_text("ascii")
        total, available = (
            int(found[1]) * 1024
            for name in ("MemTotal", "MemAvailable")
            if (found := re.search(rf"^{name}:\s*(\d+)", text, re.MULTILINE))
        )
    except (OSError, ValueError):
        return ok("memory", "this system does not tell")
    fact = f"{available / 2**30:.1f} of {total / 2**30:.1f} GiB of the machine are available"
    if files is not None and available < files.size_bytes:
        return note(
            "memory",
            f"{fact}, less than the model's {files.size_bytes / 2**30:.1f} GiB",
            "Enough for a card that holds the whole model; every placement with offload needs more.",
        )
    return ok("memory", fact)


def _without_nvidia(build: cards.Build, *, is_needed: bool) -> Finding:
    if build.is_rocm:
        return ok("GPU", "none of NVIDIA's; torch is built for ROCm")
    if not is_needed:
        return ok("GPU", "none, and the tiny model needs none")
    return note(
        "GPU",
        "no NVIDIA driver on this machine",
        "On the CPU one picture takes minutes. Install the driver; in a container, pass the card through.",
    )
