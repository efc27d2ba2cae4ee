"""The doctor against the loopback Discord and on damaged machines: one line each, with the repair that helps."""

import asyncio
import os
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.bot_process import REPOSITORY
from tests.fakes import FakeEngine
from zbot import datadir, doctor, weights
from zbot.card import Build
from zbot.config import Settings
from zbot.doctor import Finding, State, account, machine
from zbot.errors import EngineDead, OutOfMemory
from zbot.sandbox import DEFAULT_TOKEN, Sandbox
from zbot.sandbox.permissions import ATTACH_FILES, SEND_MESSAGES, VIEW_CHANNEL
from zbot.sandbox.world import ELSEWHERE_ID, TEAM_ID

TINY = Path(weights.__file__).parent.parent / "models" / "tiny"
Findings = dict[str, list[Finding]]


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    async with Sandbox(port=0) as sandbox:
        yield sandbox


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Settings]:
    """Make settings for one sandbox, with nothing of the developer's in them."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith(("ZBOT_", "DISCORD_"))]:
        monkeypatch.delenv(name)

    def make(sandbox: Sandbox | None = None, **given: Any) -> Settings:
        given = {"discord_token": DEFAULT_TOKEN, "model": "tiny", "data_dir": tmp_path / "data"} | given
        if sandbox is not None:
            given = {"discord_api": sandbox.api_url, "discord_gateway": sandbox.gateway_url} | given
        return Settings(**given)

    return make


@pytest.fixture(autouse=True)
def environment_stays() -> Any:
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


async def look(settings: Settings, engine: FakeEngine | None = None, *, has_token: bool = True) -> Findings:
    """Return what the doctor finds, by name."""
    found: Findings = {}
    engine = engine or FakeEngine()
    async for finding in doctor.examine(settings, lambda *_: engine, has_token=has_token):
        found.setdefault(finding.name, []).append(finding)
        assert "\n" not in finding.fact + finding.repair
        assert (
            finding.state is State.OK
            or finding.state is State.NOTE
            or finding.repair
            or finding.name == "drawing"
        )
        assert settings.discord_token.get_secret_value() not in finding.fact + finding.repair
    assert not engine.loaded
    return found


def bad(found: Findings) -> list[str]:
    return [name for name, findings in found.items() if any(one.state is State.BAD for one in findings)]


# --- as a command ---


async def test_the_command_finds_nothing_that_stops_the_bot_and_shows_no_token(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(REPOSITORY), "HOME": str(tmp_path)} | {
        "DISCORD_TOKEN": sandbox.token,
        "ZBOT_DISCORD_API": sandbox.api_url,
        "ZBOT_DISCORD_GATEWAY": sandbox.gateway_url,
        "ZBOT_DATA_DIR": str(tmp_path / "data"),
        "ZBOT_MODEL": "tiny",
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "zbot", "doctor",
        env=environment, cwd=tmp_path, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate()
    lines = out.decode().splitlines()
    assert (process.returncode, err) == (0, b""), out + err
    assert [line.split()[:2] for line in lines] == [
        ["ok", "token"], ["ok", "intents"], ["ok", "gateway"], ["note", "rights"], ["ok", "rights"], ["ok", "disk"],
        ["ok", "database"], ["ok", "cache"], ["ok", "weights"], *[line.split()[:2] for line in lines if "GPU" in line],
        *[line.split()[:2] for line in lines if line.split()[1] == "memory"], ["ok", "placement"], ["ok", "speed"],
    ]  # fmt: skip
    assert (
        "in Picture Team the bot may post pictures in #pictures, #drafts, not in #quiet (Send Messages) ->"
        in lines[3]
    )
    assert sandbox.token not in out.decode()


def test_without_a_token_everything_else_is_looked_at(make: Callable[..., Settings], tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/zbot.db").write_bytes(b"not a database" * 1000)
    done = subprocess.run(
        [sys.executable, "-m", "zbot", "doctor"],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "ZBOT_MODEL": "/nowhere", "ZBOT_DATA_DIR": str(tmp_path / "data")},
        capture_output=True, text=True, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, "")
    first, *others = done.stdout.splitlines()
    assert first == (
        "BAD  settings   DISCORD_TOKEN is not set -> Put the bot's token into .env (cp .env.example .env), "
        "or try zbot without one: make try."
    )
    assert {line[5:15].strip(): line[:5].strip() for line in others} | {"memory": "", "GPU": ""} == {
        "disk": "ok", "database": "BAD", "cache": "ok", "weights": "BAD", "memory": "", "GPU": "",
    }  # fmt: skip


def test_wrong_settings_are_all_named_and_nothing_else_is_looked_at(
    make: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZBOT_MAX_WAITING", "many")
    monkeypatch.setenv("ZBOT_MODLE", "tiny")
    settings, findings = doctor.read_settings()
    assert settings is None
    assert sorted(finding.fact for finding in findings) == [
        "DISCORD_TOKEN is not set", "ZBOT_MAX_WAITING", "ZBOT_MODLE is not a setting",
    ]  # fmt: skip
    assert all(finding.state is State.BAD and finding.repair for finding in findings)


# --- Discord ---


async def test_a_wrong_token_is_named_and_not_shown(sandbox: Sandbox, make: Callable[..., Settings]) -> None:
    found = await look(make(sandbox, discord_token="MTIz.wrong.token-of-somebody"))
    assert found["token"][0].fact == "Discord refuses it" and "Reset Token" in found["token"][0].repair
    assert bad(found) == ["token"] and "speed" in found
    for odd in ("two words", "line\nbreak", "“quoted”"):
        assert bad(await look(make(sandbox, discord_token=odd))) == ["token"]


async def test_a_server_the_bot_is_not_in_gets_the_invitation(
    sandbox: Sandbox, make: Callable[..., Settings]
) -> None:
    found = await look(make(sandbox, guild_ids=f"{TEAM_ID},123"))
    assert found["server"][0].fact == "the bot is not in server 123 of ZBOT_GUILD_IDS"
    assert found["server"][0].repair.startswith(
        "Correct the id, or invite the bot: https://discord.com/oauth2"
    )
    assert "client_id=1100000000000000001&permissions=117760&scope=bot+applications.commands" in (
        found["server"][0].repair
    )
    assert len(found["rights"]) == 1 and bad(found) == ["server"]
    sandbox.kick_bot("Picture Team")
    sandbox.kick_bot("Elsewhere")
    found = await look(make(sandbox))
    assert found["server"][0].fact == "the bot is in none" and bad(found) == ["server"]


async def test_missing_rights_are_named_with_the_server(
    sandbox: Sandbox, make: Callable[..., Settings]
) -> None:
    for role in sandbox.world.guilds[TEAM_ID].roles.values():
        role.bits &= ~ATTACH_FILES
    (rights,) = (await look(make(sandbox, guild_ids=str(TEAM_ID))))["rights"]
    assert rights.state is State.BAD and "client_id=" in rights.repair
    assert rights.fact == (
        "there is no channel in Picture Team where the bot may post pictures; missing: Attach Files"
    )


async def test_a_private_channel_that_lets_the_bot_in_is_enough(
    sandbox: Sandbox, make: Callable[..., Settings]
) -> None:
    for role in sandbox.world.guilds[TEAM_ID].roles.values():
        role.bits &= ~VIEW_CHANNEL
    settings = make(sandbox, guild_ids=str(TEAM_ID))
    assert bad(await look(settings)) == ["rights"]
    sandbox.grant(VIEW_CHANNEL, channel="drafts")
    (rights,) = (await look(settings))["rights"]
    assert (
        rights.state is State.NOTE
        and "may post pictures in #drafts, not in #pictures (View Channels)" in rights.fact
    )


async def test_all_rights_in_all_channels_are_ok(sandbox: Sandbox, make: Callable[..., Settings]) -> None:
    sandbox.grant(SEND_MESSAGES, channel="quiet")
    (rights,) = (await look(make(sandbox, guild_ids=str(TEAM_ID))))["rights"]
    assert (rights.state, rights.fact) == (
        State.OK, "all that are needed, in #pictures, #drafts, #quiet of Picture Team",
    )  # fmt: skip


def test_a_channels_word_on_a_role_counts_after_that_on_everyone_and_before_that_on_the_bot() -> None:
    def held(*overwrites: tuple[int, int, int], base: int = account.ALL_NEEDED) -> int:
        shaped = [{"id": str(who), "allow": str(allow), "deny": str(deny)} for who, allow, deny in overwrites]
        return account.rights_in(shaped, base=base, guild_id=1, roles={2, 3}, me_id=9)

    send = SEND_MESSAGES
    assert held() == account.ALL_NEEDED
    assert not held((1, 0, send)) & send
    assert held((1, 0, send), (2, send, 0)) & send
    assert held((2, 0, send), (3, send, 0)) & send  # of several roles, one that allows is enough
    assert not held((2, send, 0), (9, 0, send)) & send
    assert held((4, 0, send)) & send  # of a role that the bot does not have
    assert held((1, 0, account.ALL_NEEDED), base=account.ADMINISTRATOR) == account.ALL_NEEDED


async def test_a_server_without_the_scope_for_commands_is_named(
    sandbox: Sandbox, make: Callable[..., Settings]
) -> None:
    sandbox.faults.add("guild_commands_get", code=50001)
    found = await look(make(sandbox, guild_ids=str(ELSEWHERE_ID)))
    assert found["rights"][0].fact == "Elsewhere gives the bot no commands"
    assert found["rights"][0].repair.startswith(
        "Invite it there once more: https://discord.com/oauth2/authorize"
    )


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ({"status": 503}, "Discord answers 503: Service Unavailable"),
        ({"status": 403}, "Discord answers 403: 403: injected"),
        ({"drop_connection": True}, "no answer (Server disconnected)"),
    ],
)
async def test_a_fault_of_discord_is_not_blamed_on_the_token(
    sandbox: Sandbox, make: Callable[..., Settings], fault: dict[str, Any], says: str
) -> None:
    sandbox.faults.add("me", times=9, **fault)
    found = await look(make(sandbox))
    assert bad(found) == ["discord"] and found["discord"][0].fact == says
    assert "speed" in found


async def test_being_asked_to_wait_is_no_fault(sandbox: Sandbox, make: Callable[..., Settings]) -> None:
    sandbox.faults.add("my_guilds", status=429, retry_after_s=0.01)
    assert bad(await look(make(sandbox))) == []


async def test_no_network_is_told_with_what_to_check(make: Callable[..., Settings]) -> None:
    found = await look(make(discord_api="http://127.0.0.1:9/api/v10"))
    assert bad(found) == ["discord"] and "port 443" in found["discord"][0].repair
    found = await look(make(discord_api="http://nowhere.invalid/api/v10"))
    assert found["discord"][0].fact == "the name nowhere.invalid is not found"


async def test_a_page_that_answers_in_discords_place_is_told(
    sandbox: Sandbox, make: Callable[..., Settings]
) -> None:
    found = await look(make(sandbox, discord_api=f"{sandbox.url}/?"))
    assert found["discord"][0].fact == "something else answers in its place"


async def test_a_gateway_that_cannot_be_reached_is_told_apart(
    sandbox: Sandbox, make: Callable[..., Settings]
) -> None:
    found = await look(make(sandbox, discord_gateway="ws://127.0.0.1:9"))
    assert bad(found) == ["gateway"] and "gateway.discord.gg" in found["gateway"][0].repair
    sandbox.gateway.identifies = 1000
    found = await look(make(sandbox))
    assert found["gateway"][0].fact == "all 1000 starts of today are used up; the next are there in 24.0 h"


# --- the machine ---


async def offline(make: Callable[..., Settings], engine: FakeEngine | None = None, **given: Any) -> Findings:
    return await look(make(**given), engine, has_token=False)


async def test_a_damaged_database_is_found_and_its_backup_named(
    make: Callable[..., Settings], data_dir: Path
) -> None:
    path = data_dir / "zbot.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE big (text TEXT)")
        connection.executemany("INSERT INTO big VALUES (?)", [("x" * 4000,)] * 50)
    connection.close()
    assert bad(await offline(make)) == []
    data = bytearray(path.read_bytes())
    data[4096:40960] = os.urandom(36864)
    path.write_bytes(data)
    (data_dir / "zbot.db.schema1.bak").touch()
    found = await offline(make)
    assert bad(found) == ["database"] and str(path) in found["database"][0].fact
    assert found["database"][0].repair == f"Put back {data_dir}/zbot.db.schema1.bak."
    path.write_bytes(b"not a database" * 1000)
    assert "file is not a database" in (await offline(make))["database"][0].fact


async def test_a_database_of_a_newer_zbot_is_told(make: Callable[..., Settings], data_dir: Path) -> None:
    connection = sqlite3.connect(data_dir / "zbot.db")
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    (database,) = (await offline(make))["database"]
    assert "was written by a newer zbot (schema 99" in database.fact and database.repair == "Update zbot."


async def test_a_data_directory_that_cannot_be_written_is_told(
    make: Callable[..., Settings], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    found = await offline(make, data_dir=tmp_path / "file" / "data")
    assert bad(found)[0] == "disk" and "set zbot_data_dir" in found["disk"][0].repair.lower()


@pytest.mark.parametrize(("free", "state"), [(10**7, State.BAD), (10**9, State.NOTE), (10**10, State.OK)])
async def test_little_room_is_told_in_time(
    make: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch, free: int, state: State
) -> None:
    usage = machine.shutil.disk_usage("/")
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: usage._replace(free=free))
    (disk,) = (await offline(make))["disk"]
    assert disk.state is state


@pytest.mark.parametrize("root", [Path("cache"), Path("/proc/nothing/here")])
async def test_a_cache_that_cannot_be_used_is_told(make: Callable[..., Settings], root: Path) -> None:
    (cache,) = (await offline(make, cache_dir=root))["cache"]
    assert cache.state is State.BAD and cache.repair


async def test_missing_and_damaged_weights_are_told_with_the_command_that_mends_them(
    make: Callable[..., Settings], tmp_path: Path
) -> None:
    found = await offline(make, model="Tongyi-MAI/Z-Image-Turbo")
    assert bad(found) == ["weights"] and "placement" not in found
    assert found["weights"][0].repair.startswith("Run `python -m zbot weights fetch`")
    copy = tmp_path / "model"
    subprocess.run(["cp", "-r", TINY, copy], check=True)
    (copy / "vae/diffusion_pytorch_model.safetensors").write_bytes(b"short")
    (weights,) = (await offline(make, model=str(copy)))["weights"]
    assert weights.state is State.BAD and "vae/diffusion_pytorch_model.safetensors" in weights.fact


@pytest.mark.parametrize(
    ("answer", "cuda", "states", "says"),
    [
        ("NVIDIA H200, 580.95.05, 143771, 143000", 13, "ok ok", "NVIDIA H200, driver 580.95.05"),
        ("NVIDIA H200, 580.95.05, 143771, 40000", 13, "ok note", "39.1 of 140.4 GiB of the card are free"),
        ("NVIDIA A10, 570.10, 23028, 23000", 13, "BAD ok", "has driver 570.10, too old for this torch"),
        ("NVIDIA A10, 570.10, 23028, 23000", 12, "ok ok", "NVIDIA A10, driver 570.10"),
        ("NVIDIA A10, 570.10, 23028, 23000", None, "BAD ok", "this torch is built for the CPU alone"),
        ("NVIDIA GB10, 580.10, [N/A], [N/A]", 13, "ok", "NVIDIA GB10"),
        ("A, 580.1, 10, 10\nB, 580.1, 10, 10", 13, "ok ok", "A, driver 580.1, the first of 2"),
        ("", 13, "BAD", "the driver sees no card (it names no card)"),
        ("Failed to initialize NVML: Driver/library version mismatch", 13, "BAD", "version mismatch"),
    ],
)
def test_what_nvidias_tool_says_is_understood(answer: str, cuda: int | None, states: str, says: str) -> None:
    findings = machine.findings_of_card(answer, Build(cuda=cuda, is_rocm=False), is_needed=True)
    assert [finding.state.value for finding in findings] == states.split()
    assert any(says in finding.fact for finding in findings)
    # The tiny model is drawn on the processor then, so nothing stops the bot.
    findings = machine.findings_of_card(answer, Build(cuda=cuda, is_rocm=False), is_needed=False)
    assert State.BAD not in [finding.state for finding in findings]


async def test_no_card_is_told_only_where_one_is_needed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (tiny,), (turbo,) = await machine.card(is_needed=False), await machine.card(is_needed=True)
    assert (tiny.state, turbo.state) == (State.OK, State.NOTE)
    assert "in a container, pass the card through" in turbo.repair


async def test_a_driver_that_fails_is_told_with_its_own_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed to communicate with the driver'\nexit 9\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (card,) = await machine.card(is_needed=True)
    assert card.state is State.BAD and "has failed to communicate" in card.fact


# --- drawing ---


async def test_a_running_bot_keeps_the_card_and_is_described(
    make: Callable[..., Settings], tmp_path: Path
) -> None:
    engine = FakeEngine()
    with datadir.locked(tmp_path / "data"):
        found = await offline(make, engine)
    assert engine.loads == 0 and bad(found) == []
    assert found["drawing"][0].fact.startswith("not tried, the bot has the card.")


async def test_a_model_that_does_not_load_or_draw_stops_the_bot(make: Callable[..., Settings]) -> None:
    engine = FakeEngine()
    engine.load_errors.append(OutOfMemory("the model does not fit with placement resident"))
    found = await offline(make, engine)
    assert bad(found) == ["drawing"] and "ZBOT_PLACEMENT" in found["drawing"][0].repair
    assert engine.closed
    engine = FakeEngine()
    engine.script.append(EngineDead("the engine's process was ended by SIGSEGV"))
    found = await offline(make, engine)
    assert found["placement"][0].state is State.OK and bad(found) == ["drawing"]


async def test_products_in_fp8_are_said_to_be_lossy(make: Callable[..., Settings]) -> None:
    engine = FakeEngine()
    assert "precision" not in await offline(make, engine)
    engine = FakeEngine()
    engine.card = replace(engine.card, dtype="float8")
    (finding,) = (await offline(make, engine))["precision"]
    assert finding.state is State.NOTE and "lossy" in finding.fact and "ZBOT_PRECISION" in finding.repair


async def test_no_bot_can_start_beside_the_drawing(make: Callable[..., Settings], tmp_path: Path) -> None:
    held: list[bool] = []

    class Watching(FakeEngine):
        async def load(self, on_progress: Any) -> Any:
            try:
                with datadir.locked(tmp_path / "data"):
                    held.append(False)
            except Exception:
                held.append(True)
            return await super().load(on_progress)

    await offline(make, Watching())
    assert held == [True]
    with datadir.locked(tmp_path / "data"):
        pass
