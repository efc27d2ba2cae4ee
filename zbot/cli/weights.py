"""`python -m zbot weights …`: fetch, verify, status, path, move and convert the model's files."""

import json
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zbot.cli.model import prepared_cache
from zbot.cli.problems import one_sentence, tell
from zbot.errors import WeightsError

if TYPE_CHECKING:
    from zbot import weights

app = typer.Typer(
    help="Fetch, check, move and convert the model's files.", no_args_is_help=True, rich_markup_mode=None
)

ModelOption = Annotated[str | None, typer.Option("--model", help="What to work on, instead of ZBOT_MODEL.")]
CacheOption = Annotated[
    Path | None, typer.Option("--cache-dir", help="The cache root, instead of ZBOT_CACHE_DIR.")
]


@app.command()
@one_sentence
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
    from zbot import weights

    with _place(model, cache_dir) as (name, root), _shown() as on_progress:
        files = weights.fetch(name, root, on_progress, any_version=any_version)
    print(_sentence(files))
    if files.dtype == "float32":
        print("`python -m zbot weights convert` once makes it smaller by a third and quicker to load.")


@app.command()
@one_sentence
def verify(model: ModelOption = None, cache_dir: CacheOption = None) -> None:
    """Read every byte and compare it with the checksums known for it."""
    from zbot import weights

    with _place(model, cache_dir) as (name, root):
        with _shown() as on_progress:
            found = weights.verify(name, root, on_progress)
        for copy in found:
            for problem in copy.problems:
                tell(str(problem))
            if not copy.problems:
                known = (
                    "every checksum agrees"
                    if copy.hashed == copy.files
                    else f"{copy.hashed} of them by checksum"
                )
                size = weights.gigabytes(copy.size_bytes)
                print(f"{copy.directory}: {copy.files} files, {size}, all right, {known}")
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
@one_sentence
def status(
    model: ModelOption = None,
    cache_dir: CacheOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say what is there, what would be loaded and what is missing; changes nothing."""
    from zbot import weights

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
            print(
                f"{title}: {copy.state}, {copy.files_present} of {copy.files_expected} files, "
                f"{size}{revision}\n"
                f"  {copy.directory}",
            )
            for problem in copy.problems:
                print(f"  {problem}")
        for path in found.other_copies:
            print(f"not read by zbot: another copy in {path}")
        if found.serving is None:
            weights.locate(name, root)  # raises the sentence that says why, and the repair
        else:
            print(f"loaded from: {_sentence(found.serving)}")


@app.command()
@one_sentence
def path(model: ModelOption = None, cache_dir: CacheOption = None) -> None:
    """Print the directory the model is loaded from, and nothing else."""
    from zbot import weights

    with _place(model, cache_dir) as (name, root):
        print(weights.locate(name, root).directory)


@app.command()
@one_sentence
def move(
    destination: Annotated[
        Path, typer.Argument(metavar="DIR", help="The cache root to move the model under.")
    ],
    model: ModelOption = None,
    cache_dir: CacheOption = None,
) -> None:
    """Copy the fetched model to another disk, verify the copy, then switch to it."""
    from zbot import weights

    with _place(model, cache_dir) as (name, root), _shown() as on_progress:
        files = weights.move(name, root, Path.cwd() / destination.expanduser(), on_progress)
    print(_sentence(files))


@app.command()
@one_sentence
def convert(
    model: ModelOption = None,
    cache_dir: CacheOption = None,
    delete_original: Annotated[
        bool,
        typer.Option("--delete-original", help="Delete the fetched files once the copy has been compared."),
    ] = False,
) -> None:
    """Save the model once more in bfloat16: 32.8 GB become 20.5, and loading reads those."""
    from zbot import weights

    with _place(model, cache_dir) as (name, root), _shown() as on_progress:
        files = weights.convert(name, root, on_progress, delete_original=delete_original)
    print(_sentence(files))


@contextmanager
def _place(model: str | None, cache_dir: Path | None) -> Generator[tuple[str, Path]]:
    """Give the chosen model and cache root; what was interrupted can be taken up again."""
    from zbot.config import load_settings

    settings = load_settings(needs_token=False)
    name = model or settings.model
    try:
        yield name, prepared_cache(settings, name, cache_dir)
    except KeyboardInterrupt:
        tell("Stopped; the same command goes on from here.")
        raise typer.Exit(130) from None


def _shown() -> "AbstractContextManager[weights.OnProgress]":
    from zbot.cli.transfer import shown

    return shown()


def _sentence(files: "weights.ModelFiles") -> str:
    from zbot.weights import gigabytes

    size = gigabytes(files.size_bytes)
    return f"{files.directory} ({files.model}, revision {files.revision}, {files.dtype}, {size})"
