"""A job: an accepted request with its place in Discord, its states and the legal steps between them."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import NewType

from zbot.request import ImageRequest

JobId = NewType("JobId", int)


class JobState(StrEnum):
    """Where a job stands."""

    QUEUED = "queued"  #: accepted and committed, waits for the card
    RUNNING = "running"  #: the generator has it
    RENDERED = "rendered"  #: its pictures are on disk and in the usage table, and wait to be posted
    DELIVERED = "delivered"  #: its pictures stand in the channel
    FAILED = "failed"  #: it could not be drawn
    CANCELLED = "cancelled"  #: its requester or a moderator took it back
    UNDELIVERABLE = "undeliverable"  #: drawn, but the channel is gone or closed to the bot


#: Every legal step. The store refuses all others.
TRANSITIONS: dict[JobState, frozenset[JobState]] = {
    JobState.QUEUED: frozenset({JobState.RUNNING, JobState.CANCELLED}),
    JobState.RUNNING: frozenset({JobState.QUEUED, JobState.RENDERED, JobState.FAILED, JobState.CANCELLED}),
    JobState.RENDERED: frozenset({JobState.DELIVERED, JobState.UNDELIVERABLE}),
    JobState.DELIVERED: frozenset(),
    JobState.FAILED: frozenset(),
    JobState.CANCELLED: frozenset(),
    JobState.UNDELIVERABLE: frozenset(),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a request came from and where its answer goes: Discord's ids as plain values."""

    interaction_id: int
    interaction_token: str | None  # None once it is of no more use
    application_id: int
    user_id: int
    guild_id: int | None
    channel_id: int
    locale: str  # the requester's: the answer's language
    attachment_limit_bytes: int
    parent_id: JobId | None = None  # the job that was re-rolled or edited


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One accepted request; a snapshot of its row."""

    id: JobId
    state: JobState
    request: ImageRequest
    origin: Origin
    message_id: int | None  # the answer in the channel, once known
    attempts: int  # tries that ended with the engine's death
    start_tag: int  # virtual time, see policy.py
    finish_tag: int
    created_at: datetime  # aware UTC
    started_at: datetime | None = None
    ended_at: datetime | None = None
    gpu_s: float | None = None
    unused_prompt: str = ""  # what of the prompt did not fit the text encoder
    error_code: str | None = None  # why it failed
    deleted: bool = False  # its pictures were removed on request

    @property
    def file_names(self) -> tuple[str, ...]:
        """The names of its pictures, on disk and in Discord: built from integers only."""
        return tuple(f"zbot-{self.id}-{index}.png" for index in range(1, self.request.num_images + 1))
