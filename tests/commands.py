"""Every command as the bot sends it to Discord."""

from types import SimpleNamespace
from typing import Any

from cogs._client import EXTENSIONS, ZBot
from cogs._phrases import CatalogueTranslator


async def payloads() -> list[dict[str, Any]]:
    """Return what a sync sends, with all translations, without a connection to anything."""
    bot = ZBot(guild_ids=(), store=None)  # type: ignore[arg-type]
    bot.services = SimpleNamespace()  # type: ignore[assignment]
    for extension in EXTENSIONS:
        await bot.load_extension(extension)
    translator = CatalogueTranslator()
    return [await command.get_translated_payload(bot.tree, translator) for command in bot.tree.get_commands()]
