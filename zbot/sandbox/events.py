"""What happens in the sandbox, told to whoever listens: the gateway, the pages, and waiting tests."""

import asyncio
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")

ALL = "*"


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One thing that happened; `subject` is the message, interaction, request … it happened to."""

    kind: str
    subject: Any = None
    reason: str = ""


Listener = Callable[[Event], None]


class Bus:
    """Calls listeners at once, in the same thread; a listener of a topic hears only events published under it."""

    def __init__(self) -> None:
        self._listeners: dict[Hashable, list[Listener]] = {}

    def subscribe(self, listener: Listener, topic: Hashable = ALL) -> Callable[[], None]:
        """Add a listener and return the function that removes it."""
        self._listeners.setdefault(topic, []).append(listener)

        def unsubscribe() -> None:
            listeners = self._listeners.get(topic, [])
            if listener in listeners:
                listeners.remove(listener)
            if not listeners:
                self._listeners.pop(topic, None)

        return unsubscribe

    def publish(self, event: Event, *topics: Hashable) -> None:
        """Tell the listeners of every topic given, and those of all topics."""
        for topic in dict.fromkeys((*topics, ALL)):
            for listener in tuple(self._listeners.get(topic, ())):
                listener(event)

    async def until(
        self, probe: Callable[[], T | None], *, topic: Hashable, timeout_s: float, what: str
    ) -> T:
        """Return the first value of `probe` that is not None, asked now and after each event of the topic.

        Raises:
            TimeoutError: nothing came in `timeout_s` seconds; the text says what was waited for.
            Exception: whatever the probe raised.
        """
        found = probe()
        if found is not None:
            return found
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()

        def look(_event: Event) -> None:
            if future.done():
                return
            try:
                value = probe()
            except Exception as error:
                future.set_exception(error)
            else:
                if value is not None:
                    future.set_result(value)

        unsubscribe = self.subscribe(look, topic)
        try:
            return await asyncio.wait_for(future, timeout_s)
        except TimeoutError:
            raise TimeoutError(f"{what}: nothing in {timeout_s} s") from None
        finally:
            unsubscribe()
