import asyncio
import sqlite3
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from zbot import database, writer
from zbot.writer import Writer


class Table:
    """A writer on a table of numbers, and the statements it ran."""

    def __init__(self, path: Path, connection: database.Connection) -> None:
        self._path = path
        self.writer = Writer(connection)
        self.statements: list[str] = []

    def put(self, number: int, *, urgent: bool = True) -> asyncio.Future[object]:
        return self.writer.write(
            lambda connection: connection.execute("INSERT INTO number VALUES (?)", (number,)), urgent=urgent
        )

    def committed(self) -> list[int]:
        with sqlite3.connect(self._path) as connection:
            rows = connection.execute("SELECT value FROM number ORDER BY rowid").fetchall()
        connection.close()
        return [row[0] for row in rows]

    @property
    def commits(self) -> int:
        return self.statements.count("COMMIT")


@pytest.fixture
async def table(tmp_path: Path) -> AsyncGenerator[Table]:
    path = tmp_path / "numbers.db"
    connection = await database.connect(path, query_only=False)
    await connection.run(lambda raw: raw.execute("CREATE TABLE number (value INTEGER UNIQUE)"))
    table = Table(path, connection)
    await connection.run(lambda raw: raw.set_trace_callback(table.statements.append))
    yield table
    await table.writer.close()


async def test_a_change_without_haste_shares_the_next_commit(table: Table, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(writer, "PATIENCE_S", 600.0)
    patient = [table.put(number, urgent=False) for number in range(3)]
    await table.put(7)
    assert all(done.done() for done in patient)
    assert (table.committed(), table.commits) == ([0, 1, 2, 7], 1)


async def test_a_change_without_haste_is_committed_also_if_no_other_comes(
    table: Table, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(writer, "PATIENCE_S", 0.01)
    async with asyncio.timeout(5):
        await table.put(1, urgent=False)
    assert table.committed() == [1]


async def test_closing_commits_what_has_no_haste(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(writer, "PATIENCE_S", 600.0)
    connection = await database.connect(tmp_path / "numbers.db", query_only=False)
    await connection.run(lambda raw: raw.execute("CREATE TABLE number (value INTEGER)"))
    table = Table(tmp_path / "numbers.db", connection)
    done = table.put(1, urgent=False)
    async with asyncio.timeout(5):
        await table.writer.close()
    assert done.done()
    assert table.committed() == [1]


async def test_the_first_of_a_crowd_are_committed_before_the_last(table: Table):
    crowd = [table.put(number) for number in range(3 * writer.AT_ONCE)]
    await crowd[0]
    assert not crowd[-1].done()
    assert table.committed()[: writer.AT_ONCE] == list(range(writer.AT_ONCE))
    await asyncio.gather(*crowd)
    assert (len(table.committed()), table.commits) == (3 * writer.AT_ONCE, 3)


async def test_a_change_that_failed_before_it_wrote_anything_spoils_no_other(table: Table):
    first = table.put(1)

    def refuse(connection: sqlite3.Connection) -> object:
        raise ValueError("refused")

    refused, last = table.writer.write(refuse), table.put(2)
    await asyncio.wait({first, refused, last})
    assert isinstance(refused.exception(), ValueError)
    assert (table.committed(), table.commits) == ([1, 2], 1)


async def test_a_change_that_failed_half_written_leaves_nothing_behind_and_the_others_whole(table: Table):
    def half(connection: sqlite3.Connection) -> object:
        connection.execute("INSERT INTO number VALUES (50)")
        return connection.execute("INSERT INTO number VALUES (50)")

    first, broken, last = table.put(1), table.writer.write(half), table.put(2)
    await asyncio.wait({first, broken, last})
    assert "UNIQUE" in str(broken.exception())
    assert table.committed() == [1, 2]
