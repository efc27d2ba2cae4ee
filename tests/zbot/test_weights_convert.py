"""The bf16 copy: equal to torch's rounding bit for bit, compared before it is used, and made in little memory."""

import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.hub import Hub, read_pipeline
from zbot import weights
from zbot.errors import WeightsError
from zbot.weights import bfloat16, cache, tensors

TINY = Path(weights.__file__).parent.parent / "models" / "tiny"
INDEX = "transformer/diffusion_pytorch_model.safetensors.index.json"
SHARD = "transformer/diffusion_pytorch_model-0000{}-of-00003.safetensors"


def write_tensors(path: Path, arrays: dict[str, tuple[str, np.ndarray[Any, Any]]]) -> None:
    """Write a safetensors file; `arrays` gives (dtype name, array) by tensor name, bf16 as uint16."""
    head: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, (dtype, array) in arrays.items():
        head[name] = {
            "dtype": dtype,
            "shape": list(array.shape),
            "data_offsets": [position, position + array.nbytes],
        }
        position += array.nbytes
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for _, array in arrays.values():
            stream.write(array.tobytes())


def read_tensors(path: Path) -> dict[str, tuple[str, np.ndarray[Any, Any]]]:
    kinds = {"F32": "<f4", "BF16": "<u2", "I64": "<i8", "F16": "<f2", "F64": "<f8"}
    data = path.read_bytes()
    return {
        span.name: (
            span.dtype,
            np.frombuffer(data[span.start : span.end], kinds[span.dtype]).reshape(span.shape),
        )
        for span in tensors.read_spans(path)[0]
    }


