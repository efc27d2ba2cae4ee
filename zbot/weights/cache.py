"""The one cache root: its environment variables, its places, its lock and its free space."""

import errno
import fcntl
import logging
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from zbot.errors import WeightsError
from zbot.weights.manifest import PACKAGE_MODELS

log = logging.getLogger(__name__)

CACHE_SETTING = "ZBOT_CACHE_DIR"
MODEL_SETTING = "ZBOT_MODEL"
TINY = "tiny"  # ships with zbot and needs no cache
DEFAULT_REVISION = "master"  # ModelScope's default branch
# What the database, the pictures and the log may still need on the same disk while weights are being written.
RESERVE_BYTES = 256 * 1024 * 1024

# Each of these would lead a library out of the one root although HF_HOME and MODELSCOPE_CACHE are set.
_STRAY_VARIABLES = (
    "HUGGINGFACE_HUB_CACHE",
    "HF_ASSETS_CACHE",
    "HF_MODULES_CACHE",
    "HF_XET_CACHE",
    "TRANSFORMERS_CACHE",
    "PYTORCH_TRANSFORMERS_CACHE",
    "DIFFUSERS_CACHE",
    "MS_CACHE_HOME",
    "MODELSCOPE_CREDENTIALS_PATH",
)
# Where the person's shell pointed before; `status` looks there for a second copy.
_OUTER_CACHE = "MODELSCOPE_CACHE_BEFORE_ZBOT"
_MODEL_ID = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([A-Za-z0-9][\w.-]*))?")


