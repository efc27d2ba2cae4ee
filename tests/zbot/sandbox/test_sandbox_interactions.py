"""The real discord.py against the sandbox: commands, buttons, modals, and what goes wrong with them."""

import asyncio
import io

import pytest

from tests.zbot.sandbox.demo_bot import PNG, DemoBot, discord, running
from zbot.sandbox import ClientRefusal, Sandbox


async def test_a_command_is_deferred_and_edited_into_a_picture_with_a_button(sandbox, bot):
    ada = sandbox.person("Ada")
    handle = await ada.slash("imagine", prompt="a fox", count=2)
    message = await handle.message()
    assert message.content == "a fox 2 1:1 0 None"
    assert [(a.filename, a.width, a.height, a.description) for a in message.attachments] == [
        ("fox.png", 4, 3, "a fox")
    ]
    assert message.attachments[0].data == PNG
    assert [button["label"] for button in message.buttons] == ["Again"]
    assert [r.route for r in sandbox.requests][-2:] == ["callback", "original_edit"]
    assert sandbox.requests.of("original_edit")[0].files[0].name == "fox.png"
    assert 0 < handle.acked_after_s < 1


async def test_an_attachment_and_a_member_reach_the_bot_resolved(sandbox, bot):
    ada = sandbox.person("Ada")
    handle = await ada.slash("imagine", prompt="x", reference=b"12345", person=sandbox.person("Bo"))
    assert (await handle.message()).content == "x 1 1:1 5 Bo"


async def test_a_followup_carries_a_file_and_the_original_can_be_edited(sandbox, bot):
    handle = await sandbox.person("Ada").slash("twice")
    await handle.message(lambda m: m.content == "one, edited")
    two = await handle.message(lambda m: m.content == "two")
    assert two.attachments[0].filename == "two.png"
    assert [m.content for m in sandbox.messages("pictures")] == ["one, edited", "two"]


async def test_the_first_followup_fills_the_loading_message_and_keeps_it_ephemeral(sandbox, bot):
    handle = await sandbox.person("Ada").slash("fills")
    second = await handle.message(lambda m: m.content == "new")
    first = await handle.message(lambda m: m.content == "filled")
    assert first.ephemeral and not second.ephemeral
    assert first is handle.interaction.original and first is not second


async def test_an_ephemeral_answer_is_seen_by_its_reader_only(sandbox, bot):
    ada, bo = sandbox.person("Ada"), sandbox.person("Bo")
    message = await (await ada.slash("whisper")).message()
    assert ada.sees(message) and not bo.sees(message)
    with pytest.raises(discord.NotFound) as refused:
        await bot.http.get_message(message.channel_id, message.id)
    assert refused.value.code == 10008


async def test_a_dynamic_button_works_after_a_restart_of_the_bot(sandbox):
    ada = sandbox.person("Ada")
    async with running(sandbox):
        message = await (await ada.slash("imagine", prompt="a fox", count=3)).message()
    async with running(sandbox):
        handle = await ada.press(message, "Again")
        edited = await handle.message(lambda m: m.content == "again 3")
    assert edited is message and not message.buttons and message.attachments


async def test_a_modal_is_opened_prefilled_and_submitted(sandbox, bot):
    ada = sandbox.person("Ada")
    panel = await (await ada.slash("panel")).message()
    pressed = await ada.press(panel, "Open")
    modal = await pressed.modal()
    assert modal.form["title"] == "Say more"
    with pytest.raises(ClientRefusal, match="not one of the choices"):
        await ada.submit(modal, {"how": ["sideways"]})
    with pytest.raises(ClientRefusal, match="not open"):
        await sandbox.person("Bo").submit(modal, {"how": ["fast"]})
    answer = await (await ada.submit(modal, {"prompt": "a hare", "how": ["fast"]})).message()
    assert answer.content == "a hare ['fast']" and answer.ephemeral
    with pytest.raises(ClientRefusal, match="not open"):
        await ada.submit(modal, {"how": ["fast"]})


