"""A database that somebody else holds and a disk that is full: people hear it, and nothing is half done."""

import asyncio
import contextlib
import os
import sqlite3
from collections.abc import Generator

import pytest

from tests.crash.stage import Stage
from tests.crash.test_storm import end, held, let_go, ready, until_running
from zbot.sandbox import Handle, Message

BUSY = "not accepted"


@contextlib.contextmanager
def locked(stage: Stage) -> Generator[None]:
    """Hold the database's one write lock, as a back-up tool or a curious admin may."""
    with contextlib.closing(sqlite3.connect(stage.data / "zbot.db", isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")


async def refused(handle: Handle) -> Message:
    """Return the answer of a bot that could not accept, which must come in time and for this person alone."""
    message = await handle.message(timeout_s=5)
    assert message.ephemeral, message.content
    return message


@pytest.mark.parametrize("for_s", [0.3, 3.0])
async def test_a_database_that_is_locked_refuses_in_time_or_accepts_for_good(stage: Stage, for_s: float):
    victim = await ready(stage)
    ada = stage.sandbox.person("Ada")
    with locked(stage):
        handles = [await ada.slash("imagine", prompt="a boat", seed=seed) for seed in range(5)]
        await asyncio.sleep(for_s)
    for handle in handles:
        await handle.acknowledged()
    messages = [await handle.message() for handle in handles]
    await stage.settle(victim)
    accepted = [message for message in messages if not message.ephemeral]
    assert len(accepted) == len(stage.rows())
    assert len(accepted) == (5 if for_s < 1 else 0)
    afterwards = await ada.slash("imagine", prompt="a boat", seed=7)
    assert not (await afterwards.message()).ephemeral
    await end(stage, victim)


async def test_a_picture_drawn_while_the_database_is_locked_is_saved_when_it_is_free(stage: Stage):
    victim = await ready(stage)
    await held(stage)
    await until_running(stage, victim)
    with locked(stage):
        let_go(stage)
        await stage.until(lambda: "nothing can be saved" in stage.tail(), victim)
    await end(stage, victim)
    assert [job["state"] for job in stage.rows()] == ["delivered"]


async def test_a_start_beside_somebody_who_holds_the_database_says_so(stage: Stage):
    await (await ready(stage)).end()
    with locked(stage):
        victim = stage.start()
        async with asyncio.timeout(15):
            assert await victim.ended == 2, stage.tail()
    assert "locked" in stage.tail()
    assert "begin anew" not in stage.tail(), "advice that would throw a good database away"
    await end(stage, await ready(stage))


async def test_a_full_disk_accepts_nothing_and_keeps_what_was_accepted_until_there_is_room(stage: Stage):
    """The limit strikes the database's log and the pictures alike."""
    await (await ready(stage)).end()
    size_bytes = (stage.data / "zbot.db").stat().st_size
    victim = await ready(stage, CRASH_FILE_BYTES=str(max(size_bytes, 1 << 16)))
    ada = stage.sandbox.person("Ada")
    accepted = 0
    for number in range(60):
        handle = await ada.slash("imagine", prompt="a hold " + "x" * 4_000, seed=number)
        message = await handle.message()
        if message.ephemeral:
            break
        accepted += 1
        if accepted >= 8:  # a person's own limit is not what is tested here
            ada = stage.sandbox.add_person(f"Guest {number}")
    else:
        pytest.fail("the disk was never full")
    assert accepted
    assert len(stage.rows()) == accepted
    pid = await victim.born
    import resource

    resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    let_go(stage)
    await end(stage, victim)
    assert [job["state"] for job in stage.rows()] == ["delivered"] * accepted


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
async def test_a_directory_that_cannot_be_written_ends_the_start_with_one_sentence(stage: Stage):
    stage.data.chmod(0o500)
    try:
        victim = stage.start()
        assert await victim.ended == 2
    finally:
        stage.data.chmod(0o700)


async def test_pictures_that_do_not_fit_on_the_disk_wait_for_room(stage: Stage):
    victim = await ready(stage)
    await held(stage)
    await until_running(stage, victim)
    images = stage.data / "images"
    images.rename(stage.data / "elsewhere")
    let_go(stage)
    await stage.until(lambda: "nothing can be saved" in stage.tail(), victim)
    (stage.data / "elsewhere").rename(images)
    await end(stage, victim)
    assert [job["state"] for job in stage.rows()] == ["delivered"]
