"""How the outcome reaches the channel: the original response while it lives, then the bot's own message, never twice."""

import io
from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image

from tests.bot_process import BotProcess
from tests.e2e.desk import Desk, Picture
from tests.e2e.scene import (
    E2E,
    change,
    facts_of,
    files_of,
    has_pictures,
    in_state,
    job_for,
    jobs,
    labels_of,
    result,
    rows,
    settled,
    sizes_of,
)
from zbot.images import read_recipe
from zbot.sandbox import Sandbox, permissions
from zbot.sandbox.people import Handle, Person
from zbot.sandbox.world import Message

pytestmark = E2E


@pytest.fixture(autouse=True)
def without_rate_limits(sandbox: Sandbox) -> Iterator[None]:
    """Tests in a row would wait for each other's buckets; what the limits do is test_wire's business."""
    sandbox.buckets.enabled = False
    yield
    sandbox.buckets.enabled = True


async def a_held_job(
    desk: Desk, person: Person, prompt: str, **options: Any
) -> tuple[Handle, Message, Picture]:
    """Start a job whose picture waits for the test."""
    desk.on(prompt, hold_at=2)
    handle = await person.slash("imagine", prompt=prompt, **options)
    return handle, await handle.message(), await desk.held(prompt)


def with_pictures(
    sandbox: Sandbox, bot: BotProcess, handle: Handle, channel: str = "pictures"
) -> list[Message]:
    """Return the messages that hold the pictures of an interaction's job."""
    (number,) = [job["id"] for job in jobs(bot) if job["interaction_id"] == handle.id]
    return [
        message
        for message in sandbox.messages(channel)
        if any(attachment.filename.startswith(f"zbot-{number}-") for attachment in message.attachments)
        and has_pictures(message)
    ]


async def test_after_fourteen_minutes_the_bots_own_message_is_edited_instead(
    sandbox: Sandbox, bot: BotProcess, desk: Desk, ada: Person
) -> None:
    handle, message, picture = await a_held_job(desk, ada, "a slow picture")
    change(bot, "UPDATE job SET created_at = created_at - 14 * 60 - 1 WHERE interaction_id = ?", handle.id)
    sandbox.clock.advance(14 * 60 + 1)
    before = sandbox.requests.count("original_edit")
    picture.go_on()
    await sandbox.message("pictures", lambda m: m is message and has_pictures(m))
    await in_state(bot, handle, "delivered")
    assert sandbox.requests.count("original_edit") == before
    assert labels_of(message) == ["Re-roll", "Edit", "Details", "Delete"]
    assert with_pictures(sandbox, bot, handle) == [message]


async def test_an_interaction_that_discord_has_forgotten_falls_back_to_the_bots_own_message(
    sandbox: Sandbox, bot: BotProcess, desk: Desk, ada: Person
) -> None:
    handle, message, picture = await a_held_job(desk, ada, "too old for its token")
    sandbox.clock.advance(15 * 60 + 1)  # only Discord's clock: the answer to the edit is 401
    picture.go_on()
    await sandbox.message("pictures", lambda m: m is message and has_pictures(m))
    job = await in_state(bot, handle, "delivered")
    assert (job["message_id"], job["interaction_token"]) == (message.id, None)
    assert [request.code for request in sandbox.requests.of("original_edit")][-1] == 50027


@pytest.mark.parametrize(
    "refused", [{"code": 10015}, {"code": 10008}, {"code": 50027}, {"status": 401}], ids=str
)
async def test_every_refusal_of_the_original_response_has_the_same_way_out(
    sandbox: Sandbox, bot: BotProcess, desk: Desk, ada: Person, refused: dict[str, int]
) -> None:
    handle, message, picture = await a_held_job(desk, ada, f"refused with {refused}")
    sandbox.faults.add("original_edit", times=100, **refused)
    picture.go_on()
    await sandbox.message("pictures", lambda m: m is message and has_pictures(m))
    await in_state(bot, handle, "delivered")
    assert with_pictures(sandbox, bot, handle) == [message]


