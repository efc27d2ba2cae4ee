"""Tells what a failure on the card means: too little memory, a broken context, or something else."""

import gc
from collections.abc import Callable
from typing import TypeVar

import torch

from zbot.errors import EngineDead, ZBotError

Result = TypeVar("Result")

# Libraries raise classes of their own, so the text counts too.
_OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "failed to allocate",
    "cublas_status_alloc_failed",
    "not enough memory",
)
# After any of these every later call on the card fails as well: only a new process helps.
_POISONED = (
    "cuda error",
    "hip error",
    "device-side assert",
    "illegal memory access",
    "cublas_status_",
    "cudnn_status_",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an exception says that memory ran out, on the card or on the host."""
    text = str(error).lower()
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(
        word in text for word in _OUT_OF_MEMORY
    )


def is_poisoned(error: BaseException) -> bool:
    """Tell whether an exception leaves the card unusable for this process."""
    if is_out_of_memory(error):
        return False
    text = str(error).lower()
    return isinstance(error, torch.AcceleratorError) or any(word in text for word in _POISONED)


def first_line(error: BaseException) -> str:
    """Return the exception in one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]


def attempt(work: Callable[[], Result]) -> tuple[Result | None, str]:
    """Return (the result, "") or, if memory ran out, (None, what was said).

    The exception is gone when this returns: its traceback would keep every tensor of the failed call alive
    (pytorch issue 18853), so a retry must start from here and not from an `except` block.

    Raises: EngineDead for a broken context; everything else unchanged.
    """
    try:
        return work(), ""
    except ZBotError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            return None, first_line(error)
        if is_poisoned(error):
            raise EngineDead(f"the card failed: {first_line(error)}", on_card=True) from error
        raise


def release_memory() -> None:
    """Give back what nobody holds any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()
