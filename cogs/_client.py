"""The Discord client: loads the commands, tells Discord of them when they changed, and stays connected."""

import asyncio
import gc
import hashlib
import json
import logging
from typing import Any

import aiohttp
import discord
import yarl
from discord import app_commands
from discord.ext import commands
from discord.gateway import DiscordWebSocket
from discord.http import Route

import cogs._actions  # noqa: F401 gives the buttons what they do
from cogs._callback import answer_lightly
from cogs._errors import report
from cogs._phrases import CatalogueTranslator
from cogs._views import JobButton
from zbot.errors import ConfigError, StoreUnavailable
from zbot.services import Services
from zbot.store import Store

log = logging.getLogger(__name__)

EXTENSIONS = ("cogs.imagine", "cogs.queue", "cogs.usage", "cogs.status", "cogs.help")
TOKEN_REFUSED, INTENTS_REFUSED = 4004, 4014  # close codes of the gateway
ANOTHER_TOKEN = "make a new one on the Bot page of the developer portal and put it into .env."  # noqa: S105 advice
YOUNG_OBJECTS = 20_000  # between two looks of the garbage collector; one person's request makes about 200
CONNECTIONS = 100  # at once: enough for a crowd, and far fewer handshakes than one for every request
LOGIN_RETRY_S = (2.0, 5.0, 15.0, 30.0)


class Tree(app_commands.CommandTree[Any]):
    """The command tree; every error goes the one way to the person."""

    async def interaction_check(self, interaction: discord.Interaction[Any], /) -> bool:
        """Let pass forms whose values have the types of today's options; discord.py does not look at them.

        Raises:
            app_commands.CommandSignatureMismatch: the form is from before an update.
        """
        data: Any = interaction.data
        command = self.get_command(data["name"])
        if isinstance(command, app_commands.Command):
            types = {parameter.name: parameter.type.value for parameter in command.parameters}
            for option in data.get("options", ()):
                if option["type"] != types.get(option["name"], option["type"]):
                    raise app_commands.CommandSignatureMismatch(command)
        return True

    async def on_error(
        self, interaction: discord.Interaction[Any], error: app_commands.AppCommandError, /
    ) -> None:
        """Tell the person what went wrong."""
        await report(interaction, error)


