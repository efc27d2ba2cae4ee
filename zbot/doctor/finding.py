"""What the doctor says about one thing: state, fact, repair."""

from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    """How one thing stands."""

    OK = "ok"
    NOTE = "note"  # works, but worth knowing
    BAD = "BAD"  # stops the bot


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at; only what is not well has a repair."""

    state: State
    name: str
    fact: str
    repair: str = ""


def ok(name: str, fact: str) -> Finding:
    """Return a finding of something that is as it should be."""
    return Finding(state=State.OK, name=name, fact=fact)


def note(name: str, fact: str, repair: str = "") -> Finding:
    """Return a finding of something that works and is worth knowing."""
    return Finding(state=State.NOTE, name=name, fact=fact, repair=repair)


def bad(name: str, fact: str, repair: str) -> Finding:
    """Return a finding of something that stops the bot."""
    return Finding(state=State.BAD, name=name, fact=fact, repair=repair)


def halves(error: Exception) -> tuple[str, str]:
    """Split an error's one sentence into what is and what to do."""
    fact, _, repair = str(error).rpartition("; ")
    return (fact, repair[:1].upper() + repair[1:]) if fact else (repair, "")