async def test_a_deleted_answer_becomes_a_new_message_with_a_nonce(
    sandbox: Sandbox, bot: BotProcess, desk: Desk, ada: Person
) -> None:
    handle, message, picture = await a_held_job(desk, ada, "deleted meanwhile", count=2)
    sandbox.messages_store.delete(message)
    picture.go_on()
    desk.forget()
    await in_state(bot, handle, "delivered")
    (posted,) = with_pictures(sandbox, bot, handle)
    assert posted is not message
    assert len(posted.attachments) == 2
    assert labels_of(posted) == ["Re-roll", "Edit", "Details", "Delete"]
    assert f"<@{ada.id}>" in facts_of(posted)
    sent = sandbox.requests.of("channel_send")[-1].json
    assert sent["nonce"] == str(handle.id) and sent["enforce_nonce"] is True
    # And the buttons of such a message work like any other's.
    assert await result(await ada.press(posted, "Re-roll"))


@pytest.mark.parametrize(
    "lost", [{"drop_connection": "close"}, {"drop_connection": "reset"}, {"status": 502}, {"status": 503}]
)
async def test_a_message_whose_answer_was_lost_is_not_posted_again(
    sandbox: Sandbox, bot: BotProcess, desk: Desk, ada: Person, lost: dict[str, Any]
) -> None:
    handle, message, picture = await a_held_job(desk, ada, "lost on the way back")
    sandbox.messages_store.delete(message)
    sandbox.faults.add("channel_send", before_processing=False, **lost)
    picture.go_on()
    await in_state(bot, handle, "delivered")
    assert len(with_pictures(sandbox, bot, handle)) == 1


@pytest.mark.parametrize(
    "fault",
    [
        {"status": 500},
        {"status": 503},
        {"status": 429},
        {"status": 429, "via": False},
        {"drop_connection": "reset"},
        {"drop_connection": "close", "before_processing": False},
    ],
    ids=str,
)
async def test_a_storm_delays_the_result_and_loses_and_doubles_nothing(
    sandbox: Sandbox, bot: BotProcess, desk: Desk, ada: Person, fault: dict[str, Any]
) -> None:
    handle, message, picture = await a_held_job(desk, ada, "in a storm")
    sandbox.faults.add("original_edit", **fault)
    picture.go_on()
    assert await result(handle) is message
    await in_state(bot, handle, "delivered")
    assert with_pictures(sandbox, bot, handle) == [message]


async def test_a_channel_closed_meanwhile_makes_it_undeliverable_and_nothing_is_tried_again(
    sandbox: Sandbox, bot: BotProcess, desk: Desk, ada: Person
) -> None:
    handle, message, picture = await a_held_job(desk, ada, "behind a closed door", channel="drafts")
    sandbox.messages_store.delete(message)
    sandbox.revoke(permissions.SEND_MESSAGES, channel="drafts")
    try:
        picture.go_on()
        job = await in_state(bot, handle, "undeliverable")
        sends = sandbox.requests.count("channel_send")
        # Drawn is drawn: it counts, the files stay, and the next job is none the worse for it.
        assert rows(bot, "SELECT * FROM usage WHERE job_id = ?", job["id"])
        assert (bot.data_dir / "images" / f"zbot-{job['id']}-1.png").exists()
        await result(await ada.slash("imagine", prompt="elsewhere it works"))
        await settled(bot)
        assert sandbox.requests.count("channel_send") == sends
        assert job["interaction_token"] is None
    finally:
        sandbox.grant(permissions.SEND_MESSAGES, channel="drafts")


async def test_a_channel_that_is_gone_makes_it_undeliverable(
    sandbox: Sandbox, bot: BotProcess, desk: Desk, ada: Person
) -> None:
    handle, _, picture = await a_held_job(desk, ada, "without a channel", channel="general")
    sandbox.delete_channel("general")
    picture.go_on()
    assert (await in_state(bot, handle, "undeliverable"))["told_at"] is not None