def widen(bits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return (bits.astype("<u4") << 16).view("<f4")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The tiny model with its transformer stored as the real one is: float32, three shards and an index."""
    directory = tmp_path / "model"
    shutil.copytree(TINY, directory)
    for path in (directory, *directory.rglob("*")):
        path.chmod(path.stat().st_mode | 0o200)
    single = directory / "transformer/diffusion_pytorch_model.safetensors"
    rng = np.random.default_rng(7)
    wide: list[dict[str, tuple[str, np.ndarray[Any, Any]]]] = [{}, {}, {}]
    for number, (name, (_, bits)) in enumerate(read_tensors(single).items()):
        noise = 1 + rng.uniform(-1e-3, 1e-3, bits.shape).astype("<f4")  # so that rounding has something to do
        wide[number * 3 // 200 % 3][name] = ("F32", widen(bits) * noise)
    single.unlink()
    for number, arrays in enumerate(wide, 1):
        write_tensors(directory / SHARD.format(number), arrays)
    total = sum(array.nbytes for arrays in wide for _, array in arrays.values())
    shard_of = {name: Path(SHARD.format(n)).name for n, arrays in enumerate(wide, 1) for name in arrays}
    (directory / INDEX).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": shard_of}))
    return directory


def test_rounding_is_torchs_bit_for_bit() -> None:
    import torch

    rng = np.random.default_rng(1)
    bits = rng.integers(0, 2**32, 1_000_000, dtype=np.uint32)
    edges = [
        0,
        1,
        0x8000,
        0x18000,
        0x7FFF,
        0x8001,
        0x3F808000,
        0x3F818000,
        0x7F7FFFFF,
        0x7F800000,
        0xFF800000,
    ]
    bits[: len(edges)] = edges
    numbers = bits.view(np.float32)
    ours = np.asarray(bfloat16.to_bf16(memoryview(numbers.tobytes()), "F32"))
    theirs = torch.from_numpy(numbers.copy()).to(torch.bfloat16).view(torch.uint16).numpy()
    is_nan = np.isnan(numbers)
    assert np.array_equal(ours[~is_nan], theirs[~is_nan])
    assert np.isnan(widen(ours[is_nan])).all()


def test_convert_writes_every_tensor_as_the_nearest_bf16_and_shares_the_rest(
    model: Path, tmp_path: Path
) -> None:
    before = weights.locate(str(model), tmp_path)
    assert before.dtype == "float32"
    after = weights.convert(str(model), tmp_path)
    assert after.directory == model.with_name("model.bf16")
    assert (after.dtype, after.revision) == ("bfloat16", before.revision)
    assert weights.locate(str(model), tmp_path) == after
    for number in (1, 2, 3):
        old, new = (
            read_tensors(model / SHARD.format(number)),
            read_tensors(after.directory / SHARD.format(number)),
        )
        assert old.keys() == new.keys()
        for name, (_, numbers) in old.items():
            dtype, bits = new[name]
            assert (dtype, bits.shape) == ("BF16", numbers.shape)
            for other in (bits - 1, bits + 1):  # no neighbour is nearer
                assert np.all(np.abs(widen(bits) - numbers) <= np.abs(widen(other) - numbers))
    old_index, new_index = (json.loads((place / INDEX).read_text()) for place in (model, after.directory))
    assert new_index["weight_map"] == old_index["weight_map"]
    assert new_index["metadata"]["total_size"] == old_index["metadata"]["total_size"] // 2
    shared = "vae/diffusion_pytorch_model.safetensors"
    assert (after.directory / shared).samefile(model / shared)
    assert [found.problems for found in weights.verify(str(model), tmp_path)] == [(), ()]


def test_convert_is_done_once(model: Path, tmp_path: Path) -> None:
    first = weights.convert(str(model), tmp_path)
    stamp = (first.directory / INDEX).stat().st_mtime_ns
    assert weights.convert(str(model), tmp_path) == first
    assert (first.directory / INDEX).stat().st_mtime_ns == stamp


def test_a_bf16_model_needs_no_conversion(tmp_path: Path) -> None:
    directory = tmp_path / "tiny-copy"
    shutil.copytree(TINY, directory)
    assert weights.convert(str(directory), tmp_path).directory == directory
    assert not directory.with_name("tiny-copy.bf16").exists()


def test_other_number_kinds_are_kept_and_stay_aligned(model: Path, tmp_path: Path) -> None:
    arrays: dict[str, tuple[str, np.ndarray[Any, Any]]] = {
        "narrow": ("BF16", np.arange(2, dtype="<u2")),
        "odd": ("F32", np.arange(5, dtype="<f4") / 3),
        "steps": ("I64", np.arange(4, dtype="<i8")),
        "half": ("F16", np.array([1e-7, 0.1, 65504], dtype="<f2")),
        "double": ("F64", np.array([1 / 3, 1e-300, -2.5], dtype="<f8")),
        "none": ("F32", np.empty((0, 4), dtype="<f4")),
        "scalar": ("F32", np.array(0.1, dtype="<f4")),
    }
    write_tensors(model / SHARD.format(2), arrays)
    weights.convert(str(model), tmp_path)
    path = model.with_name("model.bf16") / SHARD.format(2)
    new = read_tensors(path)
    assert {name: dtype for name, (dtype, _) in new.items()} == dict.fromkeys(arrays, "BF16") | {
        "steps": "I64"
    }
    assert np.array_equal(new["steps"][1], arrays["steps"][1])
    assert np.array_equal(new["narrow"][1], arrays["narrow"][1])
    assert new["none"][1].shape == (0, 4)
    assert new["scalar"][1].shape == ()
    data_start = min(span.start for span in tensors.read_spans(path)[0])
    assert data_start % 8 == 0
    assert all(
        (span.start - data_start) % tensors.ITEM_BYTES[span.dtype] == 0
        for span in tensors.read_spans(path)[0]
    )
    from safetensors.torch import load_file

    assert load_file(path)["double"].tolist() == pytest.approx([1 / 3, 0, -2.5], rel=2**-8)


@pytest.mark.parametrize("kind", ["one wrong number", "swapped rounding", "an infinity"])
def test_a_wrong_copy_is_found_by_comparing_and_never_used(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    right = bfloat16.to_bf16

    def wrong(chunk: memoryview, dtype: str) -> Any:
        bits = right(chunk, dtype)
        if kind == "one wrong number":
            bits[len(bits) // 2] ^= 0x40
        elif kind == "swapped rounding":
            bits = (np.frombuffer(chunk, "<u4") >> 16).astype("<u2") + np.uint16(1)
        else:
            bits[0] = 0x7F80
        return bits

    monkeypatch.setattr(bfloat16, "to_bf16", wrong)
    with pytest.raises(
        WeightsError, match=r"bf16 copy of transformer/.* is wrong at tensor .*weights convert"
    ):
        weights.convert(str(model), tmp_path)
    assert weights.locate(str(model), tmp_path).directory == model
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["model"]


def test_a_number_too_large_for_bf16_is_refused(model: Path, tmp_path: Path) -> None:
    write_tensors(model / SHARD.format(3), {"huge": ("F32", np.array([3.4e38], dtype="<f4"))})
    with pytest.raises(WeightsError, match="huge: a number is not the nearest"):
        weights.convert(str(model), tmp_path)


def test_an_interrupted_conversion_leaves_the_original_in_use_and_can_be_repeated(
    model: Path, tmp_path: Path
) -> None:
    class Interrupt(BaseException):
        pass

    def interrupt(progress: weights.Progress) -> None:
        if progress.path == SHARD.format(2):
            raise Interrupt

    with pytest.raises(Interrupt):
        weights.convert(str(model), tmp_path, interrupt)
    left_by_a_kill = model.with_name("model.bf16.incomplete")
    left_by_a_kill.mkdir()
    (left_by_a_kill / "half").write_bytes(b"half")
    assert weights.locate(str(model), tmp_path).directory == model
    assert weights.convert(str(model), tmp_path).directory == model.with_name("model.bf16")
    assert not left_by_a_kill.exists()


def test_a_damaged_or_outdated_copy_is_passed_over_and_made_again(model: Path, tmp_path: Path) -> None:
    copy = weights.convert(str(model), tmp_path).directory
    (copy / SHARD.format(1)).write_bytes(b"")
    assert weights.locate(str(model), tmp_path).directory == model
    assert weights.convert(str(model), tmp_path).directory == copy
    with (copy / SHARD.format(1)).open("r+b") as stream:  # same size: only verify can see it
        stream.seek(-2, os.SEEK_END)
        stream.write(b"\x12\x34")
    assert [len(found.problems) for found in weights.verify(str(model), tmp_path)] == [0, 1]
    assert weights.locate(str(model), tmp_path).directory == model
    assert weights.convert(str(model), tmp_path).directory == copy

    changed = read_tensors(model / SHARD.format(3))
    name, (_, numbers) = list(changed.items())[-1]
    write_tensors(model / SHARD.format(3), changed | {name: ("F32", numbers * 2)})
    assert weights.locate(str(model), tmp_path).directory == model


def test_convert_asks_for_the_space_of_what_it_writes_only(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = sum((model / SHARD.format(n)).stat().st_size for n in (1, 2, 3)) // 2
    monkeypatch.setattr(cache, "free_bytes", lambda directory: needed + cache.RESERVE_BYTES - 100_000)
    with pytest.raises(WeightsError, match="`weights convert` needs"):
        weights.convert(str(model), tmp_path)
    monkeypatch.setattr(cache, "free_bytes", lambda directory: needed + cache.RESERVE_BYTES + 100_000)
    weights.convert(str(model), tmp_path)


def test_convert_needs_less_memory_than_one_shard(model: Path, tmp_path: Path) -> None:
    """Peak resident memory of a process that converts, against the same process that only imports."""
    shard_bytes = 128 * 1024 * 1024
    numbers = np.random.default_rng(3).standard_normal(shard_bytes // 4, dtype=np.float32)
    for number in (1, 2, 3):
        write_tensors(model / SHARD.format(number), {f"large{number}": ("F32", numbers)})
    code = (
        "import resource, sys; from pathlib import Path; import numpy; from zbot import weights\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "files = weights.convert(sys.argv[1], Path(sys.argv[2]))\n"
        "assert files.dtype == 'bfloat16' and 'torch' not in sys.modules\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(model), str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(TINY.parents[2])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) < shard_bytes // 3


DRAWS_OFFLINE = """
import socket, sys
from pathlib import Path

connections = []

def hook(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "socket.sendmsg"):
        connections.append((event, arguments[1:]))

sys.addaudithook(hook)
try:  # the hook must be seen to work
    socket.create_connection(("127.0.0.1", 9))
except OSError:
    pass
assert len(connections) == 2, connections
connections.clear()

from zbot import weights

root = Path(sys.argv[1])
weights.prepare_environment(root)

import torch
from diffusers import ZImagePipeline

for model in sys.argv[2:]:
    files = weights.locate(model, root)
    weights.status(model, root)
    pipe = ZImagePipeline.from_pretrained(files.directory, dtype=torch.float32, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    rng = torch.Generator().manual_seed(7)
    size = dict(height=256, width=256)
    image = pipe("a red apple", num_inference_steps=2, guidance_scale=0.0, generator=rng, **size).images[0]
    assert image.size == (256, 256)
    print(model, files.dtype, files.directory)
assert connections == [], connections
print("connections:", len(connections))
"""


def test_a_fetched_and_converted_model_is_located_loaded_and_drawn_with_without_a_socket(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole chain for a model stored as the real one is, and the shipped one, in one process."""
    name, root = "tests/wide-z-image", tmp_path / "cache"
    root.mkdir()
    with Hub(model=name, files=read_pipeline(model)).serving() as url:
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", url)
        assert weights.fetch(name, root).dtype == "float32"
    converted = weights.convert(name, root, delete_original=True)
    assert converted.dtype == "bfloat16"
    assert not (root / "modelscope/models/tests--wide-z-image/snapshots/master").exists()
    assert weights.fetch(name, root) == converted  # no hub is there any more, and none is asked
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith(("HF_", "MODELSCOPE"))
    }
    done = subprocess.run(
        [sys.executable, "-c", DRAWS_OFFLINE, str(root), name, "tiny"],
        env=environment | {"PYTHONPATH": str(TINY.parents[2]), "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"{name} bfloat16 {converted.directory}",
        f"tiny bfloat16 {TINY}",
        "connections: 0",
    ]
