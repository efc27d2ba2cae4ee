import re
from typing import Any
from unittest.mock import Mock

import discord
import pytest

from cogs import _actions, _views
from cogs._views import ACTIONS, JobButton
from zbot.errors import JobNotFound
from zbot.text import LOCALES


def interaction(locale: str = "en-US") -> Any:
    mock = Mock(spec=discord.Interaction)
    mock.locale = discord.Locale(locale)
    return mock


def test_every_button_has_its_action_and_every_action_its_button():
    assert set(ACTIONS) == set(_views._LOOK)
    assert all(function is getattr(_actions, name) for name, function in ACTIONS.items())


@pytest.mark.parametrize("name", sorted(_views._LOOK))
async def test_a_button_is_built_again_from_its_id_after_any_restart(name: str):
    button = JobButton(name, 10**18 - 1, "en-US")
    assert isinstance(button.custom_id, str) and len(button.custom_id) <= 100
    match = re.fullmatch(JobButton.__discord_ui_compiled_template__, button.custom_id)
    assert match
    again = await JobButton.from_custom_id(interaction("zh-CN"), button.item, match)
    assert again.custom_id == button.custom_id
    assert again.item.label != button.item.label, "it speaks the language of whoever presses"


@pytest.mark.parametrize(
    "custom_id",
    ["zbot:explode:1", "zbot:reroll:", "zbot:reroll:-1", "zbot:reroll:1e5", "other:reroll:1", "zbot:reroll:\u0661",
     "zbot:reroll:1; DROP TABLE job", "zbot:reroll:" + "9" * 19, "xzbot:reroll:1"],
)  # fmt: skip
def test_an_id_that_is_none_of_ours_is_no_button(custom_id: str):
    assert not re.fullmatch(JobButton.__discord_ui_compiled_template__, custom_id)


async def test_views_never_time_out():
    view = discord.ui.View(timeout=None)
    for locale in LOCALES:
        for name in _views._LOOK:
            view.add_item(JobButton(name, 1 if locale == "en" else 2, locale))
    assert view.is_persistent()


async def test_what_an_action_raises_is_told_to_whoever_pressed(monkeypatch: pytest.MonkeyPatch):
    told: list[BaseException] = []

    async def fail(interaction: Any, job_id: int) -> None:
        raise JobNotFound(job=job_id)

    async def report(interaction: Any, error: BaseException) -> None:
        told.append(error)

    monkeypatch.setitem(ACTIONS, "reroll", fail)
    monkeypatch.setattr(_views, "report", report)
    await JobButton("reroll", 17, "en-US").callback(interaction())
    assert [type(error) for error in told] == [JobNotFound]
