"""ModelScope's client: lists a model's files and brings them, each of its errors as one sentence with its repair."""

import errno
import importlib
import logging
import os
import threading
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from zbot.errors import WeightsError
from zbot.weights.cache import Place, require_space
from zbot.weights.check import partial_path, size_of
from zbot.weights.location import FETCH
from zbot.weights.manifest import WeightFile, is_inside
from zbot.weights.verification import OnProgress, Progress

_FULL_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# Four files at a time keep a fast line busy; a file in ranges of its own would need its space twice while merging.
_FILES_AT_A_TIME = 4
_CLIENT_SETTINGS = {
    "MODELSCOPE_DOWNLOAD_PARALLEL_WORKERS": "1",
    "TQDM_DISABLE": "1",  # one display for the whole is the caller's
}
# The client's own limit is one hour a file: a 10 GB shard on a line of less than 22 Mbit/s would never arrive.
_FILE_TIMEOUT_S = 7 * 24 * 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """What the hub has: its files by path, and of each the newest commit that touched it, with its time."""

    files: Mapping[str, WeightFile]
    commits: Mapping[str, tuple[int, str]]


class Hub:
    """ModelScope's client, imported on first use, with its own display and log turned off.

    `modelscope` brings the files; the listing with its commits is that of `modelscope_hub`, which it stands on.
    """

    def __init__(self, place: Place, cache_root: Path) -> None:
        for name, value in _CLIENT_SETTINGS.items():
            os.environ[name] = value
        os.environ.setdefault("MODELSCOPE_DOWNLOAD_TOTAL_TIMEOUT", str(_FILE_TIMEOUT_S))
        try:
            # The package takes torch in on its way, 2 s and 200 MB more: nothing in a command that runs for minutes.
            client = importlib.import_module("modelscope.hub.snapshot_download")
            hub = importlib.import_module("modelscope_hub")
        except ImportError as error:
            raise WeightsError(
                f"ModelScope's client cannot be loaded ({error}); install zbot's requirements again."
            ) from error
        finally:
            os.environ.pop("TQDM_DISABLE")
        for library in ("modelscope", "modelscope_hub"):  # what they would say, our sentences say
            logging.getLogger(library).setLevel(logging.CRITICAL)
        self._download: Any = client.snapshot_download
        self._library: Any = hub
        self._place = place
        self._cache = cache_root.expanduser() / "modelscope"
        config = hub.HubConfig(cache_dir=self._cache, config_dir=self._cache)
        hub.set_default_config(config)
        self._api: Any = hub.HubApi(config=config)
        self._endpoint = str(config.endpoint)

    def list_files(self) -> Listing:
        """Ask the hub for the files of the wanted revision, their sizes, SHA-256 and commits."""
        with self._explained():
            self._endpoint = self._api.resolve_endpoint_for_read(self._place.model_id)
            if self._endpoint != self._api.legacy.endpoint:
                self._api = self._library.HubApi(endpoint=self._endpoint)
            # The public wrapper drops each file's commit, which is the only revision worth recording.
            entries: list[dict[str, Any]] = self._api.legacy.list_repo_files(
                self._place.model_id, "model", revision=self._place.requested, recursive=True
            )
            files: dict[str, WeightFile] = {}
            commits: dict[str, tuple[int, str]] = {}
            for entry in entries:
                path, size_bytes = str(entry.get("Path") or ""), entry.get("Size")
                if entry.get("Type") == "tree" or not isinstance(size_bytes, int) or not is_inside(path):
                    continue
                files[path] = WeightFile(path=path, size_bytes=size_bytes, sha256=entry.get("Sha256") or None)
                if entry.get("Revision"):
                    commits[path] = (int(entry.get("CommittedDate") or 0), str(entry["Revision"]))
        return Listing(files=files, commits=commits)

    def download(
        self, missing: Sequence[WeightFile], files: Sequence[WeightFile], on_progress: OnProgress
    ) -> None:
        """Bring the missing files, going on in those that are there in part."""
        directory = self._place.directory
        partial_bytes = {file.path: size_of(partial_path(directory / file.path)) or 0 for file in missing}
        require_space(directory, sum(file.size_bytes - partial_bytes[file.path] for file in missing), "fetch")
        total_bytes = sum(file.size_bytes for file in files)
        there_bytes = total_bytes - sum(file.size_bytes for file in missing)
        meter = _Meter(partial_bytes, there_bytes, total_bytes, on_progress)
        with self._explained(len(missing)):
            self._download(
                model_id=self._place.model_id,
                revision=self._place.requested,
                # Both are given, so that no older cache layout the client finds elsewhere is taken for ours.
                cache_dir=str(self._cache),
                local_dir=str(directory),
                allow_patterns=[file.path for file in missing],
                max_workers=_FILES_AT_A_TIME,
                progress_callbacks=[meter.callback()],
                endpoint=self._endpoint,
            )

    @contextmanager
    def _explained(self, asked: int = 0) -> Generator[None]:
        """Turn what the client raises into a WeightsError with a repair."""
        try:
            yield
        except self._library.FileDownloadError as error:
            raise WeightsError(self._files_sentence(error, asked)) from error
        except self._library.HubError as error:
            raise WeightsError(self._sentence(error)) from error
        except (OSError, ValueError, TypeError, AttributeError) as error:
            if isinstance(
                error.__cause__, self._library.HubError
            ):  # a refused listing, wrapped for older callers
                raise WeightsError(self._sentence(error.__cause__)) from error
            if isinstance(error, OSError) and error.errno is not None:
                raise WeightsError(disk_sentence(self._place.directory, error)) from error
            raise WeightsError(
                f"{self._host} answered something that ModelScope's client cannot read "
                f"({type(error).__name__}); run {FETCH} again later."
            ) from error

    @property
    def _host(self) -> str:
        return urlsplit(self._endpoint).netloc or self._endpoint

    def _files_sentence(self, error: Any, asked: int) -> str:
        failed: dict[str, BaseException] = error.failed_files
        path, cause = next(iter(failed.items()))
        for name, other in failed.items():  # a full disk explains the rest; nothing explains a full disk
            if isinstance(other, OSError) and other.errno in _FULL_DISK:
                path, cause = name, other
        if (
            isinstance(cause, OSError)
            and cause.errno is not None
            and not isinstance(cause, self._library.HubError)
        ):
            return disk_sentence(self._place.directory, cause)
        number = f"{len(failed)} of {asked} files" if len(failed) > 1 else "one file"
        return (
            f"{number} of {self._place.model} did not arrive ({path}: {self._cause(cause)}); run {FETCH} "
            "again: what has arrived is kept."
        )

    def _sentence(self, error: Any) -> str:
        if isinstance(error, self._library.NotExistError):
            return (
                f"{self._host} has no model {self._place.model_id} with a revision {self._place.requested}; "
                "correct ZBOT_MODEL."
            )
        return (
            f"{self._place.model} cannot be fetched from {self._host}: {self._cause(error)}; run {FETCH} "
            "again: what has arrived is kept."
        )

    def _cause(self, error: Any) -> str:
        errors = self._library
        if isinstance(error, errors.AuthenticationError | errors.PermissionDeniedError):
            return "it wants an access token of yours in MODELSCOPE_API_TOKEN"
        if isinstance(error, errors.NotExistError):
            return "the hub lists it and does not have it (404)"
        if isinstance(error, errors.RateLimitError):
            return "the hub is asked too often (429), so wait some minutes"
        if isinstance(error, errors.FileIntegrityError):
            return "the hub sent other bytes than it lists"
        if isinstance(error, errors.RequestTimeoutError):
            return "the hub did not answer in time"
        if isinstance(error, errors.NetworkError):
            return "the connection could not be made or broke, so check the network or HTTPS_PROXY"
        if isinstance(error, errors.APIError):
            return f"the hub failed ({error.status_code})"
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason given'}"


