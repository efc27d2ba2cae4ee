"""An expected error on the command line: one sentence and exit code 2, never a traceback."""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import typer
from rich.console import Console

from zbot.errors import ConfigError, WeightsError, ZBotError
from zbot.text import DEFAULT_LOCALE, explain

P = ParamSpec("P")
T = TypeVar("T")


def one_sentence(command: Callable[P, T]) -> Callable[P, T]:
    """Turn what zbot raises on purpose, and what the disk refuses, into its sentence."""

    @wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return command(*args, **kwargs)
        except ZBotError as error:
            own = isinstance(error, (ConfigError, WeightsError))
            text = str(error) if own or error.detail else explain(error, DEFAULT_LOCALE)
        except OSError as error:
            text = f"{error.filename or 'the disk'}: {error.strerror or error}"
        Console(stderr=True, soft_wrap=True, highlight=False).print(text, markup=False)
        raise typer.Exit(2)

    return wrapped
