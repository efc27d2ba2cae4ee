"""Every sentence a member sees, in their language: the catalogues of `zbot/locales/`, looked up by key."""

import tomllib
from functools import cache
from importlib.resources import files

from zbot.errors import ZBotError

DEFAULT_LOCALE = "en"
LOCALES = ("en", "zh-CN")


@cache
def catalogue(locale: str) -> dict[str, str]:
    """Return the sentences of one of `LOCALES` by dotted key."""
    table = tomllib.loads(files("zbot.locales").joinpath(f"{locale}.toml").read_text("utf-8"))
    return {f"{section}.{key}": text for section, texts in table.items() for key, text in texts.items()}


def nearest_locale(locale: str) -> str:
    """Return the catalogue for one of Discord's locales: every Chinese reads zh-CN, everybody else English."""
    return "zh-CN" if locale.startswith("zh") else DEFAULT_LOCALE


def say(key: str, locale: str, **facts: object) -> str:
    """Return the sentence of a key in a locale, filled in.

    Raises:
        KeyError: no such key, or a fact is missing.
    """
    return catalogue(nearest_locale(locale))[key].format(**facts)


def explain(error: ZBotError, locale: str) -> str:
    """Return what an error means for the person who met it, and what to do."""
    key = f"error.{error.code}"
    if key not in catalogue(DEFAULT_LOCALE):
        key = "error.internal"
    return say(key, locale, **error.facts)
