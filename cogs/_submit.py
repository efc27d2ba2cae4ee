"""The one way in: a valid request becomes an accepted job, and the interaction gets its place in line."""

import asyncio
import logging
from typing import Any

import aiohttp
import discord

from cogs import _answers
from cogs._answers import Answer
from cogs._checks import check_place
from cogs._errors import ALREADY_ACKNOWLEDGED, UNKNOWN_INTERACTION
from zbot.errors import StoreUnavailable
from zbot.job import Job, JobId, Origin
from zbot.request import ImageRequest
from zbot.services import Services

log = logging.getLogger(__name__)

ANSWER_WITHIN_S = 2.5  # Discord waits 3 s, and some of them are spent
ANSWER_RETRY_S = 0.2


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
    # Until its message is noted: an outcome that comes by the channel would post another one.
    with services.outbox.first_answer(job.id):
        message_id = await _answer(interaction, services, job, _answers.waiting(job, place))
        if message_id is not None:
            services.herald.answered(job, place)
            try:
                await services.store.set_message(job.id, message_id)
            except StoreUnavailable as error:
                log.warning("job %d: the message of its answer could not be noted (%s)", job.id, error)


async def _answer(
    interaction: discord.Interaction[Any], services: Services, job: Job, answer: Answer
) -> int | None:
    """Give the first answer and return its message, whatever the network does; None if it is not known.

    Asking twice does no harm: Discord takes one first answer and refuses every other. What is accepted is drawn and
    posted also if nothing of this comes through.
    """
    try:
        async with asyncio.timeout(ANSWER_WITHIN_S):
            return await _send(interaction, job, answer)
    except TimeoutError:
        log.warning("job %d: Discord did not take its first answer in time", job.id)
    except discord.HTTPException as error:
        if error.code != UNKNOWN_INTERACTION:
            log.warning("job %d: Discord did not take its first answer (%s)", job.id, error)
        elif job.message_id is None:
            # Discord has already told the person that nothing came of it, so nothing shall.
            log.warning("job %d is withdrawn: Discord had stopped waiting for its answer", job.id)
            await services.store.withdraw(job.id)
            services.queue.ring()
    return None


async def _send(interaction: discord.Interaction[Any], job: Job, answer: Answer) -> int | None:
    """Send the first answer until Discord has one; return its message.

    Raises:
        discord.HTTPException: Discord wants none, or not this one.
    """
    while True:
        try:
            response = await interaction.response.send_message(
                answer.content, embed=answer.embed, view=answer.view or discord.utils.MISSING
            )
            return response.message_id
        except discord.HTTPException as error:
            if error.code == ALREADY_ACKNOWLEDGED:
                # Sent once before, by a try of which we did not hear, or for the same event that came twice.
                log.info("job %d has its first answer already", job.id)
                return None if job.message_id else (await interaction.original_response()).id
            if error.status < 500 and error.status != 429:
                raise
        except (aiohttp.ClientError, OSError) as error:
            log.info("job %d: its first answer is sent again: %r", job.id, error)
        await asyncio.sleep(ANSWER_RETRY_S)
