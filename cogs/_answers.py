"""What a job looks like in the channel, state by state: pure functions from a job to an answer."""

from dataclasses import dataclass

import discord

from cogs._text import cut, duration, fenced, moment, plain, seconds
from cogs._views import cancel_view, result_view
from zbot.errors import ZBotError
from zbot.images import Recipe
from zbot.job import Job, JobState
from zbot.loras import written
from zbot.progress import Drawing
from zbot.queue import Place
from zbot.request import aspect_of
from zbot.text import explain, say

COLOUR = 0x4F7CAC
BAD_COLOUR = 0xB4472E
COPIED_PROMPT = 700  # characters; a field holds 1,024 with the flags


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


def details(job: Job, recipe: Recipe | None, *, native_size: int, locale: str) -> discord.Embed:
    """Show how a job was drawn; `recipe` is what its first picture says of itself."""
    request = job.request
    aspect = aspect_of(request.width, request.height, native_size)
    wait_s = (job.started_at - job.created_at).total_seconds() if job.started_at else None
    facts: dict[str, str | None] = {
        "seeds": ", ".join(f"`{seed}`" for seed in request.seeds),
        "size": f"{request.width}×{request.height}" + (f" ({aspect})" if aspect else ""),
        "steps": str(request.steps),
        "guidance": f"{request.guidance_scale:g}",
        "lora": f"`{plain(_lora(job))}`" if request.lora else None,
        "model": f"{recipe.model} · {recipe.dtype} · {recipe.device}" if recipe else None,
        "revision": f"`{recipe.revision}`" if recipe else None,
        "libraries": " · ".join(f"{name} {version}" for name, version in recipe.versions.items())
        if recipe
        else None,
        "gpu": duration(job.gpu_s, locale) if job.gpu_s is not None else None,
        "wait": duration(wait_s, locale) if wait_s is not None else None,
        "asked": f"<@{job.origin.user_id}> · <t:{job.created_at.timestamp():.0f}:f>",
        "parent": str(job.origin.parent_id) if job.origin.parent_id else None,
    }
    title = say("details.title", locale, job=job.id)
    embed = discord.Embed(title=title, description=fenced(request.prompt, 3_000), colour=COLOUR)
    for key, value in facts.items():
        if value:
            embed.add_field(name=say(f"details.{key}", locale), value=value)
    if command := _command(job, aspect):
        embed.add_field(name=say("details.again", locale), value=f"```\n{command}\n```", inline=False)
    return embed


def _command(job: Job, aspect: str | None) -> str | None:
    """Return what to type to draw a job again; None where that cannot be shown letter by letter."""
    request = job.request
    if aspect is None or len(request.prompt) > COPIED_PROMPT or plain(request.prompt) != request.prompt:
        return None
    command = f"/imagine prompt:{request.prompt} --seed {request.seed} --steps {request.steps} --ar {aspect}"
    command += f" --n {request.num_images}" if request.num_images > 1 else ""
    return command + (f" --lora {_lora(job)}" if request.lora else "")


def _lora(job: Job) -> str:
    return written(job.request.lora, job.request.lora_scale)


def _prompt(job: Job) -> discord.Embed:
    return discord.Embed(description=fenced(job.request.prompt), colour=COLOUR)
