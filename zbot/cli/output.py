"""Where the command line may write, what it calls the files, and which of them are there already."""

import glob
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from zbot.cli.batch import Wanted
from zbot.errors import ConfigError, InvalidRequest
from zbot.request import MAX_SEED, ImageRequest

if TYPE_CHECKING:
    from zbot.images import Recipe
    from zbot.weights import ModelFiles

DEFAULT_OUTPUT = "result.png"
PLACEHOLDERS = ("{seed}", "{index}", "{prompt}")
MAX_PROMPT_NAME_BYTES = 80
MAX_NAME_BYTES = 230  # most file systems take 255; a file under way has a longer name
# Names that Windows keeps for devices, whatever their suffix.
_RESERVED = {"con", "prn", "aux", "nul", *(f"com{n}" for n in range(10)), *(f"lpt{n}" for n in range(10))}
_OTHER_FORMATS = {".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic"}
_ANY_SEED = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """One picture and where it goes; `is_there` says that an earlier run drew it."""

    request: ImageRequest
    path: Path
    is_there: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """Where the pictures of one command go, and what may be written for them."""

    pattern: str
    anywhere: bool = False
    force: bool = False

    @classmethod
    def of(cls, output: str | None, *, anywhere: bool, force: bool, several_by: str = "") -> "Output":
        """Return the place that `--output` names.

        Raises: ConfigError: it names none.
        """
        pattern = pattern_of(output or DEFAULT_OUTPUT, several_by=several_by)
        return cls(pattern=pattern, anywhere=anywhere, force=force)

    def plan(
        self, wanted: Sequence[Wanted], *, resume: bool = False, files: "ModelFiles | None" = None
    ) -> list[Picture]:
        """Return each picture with its path; with `resume` those that are there already are marked.

        Raises: ConfigError: a path is not allowed, is something else already, or two pictures have one name.
        """
        resume = resume and not self.force
        if resume and files is not None:
            wanted = self._with_seeds_of_before(wanted, files)
        pictures = [
            Picture(request=one.request, path=self._path(one.request, index))
            for index, one in enumerate(wanted, start=1)
        ]
        names: set[str] = set()
        for picture in pictures:
            # Some file systems take names for one that differ in case or in how an accent is written.
            name = unicodedata.normalize("NFC", str(picture.path)).casefold()
            if name in names:
                raise ConfigError(
                    f"--output {self.pattern}: two pictures would have the name {picture.path}; "
                    "add {index} or {seed} to it."
                )
            names.add(name)
        if self.force:
            return pictures
        if resume and files is not None:
            pictures = [
                replace(picture, is_there=_is_made_by(_recipe(picture.path), picture.request, files))
                for picture in pictures
            ]
        for picture in pictures:
            if not picture.is_there:
                refuse_if_there(picture.path)
        return pictures

    def sheet(self, seeds: range, first: Wanted) -> Path:
        """Return the path of a sweep's contact sheet.

        Raises: ConfigError: it is not allowed, or something is there.
        """
        path = fill_in(self.pattern, seed=f"{seeds[0]}-{seeds[-1]}", index=0, prompt=first.request.prompt)
        path = allowed(path.with_stem(f"{path.stem}-sheet"), anywhere=self.anywhere)
        if not self.force:
            refuse_if_there(path)
        return path

    def _path(self, request: ImageRequest, index: int) -> Path:
        path = fill_in(self.pattern, seed=request.seed, index=index, prompt=request.prompt)
        return allowed(path, anywhere=self.anywhere)

    def _with_seeds_of_before(self, wanted: Sequence[Wanted], files: "ModelFiles") -> list[Wanted]:
        """Give the pictures whose seeds nobody chose those that an earlier run chose, so that a batch can go on."""
        taken: set[Path] = set()
        settled: list[Wanted] = []
        first_seed: int | None = None
        for index, one in enumerate(wanted, start=1):
            if one.seed_is_free and one.number == 0:
                first_seed = self._first_seed_of_before(wanted, index, files, taken)
            if one.seed_is_free and first_seed is not None:
                request = replace(one.request, seed=(first_seed + one.number) % (MAX_SEED + 1))
                taken.add(self._path(request, index))
                settled.append(replace(one, request=request))
            else:
                settled.append(one)
        return settled

    def _first_seed_of_before(
        self, wanted: Sequence[Wanted], index: int, files: "ModelFiles", taken: set[Path]
    ) -> int | None:
        """Return the seed with which an earlier run began the request whose first picture has this index."""
        starts: Counter[int] = Counter()
        for later, one in enumerate(wanted[index - 1 :], start=index):
            if one.number != later - index:
                break  # the next request
            for path in self._candidates(one, later):
                recipe = _recipe(path)
                if path in taken or recipe is None:
                    continue
                if _is_made_by(recipe, replace(one.request, seed=recipe.seed), files):
                    starts[(recipe.seed - one.number) % (MAX_SEED + 1)] += 1
        return starts.most_common(1)[0][0] if starts else None

    def _candidates(self, one: Wanted, index: int) -> list[Path]:
        """Return the files that may hold a picture that an earlier run drew with a seed of its own."""
        any_seed = str(fill_in(self.pattern, seed=_ANY_SEED, index=index, prompt=one.request.prompt))
        names = glob.glob(glob.escape(any_seed).replace(_ANY_SEED, "*"))  # noqa: PTH207 directories may hold it too
        return sorted(Path(name) for name in names)


