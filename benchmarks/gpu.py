"""Measures drawing on a card: the stock pipeline against the fast path, in one run, on one machine.

    python -m benchmarks.gpu --json build/gpu.json
    python -m benchmarks.gpu --model /path/to/Z-Image-Turbo-bf16
    python -m benchmarks.gpu --start /path/with/25/GB/free

Without `--model` the weights are random ones of the real shapes: times and repeatability are real then, pictures are
not. Then come a LoRA (random, rank 16, in every layer of the blocks), and the blocks' products in fp8. `--start DIR` also
measures a fresh process from its first line to readiness and to its first picture; the weights are written to DIR first, if
they are not there. `--small` runs everything on a toy model, to see that this file works.
"""

import argparse
import gc
import hashlib
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from diffusers import ZImagePipeline
from safetensors.torch import save_file

from benchmarks import profiling
from benchmarks.random_model import ROOT, random_lora, random_pipeline
from zbot import png
from zbot.engine import ModelCard, zimage
from zbot.engine import _cublaslt as cublaslt
from zbot.engine._fast import FastPath
from zbot.engine._fp8 import quantize_blocks
from zbot.engine._options import EngineOptions
from zbot.engine._preview import Preview
from zbot.request import ImageRequest

STEPS = 8
SENTENCE = "a red fox in the snow, golden hour, photograph "
TEXT = {"parameters": "a red fox in the snow", "zbot": "{}"}
ASPECTS = [(1024, 1024), (1152, 864), (1248, 832), (1280, 720), (1344, 576)]
ASPECTS += [(height, width) for width, height in ASPECTS[1:]]


