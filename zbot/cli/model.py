"""Finds the model that a command works with, in the same way as the bot does."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zbot.config import Settings
    from zbot.weights import ModelFiles


def prepared_cache(settings: "Settings", model: str, cache_dir: Path | None = None) -> Path:
    """Return the cache root, with every library pointed at it when the model needs one.

    Raises: WeightsError: the root cannot be used.
    """
    from zbot import weights

    if cache_dir is None and settings.cache_dir is None:
        # The default is made; one that was chosen must be there, or a disk is not mounted.
        settings.data.mkdir(parents=True, exist_ok=True)
    root = cache_dir or settings.cache
    if model != weights.TINY:
        weights.prepare_environment(root)
    return root


def located(settings: "Settings", model: str | None) -> "ModelFiles":
    """Return the model's whole files, of the given model or else of the settings' one, once the card can draw with it.

    Raises: WeightsError: they are missing or damaged. ConfigError: there is a card, and torch cannot use it.
    """
    import asyncio

    from zbot import weights
    from zbot.engine.start import look_at_card

    name = model or settings.model
    files = weights.locate(name, prepared_cache(settings, name) if name != weights.TINY else settings.cache)
    asyncio.run(look_at_card(name, settings.device))
    return files