async def test_a_picture_too_large_for_the_server_is_re_encoded_and_said(
    sandbox: Sandbox, bot: BotProcess, desk: Desk, bo: Person, ada: Person
) -> None:
    desk.on("very detailed", noise=True)
    guild = next(iter(sandbox.world.guilds.values()))
    limit, guild.file_limit_bytes = guild.file_limit_bytes, 60_000
    try:
        message = await result(await ada.slash("imagine", prompt="very detailed", seed=3, count=2))
        assert [a.filename.rsplit("-", 1)[1] for a in message.attachments] == ["1.webp", "2.webp"]
        assert all(len(data) <= 60_000 for data in files_of(message))
        assert sizes_of(message) == [(256, 256)] * 2
        assert facts_of(message).splitlines()[-1] == (
            "-# Too large for this server as PNG; re-encoded as WEBP. The original is kept on the bot's machine."
        )
        assert read_recipe(files_of(message)[1]).seed == 4
        chinese = await result(await bo.slash("imagine", prompt="very detailed"))
        assert "已改用 WEBP 编码" in facts_of(chinese)
    finally:
        guild.file_limit_bytes = limit


async def test_a_server_that_takes_less_than_it_announced_gets_smaller_files(
    sandbox: Sandbox, bot: BotProcess, desk: Desk, ada: Person
) -> None:
    handle, message, picture = await a_held_job(desk, ada, "less than announced")
    sandbox.faults.add("original_edit", code=40005)
    picture.go_on()
    assert await result(handle) is message
    assert message.attachments[0].filename.endswith(".webp")
    assert "re-encoded as WEBP" in facts_of(message)


async def test_four_pictures_stand_in_one_message_each_at_full_size(bot: BotProcess, ada: Person) -> None:
    message = await result(await ada.slash("imagine", prompt="four of them", seed=1, count=4, aspect="21:9"))
    assert len(message.attachments) == 4
    assert len(set(sizes_of(message))) == 1
    assert [read_recipe(data).seed for data in files_of(message)] == [1, 2, 3, 4]
    for data in files_of(message):
        with Image.open(io.BytesIO(data)) as image:
            image.verify()
            assert image.format == "PNG"


async def test_a_lost_first_answer_costs_nothing_the_picture_comes_in_one_public_message(
    sandbox: Sandbox, bot: BotProcess, ada: Person
) -> None:
    for fault in (
        {"drop_connection": "reset"},
        {"drop_connection": "close", "before_processing": False},
        {"status": 502},
    ):
        sandbox.faults.add("callback", **fault)
        handle = await ada.slash("imagine", prompt="the first answer is lost")
        message = await result(handle)
        await settled(bot)
        assert with_pictures(sandbox, bot, handle) == [message]
        assert not message.ephemeral


async def test_an_interaction_discord_gave_up_is_withdrawn_and_never_drawn(
    sandbox: Sandbox, bot: BotProcess, desk: Desk, ada: Person, mo: Person
) -> None:
    await a_held_job(desk, mo, "blocks the card")
    sandbox.faults.add("callback", code=10062)
    handle = await ada.slash("imagine", prompt="given up by Discord")
    job = await in_state(bot, handle, "cancelled")
    desk.forget()
    await settled(bot)
    assert job["told_at"] is not None and not desk.of("given up")
    assert not handle.messages


async def test_files_gone_from_the_disk_are_told_with_a_way_to_draw_anew(
    sandbox: Sandbox, bot: BotProcess, desk: Desk, ada: Person, watched: Any
) -> None:
    watched.may_fail += ["is gone from the disk"]
    since = len(bot.lines)
    handle, message, picture = await a_held_job(desk, ada, "swept away")
    sandbox.faults.add("original_edit", drop_connection="reset")
    picture.go_on()
    await bot.logged("is told again in 1 s", since=since)
    job = job_for(bot, handle)
    (bot.data_dir / "images" / f"zbot-{job['id']}-1.png").unlink()
    await handle.message(lambda m: "gone from the bot's disk; press Re-roll to draw anew" in m.content)
    desk.forget()
    assert await result(await ada.press(message, "Re-roll"))
