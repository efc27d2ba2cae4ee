"""The sandbox as a whole: one server on 127.0.0.1 with Discord's face, the page's face, and methods for tests."""

import asyncio
import contextlib
import socket
import sys
from collections.abc import Callable
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Handler as WebHandler

from zbot.sandbox.buckets import Buckets
from zbot.sandbox.client import Client
from zbot.sandbox.clock import Clock
from zbot.sandbox.commands import Commands
from zbot.sandbox.events import Bus, Event
from zbot.sandbox.faults import Faults
from zbot.sandbox.gateway import Gateway
from zbot.sandbox.human import Human
from zbot.sandbox.interactions import Interaction, Interactions
from zbot.sandbox.journal import Journal
from zbot.sandbox.messages import Messages
from zbot.sandbox.people import TIMEOUT_S, Handle, Person
from zbot.sandbox.rest import API, Rest
from zbot.sandbox.routes import Routes
from zbot.sandbox.shapes import channel_json, guild_create_json
from zbot.sandbox.world import Channel, Message, Overwrite, User, World

DEFAULT_PORT = 8787
DEFAULT_TOKEN = "sandbox-token"  # noqa: S105 - a stand-in's, no secret
LOCAL_HOSTS = frozenset(("127.0.0.1", "localhost"))


class Sandbox:
    """A loopback Discord. Use as `async with Sandbox(port=0) as sandbox`, or `start` and `close`.

    Everything runs on the event loop that called `start`; no method may be called from another thread.
    """

    def __init__(
        self, *, port: int = DEFAULT_PORT, token: str = DEFAULT_TOKEN, privileged_intents: int = 0
    ) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            # Bound here, so that the address is known, and a port in use is an error, before anything is built.
            self._socket.bind(("127.0.0.1", port))
        except OSError:
            self._socket.close()
            raise
        self.port: int = self._socket.getsockname()[1]
        self.token = token
        base = self.url
        self.clock = Clock()
        self.bus = Bus()
        self.world = World(self.clock, base)
        self.faults = Faults()
        self.buckets = Buckets(self.clock)
        self.requests = Journal(self.bus)
        self.messages_store = Messages(self.world, self.bus)
        self.commands = Commands(self.clock, self.bus, self.world.bot.id)
        self.gateway = Gateway(
            self.world, self.bus, token=token, base_url=base, privileged_intents=privileged_intents
        )
        self.interactions = Interactions(self.world, self.bus, self.messages_store, base)
        self.client = Client(
            world=self.world, commands=self.commands, interactions=self.interactions, gateway=self.gateway
        )
        self.human = Human(
            world=self.world,
            bus=self.bus,
            client=self.client,
            interactions=self.interactions,
            messages=self.messages_store,
            gateway=self.gateway,
            faults=self.faults,
        )
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        """Return the address of the page."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def api_url(self) -> str:
        """Return what the bot's setting for Discord's API takes."""
        return self.url + API

    @property
    def gateway_url(self) -> str:
        """Return what the bot's setting for Discord's gateway takes."""
        return f"ws://127.0.0.1:{self.port}/gateway"

    async def start(self) -> None:
        """Begin to serve."""
        app = web.Application(client_max_size=64 * 1024 * 1024, middlewares=[_only_local])
        app.router.add_get("/gateway", self.gateway.handle)
        app.router.add_get("/gateway/", self.gateway.handle)
        routes = Routes(
            world=self.world,
            messages=self.messages_store,
            interactions=self.interactions,
            commands=self.commands,
            gateway=self.gateway,
            base_url=self.url,
        )
        rest = Rest(
            clock=self.clock,
            buckets=self.buckets,
            faults=self.faults,
            journal=self.requests,
            token=self.token,
        )
        rest.add_to(app, routes.table())
        self.human.add_to(app)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        await web.SockSite(self._runner, self._socket, backlog=1024).start()

    async def close(self) -> None:
        """Stop serving: sockets are closed as going away, timers cancelled."""
        self.clock.cancel_all()
        await self.gateway.close_all(1001)
        await self.human.close()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        self._socket.close()

    async def __aenter__(self) -> "Sandbox":
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # Who and where

    def person(self, name: str) -> Person:
        """Return a person by display name. Raises: LookupError."""
        for user in self.world.people():
            if user.display_name == name:
                return Person(self, user)
        raise LookupError(f"nobody is called {name}")

    def add_person(self, name: str, *, locale: str = "en-US") -> Person:
        """Let another person join the first guild, for tests with many people."""
        user = User(id=self.clock.snowflake(), name=name.lower(), display_name=name, locale=locale)
        self.world.users[user.id] = user
        next(iter(self.world.guilds.values())).members[user.id] = []
        self.bus.publish(Event(kind="state"))
        return Person(self, user)

    def channel(self, which: str | int, *, person: Person | None = None) -> Channel:
        """Return a channel by name or id; "dm" is the person's direct messages. Raises: LookupError."""
        if which == "dm" and person is not None:
            return self.world.dm_channel(person.id)
        for channel in self.world.channels.values():
            if which == channel.id or (channel.guild_id is not None and which == channel.name):
                return channel
        raise LookupError(f"there is no channel {which}")

    def messages(self, channel: str | int, *, person: Person | None = None) -> list[Message]:
        """Return the messages that stand in a channel, oldest first, ephemeral ones too."""
        return list(self.world.messages.get(self.channel(channel, person=person).id, {}).values())

    # Waiting

    async def ready(self, *, timeout_s: float = TIMEOUT_S) -> None:
        """Wait until a bot is connected and identified. Raises: TimeoutError."""
        await self.bus.until(
            lambda: self.gateway.online or None, topic="bot", timeout_s=timeout_s, what="a bot on the gateway"
        )

    async def synced(self, name: str, *, timeout_s: float = TIMEOUT_S) -> None:
        """Wait until a command of this name is synced somewhere. Raises: TimeoutError."""

        def probe() -> bool | None:
            return any(command["name"] == name for _, command in self.commands.everywhere()) or None

        await self.bus.until(probe, topic="commands", timeout_s=timeout_s, what=f"command /{name}")

    async def message(
        self,
        channel: str | int,
        fits: Callable[[Message], bool],
        *,
        person: Person | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> Message:
        """Wait for a message in a channel that fits, whoever caused it. Raises: TimeoutError."""
        place = self.channel(channel, person=person)

        def probe() -> Message | None:
            return next((m for m in self.world.messages.get(place.id, {}).values() if fits(m)), None)

        return await self.bus.until(
            probe, topic=("channel", place.id), timeout_s=timeout_s, what=f"a message in {place.name}"
        )

    def replay(self, handle: Handle | Interaction) -> None:
        """Deliver the same interaction to the bot once more."""
        self.gateway.replay(handle.interaction if isinstance(handle, Handle) else handle)

    # Changes of the world

    def delete_channel(self, which: str | int) -> None:
        """Delete a channel with all its messages."""
        channel = self.channel(which)
        gone = channel_json(self.world, channel)
        del self.world.channels[channel.id]
        self.world.messages.pop(channel.id, None)
        self.gateway.dispatch("CHANNEL_DELETE", gone, intent=1)
        self.bus.publish(Event(kind="state"))

    def revoke(self, bits: int, *, channel: str | int, person: Person | None = None) -> None:
        """Deny permission bits in a channel: to the bot, or to a person."""
        place = self.channel(channel)
        target = self.world.bot.id if person is None else person.id
        place.overwrites.append(Overwrite(target_id=target, kind=1, deny=bits))
        self._channel_changed(place)

    def grant(self, bits: int, *, channel: str | int, person: Person | None = None) -> None:
        """Allow permission bits in a channel, taking back what `revoke` denied."""
        place = self.channel(channel)
        target = self.world.bot.id if person is None else person.id
        for overwrite in place.overwrites:
            if overwrite.target_id == target:
                overwrite.deny &= ~bits
        place.overwrites.append(Overwrite(target_id=target, kind=1, allow=bits))
        self._channel_changed(place)

    def kick_bot(self, guild_name: str = "Picture Team") -> None:
        """Remove the bot from a guild."""
        guild = next(guild for guild in self.world.guilds.values() if guild.name == guild_name)
        guild.members.pop(self.world.bot.id, None)
        self.gateway.dispatch("GUILD_DELETE", {"id": str(guild.id)}, intent=1)
        self.bus.publish(Event(kind="state"))

    def invite_bot(self, guild_name: str = "Picture Team") -> None:
        """Let the bot into a guild again, with its role."""
        guild = next(guild for guild in self.world.guilds.values() if guild.name == guild_name)
        guild.members[self.world.bot.id] = [role.id for role in guild.roles.values() if role.name == "zbot"]
        self.gateway.dispatch("GUILD_CREATE", guild_create_json(self.world, guild), intent=1)
        self.bus.publish(Event(kind="state"))

    def kick(self, person: Person) -> None:
        """Remove a person from every guild."""
        for guild in self.world.guilds.values():
            guild.members.pop(person.id, None)
        self.bus.publish(Event(kind="state"))

    def _channel_changed(self, channel: Channel) -> None:
        self.gateway.dispatch("CHANNEL_UPDATE", channel_json(self.world, channel), intent=1)
        self.bus.publish(Event(kind="state"))


@web.middleware
async def _only_local(request: web.Request, handler: WebHandler) -> web.StreamResponse:
    """Serve only requests addressed to this machine's loopback name, and from pages of this server.

    A foreign Host means that another site's name was pointed here (DNS rebinding), a foreign Origin that another
    site's page asks.
    """
    host = urlsplit("//" + request.headers.get("Host", ""))
    if host.hostname not in LOCAL_HOSTS:
        return web.Response(status=403, text="This server answers to 127.0.0.1 and localhost only.")
    origin = request.headers.get("Origin")
    if origin is not None:
        asked = urlsplit(origin)
        if asked.hostname not in LOCAL_HOSTS or asked.port != host.port:
            return web.Response(status=403, text="This server answers to its own page only.")
    return await handler(request)


async def serve(port: int = DEFAULT_PORT, token: str = DEFAULT_TOKEN) -> None:
    """Run the stand-in alone until it is interrupted."""
    async with Sandbox(port=port, token=token) as sandbox:
        line = f"The sandbox is at {sandbox.url} (API {sandbox.api_url}, gateway {sandbox.gateway_url})\n"
        sys.stdout.write(line)
        sys.stdout.flush()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
