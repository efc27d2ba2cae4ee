"""An expected error on the command line: one sentence and exit code 2, never a traceback."""

import sys
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import typer

from zbot.errors import (
    EngineDead,
    GenerationError,
    InvalidRequest,
    LoraError,
    NonFiniteOutput,
    OutOfMemory,
    StoreUnavailable,
    ZBotError,
)

P = ParamSpec("P")
T = TypeVar("T")


def one_sentence(command: Callable[P, T]) -> Callable[P, T]:
    """Turn what zbot raises on purpose, and what the disk refuses, into its sentence."""

    @wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return command(*args, **kwargs)
        except BrokenPipeError:
            raise  # whoever reads our output has seen enough; typer ends quietly
        except (ZBotError, OSError) as error:
            tell(sentence(error))
        raise typer.Exit(2)

    return wrapped


def sentence(error: ZBotError | OSError) -> str:
    """Return what an expected error means at a terminal, and what to do."""
    match error:
        case OSError():
            return f"{error.filename or 'The disk'}: {error.strerror or error}."
        case InvalidRequest():
            from zbot.text import DEFAULT_LOCALE, explain

            return explain(error, DEFAULT_LOCALE)
        case OutOfMemory():
            return (
                f"The memory is too small for this ({error}); take a smaller size, end other programs on the card, "
                "or set ZBOT_PLACEMENT or ZBOT_QUANTIZATION to something that needs less."
            )
        case NonFiniteOutput():
            return f"The numbers went wrong on the way ({error}); try another seed."
        case LoraError():
            return f"{str(error)[0].upper()}{str(error)[1:]}."
        case EngineDead():
            return f"The drawing process has ended ({error}); `python -m zbot doctor` looks for the cause."
        case GenerationError():
            return f"The picture could not be drawn ({error}); `python -m zbot doctor` looks for the cause."
        case StoreUnavailable():
            return f"The database cannot be used at the moment ({error}); try again."
        case _:
            return str(error)


def tell(text: str) -> None:
    """Write a line to standard error, which holds everything that is not a result."""
    print(text, file=sys.stderr, flush=True)
