"""The one way from an error to the person who met it: ephemeral, in their language, saying what to do."""

import logging

import aiohttp
import discord
from discord import app_commands

from zbot.errors import InvalidRequest, ZBotError
from zbot.text import explain

log = logging.getLogger(__name__)

UNKNOWN_INTERACTION = 10062
ALREADY_ACKNOWLEDGED = 40060

# Sent by a Discord that still shows the commands from before an update of the bot.
_STALE_FORM = (
    app_commands.CommandNotFound,
    app_commands.CommandSignatureMismatch,
    app_commands.TransformerError,
)


async def report(interaction: discord.Interaction, error: BaseException) -> None:
    """Tell the person what went wrong; what nobody thought of goes to the log with its traceback."""
    error = _cause(error)
    if isinstance(error, discord.HTTPException) and error.code in (UNKNOWN_INTERACTION, ALREADY_ACKNOWLEDGED):
        log.warning("interaction %d was answered too late or twice (%d)", interaction.id, error.code)
        return
    if interaction.client.is_closed():
        log.warning("interaction %d: the bot stopped before it was answered", interaction.id)
        return
    if not isinstance(error, ZBotError):
        log.error("interaction %d failed", interaction.id, exc_info=error)
        error = ZBotError()
    await tell(interaction, explain(error, interaction.locale.value))


async def tell(interaction: discord.Interaction, text: str) -> None:
    """Answer an interaction for its person alone, whatever was answered before."""
    try:
        if interaction.response.is_done():
            await interaction.followup.send(text, ephemeral=True)
        else:
            await interaction.response.send_message(text, ephemeral=True)
    except (discord.HTTPException, aiohttp.ClientError) as error:
        log.warning("interaction %d: the person could not be told (%r)", interaction.id, error)


def _cause(error: BaseException) -> BaseException:
    if isinstance(error, app_commands.CommandInvokeError):
        return error.original
    if isinstance(error, _STALE_FORM):
        return InvalidRequest(code="commands_changed")
    return error
