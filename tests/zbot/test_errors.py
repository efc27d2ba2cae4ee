import re

from zbot import errors
from zbot.errors import EngineDead, QuotaExceeded, ZBotError


def kinds(base: type[ZBotError]) -> set[type[ZBotError]]:
    return {base}.union(*(kinds(kind) for kind in base.__subclasses__()))


def test_the_drawing_of_the_tree_shows_every_error():
    drawing = (errors.__doc__ or "").split("An error that")[0]
    drawn = set(re.findall(r"\w+", drawing))
    assert {kind.__name__ for kind in kinds(ZBotError)} <= drawn


def test_every_error_has_a_code_of_its_own():
    codes = [kind.default_code for kind in kinds(ZBotError)]
    assert len(codes) == len(set(codes))


def test_an_error_without_a_text_shows_its_code_and_facts():
    assert str(QuotaExceeded(limit=4)) == "quota_exceeded(limit=4)"
    assert str(ZBotError()) == "internal"


def test_a_text_of_its_own_is_what_an_error_shows():
    assert str(QuotaExceeded("full", limit=4)) == "full"


def test_the_death_of_the_engine_says_whether_the_picture_was_on_the_card():
    assert EngineDead("gone", on_card=True).on_card
    assert not EngineDead("gone").on_card
    assert EngineDead("gone", code="engine_stalled").code == "engine_stalled"
