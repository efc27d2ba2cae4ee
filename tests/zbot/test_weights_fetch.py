"""The real ModelScope client against a loopback hub: what arrives, what is resumed, and what each fault says."""

import hashlib
import importlib
import itertools
import json
import os
import subprocess
import sys
import threading
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.hub import IMPATIENT_CLIENT, Fault, Hub, read_pipeline, read_tree, wait_until
from zbot import weights
from zbot.errors import WeightsError
from zbot.weights import cache, manifest

TINY = Path(weights.__file__).parent.parent / "models" / "tiny"
MODEL = "tests/tiny-z-image"
TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
NOT_OURS = {
    "README.md": b"# For people",
    "configuration.json": b"{}",
    ".gitattributes": b"* text",
    "assets/showcase.png": b"\x89PNG",
    "transformer/old.bin": b"pickled",
    "onnx/deep/model.json": b"{}",
}


@pytest.fixture(scope="module")
def tiny_files() -> dict[str, bytes]:
    return read_pipeline(TINY)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> Generator[None]:
    """Give each test the client's settings, and take back what `prepare_environment` sets."""
    before = dict(os.environ)
    for name, value in IMPATIENT_CLIENT.items():
        monkeypatch.setenv(name, value)
    yield
    monkeypatch.undo()
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def hub(tiny_files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Generator[Hub]:
    served = Hub(model=MODEL, files=tiny_files | NOT_OURS)
    with served.serving() as url:
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", url)
        yield served


@pytest.fixture
def root(tmp_path: Path) -> Path:
    directory = tmp_path / "cache"
    directory.mkdir()
    weights.prepare_environment(directory)
    return directory


def know_release(monkeypatch: pytest.MonkeyPatch, directory: Path, files: dict[str, bytes]) -> None:
    """Make zbot know these files as the model's release, with MD5 sums as a vendor gives them."""
    directory.mkdir()
    entries = [
        {"path": path, "bytes": len(content), "md5": hashlib.md5(content).hexdigest()}
        for path, content in files.items()
    ]
    (directory / "release.json").write_text(json.dumps({"model": MODEL, "files": entries}))
    monkeypatch.setattr(manifest, "PACKAGE_MODELS", directory)


def snapshot(root: Path) -> Path:
    return root / "modelscope/models/tests--tiny-z-image/snapshots/master"


def test_manifest_of_z_image_turbo_is_the_19_files_of_the_vendor() -> None:
    files = weights.known_manifest("Tongyi-MAI/Z-Image-Turbo")
    assert files is not None
    assert len(files) == 19
    assert sum(file.size_bytes for file in files) == 32_848_305_533
    assert sum(file.md5 is not None for file in files) == 16
    assert sum(file.path.endswith(".safetensors") for file in files) == 7


def test_fetch_brings_the_pipelines_files_only_and_records_the_commit(
    hub: Hub, root: Path, tiny_files: dict[str, bytes]
) -> None:
    files = weights.fetch(MODEL, root)
    assert sorted(hub.fetched()) == sorted(tiny_files)
    assert {
        path: data for path, data in read_tree(files.directory).items() if path != "zbot.json"
    } == tiny_files
    assert files == weights.locate(MODEL, root)
    assert (files.directory, files.revision, files.dtype) == (snapshot(root), hub.commit, "bfloat16")
    record = json.loads((files.directory / "zbot.json").read_text())
    assert (record["model"], record["requested"], record["revision"]) == (MODEL, "master", hub.commit)
    assert record["complete"] is True
    assert {file["path"]: file["sha256"] for file in record["files"]} == {
        path: hashlib.sha256(content).hexdigest() for path, content in tiny_files.items()
    }


def test_fetch_of_a_known_release_asks_for_its_manifest_and_nothing_else(
    hub: Hub, root: Path, tiny_files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    know_release(monkeypatch, tmp_path / "known", tiny_files)
    hub.files["transformer/newer_variant.safetensors"] = b"not of the release"
    weights.fetch(MODEL, root)
    assert sorted(hub.fetched()) == sorted(tiny_files)


def test_a_whole_model_is_not_asked_for_again(hub: Hub, root: Path) -> None:
    weights.fetch(MODEL, root)
    hub.requests.clear()
    weights.fetch(MODEL, root)
    assert hub.requests == []


def test_a_revision_can_be_named_and_has_its_own_place(hub: Hub, root: Path) -> None:
    files = weights.fetch(f"{MODEL}@{hub.commit}", root)
    assert files.directory.name == hub.commit
    with pytest.raises(WeightsError, match="not in the cache"):
        weights.locate(MODEL, root)


def fetch_command(root: Path, url: str, *arguments: str) -> subprocess.Popen[str]:
    environment = os.environ | {
        "MODELSCOPE_ENDPOINT": url,
        "ZBOT_MODEL": MODEL,
        "ZBOT_CACHE_DIR": str(root),
        "PYTHONPATH": str(TINY.parents[2]),
    }
    code = "from zbot.cli.weights import app; app()"
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env=environment,
        cwd=root,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_a_killed_fetch_goes_on_at_the_byte_where_it_stopped(
    hub: Hub, root: Path, tiny_files: dict[str, bytes]
) -> None:
    hub.faults.append(Fault(TRANSFORMER, hold=threading.Event(), hold_after_bytes=3_000_000))
    partial = snapshot(root) / f"{TRANSFORMER}.incomplete"
    others = {path for path in tiny_files if path != TRANSFORMER}
    with fetch_command(root, hub.url, "fetch") as first:
        try:
            assert hub.held.wait(30)
            # The client's buffer may keep the last few kilobytes back when it is killed.
            wait_until(lambda: partial.exists() and partial.stat().st_size > 2_900_000)
            wait_until(lambda: all((snapshot(root) / path).exists() for path in others))
        finally:
            first.kill()
    stopped_at = partial.stat().st_size
    with pytest.raises(WeightsError, match=r"only partly fetched \(10 of 11 files.*weights fetch"):
        weights.locate(MODEL, root)

    hub.requests.clear()
    with fetch_command(root, hub.url, "fetch") as second:
        out, err = second.communicate(timeout=60)
    assert second.returncode == 0, err
    assert [(request.file, request.range_start) for request in hub.requests if request.file] == [
        (TRANSFORMER, stopped_at)
    ]
    assert sum(request.sent_bytes for request in hub.requests) == len(tiny_files[TRANSFORMER]) - stopped_at
    assert (snapshot(root) / TRANSFORMER).read_bytes() == tiny_files[TRANSFORMER]
    assert str(snapshot(root)) in out


def test_trap_an_interrupted_download_is_never_taken_for_a_whole_one(
    hub: Hub, root: Path, tiny_files: dict[str, bytes]
) -> None:
    hub.faults.append(Fault(VAE, times=99, status=503))
    with pytest.raises(WeightsError):
        weights.fetch(MODEL, root)
    # Even when every file has come to its place with its size, as a preallocating tool leaves them.
    (snapshot(root) / VAE).write_bytes(bytes(len(tiny_files[VAE])))
    with pytest.raises(WeightsError, match="only partly fetched"):
        weights.locate(MODEL, root)
    assert weights.status(MODEL, root).original.state == "unfinished"
    hub.faults.clear()
    weights.fetch(MODEL, root)
    assert (snapshot(root) / VAE).read_bytes() == tiny_files[VAE]


def test_a_cut_connection_is_resumed_within_the_same_fetch(
    hub: Hub, root: Path, tiny_files: dict[str, bytes]
) -> None:
    hub.faults.append(Fault(TRANSFORMER, cut_after_bytes=1_500_000))
    files = weights.fetch(MODEL, root)
    starts = [request.range_start for request in hub.requests if request.file == TRANSFORMER]
    assert starts == [None, 1_500_000]
    assert (files.directory / TRANSFORMER).read_bytes() == tiny_files[TRANSFORMER]


def test_a_connection_cut_again_and_again_is_named_and_what_arrived_is_kept(hub: Hub, root: Path) -> None:
    hub.faults.append(Fault(TRANSFORMER, times=99, cut_after_bytes=1_000_000))
    with pytest.raises(WeightsError, match=rf"{TRANSFORMER}: the connection.*weights fetch` again"):
        weights.fetch(MODEL, root)
    arrived = (snapshot(root) / f"{TRANSFORMER}.incomplete").stat().st_size
    assert arrived >= 1_000_000
    hub.faults.clear()
    hub.requests.clear()
    weights.fetch(MODEL, root)
    assert [(request.file, request.range_start) for request in hub.requests if request.file] == [
        (TRANSFORMER, arrived)
    ]


def test_wrong_bytes_are_thrown_away_and_asked_for_again(
    hub: Hub, root: Path, tiny_files: dict[str, bytes]
) -> None:
    hub.faults.append(Fault(VAE, content=bytes(len(tiny_files[VAE]))))
    files = weights.fetch(MODEL, root)
    assert (files.directory / VAE).read_bytes() == tiny_files[VAE]
    assert hub.fetched().count(VAE) == 2


def test_wrong_bytes_that_keep_coming_are_named_and_never_lie_under_the_files_name(
    hub: Hub, root: Path, tiny_files: dict[str, bytes]
) -> None:
    hub.faults.append(Fault(VAE, times=99, content=bytes(len(tiny_files[VAE]))))
    with pytest.raises(WeightsError, match=f"{VAE}: the hub sent other bytes"):
        weights.fetch(MODEL, root)
    assert not (snapshot(root) / VAE).exists()


def test_the_vendors_md5_catches_what_the_hub_calls_right(
    hub: Hub, root: Path, tiny_files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    know_release(monkeypatch, tmp_path / "known", tiny_files)
    changed = bytearray(tiny_files[VAE])
    changed[-1] ^= 1
    hub.files[VAE] = bytes(changed)
    with pytest.raises(WeightsError, match=rf"{VAE} is damaged.*MD5.*--any-version"):
        weights.fetch(MODEL, root)
    with pytest.raises(WeightsError, match="only partly fetched"):
        weights.locate(MODEL, root)
    files = weights.fetch(MODEL, root, any_version=True)
    assert (files.directory / VAE).read_bytes() == changed


def test_wrong_bytes_are_caught_where_the_hub_lists_no_checksum(
    hub: Hub, root: Path, tiny_files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    know_release(monkeypatch, tmp_path / "known", tiny_files)
    hub.lists_sha256 = False
    hub.faults.append(Fault(VAE, content=bytes(len(tiny_files[VAE]))))
    files = weights.fetch(MODEL, root)
    assert hub.fetched().count(VAE) == 2
    assert (files.directory / VAE).read_bytes() == tiny_files[VAE]


def test_a_changed_release_is_refused_before_the_first_byte(
    hub: Hub, root: Path, tiny_files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    know_release(monkeypatch, tmp_path / "known", tiny_files)
    hub.files[VAE] += b"more"
    with pytest.raises(WeightsError, match=rf"{VAE} .* on the hub .*--any-version"):
        weights.fetch(MODEL, root)
    assert hub.fetched() == []


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (Fault(VAE, times=99, status=404), rf"{VAE}: the hub lists it and does not have it \(404\)"),
        (Fault(VAE, times=99, status=429, retry_after_s=0), rf"{VAE}: the hub is asked too often \(429\)"),
        (Fault(VAE, times=99, status=503), rf"{VAE}: the hub failed \(503\)"),
        (Fault(VAE, times=99, status=403), rf"{VAE}: it wants an access token"),
        (Fault("", times=99, status=404), "has no model tests/tiny-z-image with a revision master"),
        (Fault("", times=99, status=429, retry_after_s=0), r"asked too often \(429\)"),
        (Fault("", times=99, status=502), r"the hub failed \(502\)"),
        (Fault("", times=99, status=401), "MODELSCOPE_API_TOKEN"),
        (Fault("", times=99, body=b"<html>a captive portal</html>"), "cannot read"),
        (Fault("", times=99, body=b'{"Data": {"Files": ["x", 3]}}'), "cannot read"),
        (Fault("", times=99, body=b'{"Data": {"Files": []}}'), "no model_index.json"),
    ],
    ids=lambda value: (
        value if isinstance(value, str) else f"{value.file or 'listing'}-{value.status or 'body'}"
    ),
)
def test_what_the_hub_refuses_is_one_sentence_with_its_repair(
    hub: Hub, root: Path, fault: Fault, says: str
) -> None:
    hub.faults.append(fault)
    with pytest.raises(WeightsError, match=says) as caught:
        weights.fetch(MODEL, root)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    hub.faults.clear()
    weights.fetch(MODEL, root)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_passing_refusal_is_waited_out(hub: Hub, root: Path, status: int) -> None:
    hub.faults += [Fault(VAE, status=status, retry_after_s=0), Fault("", status=status, retry_after_s=0)]
    weights.fetch(MODEL, root)
    assert hub.fetched().count(VAE) == 2


def test_a_hub_that_is_not_there_is_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(WeightsError, match=r"cannot be fetched from 127.0.0.1:9: the connection"):
        weights.fetch(MODEL, root)


def test_too_small_a_disk_is_refused_before_the_first_byte(
    hub: Hub, root: Path, tiny_files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = sum(map(len, tiny_files.values())) + cache.RESERVE_BYTES
    monkeypatch.setattr(cache, "free_bytes", lambda directory: needed - 1)
    with pytest.raises(WeightsError, match=r"has .* free and `weights fetch` needs .*; free "):
        weights.fetch(MODEL, root)
    assert hub.fetched() == []
    monkeypatch.setattr(cache, "free_bytes", lambda directory: needed)
    weights.fetch(MODEL, root)


def test_space_that_is_filled_already_is_not_asked_for_again(
    hub: Hub, root: Path, tiny_files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.faults.append(Fault(TRANSFORMER, times=99, cut_after_bytes=1_000_000))
    with pytest.raises(WeightsError):
        weights.fetch(MODEL, root)
    hub.faults.clear()
    arrived = (snapshot(root) / f"{TRANSFORMER}.incomplete").stat().st_size
    left = len(tiny_files[TRANSFORMER]) - arrived
    monkeypatch.setattr(cache, "free_bytes", lambda directory: left + cache.RESERVE_BYTES)
    weights.fetch(MODEL, root)


@pytest.fixture
def small_disk(tmp_path: Path) -> Generator[Path]:
    """A real file system of 8 MB."""
    directory = tmp_path / "disk"
    directory.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(directory)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a tmpfs needs the right to mount")
    try:
        yield directory
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], check=True)


def test_a_disk_that_fills_up_meanwhile_is_named_and_the_fetch_goes_on_later(
    hub: Hub, small_disk: Path, tiny_files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    weights.prepare_environment(small_disk)
    monkeypatch.setattr(
        cache, "free_bytes", lambda directory: 10**12
    )  # as if somebody else filled it just now
    with pytest.raises(WeightsError, match=r"is full; free some space on it and run .*weights fetch"):
        weights.fetch(MODEL, small_disk)
    with pytest.raises(WeightsError, match="only partly fetched"):
        weights.locate(MODEL, small_disk)
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    files = weights.fetch(MODEL, small_disk)
    assert (files.directory / TRANSFORMER).read_bytes() == tiny_files[TRANSFORMER]


def test_verify_names_each_file_and_fetch_brings_only_those_again(
    hub: Hub, root: Path, tiny_files: dict[str, bytes]
) -> None:
    directory = weights.fetch(MODEL, root).directory
    assert [found.problems for found in weights.verify(MODEL, root)] == [()]
    with (directory / VAE).open("r+b") as stream:  # same size, one bit of one number
        stream.seek(-1, os.SEEK_END)
        stream.write(bytes([tiny_files[VAE][-1] ^ 1]))
    (directory / "tokenizer/tokenizer.json").write_bytes(tiny_files["tokenizer/tokenizer.json"][:-5])
    (directory / "vae/config.json").unlink()
    (found,) = weights.verify(MODEL, root)
    assert {(problem.path, problem.kind) for problem in found.problems} == {
        (VAE, "damaged"),
        ("tokenizer/tokenizer.json", "short"),
        ("vae/config.json", "missing"),
    }
    with pytest.raises(WeightsError, match=r"damaged files \(.*vae/diffusion.*weights fetch"):
        weights.locate(MODEL, root)

    hub.requests.clear()
    weights.fetch(MODEL, root)
    assert sorted(hub.fetched()) == ["tokenizer/tokenizer.json", "vae/config.json", VAE]
    assert [found.problems for found in weights.verify(MODEL, root)] == [()]


def test_files_put_into_the_cache_by_hand_are_refused_until_verified(
    root: Path, tiny_files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    know_release(monkeypatch, tmp_path / "known", tiny_files)
    for path, content in tiny_files.items():
        target = snapshot(root) / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    with pytest.raises(WeightsError, match=r"nobody has checked them; run .*weights verify"):
        weights.locate(MODEL, root)
    assert [found.problems for found in weights.verify(MODEL, root)] == [()]
    assert weights.locate(MODEL, root).revision.startswith("local-")


def test_a_second_fetch_at_the_same_time_is_refused(hub: Hub, root: Path) -> None:
    release = threading.Event()
    hub.faults.append(Fault(TRANSFORMER, hold=release, hold_after_bytes=1000))
    failures: list[BaseException] = []

    def first() -> None:
        try:
            weights.fetch(MODEL, root)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=first)
    thread.start()
    try:
        assert hub.held.wait(30)
        for command in (weights.fetch, weights.verify, weights.convert):
            with pytest.raises(
                WeightsError, match=rf"worked on by `weights fetch` \(process {os.getpid()}\)"
            ):
                command(MODEL, root)
    finally:
        release.set()
        thread.join()
    assert failures == []
    weights.locate(MODEL, root)


def test_progress_counts_every_byte_once_and_begins_with_what_is_there(
    hub: Hub, root: Path, tiny_files: dict[str, bytes]
) -> None:
    total = sum(map(len, tiny_files.values()))
    hub.faults.append(Fault(TRANSFORMER, times=99, cut_after_bytes=1_000_000))
    seen: list[weights.Progress] = []
    with pytest.raises(WeightsError):
        weights.fetch(MODEL, root, seen.append)
    assert [seen[0].done_bytes, seen[0].total_bytes] == [0, total]
    arrived = (snapshot(root) / f"{TRANSFORMER}.incomplete").stat().st_size
    hub.faults.clear()
    seen.clear()
    weights.fetch(MODEL, root, seen.append)
    fetched = [progress.done_bytes for progress in seen if progress.action == "fetch"]
    assert fetched[0] == total - len(tiny_files[TRANSFORMER]) + arrived
    assert fetched == sorted(fetched)
    assert fetched[-1] == total
    verified = [progress.done_bytes for progress in seen if progress.action == "verify"]
    assert verified == sorted(verified)
    assert verified[-1] == total


def test_a_hub_that_ignores_ranges_begins_the_file_anew_and_the_count_says_so(
    hub: Hub, root: Path, tiny_files: dict[str, bytes]
) -> None:
    hub.honours_ranges = False
    hub.faults.append(Fault(TRANSFORMER, cut_after_bytes=9_000_000))
    seen: list[weights.Progress] = []
    files = weights.fetch(MODEL, root, seen.append)
    assert (files.directory / TRANSFORMER).read_bytes() == tiny_files[TRANSFORMER]
    fetched = [progress.done_bytes for progress in seen if progress.action == "fetch"]
    assert min(after - before for before, after in itertools.pairwise(fetched)) == -9_000_000
    assert fetched[-1] == sum(map(len, tiny_files.values()))


def test_a_listing_cannot_lead_out_of_the_models_directory(
    hub: Hub, root: Path, tiny_files: dict[str, bytes]
) -> None:
    hub.files |= {
        "../stolen.json": b"{}",
        "../../stolen.json": b"{}",
        "transformer/../../../x.json": b"{}",
        "/etc/x.json": b"{}",
    }
    weights.fetch(MODEL, root)
    assert sorted(hub.fetched()) == sorted(tiny_files)


def test_the_client_keeps_everything_under_the_cache_root(
    hub: Hub, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    with fetch_command(root, hub.url, "fetch") as command:
        _, err = command.communicate(timeout=60)
    assert command.returncode == 0, err
    assert list(home.rglob("*")) == []


def modelscopes_own(call: str) -> Path:
    """Run the `modelscope` package itself with the environment zbot gives every library, and return its answer."""
    program = f"from modelscope import snapshot_download; print(snapshot_download({MODEL!r}, {call}))"
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return Path(ran.stdout.splitlines()[-1])


def test_modelscopes_own_client_finds_what_fetch_brought(hub: Hub, root: Path) -> None:
    files = weights.fetch(MODEL, root)
    hub.requests.clear()
    assert modelscopes_own("local_files_only=True") == files.directory
    assert hub.requests == []
    # Also online it takes every file for its own and brings only what zbot left out.
    assert modelscopes_own("") == files.directory
    assert sorted(hub.fetched()) == sorted(NOT_OURS)
    assert weights.locate(MODEL, root) == files


def test_what_modelscopes_own_client_brought_is_checked_by_fetch_and_not_brought_again(
    hub: Hub, root: Path, tiny_files: dict[str, bytes]
) -> None:
    directory = modelscopes_own("")
    assert directory == snapshot(root)
    with pytest.raises(WeightsError, match=r"weights fetch"):
        weights.locate(MODEL, root)  # that client calls half a model whole as well
    hub.requests.clear()
    files = weights.fetch(MODEL, root)
    assert hub.fetched() == []
    assert (files.directory, files.revision) == (directory, hub.commit)
    assert modelscopes_own("local_files_only=True") == directory


def test_fetch_brings_the_files_with_modelscopes_own_snapshot_download(
    hub: Hub, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = importlib.import_module("modelscope.hub.snapshot_download")
    asked: list[object] = []
    real = client.snapshot_download

    def watched(*args: object, **kwargs: object) -> str:
        asked.append(kwargs["model_id"])
        return real(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(client, "snapshot_download", watched)
    weights.fetch(MODEL, root)
    assert asked == [MODEL]


def test_fetch_refuses_what_is_not_on_a_hub(root: Path) -> None:
    with pytest.raises(WeightsError, match="tiny is not fetched"):
        weights.fetch("tiny", root)
