"""Killed, stopped, started twice: nothing accepted is lost, nothing is posted twice."""

import signal
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.conftest import StartBot, Watch
from tests.e2e.desk import Desk
from tests.e2e.scene import (
    E2E,
    files_of,
    has_pictures,
    in_state,
    job_for,
    job_of,
    jobs,
    prompt_of,
    result,
    rows,
    seeds_of,
    settled,
    struck,
)
from zbot.sandbox import Sandbox
from zbot.sandbox.people import Handle, Person
from zbot.sandbox.world import Message

pytestmark = E2E


@pytest.fixture(autouse=True)
def without_rate_limits(sandbox: Sandbox) -> Iterator[None]:
    """So many starts in a row ask for the commands more often than Discord likes, and would wait."""
    sandbox.buckets.enabled = False
    yield
    sandbox.buckets.enabled = True


def results(sandbox: Sandbox, word: str) -> list[Message]:
    """Return the messages that hold pictures of a prompt."""
    return [m for m in sandbox.messages("pictures") if has_pictures(m) and m.embeds and word in prompt_of(m)]


async def test_after_a_kill_every_job_is_drawn_with_its_seed_and_posted_once(
    start_bot: StartBot, sandbox: Sandbox, desk: Desk, ada: Person, bo: Person, mo: Person
) -> None:
    bot = await start_bot()
    desk.on("survivor", hold_at=5)
    handles = [
        await person.slash("imagine", prompt=f"survivor {number}", count=number % 2 + 1)
        for number, person in enumerate((ada, bo, mo, ada, bo))
    ]
    await desk.held("survivor 0")
    for handle in handles:
        await handle.message()
    seeds = {job["id"]: job["seed"] for job in jobs(bot)}
    await bot.kill()
    assert job_for(bot, handles[0])["state"] == "running"
    desk.forget()

    await bot.start()
    for handle in handles:
        await result(handle)
    await settled(bot)
    assert {job["id"]: job["seed"] for job in jobs(bot)} == seeds
    assert all(job["state"] == "delivered" and job["attempts"] == 0 for job in jobs(bot))
    assert len(results(sandbox, "survivor")) == 5
    for handle in handles:
        job = job_for(bot, handle)
        expected = [job["seed"] + index for index in range(job["num_images"])]
        assert seeds_of(handle.messages[0]) == [seed % 2**32 for seed in expected]
    assert [row[0] for row in rows(bot, "SELECT job_id FROM usage ORDER BY job_id")] == sorted(seeds)
    # The seed was fixed when the job was accepted, so both tries of the first one drew the same.
    first, second = [picture.seed for picture in desk.of("survivor 0")]
    assert first == second


async def test_a_kill_between_drawing_and_posting_posts_without_drawing_again(
    start_bot: StartBot, sandbox: Sandbox, desk: Desk, ada: Person
) -> None:
    bot = await start_bot()
    fault = sandbox.faults.add("original_edit", stall_s=60.0)
    handle = await ada.slash("imagine", prompt="drawn and not posted", seed=9)
    await in_state(bot, handle, "rendered")
    await struck(fault)
    await bot.kill()
    sandbox.faults.clear()
    await bot.start()
    assert seeds_of(await result(handle)) == [9]
    await settled(bot)
    assert len(desk.of("drawn and not posted")) == 1
    assert len(results(sandbox, "drawn and not posted")) == 1


@pytest.mark.parametrize("way", ["original", "channel"])
async def test_a_kill_after_discord_took_the_result_and_before_we_noted_it_posts_nothing_twice(
    start_bot: StartBot, sandbox: Sandbox, desk: Desk, ada: Person, way: str
) -> None:
    bot = await start_bot()
    desk.on("taken", hold_at=1)
    handle = await ada.slash("imagine", prompt=f"taken by the {way}")
    message = await handle.message()
    picture = await desk.held("taken")
    if way == "channel":
        sandbox.messages_store.delete(message)
        sandbox.clock.advance(300)
    sandbox.faults.add(
        "original_edit" if way == "original" else "channel_send",
        before_processing=False,
        stall_s=60.0,
        status=500,
    )
    picture.go_on()
    await sandbox.message("pictures", lambda m: has_pictures(m) and way in prompt_of(m))
    await bot.kill()
    assert job_for(bot, handle)["state"] == "rendered"
    sandbox.faults.clear()
    sandbox.clock.advance(600)  # longer than Discord remembers a nonce
    await bot.start()
    await in_state(bot, handle, "delivered")
    assert len(results(sandbox, f"taken by the {way}")) == 1


