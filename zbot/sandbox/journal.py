"""The record of every REST request of the bot, for tests that ask what it sent and when."""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from zbot.sandbox.events import Bus, Event
from zbot.sandbox.refusal import Json

KEPT = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class SentFile:
    """Name and size of an uploaded file."""

    name: str
    size: int


@dataclass(slots=True, kw_only=True, eq=False)
class BotRequest:
    """One request and what it was answered; `status` is 0 until then, and -1 if the connection was dropped."""

    method: str
    path: str
    route: str
    template: str
    query: dict[str, str]
    headers: dict[str, str]
    at: float
    json: Any = None
    files: list[SentFile] = field(default_factory=list[SentFile])
    status: int = 0
    code: int | None = None
    response: Any = None
    response_headers: dict[str, str] = field(default_factory=dict[str, str])
    took_s: float = 0.0
    faulty: bool = False
    v2: bool = False

    @property
    def ok(self) -> bool:
        """Say whether it was answered with success."""
        return 200 <= self.status < 300


class Journal:
    """The last requests, oldest first."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._requests: deque[BotRequest] = deque(maxlen=KEPT)

    def __iter__(self) -> Iterator[BotRequest]:
        return iter(tuple(self._requests))

    def __len__(self) -> int:
        return len(self._requests)

    def add(self, request: BotRequest) -> None:
        """Note a request that just came in."""
        self._requests.append(request)

    def answered(self, request: BotRequest) -> None:
        """Tell those who wait that a request has its answer."""
        self._bus.publish(Event(kind="request", subject=request), "requests")

    def of(self, route: str) -> list[BotRequest]:
        """Return the requests of one route by name, oldest first."""
        return [request for request in self._requests if request.route == route]

    def count(self, route: str) -> int:
        """Return how many requests of this route are recorded."""
        return len(self.of(route))

    def clear(self) -> None:
        """Forget everything so far."""
        self._requests.clear()

    @property
    def invalid(self) -> int:
        """Return how many answers counted towards Discord's ban: 401, 403 and 429."""
        return sum(request.status in (401, 403, 429) for request in self._requests)

    async def wait(self, fits: Callable[[BotRequest], bool], *, timeout_s: float = 10.0) -> BotRequest:
        """Return the first answered request that fits, past ones included. Raises: TimeoutError."""

        def probe() -> BotRequest | None:
            return next((r for r in self._requests if r.status and fits(r)), None)

        return await self._bus.until(
            probe, topic="requests", timeout_s=timeout_s, what="a request of the bot"
        )


def error_code(body: Json | list[Any] | None) -> int | None:
    """Return Discord's error code in an answer, if it has one."""
    return body.get("code") if isinstance(body, dict) else None
