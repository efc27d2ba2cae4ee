"""`/queue`, `/cancel`, `/usage` and `/help`."""

from tests.bot_process import BotProcess
from tests.e2e.desk import Desk
from tests.e2e.scene import E2E, change, in_state, job_for, refusal, result, settled
from zbot.sandbox import Sandbox
from zbot.sandbox.people import Person

pytestmark = E2E


async def test_an_empty_queue_says_so_to_the_asker_alone(bot: BotProcess, ada: Person) -> None:
    message = await (await ada.slash("queue")).message()
    assert message.ephemeral
    assert message.embeds[0]["title"] == "The line"
    assert message.embeds[0]["description"] == "Nobody waits, and nothing is being drawn."


async def test_the_queue_shows_who_is_on_the_card_and_who_waits_in_the_order_they_are_drawn(
    bot: BotProcess, desk: Desk, ada: Person, bo: Person, mo: Person
) -> None:
    desk.on("on the card", hold_at=4)
    await bo.slash("imagine", prompt="on the card", count=2)
    await desk.held("on the card")
    handles = [
        await person.slash("imagine", prompt="it waits", aspect=aspect)
        for person, aspect in ((ada, "1:1"), (ada, "1:1"), (mo, "16:9"))
    ]
    for handle in handles:
        await handle.acknowledged()
    ids = [job_for(bot, handle)["id"] for handle in handles]
    message = await (await ada.slash("queue")).message()
    lines = message.embeds[0]["description"].splitlines()
    assert message.ephemeral
    # 4 of 8 steps of the first of two pictures.
    assert lines[0].startswith(f"**Drawing now:** <@{bo.id}> · 2 × 256×256 · 25 % done · job ")
    assert lines[1].startswith(f"1. <@{ada.id}> · 1 × 256×256 · ") and lines[1].endswith(f"job {ids[0]}")
    assert lines[2].startswith(f"2. <@{mo.id}> · 1 × 320×176 · ") and lines[2].endswith(f"job {ids[2]}")
    assert lines[3].startswith(f"3. <@{ada.id}> · ") and lines[3].endswith(f"job {ids[1]}")


async def test_a_long_queue_is_cut_and_says_how_many_more(
    bot: BotProcess, desk: Desk, sandbox: Sandbox, ada: Person
) -> None:
    desk.on("long line", hold_at=1)
    await ada.slash("imagine", prompt="long line")
    await desk.held("long line")
    handles = [
        await sandbox.add_person(f"P{number}").slash("imagine", prompt="long line") for number in range(20)
    ]
    for handle in handles:
        await handle.acknowledged()
    message = await (await ada.slash("queue")).message()
    assert message.embeds[0]["description"].splitlines()[-1] == "… and 5 more"


async def test_cancel_offers_ones_own_jobs_and_takes_back_the_chosen_one(
    bot: BotProcess, desk: Desk, ada: Person, bo: Person
) -> None:
    desk.on("a running owl", hold_at=1)
    running = await ada.slash("imagine", prompt="a running owl")
    picture = await desk.held("a running owl")
    waiting = await ada.slash("imagine", prompt="a waiting cat")
    await (await bo.slash("imagine", prompt="not hers")).acknowledged()
    await waiting.acknowledged()
    choices = await ada.autocomplete("cancel", job="")
    numbers = [job_for(bot, handle)["id"] for handle in (running, waiting)]
    assert [choice["name"] for choice in choices] == [
        f"{numbers[0]}: a running owl",
        f"{numbers[1]}: a waiting cat",
    ]
    assert [choice["value"] for choice in choices] == [str(number) for number in numbers]
    assert [c["value"] for c in await ada.autocomplete("cancel", job="WAITING c")] == [str(numbers[1])]
    assert await ada.autocomplete("cancel", job="nothing like it") == []

    told = await refusal(await ada.slash("cancel", job=choices[1]["value"]))
    assert told == f"Job {numbers[1]} is taken back."
    await waiting.message(lambda message: message.content == "Taken back.")
    told = await refusal(await ada.slash("cancel", job=choices[0]["value"]))
    assert told == f"Job {numbers[0]} is taken back."
    await picture.stopped()
    await running.message(lambda message: message.content == "Taken back.")
    assert await ada.autocomplete("cancel", job="") == []


