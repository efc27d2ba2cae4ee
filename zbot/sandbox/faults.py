"""Faults that tests put in the way of the bot's requests: wrong statuses, lost connections, stalls."""

from dataclasses import dataclass
from typing import Literal

from zbot.sandbox import buckets
from zbot.sandbox.refusal import MESSAGES, Json


@dataclass(slots=True, kw_only=True, eq=False)
class Fault:
    """One fault: it skips the first `skip` requests of its route, then strikes `times` of them.

    `before_processing=False` lets the request take effect first: the case in which the bot cannot know.
    `drop_connection` "close" ends the connection without an answer, "reset" with a TCP reset.
    """

    route: str
    status: int | None = None
    code: int | None = None
    times: int = 1
    skip: int = 0
    before_processing: bool = True
    drop_connection: Literal["", "close", "reset"] = ""
    stall_s: float = 0.0
    via: bool = True
    retry_after_s: float = 0.05
    everywhere: bool = False
    hits: int = 0
    removed: bool = False

    def remove(self) -> None:
        """Take the fault away."""
        self.removed = True

    def answer(self) -> tuple[int, dict[str, str], Json | str]:
        """Return status, headers and body (text where a proxy would have answered) of the faulty answer."""
        status = self.status or (MESSAGES[self.code][0] if self.code in MESSAGES else 400)
        if status == 429 and self.via:
            headers = buckets.limited_headers(self.retry_after_s, everywhere=self.everywhere)
            return status, headers, buckets.limited_body(self.retry_after_s, everywhere=self.everywhere)
        if status == 429:
            return status, {"Retry-After": "1"}, "error code: 1015"
        if self.code is not None:
            message = MESSAGES.get(self.code, (status, "Error"))[1]
            return status, {}, {"message": message, "code": self.code}
        if status >= 500:
            return status, {}, f"upstream connect error ({status})"
        return status, {}, {"message": f"{status}: injected", "code": 0}

    @property
    def answers(self) -> bool:
        """Say whether the fault replaces the answer."""
        return self.status is not None or self.code is not None


class Faults:
    """The faults in force, in the order they were added; the first that fits strikes."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []

    def add(
        self,
        route: str,
        *,
        status: int | None = None,
        code: int | None = None,
        times: int = 1,
        skip: int = 0,
        before_processing: bool = True,
        drop_connection: bool | Literal["close", "reset"] = False,
        stall_s: float = 0.0,
        via: bool = True,
        retry_after_s: float = 0.05,
        everywhere: bool = False,
    ) -> Fault:
        """Put a fault on a route by name (`callback`, `original_edit`, `followup`, `channel_send`, …, `cdn`, or `*` for all of REST)."""
        fault = Fault(
            route=route,
            status=status,
            code=code,
            times=times,
            skip=skip,
            before_processing=before_processing,
            drop_connection="close" if drop_connection is True else drop_connection or "",
            stall_s=stall_s,
            via=via,
            retry_after_s=retry_after_s,
            everywhere=everywhere,
        )
        self._faults.append(fault)
        return fault

    def clear(self) -> None:
        """Take all faults away."""
        self._faults.clear()

    def strike(self, route: str) -> Fault | None:
        """Return the fault that this request meets, if any, and count it."""
        for fault in self._faults:
            if fault.removed or (fault.route != route and (fault.route != "*" or route == "cdn")):
                continue
            if fault.skip:
                fault.skip -= 1
                continue
            if fault.hits < fault.times:
                fault.hits += 1
                return fault
        return None
