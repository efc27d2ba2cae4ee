"""The engine's process with faults on request: what the prompt says happens."""

import sys
import threading
from typing import Any

from tests.zbot.engine import faults
from zbot.engine import child
from zbot.engine._options import EngineOptions


class FaultyChild(child.Child):
    def _load(self, options: EngineOptions) -> Any:
        painter: Any = super()._load(options)
        latents = painter._latents

        def faulty_latents(request: Any, on_step: Any) -> Any:
            def faulty_step(step: int, steps: int, preview: bytes | None) -> None:
                on_step(step, steps, preview)
                if step == 2:
                    fail(request.prompt)

            return latents(request, faulty_step)

        finish = painter.finish

        def faulty_finish(denoised: Any) -> Any:
            if denoised.request.prompt == faults.BUG:
                raise ZeroDivisionError("no pixels")
            return finish(denoised)

        painter._latents, painter.finish = faulty_latents, faulty_finish
        return painter


def fail(prompt: str) -> None:
    import torch

    if prompt == faults.POISON:
        raise RuntimeError("CUDA error: device-side assert triggered")
    if prompt == faults.ASSERT:
        torch.zeros(4, device="cuda")[torch.tensor([9], device="cuda")].cpu()
    if prompt == faults.HANG:
        threading.Event().wait()
    if prompt == faults.OUT_OF_MEMORY:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB.")


if __name__ == "__main__":
    child.Child = FaultyChild
    child.main(int(sys.argv[1]), int(sys.argv[2]))
