"""Asks Discord about the bot: token, gateway, servers and rights; the token itself is never shown."""

import asyncio
import os
import re
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any

import aiohttp

import zbot
from zbot.config import Settings
from zbot.doctor.finding import Finding, bad, note, ok

DISCORD_API = "https://discord.com/api/v10"
ANSWER_WITHIN_S = 10.0
LONGEST_PAUSE_S = 5.0  # when Discord asks to wait
MOST_GUILDS = 25  # three questions each
FEW_STARTS = 50
HELLO = 10
TEXT_CHANNELS = (0, 5)

# Discord's permission bits: docs, topics/permissions.
ADMINISTRATOR = 1 << 3
NEEDED = {
    1 << 10: "View Channels",
    1 << 11: "Send Messages",
    1 << 14: "Embed Links",
    1 << 15: "Attach Files",
    1 << 16: "Read Message History",
}
ALL_NEEDED = sum(NEEDED)

_TOKEN_SHAPE = re.compile(r"[\x21-\x7e]+")
_NEW_TOKEN = "Make a new one on the Bot page of the developer portal (Reset Token) and put it into .env."  # noqa: S105
_FIREWALL = "Check this machine's network and firewall: discord.com and gateway.discord.gg, port 443."


class Refused(Exception):
    """Discord answered, but not with what was asked for."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"Discord answers {status}: {text}")
        self.status = status


def invite_link(application_id: int) -> str:
    """Return the link that invites the bot with exactly the rights it needs."""
    return (
        f"https://discord.com/oauth2/authorize?client_id={application_id}"
        f"&permissions={ALL_NEEDED}&scope=bot+applications.commands"
    )


async def examine(settings: Settings) -> AsyncIterator[Finding]:
    """Ask with the bot's token what the bot needs to be told."""
    token = settings.discord_token.get_secret_value()
    if not _TOKEN_SHAPE.fullmatch(token):
        yield bad("token", "it has a space, or a character that no token has", _NEW_TOKEN)
        return
    headers = {"Authorization": f"Bot {token}", "User-Agent": f"DiscordBot (zbot, {zbot.__version__})"}
    timeout = aiohttp.ClientTimeout(total=ANSWER_WITHIN_S)
    api = settings.discord_api or DISCORD_API
    try:
        # Without the environment's proxies, as the bot itself connects.
        async with aiohttp.ClientSession(headers=headers, timeout=timeout) as session:
            async for finding in _questions(session, api, settings):
                yield finding
    except Refused as error:
        repair = "Try again in a few minutes; https://discordstatus.com says whether Discord has a fault."
        yield bad("discord", str(error), repair)
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        yield _unreachable(error)


async def _questions(session: aiohttp.ClientSession, api: str, settings: Settings) -> AsyncIterator[Finding]:
    try:
        me = await _get(session, f"{api}/users/@me")
    except Refused as error:
        if error.status != 401:
            raise
        yield bad("token", "Discord refuses it", _NEW_TOKEN)
        return
    yield ok("token", f"valid, the bot is {me['username']}")
    application = await _get(session, f"{api}/oauth2/applications/@me")
    if endpoint := application.get("interactions_endpoint_url"):
        yield bad(
            "commands",
            f"Discord sends them to {endpoint} and not to the bot",
            "Empty the field Interactions Endpoint URL on the General Information page of the developer portal.",
        )
    yield ok("intents", "only Guilds, which Discord grants to everyone")
    yield await _gateway(session, api, settings.discord_gateway)
    link = invite_link(int(application["id"]))
    guilds = {int(guild["id"]): guild for guild in await _get(session, f"{api}/users/@me/guilds")}
    for guild_id in settings.guild_ids:
        if guild_id not in guilds:
            yield bad(
                "server",
                f"the bot is not in server {guild_id} of ZBOT_GUILD_IDS",
                f"Correct the id, or invite the bot: {link}",
            )
    ours = [
        guild
        for guild_id, guild in guilds.items()
        if guild_id in settings.guild_ids or not settings.guild_ids
    ]
    if not guilds:
        yield bad("server", "the bot is in none", f"Invite it: {link}")
    for guild in ours[:MOST_GUILDS]:
        yield await _rights(session, api, guild, application_id=int(application["id"]), me_id=int(me["id"]))
    if len(ours) > MOST_GUILDS:
        yield note("rights", f"{len(ours) - MOST_GUILDS} more servers were not looked at")


async def _gateway(session: aiohttp.ClientSession, api: str, gateway: str | None) -> Finding:
    """Go as far as the greeting: it spends none of the day's starts."""
    known = await _get(session, f"{api}/gateway/bot")
    limit = known["session_start_limit"]
    url = gateway or known["url"]
    if not limit["remaining"]:
        return bad(
            "gateway",
            f"all {limit['total']} starts of today are used up; the next are there in "
            f"{limit['reset_after'] / 3_600_000:.1f} h",
            "Wait so long, and find out what started the bot again and again.",
        )
    try:
        async with session.ws_connect(f"{url.rstrip('/')}/?v=10&encoding=json") as socket:
            hello = await socket.receive_json(timeout=ANSWER_WITHIN_S)
    except (aiohttp.ClientError, TimeoutError, TypeError, ValueError) as error:
        return bad(
            "gateway",
            f"{url} gives no greeting ({type(error).__name__})",
            "Let this machine connect to gateway.discord.gg, port 443, and do not let a proxy cut WebSockets.",
        )
    if hello.get("op") != HELLO:
        return bad(
            "gateway", f"{url} is not Discord's gateway", "Take ZBOT_DISCORD_GATEWAY out of the settings."
        )
    fact = f"reachable, {limit['remaining']} of {limit['total']} starts are left today"
    if limit["remaining"] < FEW_STARTS:
        return note("gateway", fact, "Find out what starts the bot again and again.")
    return ok("gateway", fact)


