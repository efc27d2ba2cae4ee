"""Looks at a model's files before anything heavy is imported, so that a missing one is known at once."""

from pathlib import Path

from zbot.errors import WeightsError
from zbot.weights.check import Problem, fingerprint, read_json, read_structure

# In the order of loading: beside a transformer that is made smaller, the others may need the room it leaves.
PARTS = ("tokenizer", "scheduler", "transformer", "text_encoder", "vae")
REPAIR = "run `python -m zbot weights verify`, then `python -m zbot weights fetch`"


def check_files(directory: Path) -> str:
    """Look at presence, heads and names of a model's files and return their fingerprint.

    Raises: WeightsError naming every bad file.
    """
    files, problems = read_structure(directory)
    if not problems:
        index, _ = read_json(directory, "model_index.json")
        problems = tuple(
            Problem(path="model_index.json", kind="damaged", detail=f"it names no {part}")
            for part in PARTS
            if part not in index
        )
    if problems:
        raise WeightsError(f"{directory}: {'; '.join(map(str, problems))}; {REPAIR}")
    return fingerprint(directory, files)


def weight_files(directory: Path) -> dict[str, int]:
    """Return how many files of weights each part has: 7 in all for Z-Image-Turbo."""
    return {part: len(list((directory / part).glob("*.safetensors"))) for part in PARTS}
