"""Which LoRA files the command line draws with: by name from the settings' directory, or any file by its path."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from zbot import loras
from zbot.errors import ConfigError, InvalidRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Rack:
    """The LoRA files of one command; `files` are those that were named by a path."""

    directory: Path | None = None
    files: dict[str, Path] = field(default_factory=dict[str, Path])

    def known(self) -> list[str]:
        """Return every name there is."""
        return [*self.files, *(loras.shelf(self.directory) if self.directory else ())]

    def read(self, text: str | None) -> tuple[str | None, float | None]:
        """Return the name and the strength of `name:0.8` or `some/file.safetensors:0.8`, and remember the file.

        Raises: InvalidRequest: it cannot be read so. ConfigError: there is no such file.
        """
        if text is None:
            return None, None
        try:
            name, scale = loras.split(text)
        except InvalidRequest:
            # A colon may be a part of the path itself.
            if not _is_path(text):
                raise
            name, scale = text, None
        return (self._of_path(Path(name)) if _is_path(name) else name), scale

    def _of_path(self, path: Path) -> str:
        if not path.name.endswith(loras.SUFFIX) or not path.is_file():
            raise ConfigError(f"--lora {path}: there is no {loras.SUFFIX} file of that name.")
        name = loras.name_of(path)
        if self.files.setdefault(name, path.resolve()) != path.resolve():
            raise ConfigError(f"--lora {path}: {self.files[name]} has the same name; rename one of them.")
        return name


def _is_path(text: str) -> bool:
    return text.endswith(loras.SUFFIX) or os.sep in text
