"""`python -m zbot doctor`: what is wrong, and how to mend it."""

from typing import TYPE_CHECKING

import typer

from zbot.cli.problems import one_sentence

if TYPE_CHECKING:
    from zbot.config import Settings
    from zbot.doctor import Finding

_COLOURS = {"ok": typer.colors.GREEN, "note": typer.colors.YELLOW, "BAD": typer.colors.RED}


@one_sentence
def doctor() -> None:
    """Look at token, rights, database, disk, weights and card; the exit code is 1 if anything stops the bot."""
    import asyncio

    from zbot.doctor import read_settings

    settings, findings = read_settings()
    for finding in findings:
        _show(finding)
    if settings is not None:
        findings += asyncio.run(_examine(settings, has_token=not findings))
    if any(finding.state == "BAD" for finding in findings):
        raise typer.Exit(1)


async def _examine(settings: "Settings", *, has_token: bool) -> "list[Finding]":
    from zbot import doctor as room
    from zbot.engine.start import process_engine

    findings: list[Finding] = []
    secret = settings.discord_token.get_secret_value()
    async for finding in room.examine(settings, process_engine, has_token=has_token):
        _show(finding, secret)
        findings.append(finding)
    return findings


def _show(finding: "Finding", secret: str = "") -> None:
    from zbot.logs import redact

    state = typer.style(f"{finding.state.value:5}", fg=_COLOURS[finding.state.value], bold=True)
    repair = f" -> {finding.repair}" if finding.repair else ""
    typer.echo(state + redact(f"{finding.name:10} {finding.fact}{repair}", secret))
