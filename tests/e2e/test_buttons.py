"""The buttons: re-roll, edit, details, delete, cancel, and who may press them."""

import asyncio
from typing import Any

import pytest

from tests.bot_process import BotProcess
from tests.e2e.desk import Desk
from tests.e2e.scene import (
    E2E,
    change,
    facts_of,
    files_of,
    in_state,
    job,
    job_for,
    job_of,
    jobs,
    labels_of,
    prompt_of,
    refusal,
    result,
    seeds_of,
    settled,
    sizes_of,
)
from zbot.sandbox import Sandbox
from zbot.sandbox.people import Handle, Person
from zbot.sandbox.world import Message

pytestmark = E2E


async def a_result(person: Person, prompt: str = "a fox", **options: Any) -> Message:
    """Have a picture drawn."""
    return await result(await person.slash("imagine", prompt=prompt, **options))


def fields_of(handle: Handle) -> dict[str, dict[str, Any]]:
    """Return the fields of an open form by their label."""
    return {label["label"]: label["component"] for label in handle.form["components"]}


async def test_anyone_may_reroll_and_the_new_job_is_theirs(bot: BotProcess, ada: Person, bo: Person) -> None:
    first = await a_result(ada, "a fox", seed=7, count=2, steps=5, aspect="16:9")
    handle = await bo.press(first, "Re-roll")
    second = await result(handle)
    assert second is not first and not first.deleted and not second.ephemeral
    assert prompt_of(second) == "a fox"
    assert len(seeds_of(second)) == 2 and seeds_of(second) != [7, 8]
    assert sizes_of(second) == sizes_of(first)
    assert f"<@{bo.id}>" in facts_of(second)
    made = job_for(bot, handle)
    assert (made["user_id"], made["parent_id"], made["steps"]) == (bo.id, job_of(first), 5)


async def test_edit_opens_a_form_with_the_request_and_draws_what_is_sent(
    bot: BotProcess, ada: Person, bo: Person
) -> None:
    first = await a_result(ada, "a red fox", seed=7, steps=5, aspect="3:2")
    form = await (await ada.press(first, "Edit")).modal()
    assert form.form["title"] == "Edit and draw again"
    fields = fields_of(form)
    assert fields["Prompt"]["value"] == "a red fox"
    assert fields["Seed (empty: random)"]["value"] == "7"
    chosen = [option["value"] for option in fields["Shape"]["options"] if option.get("default")]
    assert chosen == ["3:2"]
    values = {
        fields["Prompt"]["custom_id"]: "a blue fox",
        fields["Shape"]["custom_id"]: ["1:1"],
    }
    handle = await ada.submit(form, values)
    second = await result(handle)
    assert second is not first
    assert prompt_of(second) == "a blue fox"
    assert seeds_of(second) == [7]
    assert sizes_of(second) == [(256, 256)]
    assert " · 5 steps · " in facts_of(second)
    assert job_for(bot, handle)["parent_id"] == job_of(first)


async def test_edit_sent_unchanged_draws_the_same_picture(bot: BotProcess, ada: Person, bo: Person) -> None:
    first = await a_result(ada, "the same again", seed=11, aspect="2:3")
    form = await (await bo.press(first, "Edit")).modal()
    second = await result(await bo.submit(form))
    assert files_of(second) == files_of(first)
    assert f"<@{bo.id}>" in facts_of(second)


async def test_an_emptied_seed_means_a_random_one(bot: BotProcess, ada: Person) -> None:
    first = await a_result(ada, "chance", seed=7)
    form = await (await ada.press(first, "Edit")).modal()
    second = await result(await ada.submit(form, {fields_of(form)["Seed (empty: random)"]["custom_id"]: ""}))
    assert seeds_of(second) != [7]


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        (
            "Seed (empty: random)",
            "lucky",
            "\u201clucky\u201d is not a seed: take a whole number from 0 to 4294967295",
        ),
        ("Seed (empty: random)", "-1", "Seed -1 is out of range"),
        ("Seed (empty: random)", "99999999999", "Seed 99999999999 is out of range"),
        ("Prompt", " \u3000 ", "The prompt has no visible text."),
        ("Prompt", "a fox --stylize 5", "I do not know the flag --stylize."),
    ],
)
async def test_a_wrong_field_is_told_to_the_sender_and_the_form_can_be_sent_again(
    bot: BotProcess, ada: Person, field: str, value: str, told: str
) -> None:
    first = await a_result(ada)
    before = len(jobs(bot))
    form = await (await ada.press(first, "Edit")).modal()
    handle = await ada.submit(form, {fields_of(form)[field]["custom_id"]: value})
    assert (await refusal(handle)).startswith(told)
    assert len(jobs(bot)) == before


