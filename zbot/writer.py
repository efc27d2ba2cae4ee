"""The one writer of the database: changes that come while the disk is busy share its next commit."""

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from zbot import database
from zbot.errors import StoreUnavailable

T = TypeVar("T")
Change = Callable[[sqlite3.Connection], T]

AT_ONCE = 24  # changes in one commit: in a crowd the first are answered while the next are committed
PATIENCE_S = 0.05  # how long a change that nobody waits for may wait for others


class Writer:
    """Commits changes in the order in which they came, each whole or not at all."""

    def __init__(self, connection: database.Connection) -> None:
        self._connection = connection
        self._waiting: list[tuple[Change[Any], asyncio.Future[Any]]] = []
        self._committing: asyncio.Task[None] | None = None
        self._urgent = asyncio.Event()

    def write(self, change: Change[T], *, urgent: bool = True) -> asyncio.Future[T]:
        """Return what a change will have returned or raised once it is committed; a cancelled one is left out.

        One that is not urgent is committed with the next that is, or after `PATIENCE_S`.

        Raises, through the future:
            StoreUnavailable: the file is locked, full, read-only or damaged; nothing of the change was kept.
        """
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.append((change, done))
        if urgent:
            self._urgent.set()
        if self._committing is None:
            self._committing = asyncio.create_task(self._commit())
        return done

    async def close(self) -> None:
        """Commit what waits, then close the connection."""
        self._urgent.set()
        if self._committing is not None:
            await self._committing
        await self._connection.close()

    async def _commit(self) -> None:
        batch: list[tuple[Change[Any], asyncio.Future[Any]]] = []
        try:
            while self._waiting:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(PATIENCE_S):
                        await self._urgent.wait()
                batch, self._waiting = self._waiting[:AT_ONCE], self._waiting[AT_ONCE:]
                if not self._waiting:
                    self._urgent.clear()
                batch = [(change, done) for change, done in batch if not done.cancelled()]
                changes = [change for change, _ in batch]
                outcomes = await self._connection.run(partial(database.transactions, changes=changes))
                for (_, done), (result, error) in zip(batch, outcomes, strict=True):
                    _settle(done, result, error)
        except Exception as error:  # the connection itself is gone
            for _, done in [*batch, *self._waiting]:
                _settle(done, None, error)
        finally:
            self._waiting = []
            self._committing = None


def _settle(done: asyncio.Future[Any], result: object, error: Exception | None) -> None:
    if done.done():
        return
    if error is None:
        done.set_result(result)
    elif isinstance(error, sqlite3.DatabaseError):
        unavailable = StoreUnavailable(str(error))
        unavailable.__cause__ = error
        done.set_exception(unavailable)
    else:
        done.set_exception(error)
