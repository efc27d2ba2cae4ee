"""The command line: `python -m zbot …`."""

import asyncio
import sys
from pathlib import Path
from typing import Annotated

import typer

from zbot.cli import doctor as examining
from zbot.cli import generate as generating
from zbot.cli import weights as weighing
from zbot.cli.problems import one_sentence

app = typer.Typer(
    help="zbot's command line.", no_args_is_help=True, rich_markup_mode=None, add_completion=False
)
app.add_typer(weighing.app, name="weights")
app.command("generate")(generating.generate)
app.command("doctor")(examining.doctor)


@app.command()
@one_sentence
def recipe(file: Annotated[Path, typer.Argument(help="A picture of zbot.")]) -> None:
    """Print how a picture was made."""
    from zbot import images

    print(images.read_recipe(file).to_json())


@app.command()
@one_sentence
def health() -> None:
    """Say whether the bot is alive; the exit code is 1 if it is not."""
    from zbot import health as sign
    from zbot.config import load_settings

    well, sentence = sign.check(load_settings(needs_token=False).data / "health.json")
    print(sentence)
    if not well:
        raise typer.Exit(1)


@app.command()
@one_sentence
def backup(file: Annotated[Path, typer.Argument(help="Where the copy goes.")]) -> None:
    """Copy the database, also while the bot runs; the copy holds no secret."""
    from zbot.config import load_settings
    from zbot.store import Store

    database = load_settings(needs_token=False).database
    if not database.is_file():
        print(f"There is no database at {database} yet.", file=sys.stderr)
        raise typer.Exit(2)

    async def copy() -> None:
        async with Store(database) as store:
            await store.back_up(file)

    asyncio.run(copy())
    print(f"{file} is a whole copy of {database}.")


if __name__ == "__main__":
    app()
