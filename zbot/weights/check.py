"""Looks at a model's files without hashing them: presence, size, heads, and what the pipeline's JSON names."""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from zbot.weights.manifest import WeightFile, is_inside
from zbot.weights.tensors import BadTensorFile, read_spans

_SAMPLE_BYTES = 65536
# The file each part cannot do without; a tokenizer and a scheduler have no weights.
_PART_CONFIG = {"scheduler": "scheduler_config.json", "tokenizer": "tokenizer_config.json"}
_WEIGHT_NAMES = ("diffusion_pytorch_model.safetensors", "model.safetensors")


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One file that is not as it should be: `kind` is missing, short, long or damaged."""

    path: str
    kind: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.path} is {self.kind}" + (f" ({self.detail})" if self.detail else "")


def check_shallow(directory: Path, files: Sequence[WeightFile]) -> tuple[Problem, ...]:
    """Return what presence, size and the safetensors heads tell is wrong."""
    problems: list[Problem] = []
    for file in files:
        path = directory / file.path
        size_bytes = size_of(path)
        if size_bytes is None:
            problems.append(Problem(path=file.path, kind="missing"))
        elif size_bytes != file.size_bytes:
            kind = "short" if size_bytes < file.size_bytes else "long"
            detail = f"{size_bytes:,} of {file.size_bytes:,} bytes"
            problems.append(Problem(path=file.path, kind=kind, detail=detail))
        elif problem := _check_tensors(path, file.path):
            problems.append(problem)
    return tuple(problems)


def read_structure(directory: Path) -> tuple[tuple[WeightFile, ...], tuple[Problem, ...]]:
    """Return the files a pipeline's own JSON says it is made of, and what is wrong with them.

    For a directory that no record and no manifest describe: sizes are taken from the disk, but a safetensors
    file says itself how long it must be, and an index names its shards.
    """
    paths: list[str] = ["model_index.json"]
    problems: list[Problem] = []
    index, problem = read_json(directory, "model_index.json")
    if problem:
        return (), (problem,)
    for part, kind in index.items():
        if part.startswith("_") or not isinstance(kind, list) or None in cast("list[Any]", kind):
            continue
        paths.append(f"{part}/{_PART_CONFIG.get(part, 'config.json')}")
        if part in _PART_CONFIG:
            continue
        names = [name for name in _WEIGHT_NAMES if (directory / part / name).is_file()]
        indexes = [name for name in _WEIGHT_NAMES if (directory / part / f"{name}.index.json").is_file()]
        if names:
            paths.append(f"{part}/{names[0]}")
        elif indexes:
            index_path = f"{part}/{indexes[0]}.index.json"
            paths.append(index_path)
            shards, problem = read_json(directory, index_path)
            weight_map = cast("dict[str, str]", shards.get("weight_map", {}))
            names = sorted(set(map(str, weight_map.values())))
            if problem or not names or not all(map(is_inside, names)):
                problems.append(problem or Problem(path=index_path, kind="damaged", detail="names no shards"))
            paths += [f"{part}/{name}" for name in names if is_inside(name)]
        else:
            problems.append(Problem(path=f"{part}/*.safetensors", kind="missing"))
    # What else a tokenizer has differs from one to the next; what is there belongs to it.
    paths += [
        f"tokenizer/{path.name}"
        for path in sorted((directory / "tokenizer").glob("*"))
        if path.is_file() and path.name != "tokenizer_config.json"
    ]
    files: list[WeightFile] = []
    for path in paths:
        size_bytes = size_of(directory / path)
        problem = (
            Problem(path=path, kind="missing")
            if size_bytes is None
            else _check_tensors(directory / path, path)
        )
        if problem:
            problems.append(problem)
        files.append(WeightFile(path=path, size_bytes=size_bytes or 0))
    return tuple(files), tuple(problems)


def fingerprint(directory: Path, files: Sequence[WeightFile]) -> str:
    """Return a name for files that nobody recorded: `local-` and a digest of names, sizes, heads and tails.

    It tells two models apart and costs milliseconds; it is no proof that the bytes between are right.
    """
    digest = hashlib.sha256()
    for file in sorted(files, key=lambda file: file.path):
        with (directory / file.path).open("rb") as stream:
            size_bytes = os.fstat(stream.fileno()).st_size
            digest.update(f"{file.path}\0{size_bytes}\0".encode())
            digest.update(stream.read(_SAMPLE_BYTES))
            stream.seek(max(0, size_bytes - _SAMPLE_BYTES))
            digest.update(stream.read(_SAMPLE_BYTES))
    return f"local-{digest.hexdigest()[:12]}"


def partial_path(path: Path) -> Path:
    """Return where the ModelScope client keeps the part of a file it has already received."""
    return path.with_name(f"{path.name}.incomplete")


def size_of(path: Path) -> int | None:
    """Return the size of a file, or None when there is none that can be seen."""
    try:
        return path.stat().st_size if path.is_file() else None
    except OSError:
        return None


def read_json(directory: Path, name: str) -> tuple[dict[str, Any], Problem | None]:
    """Return the JSON object in a file below a directory, or an empty one and what is wrong with it."""
    try:
        value = json.loads((directory / name).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}, Problem(path=name, kind="missing")
    except (OSError, ValueError) as error:
        return {}, Problem(path=name, kind="damaged", detail=str(error))
    if not isinstance(value, dict):
        return {}, Problem(path=name, kind="damaged", detail="it is not a JSON object")
    return cast("dict[str, Any]", value), None


def _check_tensors(path: Path, name: str) -> Problem | None:
    if not name.endswith(".safetensors"):
        return None
    try:
        read_spans(path)
    except BadTensorFile as error:
        return Problem(path=name, kind="damaged", detail=f"it {error}")
    except OSError as error:
        return Problem(path=name, kind="damaged", detail=error.strerror or "cannot be read")
    return None
