"""Changes that share one commit: each is whole or not there, and none is reported before the disk has it."""

import asyncio
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from zbot import database
from zbot.errors import StoreUnavailable
from zbot.store import Store
from zbot.writer import AT_ONCE


@pytest.fixture
def connection(tmp_path: Path):
    connection = sqlite3.connect(tmp_path / "together.db", isolation_level=None)
    connection.execute("CREATE TABLE word (text TEXT PRIMARY KEY)")
    yield connection
    connection.close()


def put(text: str) -> Callable[[sqlite3.Connection], str]:
    def change(connection: sqlite3.Connection) -> str:
        connection.execute("INSERT INTO word VALUES (?)", (text,))
        return text

    return change


def put_and_fail(connection: sqlite3.Connection) -> None:
    put("never")(connection)
    raise LookupError


def words(connection: sqlite3.Connection) -> list[str]:
    return [text for (text,) in connection.execute("SELECT text FROM word ORDER BY rowid")]


def test_one_that_fails_leaves_nothing_and_the_others_stand(connection: sqlite3.Connection):
    outcomes = database.transactions(connection, [put("a"), put_and_fail, put("a"), put("b")])
    assert [result for result, _ in outcomes] == ["a", None, None, "b"]
    assert [type(error) for _, error in outcomes] == [
        type(None),
        LookupError,
        sqlite3.IntegrityError,
        type(None),
    ]
    assert words(connection) == ["a", "b"]
    assert not connection.in_transaction


def test_a_disk_that_is_full_fails_all_of_them_and_keeps_none(connection: sqlite3.Connection):
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages}")
    outcomes = database.transactions(connection, [put("a"), put("b" * 100_000), put("c")])
    assert not connection.in_transaction
    told = [result for result, error in outcomes if error is None]
    assert words(connection) == told


async def test_what_comes_while_the_disk_is_busy_shares_a_commit(tmp_path: Path):
    commits: list[str] = []
    async with Store(tmp_path / "zbot.db") as store:
        await store._writer._connection.run(lambda connection: connection.set_trace_callback(commits.append))
        await asyncio.gather(*(store.remember(f"fact {number}", "so") for number in range(AT_ONCE)))
        assert [await store.fact(f"fact {number}") for number in range(AT_ONCE)] == ["so"] * AT_ONCE
    assert 1 <= commits.count("COMMIT") <= 2


async def test_one_whose_caller_has_left_is_not_begun_and_the_others_are(tmp_path: Path):
    async with Store(tmp_path / "zbot.db") as store:
        writes = [asyncio.ensure_future(store.remember(f"fact {number}", "so")) for number in range(3)]
        await asyncio.sleep(0)
        writes[1].cancel()
        await asyncio.gather(*writes, return_exceptions=True)
        assert [await store.fact(f"fact {number}") for number in range(3)] in (["so", None, "so"], ["so"] * 3)


async def test_a_connection_that_is_gone_is_told_to_everybody_who_waits(tmp_path: Path):
    async with Store(tmp_path / "zbot.db") as store:
        await store._writer._connection.run(lambda connection: connection.close())
        async with asyncio.timeout(5):
            outcomes = await asyncio.gather(
                *(store.remember(str(number), "so") for number in range(5)), return_exceptions=True
            )
    assert {type(outcome) for outcome in outcomes} == {StoreUnavailable}
