"""Draws the command line's pictures with the bot's engine: files as they come, a progress bar, a contact sheet."""

import asyncio
import json
import os
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from zbot import images
from zbot.cli.compare import Original, Verdict, compare, first_cause
from zbot.cli.output import Picture
from zbot.cli.problems import sentence, tell
from zbot.engine import Drawn, Engine, LoadProgress, Step, overlap
from zbot.errors import EngineDead, GenerationError
from zbot.images import Recipe

OPEN_TO_ALL = 0o666  # less the umask, as for every file that a command makes for its user


class Display:
    """What is under way, as one bar on a terminal; silent elsewhere."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress = progress
        self._task = task

    def loading(self, progress: LoadProgress) -> None:
        """Show how far the model is loaded."""
        self._progress.update(
            self._task,
            description=f"loading {progress.stage}",
            completed=progress.done,
            total=progress.total,
        )

    def begin(self, steps: int) -> None:
        """Begin to count the steps of every picture together."""
        self._progress.reset(self._task, total=steps)

    def picture(self, number: int, total: int) -> None:
        """Show which picture is on the card."""
        self._progress.update(
            self._task, description=f"picture {number} of {total}" if total > 1 else "drawing"
        )

    def step(self, _: Step) -> None:
        """Count one step."""
        self._progress.advance(self._task)


@contextmanager
def shown() -> Generator[Display]:
    """Show a bar on standard error for the time of a block."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    with Progress(
        *columns,
        console=console,
        transient=True,
        disable=not console.is_terminal,
        # Results on standard output would be drawn above the bar, on standard error, also when they go to a file.
        redirect_stdout=sys.stdout.isatty(),
    ) as progress:
        yield Display(progress, progress.add_task("starting", total=None))


@dataclass(frozen=True, slots=True, kw_only=True)
class Easel:
    """Draws pictures to files with one engine."""

    engine: Engine
    display: Display
    replace: bool = False  # files that have come into being meanwhile
    as_json: bool = False
    failures: list[str] = field(default_factory=list[str])

    async def draw(self, pictures: Sequence[Picture]) -> None:
        """Draw every picture; each is on the disk before the one after the next begins.

        A picture that cannot be drawn costs the others nothing; it is named in `failures`.

        Raises: EngineDead: nothing more can be drawn. OSError: nothing can be written.
        """
        self.display.begin(sum(picture.request.steps for picture in pictures))
        under_way: list[asyncio.Task[None]] = []
        try:
            for number, picture in enumerate(pictures, start=1):
                self.display.picture(number, len(pictures))
                drawing = overlap.start(self.engine, picture.request, self.display.step)
                before = under_way[-1] if under_way else None
                under_way.append(asyncio.create_task(self._finish(picture, drawing, before)))
                await drawing.card_free.wait()
                if len(under_way) > 1:
                    await under_way.pop(0)
            while under_way:
                await under_way.pop(0)
        finally:
            for task in under_way:
                task.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)

    async def _finish(
        self, picture: Picture, drawing: overlap.Drawing, before: asyncio.Task[None] | None
    ) -> None:
        """Write and report a picture once it is drawn and the one before it is reported."""
        try:
            drawn = await drawing.task
        except EngineDead:
            raise
        except GenerationError as error:
            self.failures.append(f"{picture.path}: {sentence(error)}")
            return
        if before is not None:
            await asyncio.wait({before})
        await asyncio.to_thread(write, picture.path, drawn.png, replace=self.replace)
        self._report(picture, drawn)

    def _report(self, picture: Picture, drawn: Drawn) -> None:
        if self.as_json:
            print(json.dumps(facts_of(picture, drawn)), flush=True)
        else:
            tell(f"{picture.path}: seed {picture.request.seed}, {drawn.gpu_s:.2f} s")
        if drawn.unused_prompt:
            tell(f"{picture.path}: the prompt is too long for the model; not used: {drawn.unused_prompt}")


def write(path: Path, png: bytes, *, replace: bool) -> None:
    """Write a picture to its file, with the directories above it. Raises: OSError, of that file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not replace and os.path.lexists(path):
            raise FileExistsError(0, "another program has made this file meanwhile")
        images.write_atomic(path, png, OPEN_TO_ALL)
    except OSError as error:
        # Of the file that was asked for, not of the temporary one beside it.
        raise OSError(error.errno, error.strerror, str(path)) from error


def print_those_there(pictures: Sequence[Picture]) -> None:
    """Print the lines of `--json` for the pictures that an earlier run drew."""
    for picture in pictures:
        if picture.is_there:
            print(json.dumps(facts_of(picture, None)), flush=True)


def facts_of(picture: Picture, drawn: Drawn | None) -> dict[str, object]:
    """Return the line of `--json` for one picture; None for one that an earlier run drew."""
    request = picture.request
    return {
        "file": str(picture.path),
        "prompt": request.prompt,
        "seed": request.seed,
        "steps": request.steps,
        "width": request.width,
        "height": request.height,
        "drawn": drawn is not None,
        "gpu_s": round(drawn.gpu_s, 4) if drawn else None,
        "unused_prompt": drawn.unused_prompt if drawn else None,
    }


async def draw(
    engine: Engine,
    pictures: Sequence[Picture],
    *,
    replace: bool,
    as_json: bool,
    like: Recipe | None = None,
) -> list[str]:
    """Load the model, draw the pictures and end the engine; return a line for each that could not be drawn.

    With `like`, the recipe of a picture that is drawn again, say what is not as it was then.
    """
    try:
        with shown() as display:
            await engine.load(display.loading)
            easel = Easel(engine=engine, display=display, replace=replace, as_json=as_json)
            await easel.draw(pictures)
            if like is not None and not easel.failures:
                for picture in pictures:
                    # What it was drawn with, down to the LoRA's bytes, only the picture itself knows.
                    if cause := first_cause(like, images.read_recipe(picture.path)):
                        tell(f"This may not be the same picture: {cause}.")
            return easel.failures
    finally:
        await engine.close()


async def draw_again(engine: Engine, original: Original) -> tuple[Verdict, bytes]:
    """Draw a picture again and compare; return what was found and the new picture."""
    request = original.recipe.to_request()
    try:
        with shown() as display:
            await engine.load(display.loading)
            display.begin(request.steps)
            display.picture(1, 1)
            drawn = await engine.draw(request, display.step)
    finally:
        await engine.close()
    return compare(original, drawn.png, images.read_recipe(drawn.png)), drawn.png


class Labelled(Sequence[tuple[str, bytes]]):
    """The pictures of a contact sheet with their labels, read one at a time: a thousand do not fit into memory."""

    def __init__(self, pictures: Sequence[Picture]) -> None:
        self._pictures = pictures

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, index: int) -> tuple[str, bytes]:  # pyright: ignore[reportIncompatibleMethodOverride] no slices
        picture = self._pictures[index]
        return f"seed {picture.request.seed}", picture.path.read_bytes()


def write_sheet(path: Path, pictures: Sequence[Picture]) -> None:
    """Write one picture with all of a sweep side by side, each under its seed."""
    images.write_atomic(path, images.contact_sheet(Labelled(pictures)), OPEN_TO_ALL)
    tell(f"{path}: all of them side by side")
