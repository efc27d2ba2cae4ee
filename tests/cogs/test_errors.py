import logging
from typing import Any
from unittest.mock import AsyncMock, Mock

import aiohttp
import discord
import pytest
from discord import app_commands

from cogs._errors import ALREADY_ACKNOWLEDGED, UNKNOWN_INTERACTION, report, tell
from zbot.errors import QueueFull
from zbot.text import catalogue


def interaction(*, is_done: bool = False, locale: str = "en-US") -> Any:
    mock = Mock(spec=discord.Interaction)
    mock.id = 5
    mock.client = Mock(spec=discord.Client)
    mock.client.is_closed.return_value = False
    mock.locale = discord.Locale(locale)
    mock.response = Mock(spec=discord.InteractionResponse)
    mock.response.is_done.return_value = is_done
    mock.response.send_message = AsyncMock()
    mock.followup = Mock(spec=discord.Webhook)
    mock.followup.send = AsyncMock()
    return mock


def refusal(status: int, code: int) -> discord.HTTPException:
    response = Mock()
    response.status = status
    kind = discord.NotFound if status == 404 else discord.HTTPException
    return kind(response, {"code": code, "message": "no"})


@pytest.mark.parametrize("is_done", [False, True])
async def test_an_answer_is_for_its_person_alone(is_done: bool):
    asked = interaction(is_done=is_done)
    await tell(asked, "hello")
    used, unused = asked.response.send_message, asked.followup.send
    if is_done:
        used, unused = unused, used
    used.assert_awaited_once_with("hello", ephemeral=True)
    unused.assert_not_awaited()


async def test_a_known_error_is_explained_and_not_logged(caplog: pytest.LogCaptureFixture):
    asked = interaction(locale="zh-CN")
    await report(asked, QueueFull(limit=200))
    (text,) = asked.response.send_message.await_args.args
    assert text == catalogue("zh-CN")["error.queue_full"].format(limit=200)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_what_nobody_thought_of_is_logged_whole_and_told_without_its_details(
    caplog: pytest.LogCaptureFixture,
):
    asked = interaction()
    await report(asked, ValueError("/home/me/secret"))
    (text,) = asked.response.send_message.await_args.args
    assert text == catalogue("en")["error.internal"]
    assert "/home/me/secret" in caplog.text and "5" in caplog.text


async def test_the_cause_inside_discords_wrapper_is_what_counts():
    asked = interaction()
    wrapped = app_commands.CommandInvokeError(Mock(), QueueFull(limit=3))
    await report(asked, wrapped)
    (text,) = asked.response.send_message.await_args.args
    assert "3" in text


async def test_commands_from_before_an_update_are_named_as_that():
    asked = interaction()
    await report(asked, app_commands.CommandNotFound("draw", []))
    (text,) = asked.response.send_message.await_args.args
    assert text == catalogue("en")["error.commands_changed"]


@pytest.mark.parametrize("code", [UNKNOWN_INTERACTION, ALREADY_ACKNOWLEDGED])
async def test_an_interaction_that_is_over_is_not_answered_again(code: int):
    asked = interaction()
    await report(asked, refusal(404 if code == UNKNOWN_INTERACTION else 400, code))
    asked.response.send_message.assert_not_awaited()


@pytest.mark.parametrize("error", [refusal(404, UNKNOWN_INTERACTION), aiohttp.ServerDisconnectedError()])
async def test_a_person_who_cannot_be_told_is_no_new_error(
    caplog: pytest.LogCaptureFixture, error: Exception
):
    asked = interaction()
    asked.response.send_message.side_effect = error
    await tell(asked, "hello")
    assert "could not be told" in caplog.text
