"""The machinery of Discord's REST face: bodies, the bot's token, rate limits, faults, the journal, error answers."""

import asyncio
import re
import secrets
import socket
import struct
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import orjson
from aiohttp import BodyPartReader, web

from zbot.sandbox.buckets import Buckets, Verdict
from zbot.sandbox.clock import Clock
from zbot.sandbox.faults import Fault, Faults
from zbot.sandbox.journal import BotRequest, Journal, SentFile, error_code
from zbot.sandbox.limits import MAX_REQUEST_BYTES
from zbot.sandbox.messages import Upload
from zbot.sandbox.refusal import FormError, Json, Refusal, as_object, invalid_form

API = "/api/v10"
FILE_PART = re.compile(r"^files\[(\d+)\]$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One parsed request, as the handlers get it."""

    params: dict[str, str]
    query: dict[str, str]
    body: Any
    uploads: list[Upload]
    record: BotRequest

    def id(self, name: str) -> int:
        """Return a snowflake of the path. Raises: Refusal 50035 where it is not a number."""
        return snowflake(self.params[name], name)

    def asked_id(self, name: str) -> int:
        """Return a snowflake of the query. Raises: Refusal 50035 where it is not a number."""
        return snowflake(self.query.get(name), name)

    @property
    def form(self) -> Json:
        """Return the body as an object. Raises: Refusal 50109 where it is none."""
        found = as_object(self.body)
        if found is None:
            raise Refusal(50109)
        return found


def snowflake(value: Any, name: str) -> int:
    """Return a snowflake given as text or number. Raises: Refusal 50035."""
    if not isinstance(value, str | int) or not str(value).isdecimal():
        told = f'Value "{value}" is not snowflake.'
        raise invalid_form([FormError(path=(name,), code="NUMBER_TYPE_COERCE", message=told)])
    return int(value)


Handler = Callable[[Call], Any]
"""Returns the JSON to answer with 200, or None for 204; raises Refusal. Not a coroutine: each request is one step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One endpoint. `major` names the path parameter its bucket belongs to; without `bot` no token is asked for."""

    name: str
    method: str
    template: str
    handler: Handler
    bucket: str | None = "other"
    major: str = ""
    bot: bool = True


class Rest:
    """Serves routes the way Discord's edge does."""

    def __init__(
        self, *, clock: Clock, buckets: Buckets, faults: Faults, journal: Journal, token: str
    ) -> None:
        self._clock = clock
        self._buckets = buckets
        self._faults = faults
        self._journal = journal
        self._token = token

    def add_to(self, app: web.Application, routes: list[Route]) -> None:
        """Register the routes under `/api/v10`, and a 404 for every other path there."""
        for route in routes:
            app.router.add_route(route.method, API + route.template, self._served(route))
        unknown = Route(
            name="unknown", method="*", template="/{rest}", handler=_unknown, bucket=None, bot=False
        )
        app.router.add_route("*", API + "/{rest:.*}", self._served(unknown))

    def _served(self, route: Route) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def serve(request: web.Request) -> web.StreamResponse:
            return await self._serve(route, request)

        return serve

    async def _serve(self, route: Route, request: web.Request) -> web.StreamResponse:
        began = time.perf_counter()
        record = BotRequest(
            method=request.method,
            path=request.path.removeprefix(API),
            route=route.name,
            template=route.template,
            query=dict(request.query),
            headers={key: value for key, value in request.headers.items() if key != "Authorization"},
            at=self._clock.now(),
        )
        self._journal.add(record)
        headers: dict[str, str] = {}
        try:
            body, uploads = await _read(request)
            record.json = body
            record.files = [SentFile(name=upload.filename, size=len(upload.data)) for upload in uploads]
            call = Call(
                params=dict(request.match_info), query=record.query, body=body, uploads=uploads, record=record
            )
            fault = self._faults.strike(route.name)
            if fault is not None and fault.before_processing:
                if fault.stall_s:
                    await asyncio.sleep(fault.stall_s)
                if fault.drop_connection or fault.answers:
                    return self._faulty(request, record, fault)
            verdict = self._admit(route, request, call)
            if verdict is not None:
                headers = verdict.headers
                if not verdict.passes:
                    return self._answer(record, 429, verdict.body, headers)
            result = route.handler(call)
            status = 204 if result is None else 200
            if fault is not None and not fault.before_processing:
                if fault.stall_s:
                    await asyncio.sleep(fault.stall_s)
                if fault.drop_connection or fault.answers:
                    return self._faulty(request, record, fault)
            return self._answer(record, status, result, headers)
        except Refusal as refusal:
            return self._answer(record, refusal.status, refusal.body(), headers)
        except ConnectionError:
            record.status = -1  # the bot went away in the middle of it
            raise
        except Exception:
            record.status = 500  # aiohttp answers and logs; a test sees it in the journal
            raise
        finally:
            record.took_s = time.perf_counter() - began
            self._journal.answered(record)

    def _admit(self, route: Route, request: web.Request, call: Call) -> Verdict | None:
        """Ask the bot's token and the bucket. Raises: Refusal with 401 for a wrong token."""
        if route.bot:
            given = request.headers.get("Authorization", "").removeprefix("Bot ")
            if not secrets.compare_digest(given.encode(), self._token.encode()):
                raise Refusal(0, status=401, message="401: Unauthorized")
        if route.bucket is None:
            return None
        major = call.params.get(route.major, "")
        if route.bucket == "other":
            major = f"{route.name}:{major}"
        return self._buckets.take(route.bucket, major, counts_globally=route.bot)

    def _answer(
        self, record: BotRequest, status: int, body: Json | list[Any] | str | None, headers: dict[str, str]
    ) -> web.Response:
        record.status = status
        record.response = body
        record.code = error_code(body) if not isinstance(body, str) else None
        record.response_headers = headers
        if body is None:
            return web.Response(status=status, headers=headers)
        if isinstance(body, str):
            return web.Response(status=status, headers=headers, text=body)
        # Exactly this type, without a charset: with one discord.py takes the body for text.
        headers = headers | {"Content-Type": "application/json"}
        return web.Response(status=status, headers=headers, body=orjson.dumps(body))

    def _faulty(self, request: web.Request, record: BotRequest, fault: Fault) -> web.Response:
        record.faulty = True
        if not fault.drop_connection:
            status, headers, body = fault.answer()
            return self._answer(record, status, body, headers)
        record.status = -1
        drop(request, reset=fault.drop_connection == "reset")
        return web.Response(status=500)


def drop(request: web.Request, *, reset: bool) -> None:
    """End the TCP connection under a request: closed, or (reset) so that the peer sees ECONNRESET."""
    transport = request.transport
    if transport is None:
        return
    if not reset:
        transport.close()
        return
    tcp = transport.get_extra_info("socket")
    if tcp is not None:
        # Lingering for zero seconds makes the kernel send RST instead of FIN.
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


def _unknown(_call: Call) -> Any:
    raise Refusal(0)


async def _read(request: web.Request) -> tuple[Any, list[Upload]]:
    """Return the JSON of a request and its files. Raises: Refusal 40005 when it is too large, 50109 for bad JSON."""
    if not request.can_read_body:
        return None, []
    if request.content_type.startswith("multipart/"):
        return await _read_parts(request)
    data = bytearray()
    async for chunk in request.content.iter_chunked(1 << 18):
        if len(data) <= MAX_REQUEST_BYTES:
            data += chunk
    if len(data) > MAX_REQUEST_BYTES:
        raise Refusal(40005)
    return (_parsed(bytes(data)) if data else None), []


async def _read_parts(request: web.Request) -> tuple[Any, list[Upload]]:
    body: Any = None
    uploads: list[Upload] = []
    total = 0
    # Everything is read even when it is too much: a client that is answered while it still sends sees a broken
    # connection instead of the refusal.
    async for part in await request.multipart():
        if not isinstance(part, BodyPartReader):
            continue
        data = bytearray()
        while chunk := await part.read_chunk(1 << 18):
            total += len(chunk)
            if total <= MAX_REQUEST_BYTES:
                data += chunk
        if part.name == "payload_json":
            body = _parsed(bytes(data))
        elif found := FILE_PART.match(part.name or ""):
            uploads.append(Upload(index=int(found[1]), filename=part.filename or "unknown", data=bytes(data)))
    if total > MAX_REQUEST_BYTES:
        raise Refusal(40005)
    return {} if body is None else body, uploads


def _parsed(data: bytes) -> Any:
    try:
        return orjson.loads(data)
    except ValueError:
        raise Refusal(50109) from None