async def _rights(
    session: aiohttp.ClientSession, api: str, guild: Mapping[str, Any], *, application_id: int, me_id: int
) -> Finding:
    """Look into every text channel of one server: a private one must let the bot in by itself."""
    name, link = guild["name"], invite_link(application_id)
    try:
        await _get(session, f"{api}/applications/{application_id}/guilds/{guild['id']}/commands")
    except Refused as error:
        if error.status != 403:
            raise
        return bad("rights", f"{name} gives the bot no commands", f"Invite it there once more: {link}")
    member = await _get(session, f"{api}/guilds/{guild['id']}/members/{me_id}")
    channels = await _get(session, f"{api}/guilds/{guild['id']}/channels")
    roles = {int(role) for role in member["roles"]}
    missing: dict[str, list[str]] = {}
    for channel in channels:
        if channel["type"] in TEXT_CHANNELS:
            held = rights_in(
                channel.get("permission_overwrites", ()),
                base=int(guild["permissions"]), guild_id=int(guild["id"]), roles=roles, me_id=me_id,
            )  # fmt: skip
            missing[f"#{channel['name']}"] = [right for bit, right in NEEDED.items() if not held & bit]
    open_ones = [channel for channel, lacking in missing.items() if not lacking]
    if missing and not open_ones:
        everywhere = [
            right for right in NEEDED.values() if all(right in lacking for lacking in missing.values())
        ]
        somewhere = [
            right for right in NEEDED.values() if any(right in lacking for lacking in missing.values())
        ]
        return bad(
            "rights",
            f"there is no channel in {name} where the bot may post pictures; missing: {', '.join(everywhere or somewhere)}",
            f"Give them to the bot's role, in a private channel there too, or invite it again: {link}",
        )
    if len(open_ones) < len(missing):
        closed = [f"{channel} ({', '.join(lacking)})" for channel, lacking in missing.items() if lacking]
        return note(
            "rights",
            f"in {name} the bot may post pictures in {_some(open_ones)}, not in {_some(closed)}",
            "Fine if that is meant; else give the bot's role there what stands in brackets.",
        )
    return ok("rights", f"all that are needed, in {_some(open_ones) or 'no channel yet'} of {name}")


def rights_in(
    overwrites: Iterable[Mapping[str, Any]], *, base: int, guild_id: int, roles: set[int], me_id: int
) -> int:
    """Return the bot's permission bits in a channel.

    Discord's order: the server's rights, then what the channel says of everyone, of the bot's roles together, of the
    bot itself.
    """
    if base & ADMINISTRATOR:
        return ALL_NEEDED
    steps = ({guild_id}, roles, {me_id})
    for ids in steps:
        mine = [overwrite for overwrite in overwrites if int(overwrite["id"]) in ids]
        for overwrite in mine:
            base &= ~int(overwrite["deny"])
        for overwrite in mine:
            base |= int(overwrite["allow"])
    return base


async def _get(session: aiohttp.ClientSession, url: str) -> Any:
    for last in (False, False, True):
        async with session.get(url) as response:
            if response.status == 429 and not last:
                pause_s = min(float(response.headers.get("Retry-After", 1.0)), LONGEST_PAUSE_S)
            elif response.status >= 400:
                raise Refused(response.status, await _reason(response))
            else:
                return await response.json()
        await asyncio.sleep(pause_s)
    raise AssertionError("unreachable")


async def _reason(response: aiohttp.ClientResponse) -> str:
    try:
        return str((await response.json())["message"])
    except (aiohttp.ClientError, ValueError, KeyError, TypeError):
        return response.reason or "no reason given"


def _unreachable(error: Exception) -> Finding:
    match error:
        case aiohttp.ClientConnectorCertificateError() | aiohttp.ClientSSLError():
            fact = "its certificate is not trusted"
            repair = "Check this machine's clock; if a proxy opens the traffic, install its certificate here."
        case aiohttp.ClientConnectorDNSError():
            fact, repair = (
                f"the name {error.host} is not found",
                "Check this machine's network and its name server.",
            )
        case aiohttp.ClientConnectorError():
            reason = error.os_error.strerror or "no reason given"
            fact, repair = f"{error.host}, port {error.port}, cannot be reached ({reason})", _FIREWALL
        case aiohttp.ContentTypeError() | ValueError():
            fact = "something else answers in its place"
            repair = "Log in to this network first, if it asks for it, or take ZBOT_DISCORD_API out of the settings."
        case _:
            fact = f"no answer ({str(error) or type(error).__name__})"
            repair = _FIREWALL
    if repair is _FIREWALL and any(name in os.environ for name in ("HTTPS_PROXY", "https_proxy")):
        repair += " zbot connects directly; HTTPS_PROXY is not used."
    return bad("discord", fact, repair)


def _some(names: list[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