async def test_a_menu_updates_its_message_in_place(sandbox, bot):
    ada = sandbox.person("Ada")
    panel = await (await ada.slash("panel")).message()
    handle = await ada.choose(panel, "demo:pick", ["blue"])
    assert (await handle.message(lambda m: m.content == "picked blue")) is panel


async def test_autocomplete_gives_the_choices_for_what_was_typed(sandbox, bot):
    ada = sandbox.person("Ada")
    assert [c["value"] for c in await ada.autocomplete("find", job="7")] == ["17", "27"]


async def test_components_v2_are_taken_and_their_files_resolved(sandbox, bot):
    message = await (await sandbox.person("Ada").slash("modern")).message()
    assert message.text == "# Picture" and [b["custom_id"] for b in message.buttons] == ["go"]
    shape = sandbox.human.message_json(message)
    media = shape["components"][0]["components"][1]["items"][0]["media"]
    assert media["url"].startswith("/cdn/attachments/") and media["width"] == 4


async def test_a_subcommand_reaches_its_function(sandbox, bot):
    assert (await (await sandbox.person("Ada").slash("jobs show", number=3)).message()).content == "shown 3"


async def test_direct_messages_have_their_own_context(sandbox, bot):
    ada = sandbox.person("Ada")
    message = await (await ada.slash("twice", channel="dm")).message(lambda m: m.content == "two")
    assert sandbox.world.channels[message.channel_id].guild_id is None
    assert ada.sees(message) and not sandbox.person("Bo").sees(message)
    with pytest.raises(ClientRefusal):
        await ada.slash("moderate", channel="dm")


async def test_default_member_permissions_hide_a_command_from_those_without(sandbox, bot):
    with pytest.raises(ClientRefusal):
        await sandbox.person("Ada").slash("moderate")
    assert (await (await sandbox.person("Mo").slash("moderate")).message()).content == "moderated"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({}, "'prompt' is required"),
        ({"prompt": ""}, "'prompt' is required"),
        ({"prompt": "x" * 101}, "at most 100 characters"),
        ({"prompt": "x", "count": 5}, "at most 4"),
        ({"prompt": "x", "count": 0}, "at least 1"),
        ({"prompt": "x", "count": 1.5}, "whole number"),
        ({"prompt": "x", "aspect": "2:1"}, "not one of the choices"),
        ({"prompt": "x", "colour": "red"}, "no option"),
    ],
)
async def test_the_client_refuses_a_form_that_is_not_right(sandbox, bot, options, sentence):
    with pytest.raises(ClientRefusal, match=sentence):
        await sandbox.person("Ada").slash("imagine", **options)
    assert not sandbox.requests.of("callback")


async def test_a_late_acknowledgement_is_an_unknown_interaction(sandbox, bot):
    handle = await sandbox.person("Ada").slash("slow")
    sandbox.clock.advance(3.1)
    assert await handle.failure() == "timeout"
    bot.hold.set()
    refused = await sandbox.requests.wait(lambda r: r.route == "callback")
    assert (refused.status, refused.code) == (404, 10062)
    assert not sandbox.messages("pictures")


async def test_a_second_acknowledgement_is_refused(sandbox, bot):
    await sandbox.person("Ada").slash("doubled")
    refused = await sandbox.requests.wait(lambda r: r.route == "callback" and r.status != 200)
    assert (refused.status, refused.code) == (400, 40060)


async def test_a_file_over_the_guilds_limit_is_too_large(sandbox, bot):
    limit = sandbox.world.guilds[sandbox.channel("pictures").guild_id].file_limit_bytes
    ada = sandbox.person("Ada")
    await ada.slash("heavy", size=limit + 1)
    refused = await sandbox.requests.wait(lambda r: r.route == "followup")
    assert (refused.status, refused.code) == (413, 40005)
    handle = await ada.slash("heavy", size=limit)
    assert len((await handle.message()).attachments[0].data) == limit