async def test_a_kill_between_the_commit_and_the_first_answer_still_draws_what_was_accepted(
    start_bot: StartBot, sandbox: Sandbox, desk: Desk, ada: Person
) -> None:
    bot = await start_bot()
    desk.on("unanswered", hold_at=1)
    sandbox.faults.add("callback", before_processing=False, stall_s=60.0)
    handle = await ada.slash("imagine", prompt="unanswered as yet")
    await handle.acknowledged()
    await in_state(bot, handle, "running")
    await bot.kill()
    sandbox.faults.clear()
    desk.forget()
    await bot.start()
    message = await result(handle)
    await settled(bot)
    assert results(sandbox, "unanswered") == [message]


async def test_kills_in_a_row_lose_nothing(
    start_bot: StartBot, sandbox: Sandbox, desk: Desk, ada: Person, bo: Person
) -> None:
    bot = await start_bot()
    desk.on("again and again", hold_at=3)
    handles = [await person.slash("imagine", prompt="again and again") for person in (ada, bo, ada)]
    for handle in handles:
        await handle.message()
    for tries in range(1, 4):
        await desk.held("again and again")
        assert len(desk.of("again and again")) == tries
        await bot.kill()
        await bot.start()
    desk.forget()
    for handle in handles:
        await result(handle)
    await settled(bot)
    assert len(results(sandbox, "again and again")) == 3
    assert [job["attempts"] for job in jobs(bot)] == [0, 0, 0]
    assert rows(bot, "PRAGMA integrity_check")[0][0] == "ok"


async def test_a_cancellation_that_was_not_told_yet_is_told_after_a_kill(
    start_bot: StartBot, sandbox: Sandbox, desk: Desk, ada: Person
) -> None:
    bot = await start_bot()
    desk.on("regretted", hold_at=1)
    handle = await ada.slash("imagine", prompt="regretted")
    message = await handle.message()
    await desk.held("regretted")
    fault = sandbox.faults.add("original_edit", stall_s=60.0, times=5)
    await ada.press(message, "Cancel")
    await in_state(bot, handle, "cancelled")
    await struck(fault)
    await bot.kill()
    sandbox.faults.clear()
    await bot.start()
    await handle.message(lambda m: m.content == "Taken back.")
    await settled(bot)


async def test_a_stop_is_clean_quick_and_spends_no_attempt(
    start_bot: StartBot, sandbox: Sandbox, desk: Desk, ada: Person, bo: Person
) -> None:
    bot = await start_bot()
    desk.on("interrupted", hold_at=4)
    handles = [await person.slash("imagine", prompt="interrupted") for person in (ada, bo)]
    for handle in handles:
        await handle.message()
    await desk.held("interrupted")
    code, took_s = await bot.terminate()
    assert (code, took_s < 20) == (0, True)
    assert [job["state"] for job in jobs(bot)] == ["queued", "queued"]
    assert not (bot.data_dir / "health.json").exists()
    desk.forget()
    await bot.start()
    for handle in handles:
        await result(handle)
    assert [job["attempts"] for job in jobs(bot)] == [0, 0]


async def test_control_c_pressed_twice_on_an_idle_bot_ends_it_at_once_and_cleanly(
    start_bot: StartBot,
) -> None:
    bot = await start_bot()
    bot.signal(signal.SIGINT)
    code, took_s = await bot.terminate(signal.SIGINT)
    assert (code, took_s < 5) == (0, True)
    assert "KeyboardInterrupt" not in bot.log


async def test_a_stop_lets_the_picture_on_the_card_be_finished_and_posted(
    start_bot: StartBot, sandbox: Sandbox, desk: Desk, ada: Person
) -> None:
    bot = await start_bot()
    desk.on("nearly done", hold_at=7)
    handle = await ada.slash("imagine", prompt="nearly done")
    await handle.message()
    picture = await desk.held("nearly done")
    bot.signal(signal.SIGTERM)
    await bot.logged("stopping")
    picture.go_on()
    await result(handle)
    assert await bot.ended() == 0
    assert job_for(bot, handle)["state"] == "delivered"


