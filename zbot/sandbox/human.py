"""The page's side: the state of one person's view as JSON, their actions, and a WebSocket with what changes."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from aiohttp import WSMsgType, web

from zbot.sandbox import shapes
from zbot.sandbox.client import Client
from zbot.sandbox.events import Bus, Event
from zbot.sandbox.faults import Faults
from zbot.sandbox.gateway import Gateway
from zbot.sandbox.interactions import FAILURE_TEXTS, Interaction, Interactions, may_moderate
from zbot.sandbox.messages import Messages
from zbot.sandbox.options import BotOffline, ClientRefusal
from zbot.sandbox.refusal import Json, Refusal, as_list, as_object
from zbot.sandbox.rest import drop
from zbot.sandbox.world import Channel, Message, User, World

PAGE = Path(__file__).parent / "page"
MAX_UPLOAD_BYTES = 25 * 1024 * 1024
CHOICES_WITHIN_S = 3.0
CONTENT_SECURITY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
INLINE_TYPES = frozenset(("image/png", "image/jpeg", "image/webp", "image/gif"))


class Human:
    """Handlers of the page, its JSON and its WebSocket."""

    def __init__(
        self,
        *,
        world: World,
        bus: Bus,
        client: Client,
        interactions: Interactions,
        messages: Messages,
        gateway: Gateway,
        faults: Faults,
    ) -> None:
        self._world = world
        self._bus = bus
        self._client = client
        self._interactions = interactions
        self._messages = messages
        self._gateway = gateway
        self._faults = faults
        self._sockets: set[web.WebSocketResponse] = set()

    def add_to(self, app: web.Application) -> None:
        """Register the page, its files, `/sandbox/…` and the CDN."""
        app.router.add_get("/", self.page)
        app.router.add_get("/static/{name}", self.static)
        app.router.add_get("/sandbox/state", _told(self.state))
        app.router.add_get("/sandbox/events", self.events)
        app.router.add_post("/sandbox/interactions", _told(self.interact))
        app.router.add_post("/sandbox/attachments", _told(self.upload))
        app.router.add_get("/cdn/attachments/{channel_id}/{attachment_id}/{name}", self.cdn)

    async def close(self) -> None:
        """Close every page's WebSocket."""
        for socket in tuple(self._sockets):
            await socket.close(code=1001)

    # Files

    async def page(self, _request: web.Request) -> web.StreamResponse:
        """Serve the chat page."""
        return self._file("index.html")

    async def static(self, request: web.Request) -> web.StreamResponse:
        """Serve one file of the page; names have no folders."""
        return self._file(request.match_info["name"])

    def _file(self, name: str) -> web.StreamResponse:
        path = PAGE / name
        if path.parent != PAGE or name.startswith(".") or not path.is_file():
            return web.Response(status=404, text="The page is not here.")
        headers = {
            "Content-Security-Policy": CONTENT_SECURITY,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-cache",
        }
        return web.FileResponse(path, headers=headers)

    async def cdn(self, request: web.Request) -> web.StreamResponse:
        """Serve an uploaded file to whoever has its signed, unexpired address."""
        fault = self._faults.strike("cdn")
        if fault is not None:
            await asyncio.sleep(fault.stall_s)
            if fault.drop_connection:
                drop(request, reset=fault.drop_connection == "reset")
            if fault.drop_connection or fault.answers:
                return web.Response(status=fault.status or 404, text="injected")
        number = request.match_info["attachment_id"]
        attachment = self._world.attachments.get(int(number)) if number.isdecimal() else None
        if attachment is None or attachment.filename != request.match_info["name"]:
            return web.Response(status=404, text="This content is no longer available.")
        if not self._world.signed(attachment.id, dict(request.query)):
            return web.Response(status=404, text="This content is no longer available.")
        # Anything but plain pictures is a download, so that a stranger's SVG or HTML never runs on this origin.
        inline = attachment.content_type in INLINE_TYPES
        headers = {
            "Content-Type": attachment.content_type,
            "X-Content-Type-Options": "nosniff",
            "Content-Security-Policy": "default-src 'none'; sandbox",
            "Content-Disposition": f'{"inline" if inline else "attachment"}; filename="{attachment.filename}"',
            "Cache-Control": "private, max-age=3600",
        }
        return web.Response(body=attachment.data, headers=headers)

    # State and actions

    async def state(self, request: web.Request) -> Json:
        """Return everything that this person may see."""
        user = self._user(request.query.get("user"))
        channels = self._world.channels_of(user.id)
        return {
            "me": self._user_json(user),
            "users": [self._user_json(person) for person in self._world.people()],
            "bot": self._bot_json(),
            "channels": [self._channel_json(channel) for channel in channels],
            "commands": self._client.commands_for(user),
            "messages": {
                str(channel.id): [
                    self.message_json(message)
                    for message in self._world.messages.get(channel.id, {}).values()
                    if self._world.visible(message, user.id)
                ]
                for channel in channels
            },
        }

    async def interact(self, request: web.Request) -> Json:
        """Do what the person did: a command, a press, a modal, or the question for completions."""
        try:
            asked = as_object(await request.json())
        except ValueError:
            raise ClientRefusal("The request is not JSON.") from None
        if asked is None:
            raise ClientRefusal("The request is not an object.")
        user = self._user(asked.get("user"))
        if not self._gateway.online:
            raise BotOffline("The bot is offline.")
        kind = asked.get("kind")
        if kind in ("command", "autocomplete"):
            channel = self._channel(asked.get("channel"))
            options = _objects(asked.get("options") or [])
            sent = self._client.command(
                user, channel, str(asked.get("command_id")), options, autocomplete=kind == "autocomplete"
            )
            if kind == "command":
                return {"id": str(sent.id)}
            return {"id": str(sent.id), "choices": await self._choices(sent)}
        if kind == "component":
            channel = self._channel(asked.get("channel"))
            try:
                message = self._world.message(channel.id, _number(asked.get("message_id")))
            except Refusal:
                raise ClientRefusal("The message is not there.") from None
            values = [str(value) for value in asked.get("values") or ()]
            return {"id": str(self._client.press(user, message, str(asked.get("custom_id")), values).id)}
        if kind == "modal":
            try:
                opener = self._interactions.get(_number(asked.get("interaction_id")))
            except Refusal:
                raise ClientRefusal("That form is not open.") from None
            filled = as_object(asked.get("values") or {})
            if filled is None:
                raise ClientRefusal("The values of a form are an object.")
            return {"id": str(self._client.submit(user, opener, filled).id)}
        raise ClientRefusal("The kind is one of command, autocomplete, component, modal.")

    async def upload(self, request: web.Request) -> Json:
        """Keep a file that a command's option will name."""
        data = bytearray()
        async for chunk in request.content.iter_chunked(1 << 18):
            if len(data) <= MAX_UPLOAD_BYTES:
                data += chunk
        if len(data) > MAX_UPLOAD_BYTES:
            raise ClientRefusal("The file is larger than 25 MiB.")
        channel = next(iter(self._world.channels.values()))
        kept = self._messages.keep(channel, request.query.get("filename") or "unknown", bytes(data))
        return {
            "id": str(kept.id),
            "filename": kept.filename,
            "size": len(kept.data),
            "content_type": kept.content_type,
        }

    async def _choices(self, sent: Interaction) -> list[Json]:
        def probe() -> list[Json] | None:
            return sent.choices

        try:
            topic = ("interaction", sent.id)
            return await self._bus.until(probe, topic=topic, timeout_s=CHOICES_WITHIN_S, what="completions")
        except TimeoutError:
            return []

    # Events

    async def events(self, request: web.Request) -> web.StreamResponse:
        """Push what this person may see, as it happens."""
        try:
            user = self._user(request.query.get("user"))
        except ClientRefusal as refusal:
            return web.json_response({"error": str(refusal)}, status=400)
        socket = web.WebSocketResponse(heartbeat=30.0, max_msg_size=1 << 16)
        await socket.prepare(request)
        self._sockets.add(socket)
        queue: asyncio.Queue[Json] = asyncio.Queue()

        def hear(event: Event) -> None:
            told = self._told_to(user, event)
            if told is not None:
                queue.put_nowait(told)

        unsubscribe = self._bus.subscribe(hear)
        writer = asyncio.create_task(_write(socket, queue))
        try:
            async for frame in socket:
                if frame.type == WSMsgType.ERROR:
                    break
        finally:
            unsubscribe()
            writer.cancel()
            self._sockets.discard(socket)
        return socket

    def _told_to(self, user: User, event: Event) -> Json | None:
        """Return what this person's page is told of an event, or None."""
        if event.kind in ("message_created", "message_edited"):
            message: Message = event.subject
            if self._world.visible(message, user.id):
                return {"type": "message", "message": self.message_json(message)}
        elif event.kind == "message_deleted":
            gone: Message = event.subject
            mine = gone.interaction is not None and gone.interaction.user is user
            if mine or not gone.ephemeral:
                return {"type": "message_delete", "channel_id": str(gone.channel_id), "id": str(gone.id)}
        elif event.kind == "commands":
            return {"type": "commands", "commands": self._client.commands_for(user)}
        elif event.kind == "bot":
            return {"type": "bot", "online": bool(event.subject)}
        elif event.kind == "state":
            return {"type": "state"}
        elif event.kind in ("modal", "failed", "acknowledged") and event.subject.user is user:
            return self._about_interaction(event)
        return None

    def _about_interaction(self, event: Event) -> Json | None:
        interaction: Interaction = event.subject
        if event.kind == "modal":
            return {"type": "modal", "interaction_id": str(interaction.id), "modal": interaction.modal}
        if interaction.type not in FAILURE_TEXTS:
            return None
        if event.kind == "acknowledged":
            opens_a_modal = interaction.modal is not None
            return None if opens_a_modal else {"type": "acknowledged", "interaction_id": str(interaction.id)}
        return {
            "type": "failed",
            "interaction_id": str(interaction.id),
            "channel_id": str(interaction.channel.id),
            "reason": event.reason,
            "text": FAILURE_TEXTS[interaction.type],
        }

    # Shapes

    def message_json(self, message: Message) -> Json:
        """Return Discord's message object with relative addresses and what the page needs beside it."""
        interaction = message.interaction
        return shapes.message_json(self._world, message, "") | {
            "ephemeral": message.ephemeral,
            "loading": message.loading,
            "interaction": None
            if interaction is None
            else {
                "id": str(interaction.id),
                "user": self._user_json(interaction.user),
                "name": interaction.name,
                "text": interaction.text,
            },
        }

    def _user_json(self, user: User) -> Json:
        channels = [c for c in self._world.channels.values() if c.guild_id is not None]
        return {
            "id": str(user.id),
            "name": user.name,
            "display_name": user.display_name,
            "locale": user.locale,
            "moderator": any(may_moderate(self._world, channel, user) for channel in channels),
        }

    def _bot_json(self) -> Json:
        bot = self._world.bot
        return {"id": str(bot.id), "name": bot.display_name, "online": self._gateway.online}

    def _channel_json(self, channel: Channel) -> Json:
        guild = None if channel.guild_id is None else self._world.guilds[channel.guild_id].name
        return {
            "id": str(channel.id),
            "name": channel.name,
            "kind": "text" if guild else "dm",
            "guild": guild,
        }

    def _user(self, value: Any) -> User:
        people = self._world.people()
        if not value:
            return people[0]
        for user in people:
            if str(user.id) == str(value):
                return user
        raise ClientRefusal("There is no such person.")

    def _channel(self, value: Any) -> Channel:
        channel = self._world.channels.get(_number(value))
        if channel is None:
            raise ClientRefusal("There is no such channel.")
        return channel


async def _write(socket: web.WebSocketResponse, queue: "asyncio.Queue[Json]") -> None:
    while True:
        told = await queue.get()
        try:
            await socket.send_str(json.dumps(told, ensure_ascii=False, separators=(",", ":")))
        except (ConnectionError, RuntimeError):
            return  # the page is gone; its reader notices and cleans up


def _told(
    handler: Callable[[web.Request], Awaitable[Json]],
) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """Return the handler with its refusals turned into `{"error": sentence}`."""

    async def answer(request: web.Request) -> web.StreamResponse:
        try:
            return web.json_response(await handler(request), headers={"Cache-Control": "no-store"})
        except BotOffline as refusal:
            return web.json_response({"error": str(refusal)}, status=409)
        except ClientRefusal as refusal:
            return web.json_response({"error": str(refusal)}, status=400)

    return answer


def _number(value: Any) -> int:
    return int(value) if isinstance(value, str | int) and str(value).isdecimal() else 0


def _objects(value: Any) -> list[Json]:
    items = [as_object(item) for item in as_list(value) or (None,)] if value != [] else []
    found = [item for item in items if item is not None]
    if len(found) != len(items):
        raise ClientRefusal("Options are a list of objects.")
    return found