class ZBot(commands.Bot):
    """The bot's client; `services` is set before it is started."""

    services: Services

    def __init__(self, *, guild_ids: tuple[int, ...], store: Store) -> None:
        super().__init__(
            command_prefix=commands.when_mentioned,  # unused: the bot reads no messages
            help_command=None,
            tree_cls=Tree,
            intents=discord.Intents(guilds=True),
            allowed_mentions=discord.AllowedMentions.none(),
            allowed_installs=app_commands.AppInstallationType(guild=True, user=False),
            allowed_contexts=app_commands.AppCommandContext(
                guild=True, dm_channel=False, private_channel=False
            ),
            max_messages=None,
            chunk_guilds_at_startup=False,
            member_cache_flags=discord.MemberCacheFlags.none(),
        )
        self._guild_ids = guild_ids
        self._store = store

    async def setup_hook(self) -> None:
        """Load the commands and sync them; runs after the login, before the gateway."""
        for extension in EXTENSIONS:
            if extension not in self.extensions:  # this is not the first try to log in
                await self.load_extension(extension)
        await self.tree.set_translator(CatalogueTranslator())
        self.add_dynamic_items(JobButton)
        scopes = [discord.Object(guild_id) for guild_id in self._guild_ids] or [None]
        for scope in scopes:
            if scope is not None:
                self.tree.copy_global_to(guild=scope)
            await self._sync_if_changed(scope)
        answer_lightly()
        let_collector_rest()

    async def _sync_if_changed(self, guild: discord.Object | None) -> None:
        """Sync one scope unless Discord still has exactly what was synced last.

        A sync that changes nothing still counts against Discord's limit of 200 creations a day.
        """
        wanted = [
            await command.get_translated_payload(self.tree, self.tree.translator)  # pyright: ignore[reportArgumentType]
            for command in self.tree.get_commands(guild=guild)
        ]
        digest = hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()
        name = f"commands synced to {guild.id if guild else 'all'} by {self.application_id}"
        try:
            there = await self._versions(guild)
            if await self._store.fact(name) == f"{digest} {there}":
                return
            await self.tree.sync(guild=guild)
            await self._store.remember(name, f"{digest} {await self._versions(guild)}")
        except discord.Forbidden:
            log.error(
                "the commands cannot be put into server %s: invite the bot there with the scope "
                "applications.commands, or take the server out of ZBOT_GUILD_IDS",
                guild.id if guild else "",
            )

    async def _versions(self, guild: discord.Object | None) -> str:
        """Return the version of every command Discord has; any change there changes one."""
        application_id = self.application_id or 0
        there = await (
            self.http.get_guild_commands(application_id, guild.id)
            if guild
            else self.http.get_global_commands(application_id)
        )
        return ",".join(sorted(f"{command['id']}:{command['version']}" for command in there))

    async def run_until_closed(self, token: str) -> None:
        """Log in, trying until the network is there, and stay connected.

        Raises:
            ConfigError: Discord refuses the token, or the bot as a whole.
        """
        for tries in range(10_000):
            # A new one for every try: the one of a login that failed is closed.
            self.http.connector = aiohttp.TCPConnector(limit=CONNECTIONS)
            try:
                await self.start(token)
                return
            except discord.LoginFailure as error:
                raise ConfigError(f"Discord refused DISCORD_TOKEN: {ANOTHER_TOKEN}") from error
            except (discord.ConnectionClosed, discord.PrivilegedIntentsRequired) as error:
                code = error.code if isinstance(error, discord.ConnectionClosed) else INTENTS_REFUSED
                if code == TOKEN_REFUSED:
                    raise ConfigError(f"Discord refused DISCORD_TOKEN: {ANOTHER_TOKEN}") from error
                raise ConfigError(f"Discord closed the gateway for good, with code {code}.") from error
            except (aiohttp.ClientError, discord.HTTPException, OSError, StoreUnavailable) as error:
                pause_s = LOGIN_RETRY_S[min(tries, len(LOGIN_RETRY_S) - 1)]
                log.warning("Discord cannot be reached (%s); trying again in %.0f s", error, pause_s)
                await self.http.close()
                await asyncio.sleep(pause_s)

    def dispatch(self, event: str, /, *args: Any, **kwargs: Any) -> None:
        """Hand on an event of an open client: discord.py says "ready" up to 2 s late, also when it was closed before."""
        if not self.is_closed():
            super().dispatch(event, *args, **kwargs)

    async def on_ready(self) -> None:
        """Say that people can draw now."""
        log.info("connected as %s, in %d servers", self.user, len(self.guilds))

    async def health(self) -> dict[str, Any]:
        """Return the facts for the health file."""
        services = self.services
        try:
            waiting = len(await services.store.waiting())
        except StoreUnavailable:
            waiting = -1
        return {
            "connected": self.is_ready() and not self.is_closed(),
            "engine": services.generator.status.state.value,
            "problem": services.generator.status.problem,
            "waiting": waiting,
        }


def let_collector_rest() -> None:
    """Spare the garbage collector what it would look through in vain: it took a fifth of the time in a crowd."""
    gc.collect()
    gc.freeze()  # what stands now stands until the end
    gc.set_threshold(YOUNG_OBJECTS, 10, 10)


def point_at(api: str | None, gateway: str | None) -> None:
    """Have discord.py talk to another Discord: the sandbox, or a test's."""
    if api:
        Route.BASE = api
    if gateway:
        DiscordWebSocket.DEFAULT_GATEWAY = yarl.URL(gateway)