class Bench:
    """One card, one pipeline, and a list of rows to print."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.small: bool = arguments.small
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.dtype = torch.bfloat16 if self.device == "cuda" else torch.float32
        self.pictures: int = arguments.pictures
        self.began = time.monotonic()
        self.rows: dict[str, Any] = {}
        if arguments.model:
            self.pipe = ZImagePipeline.from_pretrained(
                arguments.model, dtype=self.dtype, local_files_only=True
            ).to(self.device)
        else:
            self.pipe = random_pipeline(self.device, self.dtype, small=self.small)
        self.pipe.set_progress_bar_config(disable=True)
        self.prompt = self.prompt_of(64)
        self.path: Any = None

    def prompt_of(self, tokens: int) -> str:
        """Return a prompt that fills a caption of this multiple of 32."""
        prompt, words = "", SENTENCE.split()
        for index in range(tokens):
            longer = f"{prompt} {words[index % len(words)]}"
            template = self.pipe.tokenizer.apply_chat_template(
                [{"role": "user", "content": longer}],
                tokenize=False,
                add_generation_prompt=True,
                enable_thinking=True,
            )
            if len(self.pipe.tokenizer(template).input_ids) > tokens:
                break
            prompt = longer
        return prompt

    def size(self, pixels: int) -> int:
        return pixels // 8 if self.small else pixels

    def say(self, name: str, **values: Any) -> None:
        self.rows[name] = values
        shown = {key: round(value, 4) if isinstance(value, float) else value for key, value in values.items()}
        print(f"[{time.monotonic() - self.began:6.1f} s] {name}: {shown}", flush=True)

    def wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def time(self, work: Callable[[], Any], *, runs: int = 5, pause_s: float = 0.0) -> dict[str, float]:
        """Return median and extremes of several runs; a pause before each is a request to a resting card."""
        work()
        times: list[float] = []
        for _ in range(runs):
            self.wait()
            time.sleep(pause_s if self.device == "cuda" else 0.0)
            begin = time.perf_counter()
            work()
            self.wait()
            times.append(time.perf_counter() - begin)
        return {"median_s": statistics.median(times), "min_s": min(times), "max_s": max(times)}

    def stock(self, *, side: int, seed: int = 3, output_type: str = "pil") -> Any:
        return self.pipe(
            self.prompt,
            width=side,
            height=side,
            num_inference_steps=STEPS,
            guidance_scale=0.0,
            generator=torch.Generator("cpu").manual_seed(seed),
            output_type=output_type,
        ).images

    def stock_png(self, *, side: int, seed: int = 3) -> bytes:
        buffer = io.BytesIO()
        self.stock(side=side, seed=seed)[0].save(buffer, "PNG")
        return buffer.getvalue()

    def painter(self, lora: Path | None = None, **options: Any) -> zimage.Painter:
        """Return the engine around this pipeline, as the engine's process has it; without previews, if not told."""
        card = ModelCard(
            model="benchmark",
            revision="",
            dtype=str(self.dtype).removeprefix("torch."),
            device=self.device,
            placement="resident",
            native_size=self.size(1024),
        )
        options = {"preview": False, "lora_files": {} if lora is None else {"random": str(lora)}} | options
        settings = EngineOptions(model_dir="", model="benchmark", **options)
        return zimage.Painter(self.pipe, card, torch.device(self.device), settings)

    def request(self, *, side: int, lora: str = "") -> ImageRequest:
        return ImageRequest(prompt=self.prompt, seed=3, width=side, height=side, steps=STEPS, lora=lora)

    def ours(self, prompt: str, *, width: int, height: int, seed: int = 3) -> Any:
        return self.path.draw(prompt, seed=seed, width=width, height=height, steps=STEPS, on_step=_nothing)

    def ours_png(self, *, side: int, forget: bool, prompt: str | None = None, seed: int = 3) -> bytes:
        if forget:
            self.path._captions.clear()
        return self.ours(prompt or self.prompt, width=side, height=side, seed=seed).png(TEXT)

    def ours_pixels(self, *, side: int) -> Any:
        self.path._captions.clear()
        return self.ours(self.prompt, width=side, height=side).wait()

    # --- the rows ---

    def machine(self) -> None:
        values: dict[str, Any] = {"torch": torch.__version__, "cpus": os.cpu_count()}
        if self.device == "cuda":
            values |= {
                "card": torch.cuda.get_device_name(),
                "cudnn": torch.backends.cudnn.version(),
                "weights_gib": torch.cuda.memory_allocated() / 2**30,
            }
            a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
            seconds = self.time(lambda: a @ b, runs=20)["median_s"]
            values["matrix_tflops"] = 2 * 8192**3 / seconds / 1e12
        self.say("machine", **values)

    def stock_rows(self) -> dict[int, Any]:
        finished = {}
        for pixels in (1024, 512):
            side = self.size(pixels)
            latents = self.stock(side=side, output_type="latent")
            finished[pixels] = (latents, self.stock(side=side)[0])
            self.say(
                f"stock {pixels}: to PNG bytes",
                **self.time(lambda side=side: self.stock_png(side=side), runs=3),
            )
            self.say(
                f"stock {pixels}: to pixels on the host",
                **self.time(lambda side=side: self.stock(side=side), runs=3),
            )
        if self.device == "cuda":
            self.say("stock: peak memory", gib=torch.cuda.max_memory_allocated() / 2**30)
        count = max(2, self.pictures // 4)
        with tempfile.TemporaryDirectory() as folder:
            begin = time.perf_counter()
            for seed in range(count):
                Path(folder, f"{seed}.png").write_bytes(self.stock_png(side=self.size(1024), seed=seed))
            seconds = time.perf_counter() - begin
        self.say("stock: sustained", pictures=count, pictures_per_s=count / seconds)
        return finished

    def take_over(self) -> None:
        begin = time.perf_counter()
        self.path = FastPath(self.pipe)
        self.wait()
        self.say("fast path: made", seconds=time.perf_counter() - begin, kernels=self.path.kernels.name)

    def agreement(self, finished: dict[int, Any]) -> None:
        for pixels, (latents, image) in finished.items():
            side = self.size(pixels)
            picture = self.ours(self.prompt, width=side, height=side)
            caption = self.path.caption(self.prompt)
            mine = self.path.denoise(caption, seed=3, width=side, height=side, steps=STEPS)
            rgb = torch.from_numpy(picture.wait().copy()).int()
            stock = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(rgb.shape).int()
            self.say(
                f"agreement {pixels}",
                latents_relative=((mine - latents).norm() / latents.norm()).item(),
                levels_max=(rgb - stock).abs().max().item(),
                levels_mean=(rgb - stock).abs().float().mean().item(),
                same_twice=picture.png(TEXT) == self.ours(self.prompt, width=side, height=side).png(TEXT),
                sha256=hashlib.sha256(picture.wait().tobytes()).hexdigest()[:16],
            )

    def first_uses(self, when: str, tokens: tuple[int, ...], sizes: list[tuple[int, int]]) -> None:
        """Compare the first picture of a caption length or size with the second."""
        side = self.size(1024)
        for count in tokens:
            prompt = self.prompt_of(count)
            first, second = (
                self.time_once(lambda prompt=prompt: self.ours_png(side=side, forget=True, prompt=prompt))
                for _ in range(2)
            )
            self.say(
                f"caption of {count} tokens, {when}", first_s=first, second_s=second, more=first / second - 1
            )
        for width, height in sizes:
            first, second = (
                self.time_once(
                    lambda width=width, height=height: self.ours(
                        self.prompt, width=self.size(width), height=self.size(height)
                    ).png(TEXT)
                )
                for _ in range(2)
            )
            self.say(f"{width}x{height}, {when}", first_s=first, second_s=second, extra_s=first - second)

    def time_once(self, work: Callable[[], Any]) -> float:
        self.wait()
        begin = time.perf_counter()
        work()
        return time.perf_counter() - begin

    def warm_up(self) -> None:
        sizes = [(self.size(width) // 16 * 16, self.size(height) // 16 * 16) for width, height in ASPECTS]
        pieces: list[float] = []
        begin = time.perf_counter()
        for _ in self.path.warm_up(sizes):
            pieces.append(time.perf_counter() - begin - sum(pieces))
        self.say("warm-up", seconds=sum(pieces), pieces=len(pieces), longest_piece_s=max(pieces))

    def fast_rows(self) -> None:
        for pixels in (1024, 512):
            side = self.size(pixels)
            for state, pause_s in (("resting card", 1.0), ("busy card", 0.0)):
                for cached in (False, True):
                    known = "known prompt" if cached else "new prompt"
                    self.say(
                        f"ours {pixels}: to PNG bytes, {known}, {state}",
                        **self.time(
                            lambda side=side, cached=cached: self.ours_png(side=side, forget=not cached),
                            runs=7,
                            pause_s=pause_s,
                        ),
                    )
            self.say(
                f"ours {pixels}: to pixels on the host, new prompt, resting card",
                **self.time(lambda side=side: self.ours_pixels(side=side), runs=7, pause_s=1.0),
            )
        side = self.size(1024)
        caption = self.path.caption(self.prompt)
        latents = self.path.denoise(caption, seed=3, width=side, height=side)
        picture = self.path.decode(latents)
        pixels = picture.wait()

        def forgotten() -> None:
            self.path._captions.clear()
            self.path.caption(self.prompt)

        self.say("part: caption", **self.time(forgotten))
        self.say(
            "part: denoising",
            **self.time(lambda: self.path.denoise(caption, seed=3, width=side, height=side)),
        )
        self.say("part: decoding", **self.time(lambda: self.path.decode(latents).wait()))
        self.say("part: PNG, rows filtered on the card", **self.time(lambda: picture.png(TEXT)))
        self.say("part: PNG, all on the processor", **self.time(lambda: png.encode(pixels, TEXT)))
        before = caption.prompt_embeds.clone()
        hit = self.time(lambda: self.path.caption(self.prompt))["median_s"]
        self.path._captions.clear()
        again = self.path.caption(self.prompt).prompt_embeds
        self.say("re-roll", caption_s=hit, bit_identical=torch.equal(before, again))

    def products_rows(self) -> None:
        """Compare cuBLAS's choice of kernels with ours, in turn."""
        for turn in (1, 2):
            for whose, linear in (("cuBLAS's", torch.nn.functional.linear), ("our", cublaslt.linear)):
                with mock.patch.object(cublaslt, "linear", linear):
                    for pixels, state, pause_s in ((1024, "busy card", 0.0), (512, "resting card", 1.0)):
                        self.say(
                            f"products by {whose} choice, {pixels} to pixels, {state}, turn {turn}",
                            **self.time(
                                lambda pixels=pixels: self.ours_pixels(side=self.size(pixels)),
                                pause_s=pause_s,
                            ),
                        )

    def preview_rows(self) -> None:
        """Make previews on the processor alone; then draw without, with as many as the bot makes, and at every step."""
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        for side in (512, 1024, 1536):
            latents = torch.randn(2, 1, 16, side // 8, side // 8)
            preview = Preview(16, torch.device("cpu"), every_s=0.0)
            preview.after_step(1.0, 0.95, latents[0])
            made = self.time(lambda: preview.after_step(0.95, 0.9, latents[1]), runs=50)  # noqa: B023  called at once
            self.say(f"one preview of {side}x{side} on one core", **made)
        torch.set_num_threads(threads)
        painters = {
            "without previews": self.painter(),
            "with previews": self.painter(preview=True),
            "with a preview at every step": self.painter(preview=True, preview_every_s=0.0),
        }
        shown: dict[str, int] = dict.fromkeys(painters, 0)
        for turn in (1, 2):
            for pixels in (1024, 512):
                for name, painter in painters.items():

                    def draw(
                        name: str = name, painter: zimage.Painter = painter, pixels: int = pixels
                    ) -> None:
                        def on_step(step: int, steps: int, preview: bytes | None) -> None:
                            shown[name] += preview is not None

                        painter.finish(painter.denoise(self.request(side=self.size(pixels)), on_step))

                    self.say(
                        f"{name}, {pixels}: request to PNG bytes, busy card, turn {turn}",
                        **self.time(draw, runs=7),
                    )
        self.say("previews made", **shown)

    def draw_to(self, folder: str, count: int, pool: ThreadPoolExecutor) -> None:
        """Draw as the engine does: the next picture is denoised while the last is decoded, encoded and written."""
        written = []
        for seed in range(count):
            picture = self.ours(self.prompt, width=self.size(1024), height=self.size(1024), seed=seed)
            written.append(pool.submit(_write, picture, Path(folder, f"{seed}.png")))
            if seed:
                written[seed - 1].result()
        written[-1].result()

    def sustained(self) -> None:
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(1) as pool:
            self.draw_to(folder, 2, pool)
            with profiling.watch_card() as samples:
                begin = time.perf_counter()
                self.draw_to(folder, self.pictures, pool)
                seconds = time.perf_counter() - begin
            values: dict[str, Any] = {"pictures": self.pictures, "pictures_per_s": self.pictures / seconds}
            if samples:
                # The first and last sample reach over the edges.
                inner = samples[1:-1] or samples
                for index, name in enumerate(("busy_percent", "power_w", "clock_mhz")):
                    values[name] = statistics.mean(sample[index] for sample in inner)
            if self.device == "cuda":
                values["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
                values["busy_share_traced"] = profiling.busy_share(lambda: self.draw_to(folder, 4, pool))
            self.say("ours: sustained", **values)

    def where_a_step_goes(self, name: str = "") -> None:
        """Say what one step's kernels cost, with the card as it is after a second of rest."""
        if self.device != "cuda":
            return
        caption = self.path.caption(self.prompt)
        for pixels in (1024, 512):
            side = self.size(pixels)

            def draw(side: int = side) -> None:
                self.path.denoise(caption, seed=3, width=side, height=side, steps=STEPS)
                self.wait()

            draw()
            times = {kind: ms / STEPS for kind, ms in profiling.kernel_times(draw).items()}
            self.say(f"{name}one step at {pixels}, ms", **times)

    def lora_rows(self) -> None:
        """Draw with a LoRA in every layer of the blocks, and without it again."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "random.safetensors")
            save_file(random_lora(self.pipe.transformer, rank=16), file)
            painter = self.painter(file)

            def draw(lora: str, pixels: int) -> bytes:
                request = self.request(side=self.size(pixels), lora=lora)
                return painter.finish(painter.denoise(request, _nothing)).png

            before = draw("", 1024)
            attach_s = self.time_once(lambda: draw("random", 1024))
            styled = draw("random", 1024)
            for pixels in (1024, 512):
                for name in ("", "random"):
                    self.say(
                        f"LoRA {pixels}: {'with' if name else 'without'}, request to PNG bytes, busy card",
                        **self.time(lambda name=name, pixels=pixels: draw(name, pixels)),
                    )
            self.say(
                "LoRA",
                file_mib=file.stat().st_size / 2**20,
                first_picture_s=attach_s,
                path=painter.card.options["path"],
                has_effect=styled != before,
                same_twice=draw("random", 1024) == styled,
                same_bytes_after_it=draw("", 1024) == before,
            )
            painter._loras.detach()

    def fp8_rows(self) -> None:
        """Draw with the blocks' products in fp8; the pipeline stays so."""
        side = self.size(1024)
        exact = self.path.denoise(self.path.caption(self.prompt), seed=3, width=side, height=side)
        exact_rgb = torch.from_numpy(self.path.decode(exact).wait().copy()).int()
        self.path = None
        gc.collect()
        before = torch.cuda.memory_allocated() if self.device == "cuda" else 0
        begin = time.perf_counter()
        transformer = self.pipe.transformer
        quantize_blocks((*transformer.noise_refiner, *transformer.layers), torch.device(self.device))
        self.wait()
        self.say("fp8: weights rounded", seconds=time.perf_counter() - begin)
        self.path = FastPath(self.pipe)
        if self.device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            now = torch.cuda.memory_allocated()
            self.say("fp8: memory", before_gib=before / 2**30, weights_gib=now / 2**30)
        latents = self.path.denoise(self.path.caption(self.prompt), seed=3, width=side, height=side)
        rgb = torch.from_numpy(self.path.decode(latents).wait().copy()).int()
        again = self.path.denoise(self.path.caption(self.prompt), seed=3, width=side, height=side)
        self.say(
            "fp8: against bf16",
            latents_relative=((latents - exact).norm() / exact.norm()).item(),
            levels_max=(rgb - exact_rgb).abs().max().item(),
            levels_mean=(rgb - exact_rgb).abs().float().mean().item(),
            same_twice=torch.equal(latents, again),
            finite=bool(torch.isfinite(latents).all()),
        )
        for pixels in (1024, 512):
            for state, pause_s in (("resting card", 1.0), ("busy card", 0.0)):
                self.say(
                    f"fp8 {pixels}: to PNG bytes, new prompt, {state}",
                    **self.time(
                        lambda pixels=pixels: self.ours_png(side=self.size(pixels), forget=True),
                        runs=7,
                        pause_s=pause_s,
                    ),
                )
        if self.device == "cuda":
            self.say("fp8: peak memory", gib=torch.cuda.max_memory_allocated() / 2**30)
        self.where_a_step_goes("fp8: ")

    def write_weights(self, folder: str) -> None:
        """Write what `start` loads, as long as nothing has been changed in it."""
        if not Path(folder, "model_index.json").exists():
            begin = time.perf_counter()
            self.pipe.save_pretrained(folder, max_shard_size="4GB")
            self.say("weights written", seconds=time.perf_counter() - begin)

    def start(self, folder: str) -> None:
        """Measure a fresh process from start to ready, with cold and with warm kernel caches."""
        # What this process holds must not stand in the way of the next.
        self.path = self.pipe = None
        if self.device == "cuda":
            torch.cuda.empty_cache()
        with tempfile.TemporaryDirectory() as caches:
            environment = os.environ | {"TRITON_CACHE_DIR": caches}
            for state in ("cold kernel cache", "warm kernel cache", "warm kernel cache, again"):
                begin = time.time()
                ended = subprocess.run(
                    [
                        sys.executable,
                        "-m",
                        "benchmarks.start",
                        str(Path(folder).resolve()),
                        *(["--small"] * self.small),
                    ],
                    cwd=ROOT,
                    env=environment | {"ZBOT_BENCH_BEGAN": str(begin)},
                    stdout=subprocess.PIPE,
                    text=True,
                    check=False,
                )
                lines = ended.stdout.strip().splitlines()
                values = (
                    json.loads(lines[-1]) if ended.returncode == 0 and lines else {"failed": ended.returncode}
                )
                self.say(f"start, {state}", **values)


def _write(picture: Any, path: Path) -> None:
    with path.open("wb") as stream:
        stream.write(picture.png(TEXT))
        os.fsync(stream.fileno())


def _nothing(*_: Any) -> None:
    """Hear of a step, and do nothing."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="a local directory of the real model; random weights when absent")
    parser.add_argument("--json", type=Path, help="write every row here as well")
    parser.add_argument("--pictures", type=int, default=32, help="of the sustained row")
    parser.add_argument(
        "--start", metavar="DIR", help="measure the start of a fresh process from weights in DIR"
    )
    parser.add_argument(
        "--within", type=float, default=1e9, metavar="S", help="begin nothing after this long"
    )
    parser.add_argument("--small", action="store_true", help="a toy model, to try this file")
    arguments = parser.parse_args()
    bench = Bench(arguments)
    finished: dict[int, Any] = {}
    sizes = [] if bench.small else [(1152, 864), (720, 1280), (1248, 832), (576, 1344)]
    for part in (
        bench.machine,
        lambda: bench.write_weights(arguments.start) if arguments.start else None,
        lambda: finished.update(bench.stock_rows()),
        bench.take_over,
        lambda: bench.agreement(finished),
        lambda: bench.first_uses("before the warm-up", (128, 288), sizes[:2]),
        bench.warm_up,
        lambda: bench.first_uses("after the warm-up", (96, 192, 320, 512), sizes[2:]),
        bench.fast_rows,
        bench.where_a_step_goes,
        bench.sustained,
        bench.products_rows,
        bench.preview_rows,
        bench.lora_rows,
        bench.fp8_rows,
        lambda: bench.start(arguments.start) if arguments.start else None,
    ):
        # A row that fails must not cost the others: a card's minutes are dear.
        try:
            part()
        except Exception as error:
            bench.say(f"failed after {list(bench.rows)[-1:]}", error=f"{type(error).__name__}: {error}"[:500])
            traceback.print_exc()
        if arguments.json:
            arguments.json.parent.mkdir(parents=True, exist_ok=True)
            arguments.json.write_text(json.dumps(bench.rows, indent=1) + "\n")
        if time.monotonic() - bench.began > arguments.within:
            break


if __name__ == "__main__":
    main()
