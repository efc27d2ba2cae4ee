"""What size a model was made for, read from its own files."""

import json
from pathlib import Path

from zbot.errors import WeightsError
from zbot.weights.cache import Place

Z_IMAGE_NATIVE_SIZE = 1024


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


def expected_native_size(place: Place) -> int:
    """Return `native_size` of the model that belongs in a place, as far as it is there; else that of Z-Image-Turbo."""
    for directory in (place.converted, place.directory):
        try:
            return native_size(directory)
        except WeightsError:
            continue
    return Z_IMAGE_NATIVE_SIZE
