"""The gateway against the real discord.py: resume with replay, new sessions, refusals, and ways it breaks."""

import asyncio
import json

import aiohttp
import pytest

from tests.zbot.sandbox.demo_bot import DemoBot, discord, running


async def test_the_bot_is_ready_with_both_guilds_and_its_own_rights(sandbox, bot):
    assert sorted(guild.name for guild in bot.guilds) == ["Elsewhere", "Picture Team"]
    channels = {channel.name: channel for guild in bot.guilds for channel in guild.text_channels}
    assert sorted(channels) == ["drafts", "general", "pictures", "quiet"]
    me = channels["quiet"].guild.me
    assert channels["pictures"].permissions_for(me).send_messages
    assert not channels["quiet"].permissions_for(me).send_messages


@pytest.mark.parametrize("code", [1001, 4000])
async def test_after_a_close_the_bot_is_back_and_answers(sandbox, bot, code):
    await sandbox.gateway.close_all(code)
    await sandbox.ready()
    assert (await (await sandbox.person("Ada").slash("whisper")).message()).content == "only you"


async def test_what_happens_while_the_bot_is_away_is_replayed_on_resume(sandbox, bot):
    await sandbox.gateway.close_all(4000)
    assert not sandbox.gateway.online
    handle = await sandbox.person("Ada").slash("whisper")
    assert (await handle.message()).content == "only you"
    assert (sandbox.gateway.identifies, sandbox.gateway.resumes) == (1, 1)
    await asyncio.wait_for(bot.resumed.wait(), 30)
    assert bot.seen.count(handle.id) == 1


async def test_reconnect_is_followed_by_a_resume(sandbox, bot):
    sandbox.gateway.send_reconnect()
    await asyncio.wait_for(bot.resumed.wait(), 30)
    assert (sandbox.gateway.identifies, sandbox.gateway.resumes) == (1, 1)


async def test_a_dropped_connection_is_resumed(sandbox, bot):
    sandbox.gateway.abort_all()
    await asyncio.wait_for(bot.resumed.wait(), 30)
    assert (await (await sandbox.person("Ada").slash("whisper")).message()).content == "only you"


async def test_a_resumable_invalid_session_is_resumed(sandbox, bot):
    sandbox.gateway.invalidate(resumable=True)
    await asyncio.wait_for(bot.resumed.wait(), 30)
    assert sandbox.gateway.identifies == 1


async def test_an_invalid_session_is_begun_anew(sandbox, bot):
    bot.was_ready.clear()
    sandbox.gateway.invalidate(resumable=False)
    await asyncio.wait_for(bot.was_ready.wait(), 30)  # discord.py waits 5 s before it identifies again
    assert sandbox.gateway.identifies == 2
    assert (await (await sandbox.person("Ada").slash("whisper")).message()).content == "only you"


async def test_the_same_interaction_can_be_delivered_twice(sandbox, bot):
    handle = await sandbox.person("Ada").slash("whisper")
    await handle.message()
    sandbox.replay(handle)
    refused = await sandbox.requests.wait(lambda r: r.route == "callback" and r.status != 200)
    assert refused.code == 40060
    assert bot.seen.count(handle.id) == 2


async def test_a_privileged_intent_that_is_not_granted_closes_with_4014(sandbox):
    bot = DemoBot(intents=discord.Intents(guilds=True, message_content=True))
    with pytest.raises(discord.PrivilegedIntentsRequired):
        async with running(sandbox, bot=bot):
            pass


async def test_heartbeats_are_acknowledged(sandbox, bot):
    assert sandbox.gateway.heartbeats >= 1
    assert bot.latency < 5


async def open_socket(session: aiohttp.ClientSession, sandbox, query: str = ""):
    socket = await session.ws_connect(sandbox.gateway_url + query)
    assert (await socket.receive_json())["op"] == 10
    return socket


def identify(**changes):
    return {"op": 2, "d": {"token": "sandbox-token", "intents": 1, "properties": {}} | changes}


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        ([identify(token="wrong")], 4004),
        ([identify(intents=1 << 15)], 4014),
        ([identify(intents=1 << 40)], 4013),
        ([identify(), identify()], 4005),
        ([{"op": 3, "d": {}}], 4003),
        ([identify(), {"op": 77, "d": {}}], 4001),
        (["no json"], 4002),
        ([{"op": 1, "d": "x" * 5000}], 4002),
        ([{"op": 1, "d": None}] * 121, 4008),
    ],
)
async def test_a_client_that_errs_is_closed_with_discords_code(sandbox, frames, code):
    async with aiohttp.ClientSession() as session:
        socket = await open_socket(session, sandbox)
        for frame in frames:
            await socket.send_str(frame if isinstance(frame, str) else json.dumps(frame))
        async for _ in socket:
            pass
        assert socket.close_code == code


async def test_an_unknown_session_cannot_be_resumed(sandbox):
    async with aiohttp.ClientSession() as session:
        socket = await open_socket(session, sandbox)
        await socket.send_json({"op": 6, "d": {"token": "sandbox-token", "session_id": "gone", "seq": 1}})
        assert await socket.receive_json() == {"op": 9, "d": False}
        await socket.send_json(identify())
        assert (await socket.receive_json())["t"] == "READY"
        await socket.close()


async def test_a_silent_client_is_closed_after_its_heartbeats_fail(sandbox):
    sandbox.gateway.heartbeat_interval_s = 0.1
    async with aiohttp.ClientSession() as session:
        socket = await open_socket(session, sandbox)
        await socket.send_json(identify())
        async for _ in socket:
            pass
        assert socket.close_code == 4009


async def test_a_dark_gateway_refuses_until_it_is_lit(sandbox):
    await sandbox.gateway.go_dark()
    async with aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.WSServerHandshakeError):
            await open_socket(session, sandbox)
        sandbox.gateway.dark = False
        await (await open_socket(session, sandbox)).close()


async def test_changes_of_the_world_reach_the_bot(sandbox, bot):
    drafts = sandbox.channel("drafts").id
    sandbox.delete_channel("drafts")
    sandbox.kick_bot("Elsewhere")
    sandbox.revoke(discord.Permissions(send_messages=True).value, channel="pictures")
    await (await sandbox.person("Ada").slash("whisper")).message()
    assert bot.get_channel(drafts) is None
    assert [guild.name for guild in bot.guilds] == ["Picture Team"]
    pictures = bot.get_channel(sandbox.channel("pictures").id)
    assert not pictures.permissions_for(pictures.guild.me).send_messages
