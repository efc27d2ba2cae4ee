"""What a job looks like in the channel, state by state: pure functions from a job to an answer."""

from dataclasses import dataclass

import discord

from cogs._text import cut, fenced, moment, plain, seconds
from cogs._views import cancel_view, result_view
from zbot.errors import ZBotError
from zbot.job import Job, JobState
from zbot.progress import Drawing
from zbot.queue import Place
from zbot.text import explain, say

COLOUR = 0x4F7CAC
BAD_COLOUR = 0xB4472E


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One message: a status line, the prompt with its facts, and buttons."""

    content: str
    embed: discord.Embed
    view: discord.ui.View | None


def place_line(place: Place, locale: str) -> str:
    """Return the status line of a waiting job."""
    name = "next" if place.place == 1 else "place"
    if place.eta_s is None:
        return say(f"answer.{name}", locale, place=place.place)
    return say(f"answer.{name}_eta", locale, place=place.place, when=moment(place.eta_s))


def waiting(job: Job, place: Place) -> Answer:
    """Show a job's place in line."""
    return Answer(content=place_line(place, job.origin.locale), embed=_prompt(job), view=cancel_view(job))


def drawing(job: Job, status: Drawing) -> Answer:
    """Show how far a running job is."""
    line = say(
        "answer.drawing" if job.request.num_images == 1 else "answer.drawing_many",
        job.origin.locale,
        picture=status.picture,
        pictures=job.request.num_images,
        step=status.step.number,
        steps=status.step.total,
    )
    return Answer(content=line, embed=_prompt(job), view=cancel_view(job))


def result(job: Job, *, re_encoded: str | None = None) -> Answer:
    """Show a drawn job; its pictures are attached beside this."""
    locale, request = job.origin.locale, job.request
    facts = say(
        "answer.result",
        locale,
        seeds=", ".join(f"`{seed}`" for seed in request.seeds),
        width=request.width,
        height=request.height,
        steps=request.steps,
        gpu_s=seconds(job.gpu_s or 0.0),
        person=f"<@{job.origin.user_id}>",
    )
    notes: list[str] = []
    if job.unused_prompt:
        notes.append(say("answer.unused", locale, unused=f"“{plain(cut(job.unused_prompt, 300))}”"))
    if re_encoded:
        notes.append(say("answer.smaller", locale, kind=re_encoded))
    embed = _prompt(job)
    embed.description = "\n".join([embed.description or "", facts, *(f"-# {note}" for note in notes)])
    return Answer(content="", embed=embed, view=result_view(job))


def lost(job: Job) -> Answer:
    """Show a drawn job whose files are gone from the disk."""
    return Answer(content=say("answer.lost", job.origin.locale), embed=_prompt(job), view=result_view(job))


def ended(job: Job) -> Answer:
    """Show a failed or cancelled job."""
    locale, embed = job.origin.locale, _prompt(job)
    if job.state is JobState.CANCELLED:
        return Answer(content=say("answer.cancelled", locale), embed=embed, view=None)
    embed.colour = discord.Colour(BAD_COLOUR)
    reason = explain(ZBotError(code=job.error_code or "internal"), locale)
    return Answer(content=say("answer.failed", locale, reason=reason), embed=embed, view=result_view(job))


def _prompt(job: Job) -> discord.Embed:
    return discord.Embed(description=fenced(job.request.prompt), colour=COLOUR)
