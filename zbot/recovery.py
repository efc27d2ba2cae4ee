"""What a start does with what an end left behind on the disk."""

import asyncio
import logging
import re
from pathlib import Path

from zbot import images
from zbot.job import JobId
from zbot.store import Store

log = logging.getLogger(__name__)

_PICTURE = re.compile(r"zbot-(\d+)-\d+\.png")


async def clean_up(store: Store, images_dir: Path) -> None:
    """Remove half-written files, and pictures whose job is drawn again or was taken back."""
    kept = await store.kept_pictures()
    removed = await asyncio.to_thread(_remove, images_dir, kept)
    if removed:
        log.info("removed %d files that no finished job owns", removed)


def _remove(images_dir: Path, kept: set[JobId]) -> int:
    removed = images.remove_leftovers(images_dir)
    for path in images_dir.iterdir():
        match = _PICTURE.fullmatch(path.name)
        if match and JobId(int(match[1])) not in kept:
            path.unlink(missing_ok=True)
            removed += 1
    return removed
