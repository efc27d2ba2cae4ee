"""Who is next, who may submit, and what is tried again: pure functions.

The line is fair by work, not by arrival: start-time fair queueing (Goyal, Vin, Cheng 1996). Every job gets two tags
in virtual time, measured in pixel-steps, when it is accepted, and the smallest start tag is drawn next:

    start = max(virtual time, finish of the same person's job before it)
    finish = start + cost

Virtual time is the start tag of the job drawn last. A person's second job therefore stands behind everybody's first,
a four-picture job counts as four, a newcomer begins at the present and not with credit for hours of absence, and
nobody waits for more than one job of each other active person.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from zbot.errors import QueueFull, QuotaExceeded

MAX_ATTEMPTS = 2  # tries that may end with the engine's death


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much may wait."""

    per_person: int = 10
    in_all: int = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What the table says at the moment a request arrives."""

    waiting_of_person: int
    waiting_in_all: int
    busy: bool  # a job waits or runs
    virtual_time: int  # start tag of the job claimed last
    served_until: int  # largest finish tag ever claimed
    person_finish: int  # finish tag of this person's last job that was not cancelled; 0 if none


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """One waiting job, as much of it as the line needs."""

    job_id: int
    user_id: int
    cost: int
    start_tag: int


def admit(load: Load, limits: Limits) -> None:
    """Refuse a request that would make too many wait.

    Raises:
        QuotaExceeded: this person has `limits.per_person` waiting.
        QueueFull: `limits.in_all` wait.
    """
    if load.waiting_of_person >= limits.per_person:
        raise QuotaExceeded(limit=limits.per_person)
    if load.waiting_in_all >= limits.in_all:
        raise QueueFull(limit=limits.in_all)


def tags(load: Load, cost: int) -> tuple[int, int]:
    """Return (start, finish) in virtual time for a job of `cost` pixel-steps."""
    # An idle card has served everybody in full: time stands where the last work ended.
    now = load.virtual_time if load.busy else max(load.virtual_time, load.served_until)
    start = max(now, load.person_finish)
    return start, start + cost


def moves_up(cancelled_cost: int, first_start: int, virtual_time: int) -> int:
    """Return by how much of virtual time a person's later jobs move up when one before them is taken back.

    They go where they would stand if it had never been asked for (`first_start` is the first one's start tag), but
    not into the past: a cancelled job leaves neither debt nor credit.
    """
    return max(0, min(cancelled_cost, first_start - virtual_time))


def order(waiting: Iterable[Waiting]) -> list[Waiting]:
    """Return the jobs in the order they will be drawn; the store's index gives the same order."""
    return sorted(waiting, key=lambda job: (job.start_tag, job.job_id))


def is_retried(attempts: int) -> bool:
    """Say whether a job whose engine died `attempts` times is tried again."""
    return attempts < MAX_ATTEMPTS