async def test_a_request_over_25_mib_is_too_large_even_where_the_guild_takes_more(sandbox, bot):
    sandbox.world.guilds[sandbox.channel("pictures").guild_id].file_limit_bytes = 100 * 1024 * 1024
    await sandbox.person("Ada").slash("heavy", size=25 * 1024 * 1024 + 1)
    refused = await sandbox.requests.wait(lambda r: r.route == "followup")
    assert (refused.status, refused.code) == (413, 40005)


@pytest.mark.parametrize(("age_s", "status"), [(14 * 60 + 59, 200), (15 * 60 + 1, 401)])
async def test_the_token_of_an_interaction_lives_15_minutes(sandbox, bot, age_s, status):
    handle = await sandbox.person("Ada").slash("later")
    await handle.acknowledged()
    sandbox.clock.advance(age_s)
    bot.hold.set()
    edit = await sandbox.requests.wait(lambda r: r.route == "original_edit")
    assert (edit.status, edit.code) == (status, None if status == 200 else 50027)


async def test_a_webhook_before_the_acknowledgement_is_unknown(sandbox, bot):
    handle = await sandbox.person("Ada").slash("slow")
    webhook = discord.Webhook.partial(bot.application_id, handle.interaction.token, client=bot)
    with pytest.raises(discord.NotFound) as refused:
        await webhook.edit_message("@original", content="x")
    assert refused.value.code == 10015
    bot.hold.set()


async def test_an_original_response_can_be_edited_by_token_alone_and_deleted_once(sandbox, bot):
    handle = await sandbox.person("Ada").slash("later")
    await handle.acknowledged()
    webhook = discord.Webhook.partial(bot.application_id, handle.interaction.token, client=bot)
    await webhook.edit_message("@original", content="by token")
    assert (await handle.message()).content == "by token"
    await webhook.delete_message("@original")
    with pytest.raises(discord.NotFound) as refused:
        await webhook.edit_message("@original", content="x")
    assert refused.value.code == 10008


async def test_edits_wait_for_the_bucket_and_never_see_a_429(sandbox, bot):
    loop = asyncio.get_running_loop()
    began = loop.time()
    handle = await sandbox.person("Ada").slash("busy", edits=6)
    await handle.message(lambda m: m.content == "6")
    assert loop.time() - began > 1.5
    assert sandbox.buckets.exceeded == 0


async def test_a_commands_second_sync_keeps_ids_and_versions(sandbox, bot):
    before = await bot.http.get_global_commands(bot.application_id)
    await bot.tree.sync()
    assert await bot.http.get_global_commands(bot.application_id) == before
    assert sandbox.requests.count("commands_put") == 2


async def test_a_hundred_people_can_be_answered_at_once(sandbox, bot):
    people = [sandbox.add_person(f"P{n}") for n in range(100)]
    handles = [person.slash_now("imagine", prompt=f"fox-{n}") for n, person in enumerate(people)]
    messages = await asyncio.gather(*(handle.message() for handle in handles))
    assert [m.content.split(" ")[0] for m in messages] == [f"fox-{n}" for n in range(100)]
    assert max(h.acked_after_s for h in handles) < 3


async def test_a_kicked_person_cannot_act(sandbox, bot):
    ada = sandbox.person("Ada")
    sandbox.kick(ada)
    with pytest.raises(ClientRefusal):
        await ada.slash("twice")


async def test_the_bot_offline_is_said_before_anything_is_sent():
    async with Sandbox(port=0) as sandbox:
        sandbox.commands.overwrite(None, [{"name": "x", "description": "x", "type": 1}])
        with pytest.raises(ClientRefusal, match="offline"):
            await sandbox.person("Ada").slash("x")


async def test_a_bot_with_the_wrong_token_cannot_log_in(sandbox):
    with pytest.raises(discord.LoginFailure):
        async with running(sandbox, token="wrong", bot=DemoBot()):
            pass


async def test_a_file_name_with_a_path_loses_it(sandbox, bot):
    channel = bot.get_channel(sandbox.channel("pictures").id)
    message = await channel.send(file=discord.File(io.BytesIO(PNG), "../../a b\u00e9.png"))
    assert message.attachments[0].filename == "a_b_.png"
