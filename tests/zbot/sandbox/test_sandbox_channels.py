"""Channel messages, rights, rate limits and injected faults, through the real discord.py."""

import io

import aiohttp
import pytest

from tests.zbot.sandbox.demo_bot import PNG, discord
from zbot.sandbox import permissions


@pytest.fixture
def pictures(sandbox, bot):
    return bot.get_channel(sandbox.channel("pictures").id)


async def test_a_message_can_be_sent_read_edited_and_deleted(sandbox, bot, pictures):
    message = await pictures.send("one", file=discord.File(io.BytesIO(PNG), "a.png"))
    assert await (await pictures.fetch_message(message.id)).attachments[0].read() == PNG
    await message.edit(content="two", attachments=[])
    assert (await pictures.fetch_message(message.id)).content == "two"
    assert not sandbox.messages("pictures")[0].attachments
    await message.add_reaction("\N{THUMBS UP SIGN}")
    assert sandbox.messages("pictures")[0].reactions == {"\N{THUMBS UP SIGN}": {bot.user.id}}
    await message.delete()
    with pytest.raises(discord.NotFound) as refused:
        await pictures.fetch_message(message.id)
    assert refused.value.code == 10008


async def test_an_edit_keeps_the_files_it_lists_and_adds_new_ones(pictures, sandbox):
    message = await pictures.send(files=[discord.File(io.BytesIO(PNG), f"{n}.png") for n in "ab"])
    kept = message.attachments[1]
    await message.edit(attachments=[kept, discord.File(io.BytesIO(PNG), "c.png")])
    assert [a.filename for a in sandbox.messages("pictures")[0].attachments] == ["b.png", "c.png"]
    assert sandbox.messages("pictures")[0].attachments[0].id == kept.id


async def test_history_is_paged_both_ways_newest_first(sandbox, pictures):
    ids = [sandbox.person("Ada").say(str(n)).id for n in range(6)]
    assert [m.id async for m in pictures.history(limit=2)] == [ids[5], ids[4]]
    assert [m.id async for m in pictures.history(limit=2, before=discord.Object(ids[3]))] == [ids[2], ids[1]]
    assert [m.id async for m in pictures.history(limit=2, after=discord.Object(ids[1]))] == [ids[2], ids[3]]
    assert [m.id async for m in pictures.history(limit=3, around=discord.Object(ids[2]))] == ids[1:4][::-1]


async def test_an_enforced_nonce_returns_the_earlier_message_for_some_minutes(sandbox, pictures):
    first = await pictures.send("one", nonce="job-17")
    again = await pictures.send("one", nonce="job-17")
    assert again.id == first.id and len(sandbox.messages("pictures")) == 1
    sandbox.clock.advance(600)
    later = await pictures.send("one", nonce="job-17")
    assert later.id != first.id


async def test_rights_are_asked_in_every_channel(sandbox, bot, pictures):
    quiet = bot.get_channel(sandbox.channel("quiet").id)
    with pytest.raises(discord.Forbidden) as refused:
        await quiet.send("x")
    assert refused.value.code == 50013
    sandbox.revoke(permissions.ATTACH_FILES, channel="pictures")
    with pytest.raises(discord.Forbidden) as refused:
        await pictures.send(file=discord.File(io.BytesIO(PNG), "a.png"))
    assert refused.value.code == 50013
    await pictures.send("words may pass")
    sandbox.revoke(permissions.VIEW_CHANNEL, channel="pictures")
    with pytest.raises(discord.Forbidden) as refused:
        await pictures.send("x")
    assert refused.value.code == 50001


async def test_an_interaction_is_answered_even_where_the_bot_may_not_send(sandbox, bot):
    message = await (await sandbox.person("Ada").slash("imagine", channel="quiet", prompt="x")).message()
    assert message.attachments


async def test_someone_elses_message_is_deleted_with_the_right_only_and_never_edited(sandbox, bot, pictures):
    said = sandbox.person("Ada").say("hello")
    message = pictures.get_partial_message(said.id)
    with pytest.raises(discord.Forbidden) as refused:
        await message.delete()
    assert refused.value.code == 50013
    with pytest.raises(discord.Forbidden) as refused:
        await message.edit(content="x")
    assert refused.value.code == 50005
    sandbox.grant(permissions.MANAGE_MESSAGES, channel="pictures")
    await message.delete()
    assert said.deleted


async def test_a_deleted_channel_and_a_left_guild_are_gone_for_channel_and_webhook(sandbox, bot, pictures):
    handle = await sandbox.person("Ada").slash("later", channel="drafts")
    await handle.acknowledged()
    sandbox.delete_channel("drafts")
    bot.hold.set()
    edit = await sandbox.requests.wait(lambda r: r.route == "original_edit")
    assert (edit.status, edit.code) == (404, 10003)
    sandbox.kick_bot("Picture Team")
    with pytest.raises(discord.Forbidden) as refused:
        await pictures.send("x")
    assert refused.value.code == 50001


