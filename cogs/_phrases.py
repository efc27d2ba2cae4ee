"""Command names and descriptions in the languages of the catalogues, for Discord's own interface."""

import discord
from discord import app_commands

from zbot.text import DEFAULT_LOCALE, catalogue, nearest_locale

_NAMES = (
    app_commands.TranslationContextLocation.command_name,
    app_commands.TranslationContextLocation.parameter_name,
)


def phrase(key: str) -> app_commands.locale_str:
    """Return the description under `command.<key>`, with all its languages."""
    return app_commands.locale_str(catalogue(DEFAULT_LOCALE)[f"command.{key}"], key=f"command.{key}")


class CatalogueTranslator(app_commands.Translator):
    """Looks translations up in the catalogues."""

    async def translate(
        self,
        string: app_commands.locale_str,
        locale: discord.Locale,
        context: app_commands.TranslationContextTypes,
    ) -> str | None:
        """Return the text in a locale; None where English serves."""
        if nearest_locale(locale.value) == DEFAULT_LOCALE:
            return None
        key = f"name.{string.message}" if context.location in _NAMES else string.extras.get("key")
        return catalogue(nearest_locale(locale.value)).get(key) if key else None
