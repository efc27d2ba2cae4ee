"""`python -m zbot doctor`: what is wrong, and how to mend it."""

import asyncio

import typer
from rich.console import Console

from zbot import doctor as room
from zbot.cli.problems import one_sentence
from zbot.config import load_settings
from zbot.engine.start import process_engine

_STYLES = {room.State.OK: "green", room.State.NOTE: "yellow", room.State.BAD: "bold red"}


@one_sentence
def doctor() -> None:
    """Look at token, rights, database, disk, weights and card; the exit code is 1 if anything stops the bot."""
    settings = load_settings()
    out = Console(soft_wrap=True, highlight=False)

    async def look() -> bool:
        stopped = False
        async for finding in room.examine(settings, process_engine):
            stopped |= finding.state is room.State.BAD
            out.print(f"{finding.state.value:5}", style=_STYLES[finding.state], end="")
            out.print(f"{finding.name:10} {finding.fact}", markup=False)
            if finding.repair:
                out.print(f"{'':15} -> {finding.repair}", markup=False)
        return stopped

    if asyncio.run(look()):
        raise typer.Exit(1)
