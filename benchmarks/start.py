"""Loads as the engine's process does, draws, and prints the times since the process was asked for.

    ZBOT_BENCH_BEGAN=$(date +%s.%N) python -m benchmarks.start /path/to/Z-Image-Turbo

`benchmarks.gpu --start` runs it with a cold and with a warm cache of kernels.
"""

import argparse
import hashlib
import json
import os
import time


def ready(folder: str, *, small: bool) -> None:
    """Load as the engine's process does, draw one picture, and print the times since the process was asked for."""
    began = float(os.environ.get("ZBOT_BENCH_BEGAN", time.time()))
    from zbot.engine import zimage
    from zbot.engine._options import EngineOptions
    from zbot.request import ImageRequest

    times = {"imported_s": time.time() - began}
    painter = zimage.load(EngineOptions(model_dir=folder, model="benchmark", preview=False), _nothing)
    times["ready_s"] = time.time() - began
    side = 128 if small else 1024
    request = ImageRequest(
        prompt="a red fox in the snow", seed=3, steps=8, guidance_scale=0.0, width=side, height=side
    )
    hashes = []
    for name in ("first_picture_s", "second_picture_s"):
        begin = time.time()
        drawn = painter.finish(painter.denoise(request, _nothing))
        times[name] = time.time() - begin
        hashes.append(hashlib.sha256(drawn.png).hexdigest()[:16])
    begin = time.time()
    for _ in painter.warm_up():
        pass
    times["idle_warm_up_s"] = time.time() - begin
    hashes.append(hashlib.sha256(painter.finish(painter.denoise(request, _nothing)).png).hexdigest()[:16])
    print(json.dumps(times | {"sha256": hashes}))


def _nothing(*_: object) -> None:
    """Hear of a step, and do nothing."""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="a local directory of the model")
    parser.add_argument("--small", action="store_true", help="it is a toy: 128x128 instead of 1024x1024")
    arguments = parser.parse_args()
    ready(arguments.model, small=arguments.small)
