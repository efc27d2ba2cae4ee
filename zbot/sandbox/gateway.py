"""The gateway WebSocket: hello, identify, resume with replay, heartbeats, dispatch, and ways to break it."""

import asyncio
import secrets
import zlib
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field

import orjson
from aiohttp import WSMsgType, web

from zbot.sandbox import shapes
from zbot.sandbox.events import Bus, Event
from zbot.sandbox.interactions import Interaction
from zbot.sandbox.refusal import Json
from zbot.sandbox.world import Message, World

DISPATCH, HEARTBEAT, IDENTIFY, PRESENCE, VOICE_STATE, RESUME, RECONNECT = 0, 1, 2, 3, 4, 6, 7
REQUEST_MEMBERS, INVALID_SESSION, HELLO, HEARTBEAT_ACK = 8, 9, 10, 11
GUILDS, GUILD_MESSAGES, DIRECT_MESSAGES, MESSAGE_CONTENT = 1, 1 << 9, 1 << 12, 1 << 15
PRIVILEGED = 1 << 1 | 1 << 8 | MESSAGE_CONTENT
KNOWN_INTENTS = (1 << 26) - 1 & ~(1 << 17 | 1 << 18 | 1 << 19 | 1 << 22 | 1 << 23)
MAX_RECEIVED_BYTES = 4096
MAX_RECEIVED_PER_MINUTE = 120
REPLAY_EVENTS = 5000


@dataclass(slots=True, kw_only=True, eq=False)
class Session:
    """What the gateway remembers of one bot between connections."""

    id: str
    intents: int
    sequence: int = 0
    sent: deque[tuple[int, str]] = field(default_factory=lambda: deque[tuple[int, str]](maxlen=REPLAY_EVENTS))
    connection: "Connection | None" = None


class Connection:
    """One socket: outgoing frames go through a queue so that order and compression stay right."""

    def __init__(self, socket: web.WebSocketResponse, *, compress: bool) -> None:
        self.socket = socket
        self.session: Session | None = None
        self.silent = False
        self._deflate = zlib.compressobj() if compress else None
        self._outgoing: asyncio.Queue[str | None] = asyncio.Queue()
        self._writer = asyncio.create_task(self._write())

    def send(self, text: str) -> None:
        """Queue one frame; a silent connection (a half-open one) swallows it."""
        if not self.silent:
            self._outgoing.put_nowait(text)

    async def close(self, code: int) -> None:
        """Send what is queued, then close with this code."""
        self._outgoing.put_nowait(None)
        with suppress(asyncio.CancelledError):
            await asyncio.wait({self._writer}, timeout=1.0)
        self._writer.cancel()
        await self.socket.close(code=code)

    def stop(self) -> None:
        """End the writer without a closing handshake."""
        self._writer.cancel()

    async def _write(self) -> None:
        while (text := await self._outgoing.get()) is not None:
            try:
                if self._deflate is None:
                    await self.socket.send_str(text)
                else:
                    packed = self._deflate.compress(text.encode()) + self._deflate.flush(zlib.Z_SYNC_FLUSH)
                    await self.socket.send_bytes(packed)
            except (ConnectionError, RuntimeError):
                return  # the peer is gone; the session keeps the event for a resume


