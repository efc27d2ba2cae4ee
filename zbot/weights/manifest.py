"""Which files make up a model, their sizes and checksums; and the record of what was fetched."""

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self, cast

from zbot.errors import WeightsError

PACKAGE_MODELS = Path(__file__).resolve().parent.parent / "models"
RECORD_NAME = "zbot.json"
RECORD_FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightFile:
    """One file of a model: its path below the model's directory, its size and the checksums known for it."""

    path: str
    size_bytes: int
    md5: str | None = None
    sha256: str | None = None

    @property
    def digest(self) -> tuple[str, str] | None:
        """Return (algorithm, hexadecimal digest) to check this file with, or None when none is known.

        The MD5 comes first: for Z-Image-Turbo it is the vendor's own and reaches us apart from the hub.
        """
        if self.md5:
            return "md5", self.md5
        return ("sha256", self.sha256) if self.sha256 else None

    def to_json(self) -> dict[str, Any]:
        """Return the form that stands in a manifest or record; unknown checksums are left out."""
        known = {"md5": self.md5, "sha256": self.sha256}
        return {"path": self.path, "bytes": self.size_bytes} | {
            name: value for name, value in known.items() if value
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Read what `to_json` wrote.

        Raises: KeyError, TypeError, ValueError for anything else, a path that leaves the model's directory
        included.
        """
        path, size_bytes = value["path"], value["bytes"]
        if not isinstance(path, str) or not isinstance(size_bytes, int) or size_bytes < 0:
            raise TypeError("path must be text and bytes a whole number")
        if not is_inside(path):
            raise ValueError(f"{path!r} leaves the model's directory")
        return cls(path=path, size_bytes=size_bytes, md5=value.get("md5"), sha256=value.get("sha256"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What `zbot.json` says of the directory it lies in.

    `complete` is false from before the first byte of a download until every file has been checked, so a
    download that was cut off can never look whole. `damaged` holds the paths the last `verify` found wrong.
    """

    model: str
    requested: str
    revision: str
    complete: bool
    files: tuple[WeightFile, ...]
    damaged: tuple[str, ...] = ()
    recorded_at: str = ""

    @property
    def size_bytes(self) -> int:
        """Return the size of all files together."""
        return sum(file.size_bytes for file in self.files)


def is_inside(path: str) -> bool:
    """Say whether a relative path, as a hub or a JSON file names it, stays below the directory it belongs to."""
    parts = path.split("/")
    return bool(path) and "\\" not in path and all(part not in ("", ".", "..") for part in parts)


def known_manifests() -> dict[str, tuple[WeightFile, ...]]:
    """Return every manifest that zbot ships, by model id."""
    manifests: dict[str, tuple[WeightFile, ...]] = {}
    for path in sorted(PACKAGE_MODELS.glob("*.json")):
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if "files" in manifest:  # other facts about models may lie beside the manifests
            manifests[manifest["model"]] = tuple(WeightFile.from_json(file) for file in manifest["files"])
    return manifests


def known_manifest(model_id: str) -> tuple[WeightFile, ...] | None:
    """Return the files of a model whose release this version of zbot knows, or None."""
    return known_manifests().get(model_id)


def read_record(directory: Path) -> Record | None:
    """Return the record lying in a model's directory, or None when there is none.

    Raises: WeightsError when it is there and cannot be read; a guess would be worse.
    """
    path = directory / RECORD_NAME
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise WeightsError(
            f"{path} cannot be read ({error.strerror}); give its owner back the right to read it."
        ) from error
    try:
        value = cast("dict[str, Any]", json.loads(text))
        if value["format"] != RECORD_FORMAT:
            raise ValueError(f"format {value['format']}")
        return Record(
            model=str(value["model"]),
            requested=str(value["requested"]),
            revision=str(value["revision"]),
            complete=value["complete"] is True,
            files=tuple(WeightFile.from_json(file) for file in value["files"]),
            damaged=tuple(str(path) for path in value["damaged"]),
            recorded_at=str(value["recorded_at"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(
            f"{path} is not a record this version of zbot can read ({error}); delete that one file and run "
            "`python -m zbot weights verify`, which writes it anew when the model's files are whole."
        ) from error


def write_record(directory: Path, record: Record) -> None:
    """Write the record into a model's directory so that it is the old one or the new one, never half of it."""
    value = {
        "format": RECORD_FORMAT,
        "model": record.model,
        "requested": record.requested,
        "revision": record.revision,
        "complete": record.complete,
        "recorded_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "damaged": list(record.damaged),
        "files": [file.to_json() for file in record.files],
    }
    descriptor, name = tempfile.mkstemp(dir=directory, prefix=f".{RECORD_NAME}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            json.dump(value, stream, indent=1)
            stream.flush()
            os.fsync(stream.fileno())
        # mkstemp gives 0600; the weights may be read by another account than fetched them
        Path(name).chmod(0o644)
        Path(name).replace(directory / RECORD_NAME)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    sync_directory(directory)


def sync_directory(directory: Path) -> None:
    """Make the names in a directory durable: a rename survives a power cut only after this."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