class Origin(Enum):
    """Where a model's files come from, and so who can mend them."""

    PACKAGE = "package"  # ships with zbot: the tiny model
    DIRECTORY = "directory"  # somebody's own directory
    HUB = "hub"  # fetched from ModelScope into the cache root


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a model's files belong, whether they are there or not.

    `home` is what `move` moves: the directory of all revisions and conversions of a hub model. `converted` is
    where the bf16 copy of `directory` belongs.
    """

    model: str
    origin: Origin
    directory: Path
    converted: Path
    home: Path
    requested: str = ""

    @property
    def model_id(self) -> str:
        """Return the ModelScope id without its revision."""
        return self.model.partition("@")[0]


def prepare_environment(cache_root: Path) -> None:
    """Point ModelScope and Hugging Face at one cache root and close their ways to the network.

    Call it before either library is imported, in the process that imports them or in one of its parents. The
    root itself is created when only it is missing; a missing parent is reported, since it is more often a
    disk that is not mounted than a directory somebody forgot.

    Raises: WeightsError when the root is relative, missing, not a directory or not writable.
    """
    root = check_cache_root(cache_root)
    modelscope, hugging_face = root / "modelscope", root / "huggingface"
    outer = os.environ.get("MODELSCOPE_CACHE")
    if outer and Path(outer) != modelscope:
        os.environ[_OUTER_CACHE] = outer
        log.info(
            "MODELSCOPE_CACHE was %s; zbot keeps its models under %s and reads only those", outer, modelscope
        )
    wanted = {
        "MODELSCOPE_CACHE": str(modelscope),
        "MODELSCOPE_HOME": str(modelscope),
        "HF_HOME": str(hugging_face),
        "HF_HUB_CACHE": str(hugging_face / "hub"),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "DIFFUSERS_DISABLE_REMOTE_CODE": "1",
        "DO_NOT_TRACK": "1",
    }
    late = [name for name in ("huggingface_hub", "modelscope_hub") if name in sys.modules]
    if late and any(os.environ.get(name) != value for name, value in wanted.items()):
        log.warning(
            "%s was imported before the cache root was set and may keep another one", " and ".join(late)
        )
    os.environ.update(wanted)
    for name in _STRAY_VARIABLES:
        os.environ.pop(name, None)


def check_cache_root(cache_root: Path) -> Path:
    """Return the cache root when it can hold models, making its last directory if only that is missing.

    Raises: WeightsError naming what is wrong with it and the repair.
    """
    root = cache_root.expanduser()
    if not root.is_absolute():
        raise WeightsError(
            f"The cache directory {str(cache_root)!r} is a relative path, which means another place after a "
            f"restart from elsewhere; set {CACHE_SETTING}={Path.cwd() / root} or another absolute path."
        )
    if root.is_symlink() and not root.exists():
        raise WeightsError(
            f"The cache directory {root} is a link to {root.readlink()}, which is not there; mount that "
            f"disk or set {CACHE_SETTING} to a directory that exists."
        )
    if root.exists() and not root.is_dir():
        raise WeightsError(
            f"The cache directory {root} is a file; move it away or set {CACHE_SETTING} to a directory."
        )
    try:
        root.mkdir(exist_ok=True)
    except FileNotFoundError as error:
        raise WeightsError(
            f"The cache directory {root} is missing and so is {root.parent}; if it is on a disk of its own, "
            f"mount that disk, else run `mkdir -p {root}`."
        ) from error
    except OSError as error:
        raise WeightsError(
            f"The cache directory {root} cannot be made ({error.strerror}); make it as an administrator and "
            f"give it to the account zbot runs as, or set {CACHE_SETTING} to a directory of that account."
        ) from error
    try:
        # Asking os.access would lie on read-only mounts and for root; writing does not.
        with tempfile.TemporaryFile(dir=root):
            pass
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise WeightsError(
                f"The disk of the cache directory {root} is full; free some space on it."
            ) from error
        raise WeightsError(
            f"The cache directory {root} cannot be written to ({error.strerror}); mount it writable, or run "
            f"`chown -R {os.geteuid()} {root}`, or set {CACHE_SETTING} to another directory."
        ) from error
    return root


def find_place(model: str, cache_root: Path) -> Place:
    """Return where a model's files belong.

    `model` is `tiny`, an absolute path, or a ModelScope id such as `Tongyi-MAI/Z-Image-Turbo`, with
    `@REVISION` behind it when another revision than the main branch is wanted.

    Raises: WeightsError when it is none of these, or the cache root is relative.
    """
    root = cache_root.expanduser()
    if not root.is_absolute():
        check_cache_root(cache_root)  # raises, saying what to write
    if model == TINY:
        directory = PACKAGE_MODELS / "tiny"
        return Place(
            model=model, origin=Origin.PACKAGE, directory=directory, converted=directory, home=directory
        )
    if model.startswith(("/", ".", "~")):
        directory = Path(model).expanduser()
        if not directory.is_absolute():
            raise WeightsError(
                f"{MODEL_SETTING}={model} is a relative path, which means another place after a restart from "
                f"elsewhere; write {(Path.cwd() / directory).resolve()}."
            )
        converted = directory.with_name(f"{directory.name}.bf16")
        return Place(
            model=model, origin=Origin.DIRECTORY, directory=directory, converted=converted, home=directory
        )
    match = _MODEL_ID.fullmatch(model)
    if match is None:
        raise WeightsError(
            f"{MODEL_SETTING}={model} is neither `tiny`, nor an absolute path, nor a ModelScope id such as "
            "Tongyi-MAI/Z-Image-Turbo; correct it."
        )
    model_id, revision = match[1], match[2] or DEFAULT_REVISION
    home = models_directory(root) / model_id.replace("/", "--")
    return Place(
        model=model,
        origin=Origin.HUB,
        directory=home / "snapshots" / revision,
        converted=home / "bf16" / revision,
        home=home,
        requested=revision,
    )


def is_absent(place: Place) -> bool:
    """Say whether nothing of a model is in the cache, not even what an interrupted `move` set aside."""
    return not place.home.exists() and not aside(place.home).is_dir()


def models_directory(cache_root: Path) -> Path:
    """Return the directory of all ModelScope models: ModelScope's own layout, so its tools find them too."""
    return cache_root / "modelscope" / "models"


