"""The real pipeline class with the tiny model in the real child process."""

import asyncio
import io
import json
import logging
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from PIL import Image, ImageChops, ImageStat

from tests.zbot.engine import faults
from zbot.engine import Drawn, LoadProgress, Step, _life
from zbot.engine.process import EngineOptions, ProcessEngine, child_environment
from zbot.errors import EngineDead, GenerationError, OutOfMemory, WeightsError
from zbot.images import RECIPE_KEY, read_recipe
from zbot.request import ImageRequest

pytestmark = pytest.mark.asyncio(loop_scope="module")

ROOT = Path(__file__).parents[3]
TINY = ROOT / "zbot" / "models" / "tiny"
REFERENCES = Path(__file__).with_name("references.png")
STALL_S = 3.0

# In the order of references.png, which was drawn by the stock pipeline from English prompts and looked at. Where the
# prompt here is Chinese it must lead to the same thing as the English one did there.
PROMPTS = (
    "a red apple",
    "a rocket in space",
    "a house in the snow",
    "一只可爱的熊猫",
    "黄色背景上的吉他",
    "一个雪人",
    "一只可爱的小猫在草地上",
    "画一辆蓝色的汽车",
    "一朵向日葵",
    "a green dragon",
)
APPLE = ImageRequest(prompt="a red apple", seed=7, width=256, height=256)
SMALL = replace(APPLE, width=128, height=128)  # where it does not matter what is to be seen

# Written into a file named by the environment: every name looked up, every address connected or sent to.
AUDIT = """
import os, sys
def hook(event, args):
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo", "socket.gethostbyname"):
        with open(os.environ["SOCKET_LOG"], "a") as log:
            print(event, args[1:], file=log)
sys.addaudithook(hook)
"""


@pytest.fixture(scope="module")
def socket_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("audit")
    (directory / "sitecustomize.py").write_text(AUDIT, encoding="utf-8")
    return directory / "sockets"


def tiny_options(*, gives_way: bool = False) -> EngineOptions:
    """The tests beside this one want the processor too, and a hang shall show after seconds."""
    return EngineOptions(
        model_dir=str(TINY),
        model="tiny",
        revision="test",
        threads=2,
        gives_way=gives_way,
        preview_every_s=0.0,
    )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(socket_log: Path) -> AsyncIterator[ProcessEngine]:
    """One engine for the module: its child is replaced as often as it is killed."""
    patch = pytest.MonkeyPatch()
    patch.setattr(_life, "CHILD_MODULE", "tests.zbot.engine.faulty_child")
    env = {"PYTHONPATH": f"{socket_log.parent}{os.pathsep}{ROOT}", "SOCKET_LOG": str(socket_log)}
    engine = ProcessEngine(tiny_options(), stall_s=STALL_S, env=env)
    yield engine
    await engine.close()
    patch.undo()


@pytest_asyncio.fixture(loop_scope="module")
async def engine(shared: ProcessEngine) -> ProcessEngine:
    """The shared engine, loaded."""
    await shared.load(lambda _: None)
    return shared


class Reached:
    """An `on_step` that lets a test wait for a step."""

    def __init__(self, number: int) -> None:
        self.steps: list[Step] = []
        self._number = number
        self._reached = asyncio.Event()

    def __call__(self, step: Step) -> None:
        self.steps.append(step)
        if step.number == self._number:
            self._reached.set()

    async def wait(self) -> None:
        await asyncio.wait_for(self._reached.wait(), 30)


def ignore(_: object) -> None:
    pass


def pixels(png: bytes) -> bytes:
    with Image.open(io.BytesIO(png)) as image:
        return image.tobytes()


async def death_of(task: "asyncio.Task[Drawn]") -> EngineDead:
    with pytest.raises(EngineDead) as caught:
        await asyncio.wait_for(task, 60)
    return caught.value


# --- what it draws ---


