"""`python -m zbot generate`: pictures from the command line, with the bot's engine, metadata and bytes."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zbot.cli.problems import one_sentence, tell
from zbot.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from zbot.cli.output import Output, Picture
    from zbot.config import Settings
    from zbot.images import Recipe
    from zbot.weights import ModelFiles

DEFAULT_PROMPT = "a red fox in the snow, morning light"
# What says by itself what is drawn, each with the options that it leaves no room for.
_SHAPE = ("--seed", "--width", "--height", "--aspect", "--steps", "--count")
_CONFLICTS = {
    "--like": ("--prompts", "--seeds", "--prompt", "--lora", *_SHAPE),
    "--prompts": ("--seeds", "--prompt"),
    "--seeds": ("--seed", "--count"),
    "--aspect": ("--width", "--height"),
}


@one_sentence
def generate(
    prompt: Annotated[
        str | None,
        typer.Option(
            help="What to draw; flags like --ar 16:9 inside it work too.", show_default=DEFAULT_PROMPT
        ),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            help="File or directory; may hold {seed}, {index}, {prompt}.",
            show_default="result.png",
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="0 to 4294967295; random if absent.")] = None,
    seeds: Annotated[
        str | None, typer.Option(help="A sweep, as 40:45 for the seeds 40 to 44, with a contact sheet.")
    ] = None,
    width: Annotated[int | None, typer.Option(help="Pixels, a multiple of 16.")] = None,
    height: Annotated[int | None, typer.Option(help="Pixels, a multiple of 16.")] = None,
    aspect: Annotated[str | None, typer.Option(help="Shape, as 16:9; 1:1 if absent.")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps; 8 if absent.")] = None,
    count: Annotated[int | None, typer.Option(help="Pictures, 1 to 4, with the seeds s, s+1, …")] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help="A file of prompts, one a line or JSON lines; goes on where it stopped."),
    ] = None,
    lora: Annotated[
        str | None,
        typer.Option(help="A LoRA by name, or a file, with its strength behind a colon: style:0.8"),
    ] = None,
    like: Annotated[Path | None, typer.Option(help="Draw again what this picture of zbot shows.")] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="With --like: compare the pixels; write only with --output.")
    ] = False,
    model: Annotated[str | None, typer.Option(help="What draws, instead of ZBOT_MODEL.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON line per picture on standard output.")
    ] = False,
    anywhere: Annotated[
        bool, typer.Option("--anywhere", help="Write outside the working directory too.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there.")] = False,
) -> None:
    """Draw pictures to files; the same recipe gives the same bytes as in the bot."""
    options: dict[str, Any] = {
        "--prompt": prompt, "--seed": seed, "--seeds": seeds, "--width": width, "--height": height,
        "--aspect": aspect, "--steps": steps, "--count": count, "--prompts": prompts, "--like": like,
        "--lora": lora,
    }  # fmt: skip
    given = {name for name, value in options.items() if value is not None}
    for name, excluded in _CONFLICTS.items():
        if name in given and (also := [other for other in excluded if other in given]):
            raise ConfigError(f"{name} leaves no room for {', '.join(also)}; leave one of them out.")
    if verify and like is None:
        raise ConfigError("--verify compares with a picture: add --like FILE.png.")

    # Imported late, so that `--help` and mistakes are answered at once.
    from zbot.cli import batch
    from zbot.cli.lora import Rack
    from zbot.cli.model import located
    from zbot.cli.output import Output
    from zbot.config import load_settings
    from zbot.weights.native import native_size

    if like is not None:
        again = Output.of(output, anywhere=anywhere, force=force)
        if verify:
            _verify(like, again if output is not None else None, model=model, as_json=as_json)
        else:
            _draw_like(like, again, model=model, as_json=as_json)
        return
    asked = batch.Asked(
        prompt=DEFAULT_PROMPT if prompt is None else prompt,
        seed=seed,
        width=width,
        height=height,
        aspect=aspect,
        steps=steps,
        count=count,
        lora=lora,
    )
    sweep = None if seeds is None else batch.seeds_of(seeds)
    lines = None if prompts is None else batch.read_prompts(prompts, asked)
    settings = load_settings(needs_token=False)
    files = located(settings, model)
    native = native_size(files.directory)
    rack = Rack(directory=settings.loras)
    if lines is not None:
        wanted, several_by = batch.batch_of(lines, native, rack), "{index}"
    elif sweep is not None:
        wanted, several_by = batch.sweep_of(asked, sweep, native, rack), "{seed}"
    else:
        wanted = batch.pictures_of(asked, native, rack)
        several_by = "{seed}" if len(wanted) > 1 else ""
    place = Output.of(output, anywhere=anywhere, force=force, several_by=several_by)
    sheet = None if sweep is None else place.sheet(sweep, wanted[0])
    pictures = place.plan(wanted, resume=(sweep or lines) is not None, files=files)
    _draw(settings, files, pictures, as_json=as_json, force=force, lora_files=rack.files)
    if sheet is not None:
        from zbot.cli.drawing import write_sheet

        write_sheet(sheet, pictures)


def _draw(
    settings: "Settings",
    files: "ModelFiles",
    pictures: "Sequence[Picture]",
    *,
    as_json: bool,
    force: bool,
    like: "Recipe | None" = None,
    lora_files: "Mapping[str, Path] | None" = None,
) -> None:
    """Draw what is not there yet; leave with exit code 2 if something of it could not be drawn."""
    import asyncio

    from zbot.cli import drawing
    from zbot.engine.start import process_engine

    missing = [picture for picture in pictures if not picture.is_there]
    if len(missing) < len(pictures):
        tell(f"{len(pictures) - len(missing)} of {len(pictures)} are drawn already.")
    if as_json:
        drawing.print_those_there(pictures)
    if not missing:
        return
    engine = process_engine(settings, files, for_bot=False, lora_files=lora_files)
    failures = asyncio.run(drawing.draw(engine, missing, replace=force, as_json=as_json, like=like))
    for failure in failures:
        tell(failure)
    if failures:
        raise typer.Exit(2)


def _draw_like(like: Path, output: "Output", *, model: str | None, as_json: bool) -> None:
    """Make a picture again."""
    from zbot.cli.batch import Wanted
    from zbot.cli.model import located
    from zbot.config import load_settings
    from zbot.images import read_recipe

    recipe = read_recipe(like)
    pictures = output.plan([Wanted(request=recipe.to_request())])
    settings = load_settings(needs_token=False)
    files = located(settings, model)
    _draw(settings, files, pictures, as_json=as_json, force=output.force, like=recipe)


def _verify(like: Path, output: "Output | None", *, model: str | None, as_json: bool) -> None:
    """Make a picture again and say whether it is the same; leave with exit code 1 if it differs."""
    import asyncio
    import json

    from zbot.cli import drawing
    from zbot.cli.batch import Wanted
    from zbot.cli.compare import Original
    from zbot.cli.model import located
    from zbot.config import load_settings
    from zbot.engine.start import process_engine
    from zbot.images import read_recipe

    data = like.read_bytes()
    original = Original.of(data, read_recipe(data))
    pictures = [] if output is None else output.plan([Wanted(request=original.recipe.to_request())])
    settings = load_settings(needs_token=False)
    engine = process_engine(settings, located(settings, model), for_bot=False)
    verdict, png = asyncio.run(drawing.draw_again(engine, original))
    for picture in pictures:
        drawing.write(picture.path, png, replace=output is not None and output.force)
    if as_json:
        print(json.dumps({"file": str(like), "verdict": verdict.word, "cause": verdict.cause}))
    else:
        print(verdict.sentence)
    if not verdict.is_equal:
        raise typer.Exit(1)
