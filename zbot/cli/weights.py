"""`python -m zbot weights …`: fetch, verify, status, path, move and convert the model's files."""

import json
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress import Progress as Display

from zbot import weights
from zbot.config import DEFAULT_MODEL, load_settings
from zbot.errors import ConfigError, WeightsError

_PLAIN_INTERVAL_S = 10.0  # between lines where there is no terminal to draw a bar on

app = typer.Typer(
    help="Fetch, check, move and convert the model's files.", no_args_is_help=True, rich_markup_mode=None
)
out = Console(soft_wrap=True, highlight=False)
err = Console(stderr=True, soft_wrap=True, highlight=False)

ModelOption = Annotated[
    str | None,
    typer.Option("--model", help=f"What to work on; else {weights.MODEL_SETTING}, else {DEFAULT_MODEL}."),
]
CacheOption = Annotated[
    Path | None,
    typer.Option("--cache-dir", help=f"The cache root; else {weights.CACHE_SETTING}, else data/cache."),
]


@app.command()
def fetch(
    model: ModelOption = None,
    cache_dir: CacheOption = None,
    any_version: Annotated[
        bool,
        typer.Option(
            "--any-version", help="Take what the hub has, also when it is not the release zbot knows."
        ),
    ] = False,
) -> None:
    """Bring the model from ModelScope, or what is missing or damaged of it."""
    with _place(model, cache_dir) as (name, root), _display() as on_progress:
        files = weights.fetch(name, root, on_progress, any_version=any_version)
    out.print(_sentence(files))
    if files.dtype == "float32":
        out.print("`python -m zbot weights convert` once makes it smaller by a third and quicker to load.")


@app.command()
def verify(model: ModelOption = None, cache_dir: CacheOption = None) -> None:
    """Read every byte and compare it with the checksums known for it."""
    with _place(model, cache_dir) as (name, root):
        with _display() as on_progress:
            found = weights.verify(name, root, on_progress)
        for copy in found:
            for problem in copy.problems:
                err.print(str(problem), markup=False)
            if not copy.problems:
                known = (
                    "every checksum agrees"
                    if copy.hashed == copy.files
                    else f"{copy.hashed} of them by checksum"
                )
                size = weights.gigabytes(copy.size_bytes)
                out.print(f"{copy.directory}: {copy.files} files, {size}, all right, {known}", markup=False)
        wrong = [copy for copy in found if copy.problems]
        if wrong:
            number = sum(len(copy.problems) for copy in wrong)
            mend = weights.mend_command(weights.find_place(name, root))
            if wrong[0].directory != found[0].directory or len(wrong) > 1:
                mend += ", then `python -m zbot weights convert`"
            raise WeightsError(
                f"{number} of {sum(copy.files for copy in wrong)} files are not as they should be; {mend}."
            )