class Gateway:
    """Sessions and connections of the bot, and the switches with which a test makes trouble."""

    def __init__(
        self, world: World, bus: Bus, *, token: str, base_url: str, privileged_intents: int = 0
    ) -> None:
        self._world = world
        self._bus = bus
        self._token = token
        self._base_url = base_url
        self._privileged = privileged_intents
        self._sessions: dict[str, Session] = {}
        self._connections: set[Connection] = set()
        self.heartbeat_interval_s = 41.25
        self.acknowledges_heartbeats = True
        self.dark = False
        self.identifies = 0
        self.resumes = 0
        self.heartbeats = 0
        bus.subscribe(self._on_event)

    @property
    def url(self) -> str:
        """Return the address a client is told in READY."""
        return self._base_url.replace("http", "ws", 1) + "/gateway"

    @property
    def online(self) -> bool:
        """Say whether a bot is connected and identified."""
        return any(session.connection is not None for session in self._sessions.values())

    @property
    def reachable(self) -> bool:
        """Say whether an event would arrive: now, or by a resume."""
        return bool(self._sessions)

    # What tests do to it

    async def close_all(self, code: int = 4000) -> None:
        """Close every connection with this code; sessions stay resumable unless the code ends them."""
        for connection in tuple(self._connections):
            self._detach(
                connection, ends=code in (1000, 1001, 4004, 4007, 4009, 4010, 4011, 4012, 4013, 4014)
            )
            await connection.close(code)

    def abort_all(self) -> None:
        """Drop every TCP connection without a word."""
        for connection in tuple(self._connections):
            self._detach(connection, ends=False)
            connection.stop()
            transport = connection.socket._req.transport if connection.socket._req else None  # pyright: ignore[reportPrivateUsage]
            if transport is not None:
                transport.abort()

    def send_reconnect(self) -> None:
        """Ask the bot to reconnect and resume (op 7)."""
        for connection in self._connections:
            connection.send(_encode({"op": RECONNECT, "d": None}))

    def invalidate(self, resumable: bool) -> None:
        """Declare the session invalid (op 9); with False it is forgotten and the bot has to identify again."""
        for connection in tuple(self._connections):
            connection.send(_encode({"op": INVALID_SESSION, "d": resumable}))
            if not resumable:
                self._detach(connection, ends=True)

    def silence(self, silent: bool = True) -> None:
        """Make every connection half open: it stays, and nothing is sent on it any more."""
        for connection in self._connections:
            connection.silent = silent

    async def go_dark(self) -> None:
        """Close every connection and refuse new ones until `dark` is set to False."""
        self.dark = True
        await self.close_all(1001)

    def send_ready_again(self) -> None:
        """Send READY and the guilds once more on the same session."""
        for session in self._sessions.values():
            self._greet(session)

    def replay(self, interaction: Interaction) -> None:
        """Deliver the same interaction once more, as a second event."""
        self.dispatch("INTERACTION_CREATE", interaction.payload)

    # Dispatch

    def dispatch(self, name: str, data: Json, *, intent: int = 0) -> None:
        """Send an event to every session that has the intent; kept for replay."""
        for session in self._sessions.values():
            if not intent or session.intents & intent:
                self._send(session, name, data)

    def _send(self, session: Session, name: str, data: Json) -> None:
        session.sequence += 1
        text = _encode({"op": DISPATCH, "t": name, "s": session.sequence, "d": data})
        session.sent.append((session.sequence, text))
        if session.connection is not None:
            session.connection.send(text)

    def _on_event(self, event: Event) -> None:
        if event.kind == "interaction":
            self.dispatch("INTERACTION_CREATE", event.subject.payload)
        elif event.kind in ("message_created", "message_edited", "message_deleted"):
            self._dispatch_message(event.kind, event.subject)

    def _dispatch_message(self, kind: str, message: Message) -> None:
        channel = self._world.channels.get(message.channel_id)
        if channel is None or not self._world.bits(channel, self._world.bot.id):
            return
        intent = DIRECT_MESSAGES if channel.guild_id is None else GUILD_MESSAGES
        in_guild: Json = {"channel_type": 1 if channel.guild_id is None else 0}
        # Discord leaves the guild out of ephemeral messages.
        if channel.guild_id is not None and not message.ephemeral:
            in_guild["guild_id"] = str(channel.guild_id)
        if kind == "message_deleted":
            in_guild.pop("channel_type")
            gone = {"id": str(message.id), "channel_id": str(message.channel_id)} | in_guild
            self.dispatch("MESSAGE_DELETE", gone, intent=intent)
            return
        name = "MESSAGE_CREATE" if kind == "message_created" else "MESSAGE_UPDATE"
        for session in self._sessions.values():
            if not session.intents & intent:
                continue
            shape = shapes.message_json(self._world, message, self._base_url) | in_guild
            mine = message.author is self._world.bot
            if not mine and channel.guild_id is not None and not session.intents & MESSAGE_CONTENT:
                shape |= {"content": "", "embeds": [], "attachments": [], "components": []}
            if "guild_id" in in_guild and channel.guild_id is not None:
                guild = self._world.guilds[channel.guild_id]
                shape["member"] = shapes.member_json(self._world, guild, message.author, with_user=False)
            self._send(session, name, shape)

    # The socket

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Serve one WebSocket from hello to close."""
        if self.dark:
            return web.Response(status=503, text="The gateway is dark.")
        socket = web.WebSocketResponse(compress=False, autoping=True, max_msg_size=1 << 20)
        await socket.prepare(request)
        connection = Connection(socket, compress=request.query.get("compress") == "zlib-stream")
        self._connections.add(connection)
        interval_ms = int(self.heartbeat_interval_s * 1000)
        connection.send(
            _encode(
                {"op": HELLO, "s": None, "t": None, "d": {"heartbeat_interval": interval_ms, "_trace": []}}
            )
        )
        code = None
        try:
            code = await self._listen(connection)
            if code is not None:
                self._detach(connection, ends=code not in (4000, 4009))
                await connection.close(code)
        finally:
            ends = code is None and socket.close_code in (1000, 1001)
            self._detach(connection, ends=ends)
            connection.stop()
        return socket

    async def _listen(self, connection: Connection) -> int | None:
        """Read frames until the peer leaves (None) or does something that ends the connection (the close code)."""
        recent: deque[float] = deque()
        loop = asyncio.get_running_loop()
        while True:
            # Discord drops a client that misses its heartbeats; one and a half intervals is the usual patience.
            try:
                frame = await connection.socket.receive(timeout=self.heartbeat_interval_s * 1.5)
            except TimeoutError:
                return 4009
            if frame.type in (WSMsgType.CLOSE, WSMsgType.CLOSING, WSMsgType.CLOSED, WSMsgType.ERROR):
                return None
            if connection.silent:
                continue
            if frame.type != WSMsgType.TEXT or len(frame.data) > MAX_RECEIVED_BYTES:
                return 4002
            recent.append(loop.time())
            while recent[0] < loop.time() - 60:
                recent.popleft()
            if len(recent) > MAX_RECEIVED_PER_MINUTE:
                return 4008
            try:
                received: Json = orjson.loads(frame.data)
                code = self._take(connection, int(received["op"]), received.get("d"))
            except (ValueError, KeyError, TypeError):
                return 4002
            if code is not None:
                return code

    def _take(self, connection: Connection, op: int, data: Json | int | None) -> int | None:
        if op == HEARTBEAT:
            self.heartbeats += 1
            if self.acknowledges_heartbeats:
                connection.send(_encode({"op": HEARTBEAT_ACK, "d": None}))
            return None
        if op in (IDENTIFY, RESUME):
            if connection.session is not None:
                return 4005
            assert isinstance(data, dict)
            if str(data["token"]).removeprefix("Bot ") != self._token:
                return 4004
            return self._identify(connection, data) if op == IDENTIFY else self._resume(connection, data)
        if connection.session is None:
            return 4003
        if op == REQUEST_MEMBERS:
            assert isinstance(data, dict)
            self._send_members(connection.session, data)
            return None
        return None if op in (PRESENCE, VOICE_STATE) else 4001

    def _identify(self, connection: Connection, data: Json) -> int | None:
        intents = int(data["intents"])
        if intents & ~KNOWN_INTENTS:
            return 4013
        if intents & PRIVILEGED & ~self._privileged:
            return 4014
        self.identifies += 1
        # One bot, one shard: a new identify takes the place of every earlier session.
        for old in tuple(self._sessions.values()):
            if old.connection is not None:
                self._detach(old.connection, ends=True)
        self._sessions.clear()
        session = Session(id=secrets.token_hex(16), intents=intents, connection=connection)
        self._sessions[session.id] = session
        connection.session = session
        self._greet(session)
        self._bus.publish(Event(kind="bot", subject=True), "bot")
        return None

    def _greet(self, session: Session) -> None:
        mine = [guild for guild in self._world.guilds.values() if self._world.bot.id in guild.members]
        ready: Json = {
            "v": 10,
            "user": shapes.self_json(self._world.bot),
            "guilds": [{"id": str(guild.id), "unavailable": True} for guild in mine],
            "session_id": session.id,
            "session_type": "normal",
            "resume_gateway_url": self.url,
            "application": {"id": str(self._world.bot.id), "flags": shapes.APPLICATION_FLAGS},
            "private_channels": [],
            "presences": [],
            "relationships": [],
            "user_settings": {},
            "guild_join_requests": [],
            "shard": [0, 1],
            "_trace": [],
        }
        self._send(session, "READY", ready)
        if session.intents & GUILDS:
            for guild in mine:
                self._send(session, "GUILD_CREATE", shapes.guild_create_json(self._world, guild))

    def _resume(self, connection: Connection, data: Json) -> int | None:
        session = self._sessions.get(str(data["session_id"]))
        if session is None:
            connection.send(_encode({"op": INVALID_SESSION, "d": False}))
            return None
        sequence = int(data["seq"])
        if sequence > session.sequence:
            return 4007
        if session.connection is not None:
            self._detach(session.connection, ends=False)
        self.resumes += 1
        for number, text in session.sent:
            if number > sequence:
                connection.send(text)
        session.connection = connection
        connection.session = session
        self._send(session, "RESUMED", {"_trace": []})
        self._bus.publish(Event(kind="bot", subject=True), "bot")
        return None

    def _send_members(self, session: Session, data: Json) -> None:
        guild = self._world.guilds.get(int(data["guild_id"]))
        if guild is None:
            return
        wanted = {int(user_id) for user_id in data.get("user_ids") or ()}
        query: str | None = data.get("query")
        members = [
            shapes.member_json(self._world, guild, self._world.users[user_id])
            for user_id in guild.members
            if user_id in wanted
            or (query is not None and self._world.users[user_id].name.startswith(query.lower()))
        ]
        answer = {
            "guild_id": str(guild.id),
            "members": members,
            "chunk_index": 0,
            "chunk_count": 1,
            "not_found": [],
        }
        self._send(
            session, "GUILD_MEMBERS_CHUNK", answer | ({"nonce": data["nonce"]} if "nonce" in data else {})
        )

    def _detach(self, connection: Connection, *, ends: bool) -> None:
        """Part a connection from its session; when the session ends with it, forget that too."""
        self._connections.discard(connection)
        session, connection.session = connection.session, None
        if session is None or session.connection is not connection:
            return
        session.connection = None
        if ends:
            self._sessions.pop(session.id, None)
        self._bus.publish(Event(kind="bot", subject=self.online), "bot")


def _encode(frame: Json) -> str:
    return orjson.dumps(frame).decode()
