"""What people see when the engine fails, dies, or is not there yet."""

from tests.bot_process import BotProcess
from tests.e2e.conftest import StartBot, Watch
from tests.e2e.desk import Desk
from tests.e2e.scene import (
    E2E,
    has_pictures,
    in_state,
    job_for,
    labels_of,
    prompt_of,
    result,
    rows,
    seeds_of,
    settled,
)
from zbot.sandbox.people import Person

pytestmark = E2E


async def test_a_failure_is_told_in_the_answer_and_the_next_job_works(
    bot: BotProcess, desk: Desk, ada: Person, watched: Watch
) -> None:
    watched.may_fail += ["failed:", "failed for a reason nobody thought of", "Traceback"]
    expected = {
        "out_of_memory": "too little memory",
        "non_finite": "another seed",
        "bug": "Something went wrong on the bot's side",
    }
    for error, reason in expected.items():
        desk.on(f"cause {error}", error=error)
        handle = await ada.slash("imagine", prompt=f"cause {error}")
        message = await handle.message(lambda message: "could not be drawn" in message.content)
        assert reason in message.content
        assert labels_of(message) == ["Re-roll", "Edit", "Details", "Delete"]
        assert prompt_of(message) == f"cause {error}"
        assert not message.attachments
        job = await in_state(bot, handle, "failed")
        assert not rows(bot, "SELECT * FROM usage WHERE job_id = ?", job["id"])
    await result(await ada.slash("imagine", prompt="all is well again"))


async def test_the_engines_death_costs_one_attempt_of_one_job(
    bot: BotProcess, desk: Desk, ada: Person, watched: Watch
) -> None:
    loads = desk.loads
    desk.on("fragile", error="engine_dead", fail_at=3, times=1)
    handle = await ada.slash("imagine", prompt="a fragile thing", seed=5)
    assert seeds_of(await result(handle)) == [5]
    assert [picture.seed for picture in desk.of("fragile")] == [5, 5]
    assert job_for(bot, handle)["attempts"] == 1
    assert desk.loads == loads + 1


async def test_a_job_that_kills_the_engine_twice_fails_and_says_so(
    bot: BotProcess, desk: Desk, ada: Person, bo: Person, watched: Watch
) -> None:
    watched.may_fail += ["failed:", "the engine died 3 times"]
    desk.on("poison", error="engine_stalled", fail_at=2)
    handle = await bo.slash("imagine", prompt="a poison cup")
    message = await handle.message(lambda message: "没能画出来" in message.content)
    assert "绘图进程两次停住" in message.content
    assert len(desk.of("poison")) == 2


async def test_people_are_answered_while_the_model_loads_and_drawn_for_once_it_is_there(
    start_bot: StartBot, desk: Desk, ada: Person
) -> None:
    desk.hold_loads()
    bot = await start_bot()
    handle = await ada.slash("imagine", prompt="before the model is there")
    message = await handle.message()
    assert message.content == "Next in line."  # no time yet: nothing was ever measured
    queue = await (await ada.slash("queue")).message()
    assert "1. " in queue.text and f"<@{ada.id}>" in queue.text
    desk.let_load()
    assert has_pictures(await result(handle))
    await settled(bot)


async def test_a_damaged_model_keeps_the_bot_up_and_the_jobs_in_line_until_it_is_repaired(
    start_bot: StartBot, desk: Desk, ada: Person, watched: Watch
) -> None:
    watched.may_fail += ["the engine is not available"]
    desk.let_load(error="weights")
    bot = await start_bot()
    line = await bot.logged("the engine is not available")
    assert "model.safetensors is damaged" in line and "weights fetch" in line
    handle = await ada.slash("imagine", prompt="with a damaged model")
    assert (await handle.message()).content == "Next in line."
    desk.let_load()
    await result(handle)
    await settled(bot)
