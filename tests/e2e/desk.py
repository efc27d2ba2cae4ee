"""The test's end of the fake engine: orders for pictures by a word of their prompt, and what became of each."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Self, TypeVar

T = TypeVar("T")
PATIENCE_S = 30.0


@dataclass(kw_only=True)
class Order:
    """What the engine does with pictures whose prompt holds `word`; step 0 is before the first one."""

    word: str
    hold_at: int | tuple[int, ...] = ()
    error: str | None = None  # a key of fake_bot.ERRORS
    fail_at: int = 1
    noise: bool = False
    unused_prompt: str = ""
    times: int = 1_000


@dataclass(kw_only=True, eq=False)
class Picture:
    """One picture that the engine began."""

    number: int
    prompt: str
    seed: int
    state: str = "begun"  # begun, held, drawn, stopped
    _desk: "Desk"
    _line: asyncio.StreamWriter

    def go_on(self) -> None:
        """Let a held picture go on."""
        assert self.state == "held"
        self.state = "begun"
        self._desk.reply(self._line, self.number, {})

    async def stopped(self) -> None:
        """Wait until the bot stopped it."""
        await self._desk.until(lambda: self.state == "stopped", f"an end of {self.prompt!r}")


class Desk:
    """A loopback server that the engine of `fake_bot` asks; use as `async with Desk() as desk`."""

    def __init__(self) -> None:
        self.pictures: list[Picture] = []
        self.loads = 0
        self._orders: list[Order] = []
        self._loads_held: list[asyncio.StreamWriter] | None = None
        self._load_error = ""
        self._lines: set[asyncio.StreamWriter] = set()
        self._news = asyncio.Condition()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()
        self.address = f"{host}:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for line in tuple(self._lines):
            line.close()
        await self._server.wait_closed()

    # --- orders ---

    def on(self, word: str, **what: Any) -> Order:
        """Give an order for the pictures to come; the newest that fits is taken."""
        order = Order(word=word, **what)
        self._orders.insert(0, order)
        return order

    def forget(self) -> None:
        """Take all orders back and let everything that is held go on."""
        self._orders.clear()
        for picture in self.pictures:
            if picture.state == "held":
                picture.go_on()

    def hold_loads(self) -> None:
        """Let no load end until `let_load`."""
        self._loads_held = []

    def let_load(self, error: str = "") -> None:
        """Let the loads end, now and from now on; with `error="weights"` badly."""
        self._load_error = error
        held, self._loads_held = self._loads_held or [], None
        for line in held:
            self.reply(line, 0, {"error": error})

    # --- what became of it ---

    def of(self, word: str) -> list[Picture]:
        """Return the pictures whose prompt holds a word, in the order they were begun."""
        return [picture for picture in self.pictures if word in picture.prompt]

    async def held(self, word: str) -> Picture:
        """Wait until a picture is held, and return it."""
        return await self._first(word, "held")

    async def drawn(self, word: str) -> Picture:
        """Wait until a picture is drawn, and return it."""
        return await self._first(word, "drawn")

    async def _first(self, word: str, state: str) -> Picture:
        def probe() -> Picture | None:
            return next((picture for picture in self.of(word) if picture.state == state), None)

        return await self.until(probe, f"a {state} picture of {word!r}")

    async def until(self, probe: Callable[[], T], what: str) -> T:
        """Wait until a probe is true. Raises: TimeoutError saying what was waited for."""
        try:
            async with asyncio.timeout(PATIENCE_S), self._news:
                while not (found := probe()):
                    await self._news.wait()
                return found
        except TimeoutError:
            raise TimeoutError(f"{what}: nothing in {PATIENCE_S} s") from None

    # --- the line to the engine ---

    def reply(self, line: asyncio.StreamWriter, number: int, facts: dict[str, Any]) -> None:
        """Answer what the engine asked."""
        line.write(json.dumps({"number": number, **facts}).encode() + b"\n")

    async def _serve(self, reader: asyncio.StreamReader, line: asyncio.StreamWriter) -> None:
        mine: dict[int, Picture] = {}
        self._lines.add(line)
        try:
            async for text in reader:
                async with self._news:
                    self._hear(json.loads(text), mine, line)
                    self._news.notify_all()
        except ConnectionError:
            pass  # the bot was killed
        finally:
            self._lines.discard(line)
            async with self._news:
                for picture in mine.values():
                    if picture.state in ("begun", "held"):
                        picture.state = "stopped"
                self._news.notify_all()
            line.close()

    def _hear(self, told: dict[str, Any], mine: dict[int, Picture], line: asyncio.StreamWriter) -> None:
        number: int = told["number"]
        match told["what"]:
            case "load":
                self.loads += 1
                if self._loads_held is None:
                    self.reply(line, number, {"error": self._load_error})
                else:
                    self._loads_held.append(line)
            case "draw":
                picture = Picture(
                    number=number, prompt=told["prompt"], seed=told["seed"], _desk=self, _line=line
                )
                mine[number] = picture
                self.pictures.append(picture)
                self.reply(line, number, self._order(picture.prompt))
            case state:
                mine[number].state = state
                if state == "held" and not any(order.word in mine[number].prompt for order in self._orders):
                    mine[number].go_on()  # the order was taken back while it was on its way

    def _order(self, prompt: str) -> dict[str, Any]:
        order = next((order for order in self._orders if order.word in prompt and order.times > 0), None)
        if order is None:
            return {}
        order.times -= 1
        holds = order.hold_at if isinstance(order.hold_at, tuple) else (order.hold_at,)
        return asdict(order) | {"hold_at": holds}
