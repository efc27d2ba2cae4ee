"""`/queue` and `/cancel`: see the line, and leave it."""

from typing import Any

import discord
from discord import app_commands
from discord.ext import commands

from cogs._checks import check_place, is_moderator
from cogs._errors import tell
from cogs._phrases import phrase
from cogs._text import cut, moment, plain
from zbot.errors import JobNotFound
from zbot.job import JobId
from zbot.services import Services
from zbot.text import say

SHOWN = 15  # an embed's description holds 4,096 characters
CHOICES = 25


class Queue(commands.Cog):
    """The line, as people see it."""

    def __init__(self, services: Services) -> None:
        self._services = services

    @app_commands.command(name="queue", description=phrase("queue"))
    @app_commands.guild_only()
    async def queue(self, interaction: discord.Interaction[Any]) -> None:
        """Show what runs, who waits, and for how long."""
        check_place(interaction, self._services)
        locale, line = interaction.locale.value, await self._services.queue.line()
        rows: list[str] = []
        for job in line.running:
            facts = {"person": f"<@{job.origin.user_id}>", "pictures": job.request.num_images, "job": job.id}
            percent = round(100 * self._services.queue.part_drawn(job.id))
            rows.append(
                say(
                    "queue.running",
                    locale,
                    **facts,
                    width=job.request.width,
                    height=job.request.height,
                    percent=percent,
                )
            )
        for job, place in line.waiting[:SHOWN]:
            rows.append(
                say(
                    "queue.waiting" if place.eta_s is None else "queue.waiting_eta",
                    locale,
                    place=place.place,
                    person=f"<@{job.origin.user_id}>",
                    pictures=job.request.num_images,
                    width=job.request.width,
                    height=job.request.height,
                    when=moment(place.eta_s or 0.0),
                    job=job.id,
                )
            )
        if len(line.waiting) > SHOWN:
            rows.append(say("queue.more", locale, count=len(line.waiting) - SHOWN))
        text = "\n".join(rows) or say("queue.empty", locale)
        embed = discord.Embed(title=say("queue.title", locale), description=text)
        await interaction.response.send_message(embed=embed, ephemeral=True)

    @app_commands.command(name="cancel", description=phrase("cancel"))
    @app_commands.describe(job=phrase("cancel_job"))
    @app_commands.guild_only()
    async def cancel(self, interaction: discord.Interaction[Any], job: str) -> None:
        """Take back one's own waiting or running job."""
        check_place(interaction, self._services)
        if not (job.isascii() and job.isdigit() and len(job) <= 18):
            raise JobNotFound
        await self._services.queue.cancel(
            JobId(int(job)), user_id=interaction.user.id, is_moderator=is_moderator(interaction)
        )
        self._services.outbox.ring()
        await tell(interaction, say("answer.cancelled_ok", interaction.locale.value, job=job))

    @cancel.autocomplete("job")
    async def jobs(
        self, interaction: discord.Interaction[Any], current: str
    ) -> list[app_commands.Choice[str]]:
        """Offer one's own jobs; a moderator sees everybody's."""
        line = await self._services.queue.line()
        everybody = is_moderator(interaction)
        choices: list[app_commands.Choice[str]] = []
        for job in [*line.running, *(job for job, _ in line.waiting)]:
            name = say("queue.choice", interaction.locale.value, job=job.id, prompt=plain(job.request.prompt))
            if (
                everybody or job.origin.user_id == interaction.user.id
            ) and current.casefold() in name.casefold():
                choices.append(app_commands.Choice(name=cut(name, 100), value=str(job.id)))
        return choices[:CHOICES]


async def setup(bot: commands.Bot) -> None:
    """Add the cog."""
    await bot.add_cog(Queue(bot.services))  # pyright: ignore[reportAttributeAccessIssue] ZBot has it
