"""`python -m zbot generate`: pictures from the command line, with the bot's engine, metadata and bytes."""

import asyncio
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from zbot import images, weights
from zbot.cli import compare
from zbot.cli.batch import Asked, read_prompts, requests_of, seeds_of
from zbot.cli.output import allowed, fill_in
from zbot.cli.problems import one_sentence
from zbot.config import Settings, load_settings
from zbot.engine import Drawn, Engine, ModelCard, Step, overlap
from zbot.engine.start import process_engine
from zbot.errors import InvalidRequest
from zbot.request import ImageRequest
from zbot.weights import ModelFiles
from zbot.weights.native import native_size

DEFAULT_PROMPT = "a red fox in the snow, morning light"
DEFAULT_OUTPUT = Path("result.png")

err = Console(stderr=True, soft_wrap=True, highlight=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """One picture to draw and where it goes."""

    request: ImageRequest
    path: Path
    seed_is_free: bool  # nobody asked for this seed, so an earlier run's picture with another one will do


@one_sentence
def generate(
    prompt: Annotated[
        str, typer.Option(help="What to draw; flags like --ar inside it work too.")
    ] = DEFAULT_PROMPT,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="File; may hold {seed}, {index} and {prompt}.")
    ] = DEFAULT_OUTPUT,
    seed: Annotated[int | None, typer.Option(help="0 to 4294967295; random if absent.")] = None,
    seeds: Annotated[
        str | None, typer.Option(help="A sweep, as 40:45 for 40 to 44, with a contact sheet.")
    ] = None,
    width: Annotated[int | None, typer.Option(help="Pixels, a multiple of 16.")] = None,
    height: Annotated[int | None, typer.Option(help="Pixels, a multiple of 16.")] = None,
    aspect: Annotated[str | None, typer.Option(help="Shape, as 16:9; 1:1 if absent.")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps; the model is made for 8.")] = None,
    count: Annotated[int | None, typer.Option(help="Pictures, 1 to 4, with the seeds s, s+1, …")] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help="A file of prompts, one a line or JSON lines; goes on where it stopped."),
    ] = None,
    like: Annotated[Path | None, typer.Option(help="Draw again what this picture of zbot shows.")] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="With --like: compare the pixels, write nothing.")
    ] = False,
    model: Annotated[str | None, typer.Option(help="Instead of ZBOT_MODEL.")] = None,
    json_lines: Annotated[
        bool, typer.Option("--json", help="One JSON line per picture on standard output.")
    ] = False,
    anywhere: Annotated[
        bool, typer.Option("--anywhere", help="Write outside the working directory too.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there.")] = False,
) -> None:
    """Draw pictures to files."""
    settings = load_settings(needs_token=False)
    files = weights.locate(model or settings.model, settings.cache)
    asked = Asked(
        prompt=prompt, seed=seed, width=width, height=height, aspect=aspect, steps=steps, count=count
    )
    if verify and like is None:
        raise typer.BadParameter("--verify needs --like FILE.png.")
    if like is not None:
        recipe = images.read_recipe(like)
        if verify:
            raise typer.Exit(asyncio.run(_verify(settings, files, like.read_bytes(), recipe)))
        requests = [(recipe.to_request(), False)]
    elif prompts is not None:
        every = read_prompts(prompts, asked)
        requests = [
            (request, one.seed is None)
            for one in every
            for request in requests_of(one, native_size(files.directory))
        ]
    elif seeds is not None:
        (first,) = requests_of(replace(asked, count=1), native_size(files.directory))
        requests = [(replace(first, seed=number), False) for number in seeds_of(seeds)]
    else:
        requests = [(request, False) for request in requests_of(asked, native_size(files.directory))]
    pictures = _plan(requests, output, anywhere=anywhere)
    sheet = allowed(output.with_name(f"{output.stem}-sheet.png"), anywhere=anywhere) if seeds else None
    missing = pictures if force else _not_drawn_yet(pictures, files, resume=prompts is not None, sheet=sheet)
    asyncio.run(_draw(settings, files, missing, _reporter(json_lines)))
    if sheet is not None:
        labelled = [(f"seed {picture.request.seed}", picture.path.read_bytes()) for picture in pictures]
        images.write_atomic(sheet, images.contact_sheet(labelled))
        err.print(f"{sheet}: all of them side by side", markup=False)


