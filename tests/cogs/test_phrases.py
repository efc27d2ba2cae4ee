import discord
import pytest
from discord import app_commands

from cogs._phrases import CatalogueTranslator, phrase
from tests.commands import payloads
from zbot.text import catalogue


def test_a_phrase_is_english_and_knows_its_key():
    assert phrase("imagine").message == catalogue("en")["command.imagine"]
    assert phrase("imagine").extras == {"key": "command.imagine"}


def test_a_phrase_that_does_not_exist_is_an_error_at_the_start():
    with pytest.raises(KeyError):
        phrase("never_written")


@pytest.mark.parametrize(
    ("locale", "translated"), [("zh-CN", True), ("zh-TW", True), ("en-GB", False), ("de", False)]
)
async def test_chinese_is_translated_and_the_rest_reads_english(locale: str, translated: bool):
    context = app_commands.TranslationContext(
        app_commands.TranslationContextLocation.command_description, data=None
    )
    text = await CatalogueTranslator().translate(phrase("imagine"), discord.Locale(locale), context)
    assert text == (catalogue("zh-CN")["command.imagine"] if translated else None)


async def test_names_of_commands_and_options_are_looked_up_by_themselves():
    names = {
        each["name"]: each["name_localizations"]["zh-CN"]
        for command in await payloads()
        for each in (command, *command.get("options", []))
    }
    assert names == {name: catalogue("zh-CN")[f"name.{name}"] for name in names}


async def test_what_was_never_given_a_key_stays_as_it_is():
    context = app_commands.TranslationContext(app_commands.TranslationContextLocation.choice_name, data=None)
    plain = app_commands.locale_str("16:9")
    assert await CatalogueTranslator().translate(plain, discord.Locale("zh-CN"), context) is None
