"""What decides how the engine's process loads and draws: plain values that cross to it as JSON."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """How to load and draw; every field but the first three has a value that suits most machines."""

    model_dir: str
    model: str
    revision: str = ""  # "" is a fingerprint of the files
    device: str = "auto"  # auto, cuda, cuda:1, mps, cpu
    dtype: str = "auto"  # auto, bfloat16, float32, float8 (bfloat16 with products in 8 bits); float16 turns Z-Image's pictures black
    placement: str = "auto"  # see zbot.engine._placement.PLACEMENTS
    quantization: str = "none"  # of the transformer: none, int8, nf4, gguf:/path/to/file.gguf
    compile: str = "auto"  # auto takes the fast path where it can draw; off is the stock pipeline
    attention: str = "auto"  # auto, or one of diffusers' backends that needs no download
    threads: int | None = None  # of torch on the CPU; None is one for each core this process may use
    gives_way: bool = True  # on the CPU, take only what no other process wants of it
    preview: bool = True
    preview_every_s: float = 0.7
    lora_dir: str = ""  # where LoRA files are looked up by name; "" is nowhere
    lora_files: dict[str, str] = field(default_factory=dict[str, str])  # more of them, name -> path
    memory_fraction: float = 1.0  # of the card's memory, to leave room for another program

    @property
    def is_quantized(self) -> bool:
        """Tell whether the transformer's weights are kept in fewer bits than it computes in."""
        return self.quantization != "none" or self.dtype == "float8"

    def to_json(self) -> dict[str, Any]:
        """Return the values as JSON has them."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Return the options that `to_json` made."""
        return cls(**value)
