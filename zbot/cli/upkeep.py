"""`python -m zbot health` and `backup`: is the bot alive, and a copy of its database."""

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from zbot.cli.problems import one_sentence, tell
from zbot.errors import ConfigError


@one_sentence
def health() -> None:
    """Say whether the bot is alive; the exit code is 1 if it is not."""
    from zbot import health as sign
    from zbot.config import load_settings

    is_well, sentence = sign.check(load_settings(needs_token=False).data / "health.json")
    print(sentence)
    if not is_well:
        raise typer.Exit(1)


@one_sentence
def backup(
    file: Annotated[Path, typer.Argument(help="Where the copy goes.")],
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> None:
    """Copy the database, also while the bot runs; the copy holds no secret."""
    from zbot.config import load_settings
    from zbot.database import back_up

    database = load_settings(needs_token=False).database
    if not database.is_file():
        raise ConfigError(f"There is no database at {database}; the bot makes it at its first start.")
    if file.is_dir():
        raise ConfigError(f"{file} is a directory; name a file in it.")
    if file.exists() and file.samefile(database):
        raise ConfigError(f"{file} is the database itself; name another file.")
    if os.path.lexists(file) and not force:
        raise ConfigError(f"{file} is there already; choose another name or add --force.")
    file.parent.mkdir(parents=True, exist_ok=True)
    os.umask(0o077)  # it holds prompts
    try:
        # Read-only, and without the store: an older bot may be running, and its schema is not ours to change.
        with closing(sqlite3.connect(f"{database.resolve().as_uri()}?mode=ro", uri=True)) as connection:
            back_up(connection, file)
    except sqlite3.Error as error:
        raise ConfigError(f"{database} could not be copied to {file}: {error}.") from error
    tell(f"{file} is a whole copy of {database}.")
