import pytest

from zbot.errors import InvalidRequest, QueueFull, ZBotError
from zbot.text import LOCALES, catalogue, explain, nearest_locale, say


@pytest.mark.parametrize(
    ("locale", "nearest"),
    [("zh-CN", "zh-CN"), ("zh-TW", "zh-CN"), ("en-GB", "en"), ("de", "en"), ("ja", "en")],
)
def test_every_locale_of_discord_finds_a_catalogue(locale: str, nearest: str):
    assert nearest_locale(locale) == nearest


def test_a_sentence_is_filled_in():
    assert say("answer.place", "en-US", place=3) == "Place 3 in line."
    assert say("answer.place", "zh-CN", place=3) == "排在第 3 位。"


def test_a_missing_fact_is_an_error_and_not_a_hole():
    with pytest.raises(KeyError):
        say("answer.place", "en-US")


def test_what_people_type_is_never_read_as_a_form():
    error = InvalidRequest(code="aspect_unknown", value="{known.__class__}", known="1:1")
    assert "{known.__class__}" in explain(error, "en-US")


@pytest.mark.parametrize("locale", LOCALES)
def test_an_error_nobody_named_is_explained_all_the_same(locale: str):
    assert explain(ZBotError(code="never_heard_of"), locale) == catalogue(locale)["error.internal"]


def test_an_error_is_explained_in_the_persons_language():
    assert "200" in explain(QueueFull(limit=200), "zh-CN")
    assert explain(QueueFull(limit=200), "zh-CN") != explain(QueueFull(limit=200), "en-US")