async def test_a_click_whose_answer_a_stop_overtakes_is_no_error(
    start_bot: StartBot, sandbox: Sandbox, ada: Person
) -> None:
    bot = await start_bot()
    message = await result(await ada.slash("imagine", prompt="clicked at the end"))
    await settled(bot)
    sandbox.faults.add("callback", before_processing=False, stall_s=60.0)
    await (await ada.press(message, "Details")).acknowledged()
    assert (await bot.terminate())[0] == 0
    assert "the bot stopped before it was answered" in bot.log and "Traceback" not in bot.log


async def test_a_second_bot_on_the_same_data_is_refused_and_the_first_goes_on(
    start_bot: StartBot, sandbox: Sandbox, ada: Person
) -> None:
    bot = await start_bot()
    second = await start_bot(start=False, directory=bot.directory)
    await second.launch()
    # Its own wait for the gateway would wait for the first one's end, too.
    assert await second.exit_code() == 2
    line = await second.logged("Another zbot uses")
    assert str(bot.data_dir) in line and "ZBOT_DATA_DIR" in line
    assert len(second.lines) == 1
    await result(await ada.slash("imagine", prompt="the first one lives"))


async def test_buttons_work_after_a_restart(
    start_bot: StartBot, sandbox: Sandbox, desk: Desk, ada: Person, bo: Person
) -> None:
    bot = await start_bot()
    first = await result(await ada.slash("imagine", prompt="from an earlier life", seed=3))
    await settled(bot)
    desk.on("waits on", hold_at=1)
    waiting: Handle = await ada.slash("imagine", prompt="waits on")
    message = await waiting.message()
    await desk.held("waits on")
    await bot.kill()
    await bot.start()
    await ada.press(message, "Cancel")
    await waiting.message(lambda m: m.content == "Taken back.")
    assert prompt_of(await result(await bo.press(first, "Re-roll"))) == "from an earlier life"
    details = await (await ada.press(first, "Details")).message()
    assert details.embeds[0]["title"] == f"How job {job_of(first)} was drawn"
    form = await (await ada.press(first, "Edit")).modal()
    assert files_of(await result(await ada.submit(form))) == files_of(first)
    await (await ada.press(first, "Delete")).message(lambda m: m.ephemeral)
    assert first.deleted


async def test_commands_are_synced_at_the_first_start_only(start_bot: StartBot, sandbox: Sandbox) -> None:
    bot = await start_bot()
    before = sandbox.requests.count("commands_put")
    await bot.terminate()
    await bot.start()
    assert sandbox.requests.count("commands_put") == before
    # Somebody else's tool has changed them: then they are.
    await bot.terminate()
    sandbox.commands.overwrite(None, [])
    await bot.start()
    assert sandbox.requests.count("commands_put") == before + 1
    await sandbox.synced("imagine")


async def test_leftovers_of_a_kill_are_swept_and_results_are_kept(
    start_bot: StartBot, sandbox: Sandbox, ada: Person, watched: Watch
) -> None:
    bot = await start_bot()
    message = await result(await ada.slash("imagine", prompt="to be kept"))
    await settled(bot)
    await bot.kill()
    images = bot.data_dir / "images"
    for name in (".zbot-9-1.png.0a0b0c0d.zbot-part", "zbot-77-1.png"):
        (images / name).write_bytes(b"half")
    (images / "notes.txt").write_text("somebody else's")
    await bot.start()
    assert sorted(path.name for path in images.iterdir()) == ["notes.txt", f"zbot-{job_of(message)}-1.png"]


async def test_the_gateway_may_break_in_every_way_and_people_are_answered_again(
    start_bot: StartBot, sandbox: Sandbox, ada: Person
) -> None:
    await start_bot()
    breaks: list[Any] = [
        lambda: sandbox.gateway.close_all(4000),
        lambda: sandbox.gateway.send_reconnect(),
        lambda: sandbox.gateway.abort_all(),
        lambda: sandbox.gateway.send_ready_again(),
    ]
    for how in breaks:
        waiting = how()
        if waiting is not None:
            await waiting
        await sandbox.ready()
        await result(await ada.slash("imagine", prompt="after a break"))
