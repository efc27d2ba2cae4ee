"""The seam to whatever draws: the `Engine` Protocol and the values that cross it. No torch here."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from zbot.request import ImageRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """What is loaded, as it goes into every recipe."""

    model: str  # "tiny", a ModelScope id, or the directory's name
    revision: str  # recorded at fetch time, or a digest of the files' names and sizes
    dtype: str  # "bfloat16" or "float32"
    device: str  # "cuda: NVIDIA H200", "cpu", …
    placement: str  # how the parts lie in memory: "resident", "model_offload", …
    native_size: int  # pixels of the square side the model was made for
    memory_bytes: int = 0  # of the card, taken after loading; 0 where nobody can tell
    versions: dict[str, str] = field(default_factory=dict[str, str])  # library -> version
    options: dict[str, str] = field(
        default_factory=dict[str, str]
    )  # what else decides the bytes: compile, attention, …


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadProgress:
    """How far loading has come; `done` and `total` count files of weights."""

    stage: str
    done: int
    total: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One finished denoising step; `number` runs from 1 to `total`."""

    number: int
    total: int
    preview: bytes | None = None  # a small JPEG of the latents so far


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """One finished picture."""

    png: bytes  # with the recipe in its text chunks
    seed: int
    gpu_s: float  # seconds the card worked on it; what overlaps the picture before is counted once
    unused_prompt: str = ""  # the tail of the prompt that did not fit the text encoder
    card: ModelCard | None = None  # what is in force now, if that changed: less memory was free than thought


OnStep = Callable[[Step], None]
OnLoad = Callable[[LoadProgress], None]


class Engine(Protocol):
    """Draws pictures, one at a time on the card.

    A second `draw` may begin as soon as the first has reported its last step: the end of a picture (decoding, PNG)
    then overlaps the denoising of the next. Cancelling the awaiting task stops a drawing at its next step.
    """

    async def load(self, on_progress: OnLoad) -> ModelCard:
        """Load the model, or load it again after the engine died.

        Raises:
            WeightsError: the files are missing or damaged.
            OutOfMemory: no placement fits.
            EngineDead: the process ended while it loaded.
        """
        ...

    async def draw(self, request: ImageRequest, on_step: OnStep) -> Drawn:
        """Draw one picture (`request.num_images` is 1) and report every step.

        Raises:
            GenerationError: OutOfMemory, NonFiniteOutput, EngineDead. After EngineDead call `load` again.
        """
        ...

    async def close(self) -> None:
        """End the engine; idempotent."""
        ...
