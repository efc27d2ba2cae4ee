"""Goes through everything the bot needs, one line each: state, fact, repair."""

import asyncio
import shutil
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import aiohttp

from zbot import datadir, weights
from zbot.config import Settings
from zbot.engine import Engine
from zbot.errors import ConfigError, WeightsError, ZBotError
from zbot.request import build_request
from zbot.weights import ModelFiles
from zbot.weights.native import native_size

DISCORD_API = "https://discord.com/api/v10"
ANSWER_WITHIN_S = 10.0
LITTLE_SPACE_BYTES = 2 * 10**9
OLDEST_DRIVER = 525  # of CUDA 12, the oldest that today's torch is built for

# Discord's permission bits: docs, topics/permissions.
VIEW_CHANNEL, SEND_MESSAGES, EMBED_LINKS, ATTACH_FILES, READ_HISTORY = (
    1 << 10,
    1 << 11,
    1 << 14,
    1 << 15,
    1 << 16,
)
ADMINISTRATOR = 1 << 3
NEEDED = VIEW_CHANNEL | SEND_MESSAGES | EMBED_LINKS | ATTACH_FILES | READ_HISTORY
_NAMES = {
    VIEW_CHANNEL: "View Channels",
    SEND_MESSAGES: "Send Messages",
    EMBED_LINKS: "Embed Links",
    ATTACH_FILES: "Attach Files",
    READ_HISTORY: "Read Message History",
}