def _plan(requests: Sequence[tuple[ImageRequest, bool]], output: Path, *, anywhere: bool) -> list[Picture]:
    pictures: list[Picture] = []
    for index, (request, seed_is_free) in enumerate(requests, start=1):
        # A name must be the same in the next run, so a seed that nobody asked for cannot be part of it.
        seed = 0 if seed_is_free else request.seed
        path = fill_in(output, seed=seed, index=index, prompt=request.prompt, several=len(requests) > 1)
        pictures.append(
            Picture(request=request, path=allowed(path, anywhere=anywhere), seed_is_free=seed_is_free)
        )
    if len({picture.path for picture in pictures}) < len(pictures):
        raise typer.BadParameter(f"--output {output} gives two pictures one name; add {{index}} to it.")
    return pictures


def _not_drawn_yet(
    pictures: list[Picture], files: ModelFiles, *, resume: bool, sheet: Path | None
) -> list[Picture]:
    """Return what is still to be drawn; a file that is something else is never replaced unasked."""
    missing: list[Picture] = []
    for picture in pictures:
        if not picture.path.exists():
            missing.append(picture)
        elif not (resume and _is_drawn(picture, files)):
            raise typer.BadParameter(f"{picture.path} is there already; choose another name or add --force.")
    if sheet is not None and sheet.exists():
        raise typer.BadParameter(f"{sheet} is there already; choose another name or add --force.")
    if resume and len(missing) < len(pictures):
        err.print(f"{len(pictures) - len(missing)} of {len(pictures)} are drawn already.")
    return missing


def _is_drawn(picture: Picture, files: ModelFiles) -> bool:
    try:
        recipe = images.read_recipe(picture.path)
    except (InvalidRequest, OSError):
        return False
    wanted = picture.request
    if picture.seed_is_free:
        wanted = replace(wanted, seed=recipe.seed)
    return recipe.to_request() == wanted and (recipe.model, recipe.revision) == (files.model, files.revision)


async def _draw(
    settings: Settings, files: ModelFiles, pictures: list[Picture], report: Callable[[Picture, Drawn], None]
) -> None:
    """Draw every picture; the end of one overlaps the beginning of the next."""
    if not pictures:
        return
    engine = process_engine(settings, files, preview=False)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, disable=not sys.stderr.isatty(), transient=True) as display:
        task = display.add_task("loading the model", total=None)
        try:
            await _load(engine)
            display.update(task, total=sum(picture.request.steps for picture in pictures))
            under_way: list[tuple[Picture, overlap.Drawing]] = []
            for number, picture in enumerate(pictures, start=1):
                display.update(task, description=f"picture {number} of {len(pictures)}")
                drawing = overlap.start(engine, picture.request, lambda _: display.advance(task))
                under_way.append((picture, drawing))
                await drawing.card_free.wait()
                if len(under_way) > 1:
                    await _finish(*under_way.pop(0), report)
            await _finish(*under_way.pop(0), report)
        finally:
            await engine.close()


async def _finish(
    picture: Picture, drawing: overlap.Drawing, report: Callable[[Picture, Drawn], None]
) -> None:
    drawn = await drawing.task
    await asyncio.to_thread(_write, picture.path, drawn.png)
    report(picture, drawn)


def _write(path: Path, png: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    images.write_atomic(path, png)


def _reporter(json_lines: bool) -> Callable[[Picture, Drawn], None]:
    def report(picture: Picture, drawn: Drawn) -> None:
        request = picture.request
        if json_lines:
            facts = {
                "file": str(picture.path),
                "prompt": request.prompt,
                "seed": request.seed,
                "steps": request.steps,
            }
            facts |= {"width": request.width, "height": request.height, "gpu_s": round(drawn.gpu_s, 4)}
            print(json.dumps(facts, ensure_ascii=False), flush=True)
        else:
            err.print(f"{picture.path}: seed {request.seed}, {drawn.gpu_s:.2f} s", markup=False)
        if drawn.unused_prompt:
            err.print(f"the prompt is too long; not used: {drawn.unused_prompt}", markup=False)

    return report


async def _verify(settings: Settings, files: ModelFiles, before: bytes, recipe: images.Recipe) -> int:
    """Draw a picture again and say how it compares; the exit code is 0 unless it differs."""
    engine = process_engine(settings, files, preview=False)
    try:
        card = await _load(engine)
        drawn = await engine.draw(recipe.to_request(), _ignore)
    finally:
        await engine.close()
    verdict = compare.compare(before, recipe, drawn.png, images.Recipe.of(recipe.to_request(), card))
    print(verdict.sentence)
    return 0 if verdict.is_equal else 1


async def _load(engine: Engine) -> ModelCard:
    return await engine.load(lambda _: None)


def _ignore(step: Step) -> None:
    pass
