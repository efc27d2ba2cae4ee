"""The one way in: a valid request becomes an accepted job, and the interaction gets its place in line."""

import asyncio
import logging
from typing import Any

import discord

from cogs import _answers
from cogs._checks import check_place
from cogs._errors import ALREADY_ACKNOWLEDGED, UNKNOWN_INTERACTION
from zbot.job import Job, JobId, Origin
from zbot.request import ImageRequest
from zbot.services import Services

log = logging.getLogger(__name__)


async def submit(
    interaction: discord.Interaction[Any],
    services: Services,
    request: ImageRequest,
    parent_id: JobId | None = None,
) -> None:
    """Commit the job, then answer with its place in line.

    Every refusal is raised before anything is shown in public.

    Raises:
        NotAllowed, QuotaExceeded, QueueFull, StoreUnavailable: nothing was accepted.
    """
    check_place(interaction, services)
    origin = Origin(
        interaction_id=interaction.id,
        interaction_token=interaction.token,
        application_id=interaction.application_id,
        user_id=interaction.user.id,
        guild_id=interaction.guild_id,
        channel_id=interaction.channel_id or 0,
        locale=interaction.locale.value,
        attachment_limit_bytes=interaction.filesize_limit,
        parent_id=parent_id,
    )
    accepted, place = await services.queue.submit(request, origin)
    job = accepted.job
    answer = _answers.waiting(job, place)
    try:
        response = await interaction.response.send_message(
            answer.content, embed=answer.embed, view=answer.view or discord.utils.MISSING
        )
    except discord.HTTPException as error:
        if error.code == ALREADY_ACKNOWLEDGED:
            log.info("interaction %d came twice; job %d has its answer", interaction.id, job.id)
            return
        if error.code == UNKNOWN_INTERACTION:
            # Discord has already told the person that nothing came of it, so nothing shall.
            log.warning("job %d is withdrawn: Discord had stopped waiting for its answer", job.id)
            await services.store.withdraw(job.id)
            services.queue.ring()
            return
        raise
    if response.message_id is not None:
        await _remember_message(services, job, response.message_id)
    services.herald.answered(job, place)
    services.outbox.ring()


async def _remember_message(services: Services, job: Job, message_id: int) -> None:
    """Note the answer's message, also when the bot is being stopped just now."""
    await asyncio.shield(services.store.set_message(job.id, message_id))
