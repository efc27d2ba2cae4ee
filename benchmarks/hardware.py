"""Measures every placement at full shape, with the memory of a smaller card imitated on this one.

    python -m benchmarks.hardware --weights /path/with/25/GB/free --json build/hardware.json

The weights are random ones of the real shapes, written to the directory first if they are not there; or give the real
model's. GGUF files are written there too. Each row is a process of its own whose allocator is kept to what a card of that size has left beside its
context; `least` is what remains when the limit is lowered until the longest prompt can no longer be drawn. `--small`
runs everything on the tiny model on the processor, to see that this file works.
"""

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.tables import Table

ROOT = Path(__file__).parent.parent
# A card of 16 GiB gives less to one process's tensors: the context, the libraries' kernels, perhaps a desktop.
BESIDE_GIB = 0.75
GIB = 2**30
PROMPT = "a red fox in the snow, golden hour, photograph, picture number"
LONGEST = "a red fox in the snow, golden hour, photograph " * 80


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One process: how large its card is, what it is told, and how it is measured."""

    name: str
    card_gib: float | None = None
    placement: str = "auto"
    compile: str = "auto"
    dtype: str = "auto"
    quantization: str = "none"  # gguf:Q8_0 and the like stand for a file of that kind
    pictures: int = 3
    least: tuple[float, float, int] | None = None  # first limit and step in GiB, most tries
    scenario: str = "measure"
    within_s: float = 120.0


ROWS = (
    Row(name="resident, whole card", least=(21.2, 0.2, 9)),
    Row(name="auto, 24 GB", card_gib=24),
    Row(name="auto, 16 GB", card_gib=16, least=(13.2, 0.2, 6)),
    Row(name="auto, 12 GB", card_gib=12, pictures=2, least=(4.4, 0.4, 6)),
    Row(name="auto, 8 GB", card_gib=8, pictures=2),
    Row(
        name="model_offload, 16 GB", card_gib=16, placement="model_offload", pictures=2, least=(13.4, 0.4, 3)
    ),
    Row(name="device-side assert", scenario="assert"),
    Row(name="memory taken away, 24 GB", card_gib=24, scenario="taken", within_s=150.0),
    Row(name="sequential_offload, 8 GB", card_gib=8, placement="sequential_offload", pictures=1),
    Row(name="no room, resident", card_gib=24, placement="resident", scenario="no_room"),
    Row(name="tiled, 24 GB", card_gib=24, placement="tiled", least=(20.6, 0.2, 6)),
    Row(
        name="resident, stock, 24 GB", card_gib=24, placement="resident", compile="off", least=(22.2, 0.3, 6)
    ),
    Row(name="fp8, whole card", dtype="float8", least=(14.4, 0.2, 6)),
    Row(name="fp8, 24 GB", dtype="float8", card_gib=24),
    Row(name="fp8, 16 GB", dtype="float8", card_gib=16),
    Row(name="fp8, 12 GB", dtype="float8", card_gib=12),
    Row(name="int8", quantization="int8", pictures=1),
    Row(name="nf4", quantization="nf4", pictures=1),
    Row(name="GGUF Q8_0", quantization="gguf:Q8_0", pictures=1),
    Row(name="GGUF Q4_0", quantization="gguf:Q4_0", pictures=1),
    Row(name="int8, 12 GB", card_gib=12, quantization="int8", pictures=1),
    Row(name="GGUF Q4_0, 8 GB", card_gib=8, quantization="gguf:Q4_0", pictures=1),
    Row(name="auto, 6 GB", card_gib=6, pictures=1),
    Row(name="auto, 4 GB", card_gib=4, pictures=2, least=(2.2, 0.2, 5)),
)


# --- in a row's process ---


class Probe:
    """A loaded engine in this process, and what it takes."""

    def __init__(self, row: Row, weights: Path, *, small: bool) -> None:
        import torch

        from zbot.engine import zimage
        from zbot.engine._options import EngineOptions

        self.torch, self.row, self.small = torch, row, small
        self.on_card = torch.cuda.is_available()
        self.total = torch.cuda.get_device_properties(0).total_memory if self.on_card else GIB
        quantization = row.quantization
        if quantization.startswith("gguf:"):
            quantization = f"gguf:{gguf_file(weights, quantization.partition(':')[2])}"
        fraction = 1.0 if row.card_gib is None else (row.card_gib - BESIDE_GIB) * GIB / self.total
        began = time.perf_counter()
        self.painter = zimage.load(
            EngineOptions(
                model_dir=str(weights),
                model="benchmark",
                preview=False,
                placement=row.placement if self.on_card else "auto",
                compile=row.compile,
                dtype=row.dtype,
                quantization=quantization,
                memory_fraction=min(1.0, fraction),
            ),
            lambda *_: None,
        )
        self.values: dict[str, Any] = {
            "load_s": time.perf_counter() - began,
            "memory_gib": self.painter.card.memory_bytes / GIB,
            **self.peak("load_"),
            **self.in_force(),
        }

    def in_force(self) -> dict[str, Any]:
        return {"placement": self.painter.card.placement, "path": self.painter.card.options["path"]}

    def peak(self, prefix: str = "") -> dict[str, float]:
        """Return the peaks since the last call, in GiB."""
        status = Path("/proc/self/status").read_text(encoding="ascii")
        host = {
            line.split(":")[0]: int(line.split()[1]) for line in status.splitlines() if line.startswith("Vm")
        }
        peaks = {f"{prefix}host_gib": host["VmHWM"] / 2**20}
        if self.on_card:
            cuda = self.torch.cuda
            free, total = cuda.mem_get_info()
            peaks |= {
                f"{prefix}peak_gib": cuda.max_memory_allocated() / GIB,
                f"{prefix}reserved_gib": cuda.max_memory_reserved() / GIB,
                f"{prefix}outside_gib": (total - free - cuda.memory_reserved()) / GIB,
            }
            cuda.reset_peak_memory_stats()
        return peaks

    def request(self, prompt: str, seed: int = 3) -> Any:
        from zbot.request import ImageRequest

        side = 128 if self.small else 1024
        return ImageRequest(prompt=prompt, seed=seed, width=side, height=side, steps=8, guidance_scale=0.0)

    def draw(self, prompt: str, seed: int = 3) -> float:
        began = time.perf_counter()
        self.painter.finish(self.painter.denoise(self.request(prompt, seed), lambda *_: None))
        return time.perf_counter() - began

    def limit(self, gib: float) -> None:
        """Leave so much of the card to this process, from now on."""
        if self.on_card:
            self.torch.cuda.empty_cache()
            self.torch.cuda.set_per_process_memory_fraction(min(1.0, gib * GIB / self.total))

    def draw_without_help(self, prompt: str) -> None:
        """Draw as the engine does, but let it fail where the engine would make room."""
        path, request = self.painter._path, self.request(prompt)
        latents = path.denoise(
            path.caption(prompt), seed=3, width=request.width, height=request.height, steps=2
        )
        path.decode(latents).wait()


def measure(row: Row, weights: Path, *, small: bool) -> dict[str, Any]:
    probe = Probe(row, weights, small=small)
    values = probe.values
    began = time.perf_counter()
    for _ in probe.painter.warm_up():
        pass
    values["warm_up_s"] = time.perf_counter() - began
    values["first_s"] = probe.draw(PROMPT)
    values["new_prompt_s"] = statistics.median(probe.draw(f"{PROMPT} {n}") for n in range(row.pictures))
    values["known_prompt_s"] = statistics.median(probe.draw(PROMPT, seed=n) for n in range(row.pictures))
    values |= probe.peak()
    values["longest_prompt_s"] = probe.draw(LONGEST)
    values |= probe.peak("longest_") | probe.in_force()
    print(json.dumps(values), flush=True)
    if row.least is not None and probe.on_card:
        values |= lowest(probe, *row.least)
    return values


def lowest(probe: Probe, start_gib: float, step_gib: float, tries: int) -> dict[str, Any]:
    """Return the lowest limit at which the longest prompt was still drawn."""
    from zbot.engine._faults import attempt

    limit, least = start_gib, None
    for number in range(tries):
        probe.limit(limit)
        prompt = f"{number} {LONGEST}"
        done, said = attempt(lambda prompt=prompt: (probe.draw_without_help(prompt), True))
        if done is None:
            return {"least_gib": least, "below_it": said}
        least, limit = limit, limit - step_gib
    return {"least_gib": least, "below_it": "not reached"}


def taken(row: Row, weights: Path, *, small: bool) -> dict[str, Any]:
    """Draw while another program seems to take more and more of the card."""
    from zbot.errors import OutOfMemory

    probe = Probe(row, weights, small=small)
    warming = probe.painter.warm_up()
    next(warming, None)  # begun and not finished, as when a job comes early
    values = probe.values | {"before": probe.draw(PROMPT)}
    for left_gib, pictures in ((20.0, 2), (14.6, 2), (8.0, 3), (2.6, 2)):
        probe.limit(left_gib)
        for number in range(pictures):
            try:
                said: Any = probe.draw(f"{PROMPT} {number}")
            except OutOfMemory as error:
                said = f"{error}: {error.facts}"[:200]
            values[f"{left_gib} GiB left, picture {number}"] = [said, *probe.in_force().values()]
            print(json.dumps(values), flush=True)
    values["warm-up went on"] = next(warming, None) is not None
    return values | probe.peak()


def no_room(row: Row, weights: Path, *, small: bool) -> dict[str, Any]:
    """Draw with a placement that was set, on a card where it fits the model and not the picture."""
    from zbot.errors import OutOfMemory

    probe = Probe(row, weights, small=small)
    values = probe.values
    for left_gib in (20.2, 19.8, 19.5):
        probe.limit(left_gib)
        try:
            said: Any = probe.draw(f"{PROMPT} {left_gib}")
        except OutOfMemory as error:
            said = f"{error}: {error.facts}"[:200]
        values[f"{left_gib} GiB left"] = [
            said,
            *probe.in_force().values(),
            probe.painter.card.options.get("decode"),
        ]
    probe.limit(24.0)
    values["the next one, with room"] = [probe.draw(PROMPT), *probe.in_force().values()]
    return values


def broken_context(row: Row, weights: Path, *, small: bool) -> dict[str, Any]:
    """Break the card's context in the engine's own process and have it replaced."""
    from tests.zbot.engine import faults
    from zbot.engine import _life
    from zbot.engine.process import EngineOptions, ProcessEngine
    from zbot.errors import EngineDead
    from zbot.request import ImageRequest

    _life.CHILD_MODULE = "tests.zbot.engine.faulty_child"
    fault = faults.POISON if small else faults.ASSERT
    side = 128 if small else 1024

    async def run() -> dict[str, Any]:
        values: dict[str, Any] = {}
        engine = ProcessEngine(EngineOptions(model_dir=str(weights), model="benchmark", preview=False))

        async def timed(name: str, work: Any) -> Any:
            began = time.perf_counter()
            result = await work
            values[name] = time.perf_counter() - began
            return result

        def picture(prompt: str) -> Any:
            request = ImageRequest(prompt=prompt, seed=3, width=side, height=side, guidance_scale=0.0)
            return engine.draw(request, lambda _: None)

        await timed("load_s", engine.load(lambda _: None))
        before = await timed("first_s", picture(PROMPT))
        pid = engine.pid
        try:
            await timed("broken_s", picture(fault))
        except EngineDead as error:
            values["said"] = str(error)[:200]
        card = await timed("reload_s", engine.load(lambda _: None))
        after = await timed("next_s", picture(PROMPT))
        await engine.close()
        return values | {
            "replaced": engine.pid != pid,
            "same_bytes": before.png == after.png,
            "placement": card.placement,
            "memory_gib": card.memory_bytes / GIB,
        }

    return asyncio.run(run())


SCENARIOS: dict[str, Callable[..., dict[str, Any]]] = {
    "measure": measure,
    "taken": taken,
    "no_room": no_room,
    "assert": broken_context,
}


def gguf_file(weights: Path, kind: str) -> Path:
    """Return the transformer as a GGUF file of this kind, written if it is not there yet.

    Of each shape one tensor is quantised and written for all: the numbers are random anyway.
    """
    import gguf
    import torch

    from zbot.weights.tensors import read_spans

    path = weights / f"transformer-{kind}.gguf"
    if path.exists():
        return path
    type_of = gguf.GGMLQuantizationType
    writer = gguf.GGUFWriter(str(path), "lumina2")
    quantised: dict[tuple[int, ...], Any] = {}
    rng = torch.Generator().manual_seed(0)
    for file in sorted((weights / "transformer").glob("*.safetensors")):
        for span in read_spans(file)[0]:
            in_a_block = span.name.startswith(("layers.", "noise_refiner.", "context_refiner."))
            numbers = torch.randn(span.shape, generator=rng) * 0.02 if span.shape not in quantised else None
            if in_a_block and len(span.shape) == 2 and "adaLN" not in span.name:
                if numbers is not None:
                    quantised[span.shape] = gguf.quants.quantize(numbers.numpy(), type_of[kind])
                writer.add_tensor(span.name, quantised[span.shape], raw_dtype=type_of[kind])
                continue
            numbers = torch.ones(span.shape) if "norm" in span.name else torch.randn(span.shape) * 0.02
            writer.add_tensor(span.name, numbers.numpy(), raw_dtype=type_of.F32)
    part = path.with_suffix(".part")
    writer.write_header_to_file(part)
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    part.rename(path)
    return path


def write_weights(weights: Path) -> None:
    """Write random weights of the real shapes."""
    import torch

    from benchmarks.random_model import random_pipeline

    random_pipeline("cuda", torch.bfloat16).save_pretrained(weights, max_shard_size="4GB")


# --- in the first process ---


class Child:
    """A row's process, which imports what it needs and then waits for its turn."""

    def __init__(self, name: str, weights: Path, *, small: bool) -> None:
        command = [sys.executable, "-m", "benchmarks.hardware", "--weights", str(weights), "--row", name]
        self.process = subprocess.Popen(
            command + ["--small"] * small,
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, within_s: float) -> dict[str, Any]:
        """Let it begin, and return the last values it printed."""
        try:
            out, errors = self.process.communicate("go\n", timeout=within_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            out, errors = self.process.communicate()
            errors += f"\nnot finished within {within_s:.0f} s"
        lines = [line for line in out.splitlines() if line.startswith("{")]
        values = json.loads(lines[-1]) if lines else {}
        if self.process.returncode:
            values["failed"] = errors.strip()[-1500:]
        return values


def run_row(name: str, weights: Path, *, small: bool) -> None:
    import torch  # noqa: F401

    from zbot.engine import zimage  # noqa: F401

    if not sys.stdin.readline():
        return
    if name == "weights":
        write_weights(weights)
        return
    row = next(row for row in ROWS if row.name == name)
    print(json.dumps(SCENARIOS[row.scenario](row, weights, small=small)), flush=True)


def table(results: dict[str, dict[str, Any]]) -> Table:
    columns = {
        "placement": "placement",
        "path": "path",
        "load_s": "load, s",
        "new_prompt_s": "new prompt, s",
        "known_prompt_s": "re-roll, s",
        "peak_gib": "peak, GiB",
        "longest_peak_gib": "peak at 512 tokens, GiB",
        "least_gib": "least, GiB",
        "longest_host_gib": "host, GiB",
    }
    rows = [
        (row.name, *(results[row.name].get(key) for key in columns))
        for row in ROWS
        if row.scenario == "measure" and row.name in results
    ]
    return Table(
        title="One 1024x1024 picture, 8 steps", columns=("card", *columns.values()), rows=tuple(rows)
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", type=Path, required=True, help="the model's directory")
    parser.add_argument("--json", type=Path, help="write every value here, after each row")
    parser.add_argument("--within", type=float, default=1e9, metavar="S", help="begin no row after this long")
    parser.add_argument("--only", nargs="*", help="names of rows")
    parser.add_argument(
        "--small", action="store_true", help="the tiny model on the processor, to try this file"
    )
    parser.add_argument("--row", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    weights, small = arguments.weights.absolute(), arguments.small
    if arguments.row:
        run_row(arguments.row, weights, small=small)
        return
    began = time.monotonic()
    rows = [row for row in ROWS if not arguments.only or row.name in arguments.only]
    names = [row.name for row in rows]
    if not (weights / "model_index.json").exists():
        names.insert(0, "weights")
    limits = {row.name: row.within_s for row in rows} | {"weights": 240.0}
    results: dict[str, dict[str, Any]] = {}
    following: Child | None = Child(names[0], weights, small=small)
    for name, after in zip(names, [*names[1:], None], strict=True):
        child, following = following, after and Child(after, weights, small=small)
        left_s = arguments.within - (time.monotonic() - began)
        if child is None or left_s < 15:
            break
        since = time.monotonic()
        results[name] = child.run(min(limits[name], left_s)) | {"row_s": time.monotonic() - since}
        print(f"[{time.monotonic() - began:6.1f} s] {name}: {results[name]}", flush=True)
        if arguments.json:
            arguments.json.parent.mkdir(parents=True, exist_ok=True)
            settings = {row.name: asdict(row) for row in rows}
            arguments.json.write_text(json.dumps({"rows": settings, "results": results}, indent=1) + "\n")
    for left in (child, following):
        if left is not None and left.process.poll() is None:
            left.process.kill()
    print(table(results).text(), flush=True)


if __name__ == "__main__":
    main()
