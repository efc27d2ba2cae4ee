"""The sandbox's time, which a test may move forward, and the ids that are made of it."""

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime

DISCORD_EPOCH_MS = 1_420_070_400_000
"""First millisecond of 2015, where Discord's snowflakes begin."""


class Timer:
    """A call that is due at one moment of a `Clock`; `cancel` may be called at any time."""

    __slots__ = ("_callback", "_clock", "_due", "_handle")

    def __init__(self, clock: "Clock", due: float, callback: Callable[[], None]) -> None:
        self._clock = clock
        self._due = due
        self._callback = callback
        self._handle: asyncio.TimerHandle | None = None

    def arm(self) -> None:
        """Schedule the call anew for what is left of the wait."""
        if self._handle is not None:
            self._handle.cancel()
        left_s = max(0.0, self._due - self._clock.monotonic())
        self._handle = asyncio.get_running_loop().call_later(left_s, self._fire)

    def cancel(self) -> None:
        """Make sure that the call does not happen."""
        if self._handle is not None:
            self._handle.cancel()
        self._clock.forget(self)

    def _fire(self) -> None:
        self._clock.forget(self)
        self._callback()


class Clock:
    """Wall and monotonic time, both moved together by `advance`."""

    def __init__(self) -> None:
        self._offset_s = 0.0
        self._timers: set[Timer] = set()
        self._last_snowflake = 0

    def now(self) -> float:
        """Return the wall time in seconds since 1970."""
        return time.time() + self._offset_s

    def monotonic(self) -> float:
        """Return a time in seconds that never goes backwards, for ages and deadlines."""
        return time.monotonic() + self._offset_s

    def datetime(self) -> datetime:
        """Return the wall time as an aware UTC datetime."""
        return datetime.fromtimestamp(self.now(), UTC)

    def advance(self, seconds: float) -> None:
        """Move time forward; what became due by it happens in the next turn of the event loop."""
        if seconds < 0:
            raise ValueError("time does not go backwards here")
        self._offset_s += seconds
        for timer in tuple(self._timers):
            timer.arm()

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        """Call `callback` when this clock has gone `delay_s` further; needs a running event loop."""
        timer = Timer(self, self.monotonic() + delay_s, callback)
        self._timers.add(timer)
        timer.arm()
        return timer

    def forget(self, timer: Timer) -> None:
        """Drop a timer that fired or was cancelled."""
        self._timers.discard(timer)

    def cancel_all(self) -> None:
        """Cancel every timer; called when the sandbox closes."""
        for timer in tuple(self._timers):
            timer.cancel()

    def snowflake(self) -> int:
        """Return a new id: Discord's layout (milliseconds << 22), strictly increasing."""
        fresh = (int(self.now() * 1000) - DISCORD_EPOCH_MS) << 22
        self._last_snowflake = max(fresh, self._last_snowflake + 1)
        return self._last_snowflake
