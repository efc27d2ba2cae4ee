"""`/help`: how to draw pictures here."""

from typing import Any

import discord
from discord import app_commands
from discord.ext import commands

from cogs._phrases import phrase
from zbot.flags import KNOWN_FLAGS
from zbot.request import ASPECTS
from zbot.text import say

_PARAGRAPHS = ("imagine", "options", "flags", "buttons", "queue", "honest")


class Help(commands.Cog):
    """The manual of one page."""

    @app_commands.command(name="help", description=phrase("help"))
    @app_commands.allowed_contexts(guilds=True, dms=True, private_channels=False)
    async def help(self, interaction: discord.Interaction[Any]) -> None:
        """Show the manual; this one works in direct messages too."""
        locale = interaction.locale.value
        facts = {"aspects": ", ".join(ASPECTS), "flags": f"`{KNOWN_FLAGS}`"}
        text = "\n\n".join(say(f"help.{name}", locale, **facts) for name in _PARAGRAPHS)
        embed = discord.Embed(title=say("help.title", locale), description=text)
        await interaction.response.send_message(embed=embed, ephemeral=True)


async def setup(bot: commands.Bot) -> None:
    """Add the cog."""
    await bot.add_cog(Help())