@app.command()
def status(
    model: ModelOption = None,
    cache_dir: CacheOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say what is there, what would be loaded and what is missing; changes nothing."""
    with _place(model, cache_dir) as (name, root):
        found = weights.status(name, root)
        if as_json:
            print(json.dumps(asdict(found), default=str, indent=2))
            return
        for title, copy in (("original", found.original), ("bf16 copy", found.converted)):
            if copy is None:
                continue
            size = f"{weights.gigabytes(copy.present_bytes)} of {weights.gigabytes(copy.expected_bytes)}"
            revision = f", revision {copy.revision}" if copy.revision else ""
            out.print(
                f"{title}: {copy.state}, {copy.files_present} of {copy.files_expected} files, "
                f"{size}{revision}\n"
                f"  {copy.directory}",
                markup=False,
            )
            for problem in copy.problems:
                out.print(f"  {problem}", markup=False)
        for path in found.other_copies:
            out.print(f"not read by zbot: another copy in {path}", markup=False)
        if found.serving is None:
            weights.locate(name, root)  # raises the sentence that says why, and the repair
        else:
            out.print(f"loaded from: {_sentence(found.serving)}", markup=False)


@app.command()
def path(model: ModelOption = None, cache_dir: CacheOption = None) -> None:
    """Print the directory the model is loaded from, and nothing else."""
    with _place(model, cache_dir) as (name, root):
        print(weights.locate(name, root).directory)


@app.command()
def move(
    destination: Annotated[
        Path, typer.Argument(metavar="DIR", help="The cache root to move the model under.")
    ],
    model: ModelOption = None,
    cache_dir: CacheOption = None,
) -> None:
    """Copy the fetched model to another disk, verify the copy, then switch to it."""
    with _place(model, cache_dir) as (name, root), _display() as on_progress:
        files = weights.move(name, root, Path.cwd() / destination.expanduser(), on_progress)
    out.print(_sentence(files), markup=False)


@app.command()
def convert(
    model: ModelOption = None,
    cache_dir: CacheOption = None,
    delete_original: Annotated[
        bool,
        typer.Option("--delete-original", help="Delete the fetched files once the copy has been compared."),
    ] = False,
) -> None:
    """Save the model once more in bfloat16: 32.8 GB become 20.5, and loading reads those."""
    with _place(model, cache_dir) as (name, root), _display() as on_progress:
        files = weights.convert(name, root, on_progress, delete_original=delete_original)
    out.print(_sentence(files), markup=False)


@contextmanager
def _place(model: str | None, cache_dir: Path | None) -> Generator[tuple[str, Path]]:
    """Give the chosen model and cache root, and turn an expected error into one sentence and exit code 2."""
    try:
        settings = load_settings(needs_token=False)
        name, root = model or settings.model, cache_dir or settings.cache
        if cache_dir is None and settings.cache_dir is None:
            settings.data.mkdir(
                parents=True, exist_ok=True
            )  # the default is made; a chosen one must be there
        if name != "tiny":
            weights.prepare_environment(root)
        yield name, root
    except (WeightsError, ConfigError) as error:
        err.print(str(error), markup=False)
        raise typer.Exit(2) from error
    except KeyboardInterrupt:
        err.print("Stopped; the same command goes on from here.")
        raise typer.Exit(130) from None


@contextmanager
def _display() -> Generator[weights.OnProgress]:
    """Show one line for the whole work: bytes, rate and time left; plain lines where there is no terminal."""
    if not sys.stderr.isatty():
        yield _plain_lines()
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[path]}", style="dim"),
    )
    with Display(*columns, console=err) as display:
        tasks: dict[str, TaskID] = {}

        def show(progress: weights.Progress) -> None:
            task = tasks.get(progress.action)
            if task is None:
                # Begin at what is there already: only what comes now counts for the rate.
                tasks[progress.action] = display.add_task(
                    progress.action,
                    total=progress.total_bytes,
                    completed=progress.done_bytes,
                    path=progress.path,
                )
            else:
                display.update(
                    task, completed=progress.done_bytes, total=progress.total_bytes, path=progress.path
                )

        yield show


def _plain_lines() -> weights.OnProgress:
    begun: dict[str, tuple[float, int]] = {}
    told: dict[str, float] = {}

    def tell(progress: weights.Progress) -> None:
        now = time.monotonic()
        begun_at, begun_bytes = begun.setdefault(progress.action, (now, progress.done_bytes))
        finished = progress.done_bytes >= progress.total_bytes
        if not finished and now - told.get(progress.action, begun_at) < _PLAIN_INTERVAL_S:
            return
        if told.get(progress.action) == float("inf"):
            return
        told[progress.action] = float("inf") if finished else now
        rate = (progress.done_bytes - begun_bytes) / max(now - begun_at, 1e-3)
        left = (
            f", {(progress.total_bytes - progress.done_bytes) / rate / 60:.0f} min left"
            if rate and not finished
            else ""
        )
        err.print(
            f"{progress.action}: {weights.gigabytes(progress.done_bytes)} of "
            f"{weights.gigabytes(progress.total_bytes)}, "
            f"{rate / 1e6:.1f} MB/s{left}",
            markup=False,
        )

    return tell


def _sentence(files: weights.ModelFiles) -> str:
    size = weights.gigabytes(files.size_bytes)
    return f"{files.directory} ({files.model}, revision {files.revision}, {files.dtype}, {size})"
