"""`/usage`: how much somebody has drawn."""

from datetime import UTC, datetime, timedelta
from typing import Any

import discord
from discord import app_commands
from discord.ext import commands

from cogs._checks import check_place
from cogs._phrases import phrase
from cogs._text import duration, seconds
from zbot.services import Services
from zbot.text import say


class Usage(commands.Cog):
    """The bill."""

    def __init__(self, services: Services) -> None:
        self._services = services

    @app_commands.command(name="usage", description=phrase("usage"))
    @app_commands.describe(member=phrase("usage_member"))
    @app_commands.guild_only()
    async def usage(
        self, interaction: discord.Interaction[Any], member: discord.Member | None = None
    ) -> None:
        """Show pictures, GPU seconds and the median wait of today, 30 days and ever."""
        check_place(interaction, self._services)
        person, locale = member or interaction.user, interaction.locale.value
        midnight = datetime.now().astimezone().replace(hour=0, minute=0, second=0, microsecond=0)
        periods = {"today": midnight, "month": datetime.now(UTC) - timedelta(days=30), "all": None}
        embed = discord.Embed(title=say("usage.title", locale, person=person.display_name))
        for key, since in periods.items():
            total = await self._services.store.usage(person.id, since)
            text = say("usage.none", locale)
            if total.median_wait_s is not None:
                text = say(
                    "usage.line",
                    locale,
                    pictures=total.pictures,
                    gpu_s=seconds(total.gpu_s),
                    wait=duration(total.median_wait_s, locale),
                )
            embed.add_field(name=say(f"usage.{key}", locale), value=text, inline=False)
        await interaction.response.send_message(embed=embed, ephemeral=True)


async def setup(bot: commands.Bot) -> None:
    """Add the cog."""
    await bot.add_cog(Usage(bot.services))  # pyright: ignore[reportAttributeAccessIssue] ZBot has it