async def test_ten_prompts_draw_what_they_say(engine: ProcessEngine) -> None:
    with Image.open(REFERENCES) as strip:
        references = [strip.convert("RGB").crop((32 * index, 0, 32 * index + 32, 32)) for index in range(10)]

    def distance(one: Image.Image, other: Image.Image) -> float:
        return sum(ImageStat.Stat(ImageChops.difference(one, other)).sum)

    for index, prompt in enumerate(PROMPTS):
        drawn = await engine.draw(replace(APPLE, prompt=prompt, seed=40 + index), ignore)
        with Image.open(io.BytesIO(drawn.png)) as image:
            assert image.size == (256, 256)
            thumbnail = image.convert("RGB").resize((32, 32), Image.Resampling.BOX)
        distances = [distance(thumbnail, reference) for reference in references]
        nearest = min(range(10), key=distances.__getitem__)
        assert nearest == index, f"{prompt!r} looks like {PROMPTS[nearest]!r}"
        others = sorted(distances)
        assert others[0] < 0.8 * others[1], f"{prompt!r} is not clearly itself: {distances}"


async def test_the_png_carries_the_recipe(engine: ProcessEngine) -> None:
    drawn = await engine.draw(APPLE, ignore)
    card = await engine.load(lambda _: None)
    recipe = read_recipe(drawn.png)
    assert recipe.to_request() == APPLE
    assert (recipe.model, recipe.revision, recipe.dtype) == ("tiny", "test", "float32")
    assert (recipe.device, recipe.placement) == ("cpu", "resident") == (card.device, card.placement)
    assert {"zbot", "torch", "diffusers", "transformers"} <= set(recipe.versions)
    with Image.open(io.BytesIO(drawn.png)) as image:
        assert json.loads(image.info[RECIPE_KEY])["prompt"] == "a red apple"
        assert image.info["parameters"].startswith(
            "a red apple\nSteps: 8, Sampler: Euler, CFG scale: 0, Seed: 7,"
        )


async def test_picture_k_of_a_batch_is_the_single_picture_of_seed_s_plus_k(engine: ProcessEngine) -> None:
    batch = [
        asyncio.create_task(engine.draw(picture, ignore))
        for picture in replace(SMALL, num_images=3).pictures()
    ]
    drawn = await asyncio.gather(*batch)
    assert [picture.seed for picture in drawn] == [7, 8, 9]
    assert len({picture.png for picture in drawn}) == 3
    for picture in drawn:
        assert (await engine.draw(replace(SMALL, seed=picture.seed), ignore)).png == picture.png


async def test_every_step_is_reported_and_previews_are_small_jpegs(engine: ProcessEngine) -> None:
    reached = Reached(8)
    drawn = await engine.draw(APPLE, reached)
    assert [(step.number, step.total) for step in reached.steps] == [(number, 8) for number in range(1, 9)]
    previews = [step.preview for step in reached.steps if step.preview]
    assert len(previews) == 7  # where the picture goes is known from the second step on
    with Image.open(io.BytesIO(previews[0])) as preview, Image.open(io.BytesIO(drawn.png)) as picture:
        assert preview.format == "JPEG" and max(preview.size) <= 256
        difference = ImageChops.difference(
            preview.convert("RGB"), picture.convert("RGB").resize(preview.size)
        )
        assert max(ImageStat.Stat(difference).mean) < 40  # of 255: the same thing is to be seen


async def test_the_second_picture_starts_when_the_last_step_of_the_first_is_done(
    engine: ProcessEngine,
) -> None:
    order: list[tuple[str, int]] = []
    first = asyncio.create_task(engine.draw(SMALL, lambda step: order.append(("first", step.number))))
    second = asyncio.create_task(
        engine.draw(replace(SMALL, seed=8), lambda step: order.append(("second", step.number)))
    )
    await asyncio.gather(first, second)
    assert order == [(name, number) for name in ("first", "second") for number in range(1, 9)]


async def test_the_tail_that_the_text_encoder_never_sees_is_told(engine: ProcessEngine) -> None:
    prompt = "a red apple " * 18 + "with a horse and a dragon"
    drawn = await engine.draw(replace(SMALL, prompt=prompt), ignore)
    assert drawn.unused_prompt == prompt[220:]
    assert (await engine.draw(replace(SMALL, prompt=prompt[:220]), ignore)).unused_prompt == ""


