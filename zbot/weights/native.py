"""What size a model was made for, read from its own files."""

import json
from pathlib import Path

from zbot.errors import WeightsError


def native_size(directory: Path) -> int:
    """Return the pixels of the square side a model was made for: its VAE's `sample_size` (1024 for Z-Image-Turbo).

    Raises:
        WeightsError: the file is not there or does not say.
    """
    path = directory / "vae" / "config.json"
    try:
        size = json.loads(path.read_text("utf-8"))["sample_size"]
    except (OSError, ValueError, KeyError) as error:
        raise WeightsError(f"{path} does not name a sample_size; fetch the model again.") from error
    return int(size)