class State(StrEnum):
    """How one thing stands."""

    OK = "ok"
    NOTE = "note"  # works, but worth knowing
    BAD = "BAD"  # stops the bot


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at."""

    state: State
    name: str
    fact: str
    repair: str = ""


def invite_link(application_id: int) -> str:
    """Return the link that invites the bot with exactly the rights it needs."""
    return (
        f"https://discord.com/oauth2/authorize?client_id={application_id}"
        f"&permissions={NEEDED}&scope=bot+applications.commands"
    )


async def examine(
    settings: Settings, make_engine: Callable[[Settings, ModelFiles], Engine]
) -> AsyncIterator[Finding]:
    """Look at everything, in the order in which it must work."""
    async for finding in _discord(settings):
        yield finding
    yield _space(settings.data)
    yield _database(settings.database)
    yield await _driver()
    try:
        files = weights.locate(settings.model, settings.cache)
    except (WeightsError, ConfigError) as error:
        yield Finding(state=State.BAD, name="weights", fact=settings.model, repair=str(error))
        return
    gigabytes = files.size_bytes / 1e9
    yield Finding(
        state=State.OK, name="weights", fact=f"{files.directory}, {gigabytes:.1f} GB, {files.dtype}"
    )
    async for finding in _drawing(settings, files, make_engine):
        yield finding


async def _discord(settings: Settings) -> AsyncIterator[Finding]:
    headers = {
        "Authorization": f"Bot {settings.discord_token.get_secret_value()}",
        "User-Agent": "DiscordBot (zbot)",
    }
    timeout = aiohttp.ClientTimeout(total=ANSWER_WITHIN_S)
    try:
        async with aiohttp.ClientSession(headers=headers, timeout=timeout, trust_env=True) as session:
            async for finding in _account(session, settings.discord_api or DISCORD_API, settings.guild_ids):
                yield finding
    except (aiohttp.ClientError, TimeoutError) as error:
        yield Finding(
            state=State.BAD,
            name="discord",
            fact=f"no answer ({type(error).__name__})",
            repair="Check this machine's network and firewall: discord.com and gateway.discord.gg, port 443.",
        )


async def _account(
    session: aiohttp.ClientSession, api: str, wanted: tuple[int, ...]
) -> AsyncIterator[Finding]:
    async with session.get(f"{api}/users/@me") as response:
        if response.status == 401:
            yield Finding(
                state=State.BAD,
                name="token",
                fact="Discord refuses it",
                repair="Make a new one on the Bot page of the developer portal and put it into .env.",
            )
            return
        response.raise_for_status()
        me: dict[str, Any] = await response.json()
    yield Finding(state=State.OK, name="token", fact=f"valid, the bot is {me['username']}")
    yield Finding(state=State.OK, name="intents", fact="none that Discord would have to grant")
    async with session.get(f"{api}/oauth2/applications/@me") as response:
        response.raise_for_status()
        link = invite_link(int((await response.json())["id"]))
    async with session.get(f"{api}/users/@me/guilds") as response:
        response.raise_for_status()
        guilds = {int(guild["id"]): guild for guild in await response.json()}
    if not guilds:
        yield Finding(state=State.BAD, name="servers", fact="the bot is in none", repair=f"Invite it: {link}")
    for guild_id in wanted:
        if guild_id not in guilds:
            yield Finding(
                state=State.BAD,
                name="server",
                fact=f"{guild_id} of ZBOT_GUILD_IDS is not one the bot is in",
                repair=f"Correct the id, or invite the bot: {link}",
            )
    for guild_id, guild in guilds.items():
        if wanted and guild_id not in wanted:
            continue
        rights = int(guild["permissions"])
        missing = [] if rights & ADMINISTRATOR else [name for bit, name in _NAMES.items() if not rights & bit]
        if missing:
            yield Finding(
                state=State.BAD,
                name="rights",
                fact=f"missing in {guild['name']}: {', '.join(missing)}",
                repair=f"Give them to the bot's role, or invite it again: {link}",
            )
        else:
            yield Finding(state=State.OK, name="rights", fact=f"all that are needed in {guild['name']}")


def _space(data: Path) -> Finding:
    existing = next(path for path in (data, *data.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    fact = f"{data}, {free / 1e9:.1f} GB free"
    if free < LITTLE_SPACE_BYTES:
        return Finding(
            state=State.NOTE,
            name="disk",
            fact=fact,
            repair="Make room, or set ZBOT_DATA_DIR to a larger disk.",
        )
    return Finding(state=State.OK, name="disk", fact=fact)


def _database(path: Path) -> Finding:
    if not path.exists():
        return Finding(state=State.OK, name="database", fact=f"{path} will be made at the first start")
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
            (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.Error as error:
        verdict = str(error)
    if verdict != "ok":
        return Finding(
            state=State.BAD,
            name="database",
            fact=f"{path}: {verdict}",
            repair="Put back a back-up of the file.",
        )
    return Finding(state=State.OK, name="database", fact=f"{path} is whole")


async def _driver() -> Finding:
    """Ask NVIDIA's own tool, which works also where torch and the driver do not fit together."""
    query = "--query-gpu=name,driver_version,memory.total,memory.free"
    try:
        process = await asyncio.create_subprocess_exec(
            "nvidia-smi", query, "--format=csv,noheader,nounits",
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        async with asyncio.timeout(ANSWER_WITHIN_S):
            output, _ = await process.communicate()
    except FileNotFoundError:
        return Finding(
            state=State.NOTE,
            name="GPU",
            fact="no NVIDIA driver on this machine",
            repair="Fine for the tiny model; Z-Image-Turbo wants a card. In a container, pass it through.",
        )
    except TimeoutError:
        return Finding(
            state=State.BAD, name="GPU", fact="the driver does not answer", repair="Restart the machine."
        )
    if process.returncode != 0 or not output.strip():
        return Finding(
            state=State.BAD,
            name="GPU",
            fact="the driver sees no card",
            repair="Install the driver again, then restart.",
        )
    name, driver, total, free = (part.strip() for part in output.decode().splitlines()[0].split(","))
    fact = f"{name}, {int(free) / 1024:.1f} of {int(total) / 1024:.1f} GiB free, driver {driver}"
    if int(driver.split(".")[0]) < OLDEST_DRIVER:
        return Finding(
            state=State.BAD, name="GPU", fact=fact, repair=f"Install a driver of {OLDEST_DRIVER} or newer."
        )
    return Finding(state=State.OK, name="GPU", fact=fact)


async def _drawing(
    settings: Settings, files: ModelFiles, make_engine: Callable[[Settings, ModelFiles], Engine]
) -> AsyncIterator[Finding]:
    """Load the model and draw one small picture, unless the bot has the card just now."""
    try:
        with datadir.locked(settings.data):
            pass
    except ConfigError:
        yield Finding(
            state=State.NOTE, name="drawing", fact="not tried: the bot runs here", repair="See /status."
        )
        return
    engine = make_engine(settings, files)
    start = time.monotonic()
    try:
        card = await engine.load(lambda _: None)
        loaded_s = time.monotonic() - start
        fact = f"{card.placement} on {card.device} in {card.dtype}, loaded in {loaded_s:.1f} s"
        yield Finding(state=State.OK, name="placement", fact=fact)
        side = native_size(files.directory) // 2
        request = build_request(prompt="a red fox", native_size=side * 2, width=side, height=side, seed=1)
        await engine.draw(request, lambda _: None)
        drawn = await engine.draw(request, lambda _: None)
        yield Finding(
            state=State.OK, name="speed", fact=f"{drawn.gpu_s:.2f} s for a picture of {side}x{side}"
        )
    except ZBotError as error:
        yield Finding(state=State.BAD, name="drawing", fact="no picture came", repair=str(error))
    finally:
        await engine.close()
