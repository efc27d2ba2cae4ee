"""The data directory: made, checked for being writable, and locked, so that two bots never share one."""

import fcntl
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from zbot.errors import ConfigError


@contextmanager
def locked(directory: Path) -> Generator[Path]:
    """Make the directory if need be and hold its lock for the time of a block.

    The lock is the kernel's, so it ends with the process, however that ends.

    Raises:
        ConfigError: it cannot be written, or another zbot holds it.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)  # the database holds interaction tokens
        (directory / "images").mkdir(exist_ok=True, mode=0o700)
        lock = os.open(directory / "zbot.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(
            f"{directory} cannot be used for data ({error.strerror}): "
            "set ZBOT_DATA_DIR to a directory that this user may write."
        ) from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"Another zbot uses {directory}: stop it first, or set ZBOT_DATA_DIR."
            ) from None
        yield directory
    finally:
        os.close(lock)
