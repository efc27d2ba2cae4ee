"""What each button does: re-roll, edit, details, delete, cancel."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import discord

from cogs import _answers
from cogs._checks import check_place, is_moderator
from cogs._errors import report, tell
from cogs._lora import read_lora
from cogs._submit import submit
from cogs._text import cut, plain
from cogs._views import action
from zbot.errors import InvalidRequest, JobNotFound, ZBotError
from zbot.flags import parse_flags
from zbot.images import Recipe, read_recipe
from zbot.job import Job, JobId
from zbot.loras import written
from zbot.queue import require_owner
from zbot.request import ASPECTS, aspect_of, build_request, random_seed
from zbot.services import Services
from zbot.text import say

UNKNOWN_MESSAGE = 10008
MODAL_TEXT_LIMIT = 4_000  # Discord's; a slash command takes 6,000


def services_of(interaction: discord.Interaction[Any]) -> Services:
    """Return the core that the bot was started with."""
    return interaction.client.services


@action
async def reroll(interaction: discord.Interaction[Any], job_id: JobId) -> None:
    """Draw the same request with a new seed, for whoever pressed."""
    services = services_of(interaction)
    job = await services.store.job(job_id)
    await submit(interaction, services, replace(job.request, seed=random_seed()), parent_id=job.id)


@action
async def edit(interaction: discord.Interaction[Any], job_id: JobId) -> None:
    """Open the form with the job's prompt, seed and shape."""
    services = services_of(interaction)
    check_place(interaction, services)
    job = await services.store.job(job_id)
    await interaction.response.send_modal(EditModal(job, services, interaction.locale.value))


class EditModal(discord.ui.Modal):
    """Prompt, seed and shape, filled in with a job's; the new job belongs to whoever sends it."""

    def __init__(self, job: Job, services: Services, locale: str) -> None:
        super().__init__(title=say("modal.edit", locale))
        self._job = job
        self._services = services
        request = job.request
        aspect = aspect_of(request.width, request.height, services.native_size)
        self._prompt = discord.ui.TextInput[Any](
            style=discord.TextStyle.paragraph,
            default=cut(request.prompt, MODAL_TEXT_LIMIT),
            max_length=MODAL_TEXT_LIMIT,
        )
        self._seed = discord.ui.TextInput[Any](default=str(request.seed), required=False, max_length=12)
        self._aspect = discord.ui.Select[Any](
            options=[discord.SelectOption(label=name, value=name, default=name == aspect) for name in ASPECTS]
        )
        if aspect is None:
            same = say("modal.aspect_same", locale, width=request.width, height=request.height)
            self._aspect.add_option(label=same, value="", default=True)
        for key, item in (("prompt", self._prompt), ("seed", self._seed), ("aspect", self._aspect)):
            self.add_item(discord.ui.Label(text=say(f"modal.{key}", locale), component=item))

    async def on_submit(self, interaction: discord.Interaction[Any], /) -> None:
        """Submit the edited request."""
        before = self._job.request
        flags = parse_flags(self._prompt.value)
        lora = flags.lora or (written(before.lora, before.lora_scale) if before.lora else None)
        style = await read_lora(lora, self._services.settings)
        aspect = flags.aspect or (self._aspect.values[0] if self._aspect.values else "")
        request = build_request(
            prompt=flags.prompt,
            native_size=self._services.native_size,
            aspect=aspect or None,
            width=None if aspect else before.width,
            height=None if aspect else before.height,
            seed=_seed(self._seed.value) if flags.seed is None else flags.seed,
            steps=flags.steps or before.steps,
            num_images=flags.num_images or before.num_images,
            lora=style.name,
            lora_scale=style.scale,
            known_loras=style.known,
        )
        await submit(interaction, self._services, request, parent_id=self._job.id)

    async def on_error(self, interaction: discord.Interaction[Any], error: Exception, /) -> None:
        """Tell the person what was wrong with it."""
        await report(interaction, error)


def _seed(text: str) -> int | None:
    text = text.strip()
    if not text:
        return None
    if not (text.isascii() and text.lstrip("+-").isdigit()):
        raise InvalidRequest(code="seed_text", value=plain(cut(text, 40)))
    return int(text)


@action
async def details(interaction: discord.Interaction[Any], job_id: JobId) -> None:
    """Show how a job was drawn, to whoever pressed."""
    services, locale = services_of(interaction), interaction.locale.value
    check_place(interaction, services)
    job = await services.store.job(job_id)
    recipe = await asyncio.to_thread(_recipe, services.settings.images_dir / job.file_names[0])
    embed = _answers.details(job, recipe, native_size=services.native_size, locale=locale)
    await interaction.response.send_message(embed=embed, ephemeral=True)


def _recipe(path: Path) -> Recipe | None:
    """Return what the picture itself says of how it was drawn; None if it is gone or not drawn yet."""
    try:
        return read_recipe(path)
    except (OSError, ZBotError):
        return None


@action
async def delete(interaction: discord.Interaction[Any], job_id: JobId) -> None:
    """Remove a job's message and its pictures from the disk, for its requester or a moderator."""
    services = services_of(interaction)
    job = await services.store.job(job_id)
    require_owner(job, user_id=interaction.user.id, is_moderator=is_moderator(interaction))
    if interaction.message is None:
        raise JobNotFound
    try:
        await interaction.response.defer()
        await services.store.deleted(job.id)
        for name in job.file_names:
            await asyncio.to_thread((services.settings.images_dir / name).unlink, missing_ok=True)
        # The message the button was on, through this press: that works in every channel and after any time.
        await interaction.delete_original_response()
    except discord.NotFound as error:
        if error.code != UNKNOWN_MESSAGE:
            raise
        return  # several presses in a row: the first one took the message away, and told so
    await tell(interaction, say("answer.deleted", interaction.locale.value, job=job.id))


@action
async def cancel(interaction: discord.Interaction[Any], job_id: JobId) -> None:
    """Take back a waiting or running job, for its requester or a moderator."""
    services = services_of(interaction)
    await services.queue.cancel(job_id, user_id=interaction.user.id, is_moderator=is_moderator(interaction))
    services.outbox.ring()
    await interaction.response.defer()
