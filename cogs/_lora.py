"""The LoRA of a request, as a person wrote it, read against the files that there are."""

import asyncio
from collections.abc import Collection
from dataclasses import dataclass

from zbot import loras
from zbot.config import Settings

LORA_CHARACTERS = 100  # a name with its strength


@dataclass(frozen=True, slots=True, kw_only=True)
class Style:
    """What `build_request` wants to know of a LoRA."""

    name: str | None = None
    scale: float | None = None
    known: Collection[str] = ()


async def read_lora(text: str | None, settings: Settings) -> Style:
    """Return what `name:0.8` asks for; the directory is read only where something is asked for.

    Raises: InvalidRequest (`lora_text`).
    """
    if not text:
        return Style()
    name, scale = loras.split(text)
    return Style(name=name, scale=scale, known=tuple(await asyncio.to_thread(loras.shelf, settings.loras)))