def aside(home: Path) -> Path:
    """Return the name under which `move` sets a model's old directory aside while it switches."""
    return home.with_name(f"{home.name}.moved")


@contextmanager
def working_on(place: Place, command: str) -> Generator[None]:
    """Hold the right to change a model's files; end what an interrupted `move` left.

    The lock is the kernel's: it goes with its process, so nothing needs cleaning up after a crash.

    Raises: WeightsError when another process holds it.
    """
    directory = place.home.parent
    try:
        directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(
            directory / f".{place.home.name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644
        )
    except OSError as error:
        raise WeightsError(
            f"{directory} cannot be written to ({error.strerror}); mount it writable or give it to the "
            f"account that runs `python -m zbot weights {command}`."
        ) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(descriptor, 100, 0).decode(errors="replace").strip() or "another process"
            raise WeightsError(
                f"{place.model} is being worked on by {holder}; wait until it has ended, then run "
                f"`python -m zbot weights {command}` again."
            ) from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"`weights {command}` (process {os.getpid()})\n".encode(), 0)
        _end_interrupted_move(place.home)
        yield
    finally:
        os.close(descriptor)


def _end_interrupted_move(home: Path) -> None:
    old = aside(home)
    if not old.is_dir():
        return
    if home.is_symlink():  # the switch was made, and only ever to a verified copy
        shutil.rmtree(old)
    elif not home.exists():
        old.rename(home)


def free_bytes(directory: Path) -> int:
    """Return how many bytes this account may still write on the disk of a directory that exists."""
    return shutil.disk_usage(directory).free


def require_space(directory: Path, needed_bytes: int, command: str) -> None:
    """Refuse to begin what the disk cannot hold, a reserve for everything else on it included.

    Raises: WeightsError saying how much is missing.
    """
    available = free_bytes(directory)
    lacking = needed_bytes + RESERVE_BYTES - available
    if needed_bytes and lacking > 0:
        raise WeightsError(
            f"The disk of {directory} has {gigabytes(available)} free and `weights {command}` needs "
            f"{gigabytes(needed_bytes + RESERVE_BYTES)}; free {gigabytes(lacking)} on it, or set "
            f"{CACHE_SETTING} to a larger disk."
        )


def gigabytes(size_bytes: int) -> str:
    """Say a size for people: decimal gigabytes, as disks are sold, or megabytes when small."""
    return f"{size_bytes / 1e9:,.2f} GB" if size_bytes >= 1e8 else f"{size_bytes / 1e6:,.1f} MB"


def other_copies(place: Place) -> tuple[Path, ...]:
    """Return directories outside the cache root, or in an older layout, that hold this hub model as well.

    zbot never reads them by itself: of two copies that disagree, the one being served must be the one it
    says.
    """
    if place.origin is not Origin.HUB:
        return ()
    owner, _, name = place.model_id.partition("/")
    roots = [place.home.parent.parent, Path.home() / ".cache" / "modelscope"]
    if outer := os.environ.get(_OUTER_CACHE):
        roots.insert(1, Path(outer).absolute())
    candidates: list[Path] = []
    # Another person's home is none of ours; a container's user often has the builder's in HOME.
    for root in (root for root in roots if os.access(root, os.R_OK | os.X_OK)):
        candidates += sorted((root / "models" / f"{owner}--{name}" / "snapshots").glob("*"))
        # ModelScope up to 1.37 wrote dots as three underscores and had a "hub" level by default.
        candidates += [root / level / "models" / owner / name.replace(".", "___") for level in (".", "hub")]
        candidates.append(root / owner / name.replace(".", "___"))
    hugging_face = Path.home() / ".cache/huggingface/hub"
    if os.access(hugging_face, os.R_OK | os.X_OK):
        candidates += sorted((hugging_face / f"models--{owner}--{name}" / "snapshots").glob("*"))
    own = place.directory.resolve()
    found = {path.resolve(): None for path in candidates if (path / "model_index.json").is_file()}
    return tuple(path for path in found if path != own and not path.is_relative_to(place.home.resolve()))
