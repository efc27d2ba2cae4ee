"""A bot that cannot start as it is set up says why in one sentence with the repair, and ends with exit code 2."""

from pathlib import Path

import pytest

from tests.bot_process import BotProcess, bot_process
from zbot import datadir
from zbot.sandbox import Sandbox

NOWHERE = {
    "ZBOT_DISCORD_API": "http://127.0.0.1:9/api/v10",
    "ZBOT_DISCORD_GATEWAY": "ws://127.0.0.1:9/gateway",
}


async def said_at_the_end(directory: Path, settings: dict[str, str]) -> list[str]:
    """Start a bot that cannot; check its exit code and return what it said."""
    async with bot_process(
        directory, settings={"DISCORD_TOKEN": "t", **NOWHERE, **settings}, start=False
    ) as bot:
        await bot.launch()
        assert await bot.ended() == 2, bot.log
    assert "Traceback" not in bot.log
    return bot.lines


@pytest.mark.parametrize("token", ["", "   "])
async def test_a_missing_token(tmp_path: Path, token: str) -> None:
    assert await said_at_the_end(tmp_path, {"DISCORD_TOKEN": token}) == [
        "DISCORD_TOKEN is not set: put the bot's token into .env (cp .env.example .env), "
        "or try zbot without one: make try."
    ]


async def test_an_unknown_setting_names_its_nearest(tmp_path: Path) -> None:
    assert await said_at_the_end(tmp_path, {"ZBOT_MAX_WAITNG": "3", "ZBOT_FROBNICATE": "1"}) == [
        "ZBOT_FROBNICATE is not a setting: remove it; .env.example lists what there is.",
        "ZBOT_MAX_WAITNG is not a setting: did you mean ZBOT_MAX_WAITING?",
    ]


async def test_an_unknown_setting_in_the_env_file(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("DISCORD_TOKEN=t\nZBOT_MODLE=tiny\n")
    (line,) = await said_at_the_end(tmp_path, {})
    assert line == "ZBOT_MODLE is not a setting: did you mean ZBOT_MODEL?"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ZBOT_GUILD_IDS", "abc"),
        ("ZBOT_MAX_WAITING", "0"),
        ("ZBOT_MAX_WAITING_PER_PERSON", "many"),
        ("ZBOT_PRECISION", "fp16"),
        ("ZBOT_LOG_LEVEL", "LOUD"),
        ("ZBOT_STALL_S", "-1"),
    ],
)
async def test_a_value_that_cannot_be_used_names_the_setting(tmp_path: Path, name: str, value: str) -> None:
    (line,) = await said_at_the_end(tmp_path, {name: value})
    assert line.startswith(f"{name}: ")
    assert line.endswith("See .env.example.")


async def test_everything_that_is_wrong_is_said_at_once_and_no_secret_with_it(tmp_path: Path) -> None:
    lines = await said_at_the_end(
        tmp_path,
        {"DISCORD_TOKEN": "very-secret", "ZBOT_MAX_WAITING": "x", "ZBOT_STALL_S": "y", "ZBOT_OOPS": "1"},
    )
    assert len(lines) == 3
    assert "very-secret" not in "\n".join(lines)


@pytest.mark.parametrize(
    "settings", [{"ZBOT_MODEL": "./models/mine"}, {"ZBOT_MODEL": "no model"}, {"ZBOT_CACHE_DIR": "./cache"}]
)
async def test_a_model_or_a_cache_that_names_no_place(tmp_path: Path, settings: dict[str, str]) -> None:
    (line,) = await said_at_the_end(tmp_path, settings)
    assert next(iter(settings)) in line


async def test_a_data_directory_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("not a directory")
    (line,) = await said_at_the_end(tmp_path, {})
    assert str(tmp_path / "data") in line and "ZBOT_DATA_DIR" in line


async def test_a_damaged_database_is_named_and_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "data" / "images").mkdir(parents=True)
    damaged = b"SQLite format 3\0" + b"\xff" * 5000
    (tmp_path / "data" / "zbot.db").write_bytes(damaged)
    lines = await said_at_the_end(tmp_path, {})
    assert str(tmp_path / "data" / "zbot.db") in lines[-1]
    assert (tmp_path / "data" / "zbot.db").read_bytes() == damaged


async def test_a_port_that_is_taken_names_the_way_to_another(tmp_path: Path) -> None:
    async with Sandbox(port=0) as other:
        settings = {"ZBOT_SANDBOX_PORT": str(other.port), "ZBOT_MODEL": ""}
        async with bot_process(tmp_path, settings=settings, start=False) as bot:
            await bot.launch("--sandbox")
            assert await bot.exit_code() == 2, bot.log
    (line,) = bot.lines
    assert line.startswith(f"Port {other.port} cannot be had (Address already in use)")
    assert "make try PORT=" in line


async def test_a_second_sandbox_on_the_same_data_promises_no_page(tmp_path: Path) -> None:
    settings = {"ZBOT_SANDBOX_PORT": "0", "ZBOT_MODEL": ""}
    with datadir.locked(tmp_path / "data" / "sandbox"):
        async with bot_process(tmp_path, settings=settings, start=False) as bot:
            await bot.launch("--sandbox")
            assert await bot.exit_code() == 2, bot.log
    (line,) = bot.lines
    assert line.startswith(f"Another zbot uses {tmp_path / 'data' / 'sandbox'}: stop it first")


async def test_a_token_that_discord_refuses(tmp_path: Path) -> None:
    async with Sandbox(port=0, token="the-right-one") as sandbox:
        async with bot_process(
            tmp_path, sandbox=sandbox, settings={"DISCORD_TOKEN": "a-wrong-one"}, start=False
        ) as bot:
            await bot.launch()
            assert await bot.ended() == 2, bot.log
        assert bot.lines[-1].startswith("Discord refused DISCORD_TOKEN: make a new one on the Bot page")
        assert "Traceback" not in bot.log
        assert "a-wrong-one" not in bot.log
        # It does not ask again and again: 401s count towards a ban.
        assert sandbox.requests.invalid == 1


async def test_an_unreachable_discord_is_waited_for(tmp_path: Path) -> None:
    async with Sandbox(port=0) as sandbox:
        sandbox.faults.add("me", drop_connection="close", times=4)  # aiohttp itself asks a second time
        bot = BotProcess(tmp_path, sandbox=sandbox)
        try:
            await bot.launch()
            await bot.logged("Discord cannot be reached")
            await sandbox.ready(timeout_s=30)
        finally:
            await bot.close()
    assert "Traceback" not in bot.log


async def test_help_is_answered_without_any_setting(tmp_path: Path) -> None:
    async with bot_process(tmp_path, settings={"ZBOT_MODEL": ""}, start=False) as bot:
        await bot.launch("--help")
        assert await bot.ended() == 0
    assert "--sandbox" in bot.log