async def test_direct_messages_can_be_opened_and_read(sandbox, bot):
    user = await bot.fetch_user(sandbox.person("Bo").id)
    message = await user.send("hello")
    assert sandbox.messages("dm", person=sandbox.person("Bo"))[0].id == message.id


async def test_the_doctors_questions_are_answered(sandbox, bot):
    assert [g.name async for g in bot.fetch_guilds()] == ["Picture Team", "Elsewhere"]
    guild = await bot.fetch_guild(sandbox.channel("pictures").guild_id)
    assert guild.name == "Picture Team" and guild.approximate_member_count == 5
    assert len(await guild.fetch_channels()) == 3 and len(await guild.fetch_roles()) == 3
    assert (await guild.fetch_member(sandbox.person("Mo").id)).roles[1].name == "moderator"
    assert (await bot.fetch_channel(sandbox.channel("pictures").id)).name == "pictures"
    assert (await bot.http.get_bot_gateway())[1].startswith("ws://127.0.0.1")
    with pytest.raises(discord.NotFound) as refused:
        await bot.fetch_guild(1)
    assert refused.value.code == 10004


async def test_every_answer_tells_what_is_left_of_its_bucket(sandbox, bot, pictures):
    for number in range(4):
        await pictures.send(str(number))
    await sandbox.requests.wait(lambda r: sandbox.requests.count("channel_send") == 4)
    headers = sandbox.requests.of("channel_send")[3].response_headers
    assert headers["X-RateLimit-Limit"] == "5" and headers["X-RateLimit-Remaining"] == "1"
    assert 0 < float(headers["X-RateLimit-Reset-After"]) <= 5 and headers["X-RateLimit-Bucket"]


async def test_who_ignores_the_headers_gets_429_with_retry_after(sandbox, pictures):
    url = f"{sandbox.api_url}/channels/{pictures.id}/messages"
    headers = {"Authorization": "Bot sandbox-token"}
    async with aiohttp.ClientSession(headers=headers) as session:
        answers = []
        for number in range(6):
            async with session.post(url, json={"content": str(number)}) as response:
                answers.append((response.status, response.headers, await response.json()))
    assert [status for status, _, _ in answers] == [200] * 5 + [429]
    _, told, body = answers[-1]
    assert told["Via"] and int(told["Retry-After"]) >= 1
    assert 0 < body["retry_after"] <= 5 and body["global"] is False
    assert sandbox.requests.invalid == 1


@pytest.mark.parametrize(
    ("fault", "error", "requests", "posted"),
    [
        ({"status": 502}, None, 2, 1),
        ({"status": 502, "before_processing": False}, None, 2, 1),
        ({"status": 503}, discord.DiscordServerError, 1, 0),
        ({"status": 429}, None, 2, 1),
        ({"status": 429, "via": False}, discord.HTTPException, 1, 0),
        ({"status": 429, "everywhere": True}, None, 2, 1),
        ({"drop_connection": True}, aiohttp.ServerDisconnectedError, 1, 0),
        ({"drop_connection": "reset"}, aiohttp.ClientOSError, 1, 0),
        ({"drop_connection": True, "before_processing": False}, aiohttp.ServerDisconnectedError, 1, 1),
        ({"status": 403, "code": 50013}, discord.Forbidden, 1, 0),
        ({"status": 400, "code": 50083}, discord.HTTPException, 1, 0),
        ({"stall_s": 0.05}, None, 1, 1),
    ],
)
async def test_an_injected_fault_meets_the_bot_as_a_real_one_would(
    sandbox, bot, pictures, fault, error, requests, posted
):
    placed = sandbox.faults.add("channel_send", **fault)
    if error is None:
        await pictures.send("x", nonce="1")
    else:
        with pytest.raises(error):
            await pictures.send("x", nonce="1")
    assert (placed.hits, sandbox.requests.count("channel_send")) == (1, requests)
    assert len(sandbox.messages("pictures")) == posted


async def test_a_fault_waits_for_its_turn_and_ends_after_its_times(sandbox, bot):
    sandbox.faults.add("callback", code=10062, skip=1, times=2)
    ada = sandbox.person("Ada")
    results = []
    for _ in range(4):
        handle = await ada.slash("whisper")
        count = len(results) + 1
        await sandbox.requests.wait(lambda r, count=count: sandbox.requests.count("callback") == count)
        results.append(handle.acked_after_s is not None)
    assert results == [True, False, False, True]


async def test_a_fault_of_the_cdn_meets_who_fetches_a_file(sandbox, bot):
    ada = sandbox.person("Ada")
    sandbox.faults.add("cdn", status=404)
    await ada.slash("imagine", prompt="x", reference=PNG)
    await sandbox.requests.wait(lambda r: r.route == "callback")
    handle = await ada.slash("imagine", prompt="x", reference=PNG)
    assert f" {len(PNG)} " in (await handle.message()).content
    assert [type(error) for error in bot.errors] == [discord.NotFound]