class _Meter:
    """Adds up what the client's threads report for each file into one count for the whole."""

    def __init__(
        self, partial_bytes: Mapping[str, int], there_bytes: int, total_bytes: int, on_progress: OnProgress
    ) -> None:
        self._partial = dict(partial_bytes)  # counted from the start, so that resuming is no burst of speed
        self._received = dict.fromkeys(partial_bytes, 0)
        self._there_bytes = there_bytes
        self._total_bytes = total_bytes
        self._on_progress = on_progress
        self._lock = threading.Lock()
        self._tell("")

    def add(self, path: str, size_bytes: int) -> None:
        with self._lock:
            self._received[path] = self._received.get(path, 0) + size_bytes
            if size_bytes < 0:  # the client began this file anew
                self._partial[path] = 0
            self._tell(path)

    def _tell(self, path: str) -> None:
        files_bytes = sum(
            max(received, self._partial.get(name, 0)) for name, received in self._received.items()
        )
        self._on_progress(
            Progress(
                action="fetch",
                path=path,
                done_bytes=min(self._there_bytes + files_bytes, self._total_bytes),
                total_bytes=self._total_bytes,
            )
        )

    def callback(self) -> type:
        """Return the class the client makes one of for each file."""
        meter = self

        class Callback:
            def __init__(self, filename: str, file_size: int) -> None:
                self.filename = filename

            def update(self, size: int) -> None:
                meter.add(self.filename, size)

            def end(self) -> None:
                pass

        return Callback


def disk_sentence(directory: Path, error: OSError) -> str:
    """Return what the disk's refusal means and how to go on."""
    if error.errno in _FULL_DISK:
        return (
            f"The disk of {directory} is full; free some space on it and run {FETCH} again: it goes on where "
            "it stopped."
        )
    return (
        f"{error.filename or directory} cannot be written ({error.strerror or error}); mend its rights or "
        f"its disk and run {FETCH} again."
    )
