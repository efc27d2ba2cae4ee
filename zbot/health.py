"""Is the bot alive? It writes a small file again and again; `python -m zbot health` reads it."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

WRITE_EVERY_S = 5.0
TOO_OLD_S = 45.0


async def keep_writing(path: Path, facts: Callable[[], Awaitable[dict[str, Any]]]) -> None:
    """Write the facts every few seconds until cancelled; a blocked event loop is thereby seen from outside."""
    while True:
        _write(path, await facts() | {"written_at": time.time()})
        await asyncio.sleep(WRITE_EVERY_S)


def _write(path: Path, facts: dict[str, Any]) -> None:
    new = path.with_suffix(".part")
    try:
        new.write_text(json.dumps(facts))
        new.replace(path)
    except OSError:
        pass  # a full disk is told elsewhere; the file grows old and says so


def check(path: Path) -> tuple[bool, str]:
    """Return whether the bot is well, and one line that says why."""
    try:
        facts = json.loads(path.read_text())
        age_s = time.time() - facts["written_at"]
    except (OSError, ValueError, KeyError, TypeError):
        return False, "The bot does not run here."
    if age_s > TOO_OLD_S:
        return False, f"The bot has not given a sign of life for {age_s:.0f} s."
    if not facts["connected"]:
        return False, "The bot runs but is not connected to Discord."
    return (
        True,
        f"The bot runs and is connected; the engine is {facts['engine']}, {facts['waiting']} jobs wait.",
    )
