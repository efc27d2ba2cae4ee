"""Shows a job's progress and outcome in Discord: the original response while it lives, then the channel."""

import asyncio
import io
import logging
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import discord

from cogs import _answers
from cogs._answers import Answer
from cogs._text import cut, plain
from zbot import images
from zbot.engine import Step
from zbot.errors import Undeliverable
from zbot.job import Job
from zbot.progress import Drawing
from zbot.queue import Place

log = logging.getLogger(__name__)

TOKEN_LIFE = timedelta(minutes=14)  # Discord's 15, less what an upload may take
# Discord takes no first answer after 3 s; until then one may be on its way from a bot that was killed meanwhile.
FIRST_ANSWER_WITHIN = timedelta(seconds=5)
REQUEST_LIMIT_BYTES = 24 * 1024 * 1024  # Discord takes 25 MiB a request, form fields included
TOO_LARGE = 40005
TOO_MANY_OLD_EDITS = 30046
ALT_TEXT_LIMIT = 1_000  # Discord takes 1,024
HISTORY = 100  # messages looked through for one that the bot posted without knowing

File = tuple[str, bytes]


class DiscordMessenger:
    """Implements `zbot.outbox.Messenger` and `zbot.progress.ProgressMessenger`."""

    def __init__(self, client: discord.Client) -> None:
        self._client = client

    async def update(self, job: Job, status: Place | Drawing) -> None:
        """Show a place or a step in the original response, as long as that can be edited."""
        if not _token_lives(job):
            return
        if isinstance(status, Place):
            await self._edit_original(job, _answers.waiting(job, status), None)
        else:
            await self._edit_original(job, _answers.drawing(job, status), _preview(job, status.step))

    async def deliver(self, job: Job, pictures: Sequence[Path]) -> int:
        """Show the pictures of a rendered job; return the id of the message that holds them.

        Raises:
            Undeliverable: the channel is gone or closed to the bot.
        """
        limit_bytes = min(job.origin.attachment_limit_bytes, REQUEST_LIMIT_BYTES // len(pictures))
        while True:
            try:
                files, kind = await asyncio.to_thread(_load, pictures, limit_bytes)
            except FileNotFoundError as error:
                log.error("job %d: %s is gone from the disk", job.id, error.filename)
                return await self._show(job, _answers.lost(job), [])
            try:
                return await self._show(job, _answers.result(job, re_encoded=kind), files)
            except discord.HTTPException as error:
                # The server took less than it had announced: try again with smaller files.
                if error.status != 413 and error.code != TOO_LARGE:
                    raise
                largest = max(len(data) for _, data in files)
                limit_bytes = min(limit_bytes, largest) // 2

    async def tell(self, job: Job) -> int:
        """Show that a job failed or was cancelled; return the id of the message that says so.

        Raises:
            Undeliverable: the channel is gone or closed to the bot.
        """
        return await self._show(job, _answers.ended(job), [])

    async def _show(self, job: Job, answer: Answer, files: list[File]) -> int:
        """Put the outcome into the job's one message, by the first way that is still open."""
        if _token_lives(job):
            try:
                return await self._edit_original(job, answer, files)
            except discord.HTTPException as error:
                if error.status != 401 and not _is_closed(error):
                    raise
                if error.status == 404 and _may_be_answered_yet(job):
                    raise
                log.info(
                    "job %d: the original response is closed (%d), taking the channel", job.id, error.code
                )
        try:
            return await self._show_in_channel(job, answer, files)
        except discord.HTTPException as error:
            if not _is_closed(error):
                raise
            raise Undeliverable(f"the channel is gone or closed to the bot ({error.code})") from error

    async def _edit_original(self, job: Job, answer: Answer, files: list[File] | None) -> int:
        """Edit the original response; editing twice is the same as editing once."""
        webhook = discord.Webhook.partial(
            job.origin.application_id, job.origin.interaction_token or "", client=self._client
        )
        message = await webhook.edit_message(
            "@original",  # pyright: ignore[reportArgumentType] discord.py puts it into the path as it is
            content=answer.content,
            embeds=[answer.embed],
            attachments=discord.utils.MISSING if files is None else _files(job, files),
            view=answer.view,
            allowed_mentions=discord.AllowedMentions.none(),
        )
        return message.id

    async def _show_in_channel(self, job: Job, answer: Answer, files: list[File]) -> int:
        channel = self._client.get_partial_messageable(job.origin.channel_id, guild_id=job.origin.guild_id)
        if message_id := job.message_id or await self._first_answer(job, channel):
            try:
                message = await channel.get_partial_message(message_id).edit(
                    content=answer.content,
                    embed=answer.embed,
                    attachments=_files(job, files),
                    view=answer.view,
                    allowed_mentions=discord.AllowedMentions.none(),
                )
                return message.id
            except discord.HTTPException as error:
                if error.status != 404 and error.code != TOO_MANY_OLD_EDITS:
                    raise
        if (earlier := await self._posted_before(job, channel, files)) is not None:
            return earlier
        message = await channel.send(
            content=answer.content,
            embed=answer.embed,
            files=_files(job, files),
            view=answer.view or discord.utils.MISSING,
            # Discord gives back the earlier message instead of posting a second one with the same nonce.
            nonce=str(job.origin.interaction_id),
            allowed_mentions=discord.AllowedMentions.none(),
        )
        return message.id

    async def _first_answer(self, job: Job, channel: discord.PartialMessageable) -> int | None:
        """Return the message that Discord took as the answer in the moment in which the bot was killed."""

        def answers(message: discord.Message) -> bool:
            asked = message.interaction_metadata
            return asked is not None and asked.id == job.origin.interaction_id

        return await self._own_message(job, channel, answers, oldest_first=True)

    async def _posted_before(
        self, job: Job, channel: discord.PartialMessageable, files: list[File]
    ) -> int | None:
        """Return the message of an earlier try that Discord took though we never heard so; a nonce lasts minutes."""
        names = {name for name, _ in files}

        def holds(message: discord.Message) -> bool:
            return any(attachment.filename in names for attachment in message.attachments)

        return await self._own_message(job, channel, holds, oldest_first=False) if names else None

    async def _own_message(
        self,
        job: Job,
        channel: discord.PartialMessageable,
        belongs: Callable[[discord.Message], bool],
        *,
        oldest_first: bool,
    ) -> int | None:
        """Return the bot's own message that belongs to a job, if it is among the first or last since it was asked."""
        asked = discord.Object(job.origin.interaction_id)  # by Discord's own ids, not by this machine's clock
        try:
            async for message in channel.history(limit=HISTORY, after=asked, oldest_first=oldest_first):
                if self._client.user == message.author and belongs(message):
                    return message.id
        except discord.Forbidden:
            log.debug("job %d: the history of its channel may not be read", job.id)
        return None


def _token_lives(job: Job) -> bool:
    return job.origin.interaction_token is not None and datetime.now(UTC) - job.created_at < TOKEN_LIFE


def _may_be_answered_yet(job: Job) -> bool:
    return job.message_id is None and abs(datetime.now(UTC) - job.created_at) < FIRST_ANSWER_WITHIN


def _is_closed(error: discord.HTTPException) -> bool:
    """Say whether this way will not work later either: refused by Discord itself, and not for the files' size."""
    if error.status in (413, 429) or error.code == TOO_LARGE:
        return False
    # An answer without Discord's code comes from something on the way to it.
    return error.status == 404 or (400 <= error.status < 500 and error.code != 0)


def _preview(job: Job, step: Step) -> list[File] | None:
    return None if step.preview is None else [(f"zbot-{job.id}-preview.jpg", step.preview)]


def _files(job: Job, files: list[File]) -> list[discord.File]:
    """Return the files as Discord takes them, described for people who hear a channel instead of seeing it."""
    described = cut(plain(job.request.prompt), ALT_TEXT_LIMIT)
    return [discord.File(io.BytesIO(data), filename=name, description=described) for name, data in files]


def _load(pictures: Sequence[Path], limit_bytes: int) -> tuple[list[File], str | None]:
    """Read the pictures, re-encoding what is larger than the limit; also say as what."""
    files: list[File] = []
    kind: str | None = None
    for path in pictures:
        data, name = path.read_bytes(), path.name
        if len(data) > limit_bytes:
            data, suffix = images.fit(data, limit_bytes)
            name, kind = path.with_suffix(suffix).name, suffix.removeprefix(".").upper()
        files.append((name, data))
    return files, kind