async def test_a_moderator_sees_and_cancels_everybodys_jobs_and_a_member_only_their_own(
    bot: BotProcess, desk: Desk, ada: Person, bo: Person, mo: Person
) -> None:
    desk.on("moderated", hold_at=1)
    handle = await ada.slash("imagine", prompt="moderated away")
    picture = await desk.held("moderated")
    number = str(job_for(bot, handle)["id"])
    assert await bo.autocomplete("cancel", job="") == []
    assert await refusal(await bo.slash("cancel", job=number)) == "只有提出请求的人或版主可以这样做。"
    assert picture.state == "held"
    assert [choice["value"] for choice in await mo.autocomplete("cancel", job="")] == [number]
    assert await refusal(await mo.slash("cancel", job=number)) == f"Job {number} is taken back."
    await in_state(bot, handle, "cancelled")


async def test_choices_fit_discord_whatever_the_prompts_are(
    bot: BotProcess, desk: Desk, sandbox: Sandbox, mo: Person
) -> None:
    desk.on("many", hold_at=1)
    for number in range(5):
        person = sandbox.add_person(f"Q{number}")
        for _ in range(6):
            await (await person.slash("imagine", prompt="many " + "\U0001f98a" * 150)).acknowledged()
    choices = await mo.autocomplete("cancel", job="")
    assert len(choices) == 25
    assert all(len(choice["name"].encode("utf-16-le")) // 2 <= 100 for choice in choices)


async def test_cancelling_what_is_finished_or_was_never_there_says_so(bot: BotProcess, ada: Person) -> None:
    handle = await ada.slash("imagine", prompt="finished")
    await result(handle)
    number = str((await in_state(bot, handle, "delivered"))["id"])
    assert await refusal(await ada.slash("cancel", job=number)) == "Too late: this job is finished already."
    for unknown in ("999999", "abc", "-1", "9" * 30, "\u0663"):
        assert await refusal(await ada.slash("cancel", job=unknown)) == "This job is not there any more."


async def test_usage_of_somebody_who_drew_nothing(bot: BotProcess, sandbox: Sandbox) -> None:
    person = sandbox.add_person("Newt")
    message = await (await person.slash("usage")).message()
    assert message.ephemeral
    assert message.embeds[0]["title"] == "What Newt has drawn"
    assert [(field["name"], field["value"]) for field in message.embeds[0]["fields"]] == [
        ("Today", "nothing yet"),
        ("30 days", "nothing yet"),
        ("Ever", "nothing yet"),
    ]


async def test_usage_counts_pictures_card_seconds_and_the_median_wait_of_each_period(
    bot: BotProcess, sandbox: Sandbox, ada: Person
) -> None:
    person = sandbox.add_person("Rita")
    for _ in range(3):
        handle = await person.slash("imagine", prompt="billed", count=2)
        await result(handle)
    await settled(bot)
    change(bot, "UPDATE usage SET wait_s = 4.0 WHERE user_id = ?", person.id)
    newest = job_for(bot, handle)["id"]
    change(
        bot,
        "UPDATE usage SET created_at = created_at - 10 * 86400 WHERE user_id = ? AND job_id < ?",
        person.id,
        newest,
    )
    change(
        bot,
        "UPDATE usage SET created_at = created_at - 90 * 86400 WHERE user_id = ? AND job_id < ?",
        person.id,
        newest - 1,
    )
    message = await (await ada.slash("usage", member=person)).message()
    shown = {field["name"]: field["value"] for field in message.embeds[0]["fields"]}
    assert message.embeds[0]["title"] == "What Rita has drawn"
    assert shown == {
        "Today": "Pictures: 2 · drawing time: 1.0 s · median wait: 4.0 s",
        "30 days": "Pictures: 4 · drawing time: 2.0 s · median wait: 4.0 s",
        "Ever": "Pictures: 6 · drawing time: 3.0 s · median wait: 4.0 s",
    }


async def test_help_names_every_shape_flag_and_command_and_works_in_direct_messages(
    bot: BotProcess, sandbox: Sandbox, ada: Person
) -> None:
    for channel in ("pictures", "dm"):
        message = await (await ada.slash("help", channel=channel)).message()
        assert message.ephemeral
        for word in (
            "9:21",
            "--ar 16:9",
            "/imagine",
            "/queue",
            "/cancel",
            "/usage",
            "Re-roll",
            "Edit",
            "Details",
            "Delete",
        ):
            assert word in message.text
