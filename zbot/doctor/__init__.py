"""Goes through everything the bot needs, in the order in which it must work: state, fact, repair."""

from collections.abc import AsyncIterator, Callable

from zbot.config import TOKEN, Settings, load_settings
from zbot.doctor import account, drawing, machine
from zbot.doctor.finding import Finding, State, bad
from zbot.engine import Engine
from zbot.errors import ConfigError
from zbot.weights import TINY, ModelFiles

__all__ = ["Finding", "State", "examine", "read_settings"]


def read_settings() -> tuple[Settings | None, list[Finding]]:
    """Return the settings and what is wrong with them.

    Without a token everything but Discord can be looked at; with any other mistake there are no settings.
    """
    try:
        return load_settings(), []
    except ConfigError as error:
        problems = str(error).splitlines()
    findings = [bad("settings", *_split(problem)) for problem in problems]
    if len(problems) == 1 and problems[0].startswith(f"{TOKEN} "):
        return load_settings(needs_token=False), findings
    return None, findings


async def examine(
    settings: Settings, make_engine: Callable[[Settings, ModelFiles], Engine], *, has_token: bool = True
) -> AsyncIterator[Finding]:
    """Look at everything; what comes later is looked at even when something before it is bad."""
    if has_token:
        async for finding in account.examine(settings):
            yield finding
    yield machine.disk(settings.data)
    yield machine.database(settings.database)
    yield machine.cache(settings.cache)
    found, files = machine.weights(settings)
    yield found
    for finding in await machine.card(is_needed=settings.model != TINY and settings.device != "cpu"):
        yield finding
    yield machine.memory(files)
    if files is not None:
        async for finding in drawing.examine(settings, files, make_engine):
            yield finding


def _split(problem: str) -> tuple[str, str]:
    fact, _, repair = problem.partition(": ")
    return fact, repair[:1].upper() + repair[1:]