# --- cancelling and mistakes ---


async def test_cancelling_one_picture_stops_it_and_leaves_its_neighbour_untouched(
    engine: ProcessEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = await engine.draw(replace(SMALL, seed=8), ignore)
    pid = engine.pid
    drawn_steps: list[int] = []
    take = _life.Life._take_drawing

    def spy(life: _life.Life, event: str, header: dict[str, Any], payload: bytes, picture: Any) -> None:
        if event == "step" and header["total"] == 50:
            drawn_steps.append(header["number"])
        take(life, event, header, payload, picture)

    monkeypatch.setattr(_life.Life, "_take_drawing", spy)
    reached = Reached(3)
    first = asyncio.create_task(engine.draw(replace(APPLE, steps=50), reached))
    second = asyncio.create_task(engine.draw(replace(SMALL, seed=8), ignore))
    await reached.wait()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert (await second).png == alone.png
    assert len(drawn_steps) < 10  # the child itself stopped, and was not only no longer listened to
    assert engine.pid == pid


async def test_cancelling_a_picture_that_waits_leaves_the_one_on_the_card_untouched(
    engine: ProcessEngine,
) -> None:
    long = replace(SMALL, steps=50)
    alone = await engine.draw(long, ignore)
    reached, never = Reached(2), Reached(1)
    first = asyncio.create_task(engine.draw(long, reached))
    second = asyncio.create_task(engine.draw(replace(SMALL, seed=8), never))
    await reached.wait()
    second.cancel()
    assert (await first).png == alone.png
    assert (await engine.draw(replace(SMALL, seed=9), ignore)).seed == 9
    assert never.steps == []


async def test_a_mistake_in_on_step_ends_its_own_picture_only(engine: ProcessEngine) -> None:
    def mistaken(step: Step) -> None:
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        await engine.draw(SMALL, mistaken)
    assert (await engine.draw(SMALL, ignore)).seed == 7


async def test_out_of_memory_fails_the_picture_and_the_next_one_works(engine: ProcessEngine) -> None:
    pid = engine.pid
    with pytest.raises(OutOfMemory) as caught:
        await engine.draw(replace(SMALL, prompt=faults.OUT_OF_MEMORY), ignore)
    assert caught.value.facts["width"] == 128
    assert (await engine.draw(SMALL, ignore)).seed == 7
    assert engine.pid == pid


async def test_a_bug_fails_the_picture_and_the_next_one_works(engine: ProcessEngine) -> None:
    pid = engine.pid
    with pytest.raises(GenerationError, match="ZeroDivisionError: no pixels"):
        await engine.draw(replace(SMALL, prompt=faults.BUG), ignore)
    assert (await engine.draw(SMALL, ignore)).seed == 7
    assert engine.pid == pid


async def test_more_than_one_picture_at_once_is_refused(engine: ProcessEngine) -> None:
    with pytest.raises(ValueError, match="one picture"):
        await engine.draw(replace(SMALL, num_images=2), ignore)


# --- the process ---


async def test_a_loaded_engine_is_not_loaded_again(engine: ProcessEngine) -> None:
    pid = engine.pid
    assert (await engine.load(lambda _: None)).model == "tiny"
    assert engine.pid == pid


async def test_the_child_connects_to_nothing(engine: ProcessEngine, socket_log: Path) -> None:
    await engine.draw(SMALL, ignore)
    assert not socket_log.exists(), socket_log.read_text(encoding="utf-8")


async def test_the_child_stays_under_800_mb(engine: ProcessEngine) -> None:
    await engine.draw(SMALL, ignore)
    status = Path(f"/proc/{engine.pid}/status").read_text(encoding="utf-8")
    (peak_kb,) = (int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    assert peak_kb < 800_000


async def test_the_child_gives_way_to_the_bot_when_it_draws_on_the_cpu() -> None:
    engine = ProcessEngine(tiny_options(gives_way=True))
    try:
        await engine.load(ignore)
        assert engine.pid is not None
        tasks = Path(f"/proc/{engine.pid}/task")
        policies = {os.sched_getscheduler(int(task.name)) for task in tasks.iterdir()}
        assert policies == {os.SCHED_OTHER, os.SCHED_IDLE}, "what draws gives way, and the link still hears"
        assert os.getsid(engine.pid) == os.getsid(0), "between sessions a priority means nothing"
    finally:
        await engine.close()


async def test_the_child_survives_the_signals_that_are_meant_for_the_bot(engine: ProcessEngine) -> None:
    pid = engine.pid
    assert pid is not None
    reached = Reached(2)
    drawing = asyncio.create_task(engine.draw(SMALL, reached))
    await reached.wait()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(pid, number)
    assert (await drawing).seed == 7
    assert engine.pid == pid and os.getpgid(pid) != os.getpgid(0)


async def test_prompts_are_not_logged(engine: ProcessEngine, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), pytest.raises(GenerationError):
        await engine.draw(replace(SMALL, prompt=faults.BUG), ignore)
    assert "ZeroDivisionError" in caplog.text
    assert faults.BUG not in caplog.text


async def test_secrets_do_not_reach_the_child(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DISCORD_TOKEN", "ZBOT_DATA_DIR", "MODELSCOPE_API_TOKEN", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "hush")
    env = child_environment(tiny_options(), {})
    assert "hush" not in env.values()
    assert env["HF_HUB_OFFLINE"] == "1"


async def test_the_bots_side_never_imports_torch_and_is_quick() -> None:
    code = "import sys, zbot.engine.process, zbot.images; print('torch' in sys.modules, 'diffusers' in sys.modules)"
    times: list[float] = []
    for _ in range(3):
        began = time.perf_counter()
        done = await asyncio.to_thread(
            subprocess.run, [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
        )
        times.append(time.perf_counter() - began)
        assert done.stdout.split() == ["False", "False"]
    assert min(times) < 1.0


async def test_the_child_ends_with_its_parent() -> None:
    script = """
        import asyncio, os, signal
        from zbot.engine._life import Life
        from zbot.engine.process import EngineOptions, child_environment

        async def main():
            options = EngineOptions(model_dir="", model="")
            life = await Life.start(child_environment(options, {}), stall_s=60, load_stall_s=60)
            print(life.pid, flush=True)
            await asyncio.to_thread(input)
            os.kill(os.getpid(), signal.SIGKILL)

        asyncio.run(main())
    """
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", textwrap.dedent(script), cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert parent.stdin is not None and parent.stdout is not None
    child = os.pidfd_open(int(await parent.stdout.readline()))
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(child, ended.set)
    try:
        assert not ended.is_set()
        parent.stdin.write(b"\n")
        assert await parent.wait() == -signal.SIGKILL
        await asyncio.wait_for(ended.wait(), 10)
    finally:
        asyncio.get_running_loop().remove_reader(child)
        os.close(child)
        parent.stdin.close()


# --- death; each of these leaves the shared engine dead, the next test loads it again ---


async def test_kill_at_a_step_then_while_loading_then_the_same_bytes_again(engine: ProcessEngine) -> None:
    before = await engine.draw(SMALL, ignore)
    first = engine.pid
    assert first is not None
    reached = Reached(3)
    drawing = asyncio.create_task(engine.draw(APPLE, reached))
    waiting = asyncio.create_task(engine.draw(SMALL, ignore))
    await reached.wait()
    os.kill(first, signal.SIGKILL)
    death, innocent = await death_of(drawing), await death_of(waiting)
    assert (death.code, death.facts["on_card"]) == ("engine_dead", True)
    assert "SIGKILL" in str(death)
    assert innocent.facts["on_card"] is False

    def kill(progress: LoadProgress) -> None:
        assert engine.pid is not None
        os.kill(engine.pid, signal.SIGKILL)

    with pytest.raises(EngineDead, match="SIGKILL"):
        await engine.load(kill)
    stages: list[tuple[str, int, int]] = []
    await engine.load(lambda progress: stages.append((progress.stage, progress.done, progress.total)))
    assert stages[0] == ("libraries", 0, 3) and stages[-1] == ("ready", 3, 3), "three files of weights"
    assert engine.pid != first
    assert (await engine.draw(SMALL, ignore)).png == before.png


async def test_kill_at_the_decode_charges_the_picture(engine: ProcessEngine) -> None:
    reached = Reached(8)
    # A larger picture takes long enough to decode that the kill meets it there.
    drawing = asyncio.create_task(engine.draw(replace(APPLE, width=512, height=512), reached))
    await reached.wait()
    assert engine.pid is not None
    os.kill(engine.pid, signal.SIGKILL)
    assert (await death_of(drawing)).facts["on_card"] is True


async def test_death_while_idle_charges_nobody() -> None:
    life = await _life.Life.start(child_environment(tiny_options(), {}), stall_s=60, load_stall_s=60)
    os.kill(life.pid, signal.SIGKILL)
    death = await death_of(asyncio.create_task(life.draw(SMALL, ignore)))
    assert (death.code, death.facts["on_card"]) == ("engine_dead", False)


async def test_a_poisoned_card_ends_the_child_and_names_the_culprit(engine: ProcessEngine) -> None:
    poisoned = asyncio.create_task(engine.draw(replace(SMALL, prompt=faults.POISON), ignore))
    waiting = asyncio.create_task(engine.draw(SMALL, ignore))
    death = await death_of(poisoned)
    assert death.facts["on_card"] is True
    assert "device-side assert" in str(death)
    assert (await death_of(waiting)).facts["on_card"] is False
    assert engine.pid is None


@pytest.mark.parametrize("how", [faults.HANG, "stopped"])
async def test_a_picture_that_stands_still_is_ended_by_the_watchdog(engine: ProcessEngine, how: str) -> None:
    reached = Reached(2)
    hanging = asyncio.create_task(engine.draw(replace(SMALL, prompt=how), reached))
    await reached.wait()
    if how == "stopped":
        assert engine.pid is not None
        os.kill(engine.pid, signal.SIGSTOP)
    waiting = asyncio.create_task(engine.draw(SMALL, ignore))
    began = time.monotonic()
    death = await death_of(hanging)
    assert time.monotonic() - began < STALL_S + 5
    assert (death.code, death.facts["on_card"]) == ("engine_stalled", True)
    assert (await death_of(waiting)).facts["on_card"] is False


async def test_closing_ends_what_is_in_hand_without_blame_and_can_be_repeated() -> None:
    # Not loaded, so the picture surely still waits.
    life = await _life.Life.start(child_environment(tiny_options(), {}), stall_s=60, load_stall_s=60)
    drawing = asyncio.create_task(life.draw(SMALL, ignore))
    await asyncio.sleep(0)
    began = time.monotonic()
    await life.close(within_s=20)
    assert time.monotonic() - began < 15  # it went when it was asked
    assert (await death_of(drawing)).facts["on_card"] is False
    await life.close(within_s=20)
    with pytest.raises(EngineDead):
        await life.draw(SMALL, ignore)


async def test_a_child_that_does_not_go_when_asked_is_killed() -> None:
    life = await _life.Life.start(child_environment(tiny_options(), {}), stall_s=60, load_stall_s=60)
    os.kill(life.pid, signal.SIGSTOP)
    await life.close(within_s=0.2)
    assert life.has_ended


async def test_closing_before_loading_is_no_mistake() -> None:
    await ProcessEngine(tiny_options()).close()


async def test_a_model_that_is_not_there_is_a_sentence_and_no_child_is_left(tmp_path: Path) -> None:
    engine = ProcessEngine(EngineOptions(model_dir=str(tmp_path), model="none"))
    with pytest.raises(WeightsError, match=r"model_index\.json is missing"):
        await engine.load(lambda _: None)
    assert engine.pid is None


async def test_cancelling_a_load_leaves_no_child() -> None:
    engine = ProcessEngine(tiny_options())
    begun = asyncio.Event()
    on_progress: Callable[[LoadProgress], None] = lambda _: begun.set()  # noqa: E731
    loading = asyncio.create_task(engine.load(on_progress))
    await asyncio.wait_for(begun.wait(), 30)
    loading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await loading
    assert engine.pid is None
