"""`python -m zbot recipe`: how a picture was made."""

import json
import re
from pathlib import Path
from typing import Annotated

import typer

from zbot.cli.problems import one_sentence

# A picture may come from anybody: what would steer the terminal is shown as JSON's escapes. JSON itself escapes the
# older controls; these are C1 controls, marks that turn the direction of text, and halves of characters.
_STEERING = re.compile("[\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


@one_sentence
def recipe(
    file: Annotated[
        Path, typer.Argument(help="A picture of zbot: the PNG, or the WebP copy that Discord got.")
    ],
) -> None:
    """Print how a picture was made, as JSON."""
    from dataclasses import asdict

    from zbot.images import read_recipe

    text = json.dumps(asdict(read_recipe(file)), ensure_ascii=False, indent=2)
    print(_STEERING.sub(lambda found: f"\\u{ord(found[0]):04x}", text))
