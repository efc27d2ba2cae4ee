import asyncio
import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.fakes import a_job, accept, an_origin
from zbot import database
from zbot.errors import ConfigError
from zbot.job import JobState
from zbot.store import Store

FIXTURES = Path(__file__).parent.parent / "fixtures"
TOKEN = "secret-token-of-an-interaction"


async def filled(path: Path, jobs: int = 50) -> None:
    """Leave a closed database with jobs in it."""
    async with Store(path) as store:
        for user_id in range(jobs):
            await accept(store, origin=an_origin(user_id))


async def refused(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        async with Store(path):
            pass
    return str(caught.value)


def select(path: Path, sql: str) -> list[tuple[object, ...]]:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return connection.execute(sql).fetchall()


# --- opening ---


async def test_the_pragmas_the_promises_rest_on_are_set(store: Store):
    def pragmas(connection: sqlite3.Connection) -> dict[str, object]:
        names = ("journal_mode", "synchronous", "foreign_keys", "busy_timeout", "query_only")
        return {name: connection.execute(f"PRAGMA {name}").fetchone()[0] for name in names}

    expected = {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 1_000}
    assert await store._writer._connection.run(pragmas) == expected | {"query_only": 0}
    assert await store._reader.run(pragmas) == expected | {"query_only": 1}


async def test_the_reader_cannot_write(store: Store):
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        await store._reader.run(
            lambda connection: connection.execute("UPDATE fair_clock SET virtual_time = 5")
        )


async def test_a_disk_that_ignores_a_pragma_is_refused(data_dir: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(database, "BUSY_TIMEOUT_MS", -1)  # SQLite takes no negative one: it stays at 0
    assert "busy_timeout" in await refused(data_dir / "zbot.db")


async def test_a_network_file_system_is_refused(data_dir: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(database, "_file_system", lambda directory: "nfs4")
    message = await refused(data_dir / "zbot.db")
    assert str(data_dir) in message and "nfs4" in message and "ZBOT_DATA_DIR" in message


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's list of mounts")
def test_the_kind_of_a_file_system_is_known():
    assert database._file_system(Path("/proc/self")) == "proc"


async def test_too_old_an_sqlite_is_refused(data_dir: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(database, "MIN_SQLITE", (99, 0, 0))
    assert "too old" in await refused(data_dir / "zbot.db")


async def test_a_refused_file_leaves_no_thread_that_keeps_the_process_alive(data_dir: Path):
    before = set(threading.enumerate())
    as_text(data_dir / "zbot.db")
    await refused(data_dir / "zbot.db")
    left = [thread for thread in set(threading.enumerate()) - before if "connection" in thread.name]
    assert left == []


# --- damage ---


def as_text(path: Path) -> None:
    path.write_bytes(b"this is no database, however long one looks at it" * 100)


def truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2 // 4096 * 4096)


def one_byte_flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[4096] ^= 0xFF  # the kind of the second page
    path.write_bytes(data)


def a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("damage", [as_text, truncated, one_byte_flipped, a_directory])
async def test_a_damaged_file_is_refused_with_its_path_and_the_newest_back_up(data_dir: Path, damage: object):
    path = data_dir / "zbot.db"
    await filled(path)
    for age, name in ((20, "old"), (10, "new")):
        backup = path.with_name(f"zbot.db.{name}.bak")
        backup.write_bytes(b"")
        os.utime(backup, (1_000_000 - age, 1_000_000 - age))
    damage(path)  # type: ignore[operator]
    content = path.read_bytes() if path.is_file() else b""
    message = await refused(path)
    assert str(path) in message
    assert "zbot.db.new.bak" in message
    assert content == (path.read_bytes() if path.is_file() else b""), "the evidence was changed"


async def test_without_a_back_up_the_repair_is_to_begin_anew(data_dir: Path):
    as_text(data_dir / "zbot.db")
    assert "begin anew" in await refused(data_dir / "zbot.db")


async def test_a_database_of_a_newer_zbot_is_refused_and_left_alone(data_dir: Path):
    path = data_dir / "zbot.db"
    await filled(path, jobs=1)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 99")
    message = await refused(path)
    assert str(path) in message and "99" in message and "update zbot" in message
    assert select(path, "SELECT count(*) FROM job") == [(1,)]


# --- migrations ---


def fixture(number: int, path: Path) -> None:
    """Make the stored database of a schema."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.executescript((FIXTURES / f"schema{number}.sql").read_text("utf-8"))


@pytest.mark.parametrize("number", range(1, len(database._migrations()) + 1))
async def test_a_stored_database_of_every_schema_is_brought_to_the_newest(data_dir: Path, number: int):
    path = data_dir / "zbot.db"
    fixture(number, path)
    async with Store(path) as store:
        job = await store.job((await store.waiting())[0].job_id)  # type: ignore[arg-type]
        assert (job.request.prompt, job.request.seed, job.origin.user_id) == ("雪地里的红狐狸", 4294967295, 2)
        assert [job.id for job in await store.outbox()] == [2]
        assert (await store.usage(1, None)).pictures == 4
        assert await store.fact("commands synced to all by 42") == "abc"
        claimed = await store.claim()
        assert claimed is not None and claimed.id == job.id
    assert select(path, "PRAGMA user_version") == [(len(database._migrations()),)]
    assert select(path, "PRAGMA foreign_key_check") == []


async def test_every_schema_has_a_stored_database():
    assert all(
        (FIXTURES / f"schema{number + 1}.sql").is_file() for number in range(len(database._migrations()))
    )


async def test_a_migration_makes_a_back_up_first(data_dir: Path, monkeypatch: pytest.MonkeyPatch):
    path = data_dir / "zbot.db"
    fixture(len(database._migrations()), path)
    migrations = [*database._migrations(), "CREATE TABLE later (id INTEGER) STRICT;"]
    monkeypatch.setattr(database, "_migrations", lambda: migrations)
    async with Store(path):
        pass
    backup = data_dir / f"zbot.db.schema{len(migrations) - 1}.bak"
    assert select(backup, "PRAGMA user_version") == [(len(migrations) - 1,)]
    assert select(backup, "SELECT count(*) FROM job") == select(path, "SELECT count(*) FROM job")
    assert select(path, "SELECT count(*) FROM later") == [(0,)]


async def test_a_migration_that_fails_half_way_changes_nothing(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
):
    path = data_dir / "zbot.db"
    fixture(len(database._migrations()), path)
    before = select(path, "SELECT sql FROM sqlite_schema ORDER BY name")
    good = database._migrations()
    monkeypatch.setattr(
        database,
        "_migrations",
        lambda: [*good, "CREATE TABLE later (id INTEGER);\nINSERT INTO nowhere VALUES (1);"],
    )
    message = await refused(path)
    assert "nowhere" in message and ".bak" in message
    assert select(path, "SELECT sql FROM sqlite_schema ORDER BY name") == before
    monkeypatch.setattr(database, "_migrations", lambda: good)
    async with Store(path) as store:
        assert await store.waiting()


# --- back-ups ---


async def test_a_back_up_is_whole_and_carries_no_token(data_dir: Path, store: Store):
    for _ in range(20):
        await a_job(store, JobState.RENDERED, interaction_token=TOKEN)
    target = data_dir / "copy.db"
    writing = asyncio.ensure_future(accept(store, origin=an_origin(interaction_token=TOKEN)))
    await store.back_up(target)
    await writing
    assert TOKEN.encode() not in target.read_bytes()
    assert select(target, "PRAGMA integrity_check") == [("ok",)]
    assert select(target, "SELECT count(*) FROM usage") == [(20,)]
    assert select(target, "SELECT count(*) FROM job WHERE interaction_token IS NOT NULL") == [(0,)]
    assert [path.name for path in data_dir.iterdir() if ".part" in path.name] == []
    assert (await store.job((await store.outbox())[0].id)).origin.interaction_token == TOKEN


async def test_a_back_up_can_be_put_back(data_dir: Path, store: Store):
    job = await a_job(store)
    await store.back_up(data_dir / "other.db")
    async with Store(data_dir / "other.db") as other:
        assert (await other.job(job.id)).request == job.request


async def test_a_back_up_replaces_an_older_one_and_a_half_made_one(data_dir: Path, store: Store):
    target = data_dir / "copy.db"
    target.write_bytes(b"old")
    target.with_name("copy.db.part").write_bytes(b"half")
    await store.back_up(target)
    assert select(target, "SELECT count(*) FROM job") == [(0,)]


# --- kill -9 ---

_COMMIT_FOR_EVER = """
import asyncio, sys
from pathlib import Path
from tests.fakes import accept
from zbot.store import Store

async def main():
    async with Store(Path(sys.argv[1])) as store:
        while True:
            print((await accept(store)).job.id, flush=True)

asyncio.run(main())
"""


@pytest.mark.parametrize("commits", [1, 20, 77])
async def test_kill_9_loses_no_acknowledged_commit(data_dir: Path, commits: int):
    path = data_dir / "zbot.db"
    with subprocess.Popen(
        [sys.executable, "-c", _COMMIT_FOR_EVER, str(path)], stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        acknowledged = [int(child.stdout.readline()) for _ in range(commits)]
        child.send_signal(signal.SIGKILL)
        acknowledged += [int(line) for line in child.stdout if line.endswith(b"\n")]
    async with Store(path) as store:
        assert set(acknowledged) <= {waiting.job_id for waiting in await store.waiting()}
    assert select(path, "PRAGMA integrity_check") == [("ok",)]