async def test_details_show_the_recipe_to_whoever_pressed(bot: BotProcess, ada: Person, bo: Person) -> None:
    first = await a_result(ada, "a fox in detail", seed=7, count=2, aspect="16:9")
    message = await (await ada.press(first, "Details")).message()
    assert message.ephemeral and ada.sees(message) and not bo.sees(message)
    shown = {field["name"]: field["value"] for field in message.embeds[0]["fields"]}
    assert message.embeds[0]["title"] == f"How job {job_of(first)} was drawn"
    assert shown["Seeds"] == "`7`, `8`"
    assert shown["Size"] == "320×176 (16:9)"
    assert shown["Steps"] == "8"
    assert shown["Model"] == "tiny · float32 · cpu"
    assert shown["Drawing time"] == "1.0 s"
    assert f"<@{ada.id}>" in shown["Asked by"]
    assert shown["To draw it again"].strip("`\n") == (
        "/imagine prompt:a fox in detail --seed 7 --steps 8 --ar 16:9 --n 2"
    )


async def test_what_details_offer_to_draw_it_again_draws_the_same_picture(
    bot: BotProcess, ada: Person
) -> None:
    first = await a_result(ada, "once more", aspect="9:16", steps=6)
    details = await (await ada.press(first, "Details")).message()
    command = details.embeds[0]["fields"][-1]["value"].strip("`\n")
    again = await a_result(ada, command.removeprefix("/imagine prompt:"))
    assert files_of(again) == files_of(first)


async def test_delete_takes_the_message_and_the_files_away_for_the_requester(
    sandbox: Sandbox, bot: BotProcess, ada: Person
) -> None:
    message = await a_result(ada, count=2)
    number = job_of(message)
    files = list((bot.data_dir / "images").glob(f"zbot-{number}-*.png"))
    assert len(files) == 2
    handle = await ada.press(message, "Delete")
    told = await handle.message(lambda answer: answer.ephemeral)
    assert told.content == f"The pictures of job {number} are deleted."
    assert message.deleted
    assert not list((bot.data_dir / "images").glob(f"zbot-{number}-*"))
    assert job(bot, number)["deleted_at"] is not None


async def test_a_stranger_may_not_delete_and_a_moderator_may(
    bot: BotProcess, ada: Person, bo: Person, mo: Person
) -> None:
    message = await a_result(ada)
    assert await refusal(await bo.press(message, "Delete")) == "只有提出请求的人或版主可以这样做。"
    assert not message.deleted
    await (await mo.press(message, "Delete")).message(lambda answer: answer.ephemeral)
    assert message.deleted


async def test_twenty_clicks_on_delete_in_a_row_are_one_deletion(
    sandbox: Sandbox, bot: BotProcess, ada: Person
) -> None:
    message = await a_result(ada)
    handles = [await ada.press(message, "Delete") for _ in range(20)]
    deleted = f"The pictures of job {job_of(message)} are deleted."
    told = [
        asyncio.ensure_future(handle.message(lambda answer: answer.content == deleted)) for handle in handles
    ]
    await asyncio.wait(told, return_when=asyncio.FIRST_COMPLETED)
    for waiting in told:
        waiting.cancel()
    await asyncio.gather(*told, return_exceptions=True)
    assert message.deleted
    texts = {answer.content for handle in handles for answer in handle.messages}
    assert texts <= {deleted, "This job is not there any more."}, texts


