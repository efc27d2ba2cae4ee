"""The command line: `python -m zbot …`."""

import os
import sys

import typer

from zbot.cli import doctor, generate, recipe, upkeep, weights

app = typer.Typer(
    help="zbot's command line. The bot itself is started by `python bot.py`.",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(generate.generate)
app.command()(recipe.recipe)
app.add_typer(weights.app, name="weights")
app.command()(doctor.doctor)
app.command()(upkeep.health)
app.command()(upkeep.backup)


def main() -> None:
    """Run the command line; a reader that has gone away (`| head`) is no error worth a word."""
    try:
        app(prog_name="python -m zbot")
    finally:
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            # What is left in the buffer would be written, and complained about, once more at the exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
