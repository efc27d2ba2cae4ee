"""The care of the SQLite file: opening it with checked pragmas, transactions, migrations and back-ups.

A transaction is one plain function that runs whole on its connection's thread. Coroutines can therefore never
interleave inside it, and a cancelled `await` leaves nothing half done: the function has run to its end or not at all.
"""

import asyncio
import contextlib
import os
import sqlite3
from collections.abc import Callable, Sequence
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import TypeVar

import aiosqlite

from zbot.errors import ConfigError

T = TypeVar("T")

BUSY_TIMEOUT_MS = 1_000  # another process may hold the file, and Discord waits 3 s for an answer
MIN_SQLITE = (3, 37, 0)  # STRICT tables; RETURNING came with 3.35
_PASSING = ("is locked", "disk is full")  # ends of SQLite's sentences about what no back-up mends
_NETWORK_FILE_SYSTEMS = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "fuse.sshfs", "afpfs"}


class Connection(aiosqlite.Connection):
    """An aiosqlite connection that can run a whole function on its thread."""

    async def run(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """Run a function on the connection's thread and return what it returns."""
        return await self._execute(function, self._conn)  # pyright: ignore[reportUnknownMemberType]

    async def has_ended(self) -> None:
        """Wait for the thread of a connection that could not be opened: it still speaks to the event loop."""
        await asyncio.to_thread(self._thread.join)


async def connect(path: Path, *, query_only: bool) -> Connection:
    """Open a connection whose pragmas were read back.

    Raises:
        ConfigError: the file cannot be opened, or the disk cannot give what the promises rest on.
    """

    def connector() -> sqlite3.Connection:
        connection = sqlite3.connect(path, isolation_level=None, timeout=BUSY_TIMEOUT_MS / 1000)
        connection.row_factory = sqlite3.Row
        try:
            _set_pragmas(connection, query_only=query_only)
        except BaseException:
            connection.close()
            raise
        return connection

    connection = Connection(connector, iter_chunk_size=64)
    try:
        await connection
    except BaseException as error:
        await connection.has_ended()
        if isinstance(error, sqlite3.Error):
            raise unusable(path, str(error)) from error
        raise
    return connection


def check_platform(directory: Path) -> None:
    """Refuse a machine or disk on which SQLite cannot keep its promises.

    Raises:
        ConfigError: too old an SQLite, or a network file system.
    """
    if sqlite3.sqlite_version_info < MIN_SQLITE:
        raise ConfigError(
            f"SQLite {sqlite3.sqlite_version} is too old; install a Python that brings SQLite 3.37 or newer."
        )
    if (kind := _file_system(directory)) in _NETWORK_FILE_SYSTEMS:
        raise ConfigError(
            f"{directory} lies on {kind}, where SQLite cannot keep its promises; set ZBOT_DATA_DIR to a local disk."
        )


def transaction(connection: sqlite3.Connection, change: Callable[[sqlite3.Connection], T]) -> T:
    """Run `change` in one immediate transaction: committed when it returns, rolled back when it raises."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        result = change(connection)
        connection.execute("COMMIT")
    except BaseException:
        # A failed COMMIT (disk full) may have rolled back by itself.
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    return result


def transactions(
    connection: sqlite3.Connection, changes: Sequence[Callable[[sqlite3.Connection], object]]
) -> list[tuple[object, Exception | None]]:
    """Run several changes with one commit, each whole or not at all; return what each returned or raised.

    One wait for the disk serves all that came meanwhile. None of them may tell anybody before this returns, and one may
    be run twice: if another was stopped after it had begun to write, each is committed alone.
    """

    def all_of_them(connection: sqlite3.Connection) -> list[tuple[object, Exception | None]]:
        outcomes: list[tuple[object, Exception | None]] = []
        for change in changes:
            written = connection.total_changes
            try:
                outcomes.append((change(connection), None))
            except Exception as error:
                if connection.total_changes != written or not connection.in_transaction:
                    raise _HalfWritten from error
                outcomes.append((None, error))
        return outcomes

    try:
        return transaction(connection, all_of_them)
    except _HalfWritten:
        return [_outcome(connection, change) for change in changes]
    except Exception as error:
        return [(None, error)] * len(changes)


class _HalfWritten(Exception):
    """A change of several was stopped after it had begun to write."""


def _outcome(
    connection: sqlite3.Connection, change: Callable[[sqlite3.Connection], object]
) -> tuple[object, Exception | None]:
    try:
        return transaction(connection, change), None
    except Exception as error:
        return None, error


def _set_pragmas(connection: sqlite3.Connection, *, query_only: bool) -> None:
    """Set what the promises rest on and read it back: SQLite ignores a pragma it cannot follow."""
    wanted: dict[str, object] = {
        "journal_mode": "wal",
        "synchronous": 2,  # FULL: an acknowledged commit survives a power cut, at 0.15 ms a commit
        "foreign_keys": 1,
        "busy_timeout": BUSY_TIMEOUT_MS,
        "trusted_schema": 0,
        "query_only": int(query_only),
    }
    for name, value in wanted.items():
        connection.execute(f"PRAGMA {name} = {value}")
        (found,) = connection.execute(f"PRAGMA {name}").fetchone()
        if found != value:
            raise ConfigError(
                f"SQLite does not take {name} = {value} on this disk; set ZBOT_DATA_DIR to a local disk."
            )


def prepare(connection: sqlite3.Connection, path: Path) -> None:
    """Check the file and bring it to the newest schema, each migration in one transaction, after a back-up."""
    (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise unusable(path, verdict)
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    migrations = _migrations()
    if version > len(migrations):
        raise ConfigError(
            f"{path} was written by a newer zbot (schema {version}, this one knows {len(migrations)}); update zbot."
        )
    if 0 < version < len(migrations):
        back_up(connection, path.with_name(f"{path.name}.schema{version}.bak"))
    for number, script in enumerate(migrations[version:], start=version + 1):
        transaction(connection, partial(_migrate, script=script, number=number))


def _migrate(connection: sqlite3.Connection, script: str, number: int) -> None:
    statement = ""
    for line in script.splitlines():
        statement += line + "\n"
        if sqlite3.complete_statement(statement):  # executescript would commit
            connection.execute(statement)
            statement = ""
    connection.execute(f"PRAGMA user_version = {number}")


def _migrations() -> list[str]:
    scripts = (entry for entry in files("zbot.migrations").iterdir() if entry.name.endswith(".sql"))
    return [entry.read_text("utf-8") for entry in sorted(scripts, key=lambda entry: entry.name)]


def back_up(connection: sqlite3.Connection, target: Path) -> None:
    """Write a consistent copy without secrets: to a temporary name, checked, then renamed to `target`."""
    partial_copy = target.with_name(f"{target.name}.part")
    try:
        _write_copy(connection, partial_copy)
        partial_copy.replace(target)
    finally:
        partial_copy.unlink(missing_ok=True)


def _write_copy(connection: sqlite3.Connection, path: Path) -> None:
    path.unlink(missing_ok=True)
    with contextlib.closing(sqlite3.connect(path)) as copy:
        copy.execute("PRAGMA secure_delete = ON")  # what is deleted is overwritten, not only forgotten
        connection.backup(copy)
        # An interaction token lets anybody post as the bot for 15 minutes: no copy carries one.
        copy.execute("UPDATE job SET interaction_token = NULL")
        copy.commit()
        (verdict,) = copy.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise sqlite3.DatabaseError(f"the copy is not whole: {verdict}")
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def unusable(path: Path, reason: str) -> ConfigError:
    """Return the error that names the file, the reason and the repair: for a damaged file the newest back-up."""
    if reason.endswith(_PASSING):
        return ConfigError(
            f"The database {path} cannot be written now ({reason}): end what else has it open, or make room on "
            "the disk, and start again."
        )
    backups = sorted(path.parent.glob(f"{path.name}.*.bak"), key=lambda backup: backup.stat().st_mtime)
    repair = (
        f"put back {backups[-1]}" if backups else "put back a back-up, or move the file away to begin anew"
    )
    return ConfigError(f"The database {path} cannot be used ({reason}); {repair}.")


def _file_system(directory: Path) -> str:
    """Return the kind of file system that holds a directory; empty where the system does not tell."""
    try:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return ""
    best, kind = -1, ""
    for line in lines:
        before, _, after = line.partition(" - ")
        mount = before.split()[4].replace("\\040", " ")
        if len(mount) > best and directory.resolve().is_relative_to(mount):
            best, kind = len(mount), after.split()[0]
    return kind