def file_name(text: str) -> str:
    """Return text as a part of a file name that every file system takes: letters, digits and hyphens."""
    # Marks are parts of letters in many scripts; symbols, spaces and separators become hyphens.
    kept = "".join(
        char if unicodedata.category(char)[0] in "LMN" else "-" for char in unicodedata.normalize("NFC", text)
    )
    short = re.sub("-{2,}", "-", kept).strip("-").encode()[:MAX_PROMPT_NAME_BYTES].decode(errors="ignore")
    return _unreserved(short.strip("-")) or "picture"


def pattern_of(output: str, *, several_by: str = "") -> str:
    """Return the pattern of the files' names; without a placeholder, `several_by` is added for several pictures.

    Raises: ConfigError: it has an unknown placeholder, or the suffix of another format.
    """
    if unknown := sorted(set(re.findall(r"\{\w*\}", output)) - set(PLACEHOLDERS)):
        raise ConfigError(
            f"--output {output}: unknown {', '.join(unknown)}; known are {', '.join(PLACEHOLDERS)}."
        )
    if output.endswith("/") or Path(output).is_dir():
        output = str(Path(output) / DEFAULT_OUTPUT)
    path = Path(output)
    if path.suffix.lower() in _OTHER_FORMATS:
        raise ConfigError(f"--output {output}: the pictures are PNG files; write {path.with_suffix('.png')}.")
    if path.suffix.lower() != ".png":
        path = path.with_name(f"{path.name}.png")
    if several_by and not any(placeholder in output for placeholder in PLACEHOLDERS):
        path = path.with_stem(f"{path.stem}-{several_by}")
    return str(path)


def fill_in(pattern: str, *, seed: object, index: int, prompt: str) -> Path:
    """Return the path of one picture: `{seed}`, `{index}` and `{prompt}` stand for its own.

    Raises: ConfigError: a name becomes too long.
    """
    parts: list[str] = []
    for part in Path(pattern).parts:
        filled = part.replace("{seed}", str(seed)).replace("{index}", f"{index:03}")
        filled = filled.replace("{prompt}", file_name(prompt))
        if filled != part:
            stem, dot, rest = filled.partition(".")
            filled = _unreserved(stem) + dot + rest
        if len(filled.encode(errors="surrogateescape")) > MAX_NAME_BYTES:
            raise ConfigError(f"--output {pattern}: {filled[:60]}… is too long for a file's name.")
        parts.append(filled)
    return Path(*parts)


def allowed(path: Path, *, anywhere: bool) -> Path:
    """Return the path if a file may and can be written there.

    Raises: ConfigError: it leads out of the working directory, or there is no writing to it.
    """
    # Resolved, so that neither `..` nor a symbolic link leads out unseen.
    if not anywhere and not path.resolve().is_relative_to(Path.cwd().resolve()):
        raise ConfigError(f"{path} lies outside the working directory; add --anywhere if you mean it.")
    if path.is_dir():
        raise ConfigError(f"{path} is a directory; name a file.")
    directory = next(parent for parent in path.absolute().parents if os.path.lexists(parent))
    if not directory.is_dir():
        raise ConfigError(f"{path} cannot be made: {directory} is not a directory.")
    if not os.access(directory, os.W_OK | os.X_OK):
        raise ConfigError(f"{path} cannot be made: {directory} may not be written by this user.")
    return path


def refuse_if_there(path: Path) -> None:
    """Protect a file that nobody allowed to be replaced. Raises: ConfigError."""
    if os.path.lexists(path):
        raise ConfigError(f"{path} is there already; choose another name or add --force.")


def _recipe(path: Path) -> "Recipe | None":
    from zbot.images import read_recipe

    try:
        return read_recipe(path)
    except (InvalidRequest, OSError):
        return None


def _is_made_by(recipe: "Recipe | None", request: ImageRequest, files: "ModelFiles") -> bool:
    return (
        recipe is not None
        and recipe.to_request() == request
        and (recipe.model, recipe.revision) == (files.model, files.revision)
    )


def _unreserved(name: str) -> str:
    return f"{name}-" if name.lower() in _RESERVED else name