async def test_twenty_clicks_on_reroll_are_twenty_jobs_up_to_the_limit_and_nothing_worse(
    bot: BotProcess, desk: Desk, sandbox: Sandbox
) -> None:
    clicker = sandbox.add_person("Click")
    message = await a_result(clicker, "clicked a lot")
    desk.on("clicked a lot", hold_at=0)
    handles = [await clicker.press(message, "Re-roll") for _ in range(20)]
    answers = [await handle.message() for handle in handles]
    refused = [answer for answer in answers if answer.ephemeral]
    # Ten may wait; the one or two that the card took before the last click do not wait.
    assert 8 <= len(refused) <= 10
    assert {answer.content for answer in refused} == {refused[0].content}
    assert "/cancel" in refused[0].content
    desk.forget()
    await asyncio.gather(
        *(result(handle) for handle, answer in zip(handles, answers, strict=True) if answer not in refused)
    )


async def test_a_waiting_job_is_cancelled_by_its_requester(
    bot: BotProcess, desk: Desk, ada: Person, mo: Person
) -> None:
    desk.on("blocks the card", hold_at=1)
    await mo.slash("imagine", prompt="blocks the card")
    await desk.held("blocks the card")
    handle = await ada.slash("imagine", prompt="never drawn")
    message = await handle.message()
    await ada.press(message, "Cancel")
    await handle.message(lambda answer: answer.content == "Taken back.")
    assert not message.buttons and not message.attachments
    assert (await in_state(bot, handle, "cancelled"))["user_id"] == ada.id
    desk.forget()
    await a_result(ada, "drawn after it")
    assert not desk.of("never drawn")


async def test_a_running_job_is_stopped_at_its_step_by_a_moderator_and_not_by_a_stranger(
    bot: BotProcess, desk: Desk, ada: Person, bo: Person, mo: Person
) -> None:
    desk.on("half done", hold_at=4)
    handle = await ada.slash("imagine", prompt="half done")
    message = await handle.message()
    picture = await desk.held("half done")
    assert "版主" in await refusal(await bo.press(message, "Cancel"))
    assert picture.state == "held"
    await mo.press(message, "Cancel")
    await picture.stopped()
    await handle.message(lambda answer: answer.content == "Taken back.")
    await in_state(bot, handle, "cancelled")
    assert await a_result(ada, "the card is free")


async def test_cancel_after_the_end_says_so(
    bot: BotProcess, desk: Desk, ada: Person, sandbox: Sandbox
) -> None:
    desk.on("too late", hold_at=2)
    handle = await ada.slash("imagine", prompt="too late")
    message = await handle.message()
    held = await desk.held("too late")
    button = message.buttons[0]["custom_id"]
    held.go_on()
    await result(handle)
    # The press was under way while the result replaced the button.
    message.components[0]["components"][0] |= {"custom_id": button}
    assert await refusal(await ada.press(message, button)) == "Too late: this job is finished already."


@pytest.mark.parametrize("label", ["Re-roll", "Edit", "Details", "Delete"])
async def test_a_button_of_a_job_that_is_not_there_says_so(bot: BotProcess, ada: Person, label: str) -> None:
    message = await a_result(ada)
    number = job_of(message)
    await settled(bot)
    change(bot, "UPDATE job SET id = id + 100000 WHERE id = ?", number)
    try:
        assert await refusal(await ada.press(message, label)) == "This job is not there any more."
    finally:
        change(bot, "UPDATE job SET id = id - 100000 WHERE id = ?", number + 100000)


async def test_a_failed_job_can_be_rerolled(bot: BotProcess, desk: Desk, ada: Person, watched: Any) -> None:
    watched.may_fail += ["failed:"]
    desk.on("unlucky", error="non_finite", times=1)
    handle = await ada.slash("imagine", prompt="unlucky once")
    failed = await handle.message(lambda answer: "could not be drawn" in answer.content)
    assert labels_of(failed)[0] == "Re-roll"
    assert prompt_of(await result(await ada.press(failed, "Re-roll"))) == "unlucky once"
