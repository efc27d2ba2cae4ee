"""`/status`: the model, the card, the line and the speed, for moderators."""

from typing import Any

import discord
from discord import app_commands
from discord.ext import commands

from cogs._checks import check_place, is_moderator
from cogs._phrases import phrase
from cogs._text import cut, duration, plain, seconds
from zbot.errors import NotAllowed
from zbot.generator import EngineState
from zbot.request import DEFAULT_STEPS
from zbot.services import Services
from zbot.text import say


class Status(commands.Cog):
    """How the bot is."""

    def __init__(self, services: Services) -> None:
        self._services = services

    @app_commands.command(name="status", description=phrase("status"))
    @app_commands.default_permissions(manage_messages=True)
    @app_commands.guild_only()
    async def status(self, interaction: discord.Interaction[Any]) -> None:
        """Show what is loaded and how fast it is; Discord's own permission is only a hint, so it is asked again."""
        check_place(interaction, self._services)
        if not is_moderator(interaction):
            raise NotAllowed(code="only_moderators")
        locale, services = interaction.locale.value, self._services
        status, size = services.generator.status, services.native_size
        line = await services.queue.line()
        picture_s = services.queue.speed.seconds(size * size * DEFAULT_STEPS)
        facts: dict[str, str] = {"state": self._state(locale)}
        if card := status.card:
            facts["model"] = f"{card.model} · {card.dtype} · {card.device}"
            facts["placement"] = card.placement
            if card.memory_bytes:
                facts["memory"] = f"{card.memory_bytes / 2**30:.1f} GiB"
        facts["line"] = say("status.line_text", locale, running=len(line.running), waiting=len(line.waiting))
        if status.problem and status.state is not EngineState.UNAVAILABLE:
            facts["problem"] = plain(cut(status.problem, 1_000))
        embed = discord.Embed(title=say("status.title", locale))
        for key, value in facts.items():
            embed.add_field(name=say(f"status.{key}", locale), value=value)
        unknown = say("status.speed_unknown", locale)
        speed = unknown if picture_s is None else duration(picture_s, locale)
        embed.add_field(name=say("status.speed", locale, size=size), value=speed)
        await interaction.response.send_message(embed=embed, ephemeral=True)

    def _state(self, locale: str) -> str:
        status = self._services.generator.status
        if status.state is EngineState.READY:
            return say("status.ready", locale)
        if status.state is EngineState.UNAVAILABLE:
            return say("status.unavailable", locale, problem=plain(cut(status.problem, 900)))
        if (progress := status.progress) is None:
            return say("status.loading", locale, stage="…", done=0, total="…", seconds=0)
        return say(
            "status.loading",
            locale,
            stage=progress.stage,
            done=progress.done,
            total=progress.total,
            seconds=seconds(progress.seconds),
        )


async def setup(bot: commands.Bot) -> None:
    """Add the cog."""
    await bot.add_cog(Status(bot.services))  # pyright: ignore[reportAttributeAccessIssue] ZBot has it
