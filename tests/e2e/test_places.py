"""Where the bot works and where it does not: decided before anything is written and before the card works."""

from typing import Any

import pytest

from tests.bot_process import BotProcess
from tests.e2e.conftest import StartBot
from tests.e2e.desk import Desk
from tests.e2e.scene import E2E, job_for, refusal, result, send_raw
from zbot.sandbox import Sandbox, permissions
from zbot.sandbox.people import ClientRefusal, Person
from zbot.sandbox.world import ELSEWHERE_ID, TEAM_ID

pytestmark = E2E

PROMPT: list[dict[str, Any]] = [{"name": "prompt", "type": 3, "value": "a fox out of place"}]


async def test_only_help_is_offered_in_direct_messages(bot: BotProcess, ada: Person) -> None:
    for command in ("imagine", "queue", "usage"):
        with pytest.raises(ClientRefusal):
            await ada.slash(command, channel="dm", **({"prompt": "a fox"} if command == "imagine" else {}))
    assert (await (await ada.slash("help", channel="dm")).message()).ephemeral


@pytest.mark.parametrize("command", ["imagine", "queue", "usage", "cancel"])
async def test_a_command_that_reaches_the_bot_in_direct_messages_all_the_same_is_refused(
    sandbox: Sandbox, bot: BotProcess, desk: Desk, ada: Person, command: str
) -> None:
    options = {"imagine": PROMPT, "cancel": [{"name": "job", "type": 3, "value": "1"}]}.get(command, [])
    handle = send_raw(sandbox, ada, command, options, channel="dm")
    assert await refusal(handle) == "Please use me in a channel of your server, not here."
    assert job_for(bot, handle) is None
    assert not desk.of("out of place")


async def test_a_private_installation_of_somebodys_own_is_refused(
    sandbox: Sandbox, bot: BotProcess, desk: Desk, ada: Person
) -> None:
    handle = send_raw(sandbox, ada, "imagine", PROMPT, authorizing_integration_owners={"1": str(ada.id)})
    assert await refusal(handle) == "Please use me in a channel of your server, not here."
    assert not desk.of("out of place")


async def test_a_bot_is_not_served(sandbox: Sandbox, bot: BotProcess, desk: Desk, ada: Person) -> None:
    member = {"user": {"id": "5", "username": "robot", "discriminator": "0", "avatar": None, "bot": True}}
    genuine = {"roles": [], "joined_at": None, "deaf": False, "mute": False, "permissions": "0", "flags": 0}
    handle = send_raw(sandbox, ada, "imagine", PROMPT, member=member | genuine)
    assert await refusal(handle) == "You may not do that here."
    assert not desk.of("out of place")


async def test_a_channel_closed_to_the_bot_is_refused_with_the_rights_it_lacks(
    sandbox: Sandbox, bot: BotProcess, desk: Desk, ada: Person, bo: Person
) -> None:
    handle = await ada.slash("imagine", channel="quiet", prompt="a fox out of place")
    told = await refusal(handle)
    assert told.startswith("I cannot post pictures in this channel.")
    assert told.endswith("Send Messages, Attach Files, Embed Links.")
    assert job_for(bot, handle) is None

    sandbox.revoke(permissions.ATTACH_FILES, channel="drafts")
    try:
        told = await refusal(await bo.slash("imagine", channel="drafts", prompt="a fox out of place"))
        assert told == "我不能在这个频道发图。请管理员在这里给我这些权限：Attach Files。"
    finally:
        sandbox.grant(permissions.ATTACH_FILES, channel="drafts")
    assert not desk.of("out of place")
    await result(await ada.slash("imagine", channel="drafts", prompt="now it may"))


async def test_the_commands_go_to_the_allowed_servers_only_and_others_are_refused(
    start_bot: StartBot, sandbox: Sandbox, desk: Desk, ada: Person
) -> None:
    sandbox.commands.overwrite(None, [])  # what the module's bot had synced for everybody
    bot = await start_bot(ZBOT_GUILD_IDS=str(TEAM_ID))
    assert {guild for guild, _ in sandbox.commands.everywhere()} == {TEAM_ID}
    assert "imagine" in {command["name"] for command in sandbox.commands.listed(TEAM_ID)}
    with pytest.raises(ClientRefusal):
        await ada.slash("imagine", channel="general", prompt="a fox out of place")
    handle = send_raw(sandbox, ada, "imagine", PROMPT, channel="general")
    assert await refusal(handle) == (
        "I am not set up for this server. Ask the admin to add it to ZBOT_GUILD_IDS."
    )
    assert job_for(bot, handle) is None
    assert not desk.of("out of place")
    await result(await ada.slash("imagine", prompt="in its place"))


async def test_a_server_the_bot_is_not_in_is_named_and_the_others_work(
    start_bot: StartBot, sandbox: Sandbox, ada: Person, watched: Any
) -> None:
    watched.may_fail += ["cannot be put into server"]
    sandbox.kick_bot("Elsewhere")
    try:
        bot = await start_bot(ZBOT_GUILD_IDS=f"{ELSEWHERE_ID}, {TEAM_ID}")
        line = await bot.logged("cannot be put into server")
        assert str(ELSEWHERE_ID) in line and "applications.commands" in line and "ZBOT_GUILD_IDS" in line
        await result(await ada.slash("imagine", prompt="in its place"))
    finally:
        sandbox.invite_bot("Elsewhere")
