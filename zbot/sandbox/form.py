"""A collector of field errors, with the checks that every form of Discord's repeats: length, range, choice."""

from collections.abc import Sized
from typing import Any

from zbot.sandbox.refusal import FormError, Json, as_list, as_object

Path = tuple[str | int, ...]


class Form:
    """Gathers what is wrong with one request body."""

    def __init__(self) -> None:
        self.errors: list[FormError] = []

    def wrong(self, path: Path, code: str, message: str) -> None:
        """Note one error."""
        self.errors.append(FormError(path=path, code=code, message=message))

    def text(self, value: Any, path: Path, *, most: int, least: int = 0, required: bool = False) -> bool:
        """Check a string's type and length in code points; say whether it is a usable string."""
        if value is None:
            if required:
                self.wrong(path, "BASE_TYPE_REQUIRED", "This field is required")
            return False
        if not isinstance(value, str):
            self.wrong(path, "STRING_TYPE_CONVERT", "Could not interpret value as string.")
            return False
        return self.length(value, path, least=max(least, 1 if required else 0), most=most)

    def length(self, value: Sized, path: Path, *, most: int, least: int = 0) -> bool:
        """Check the length of a string or list."""
        if len(value) > most:
            bounds = (
                f"Must be between {least} and {most} in length."
                if least
                else f"Must be {most} or fewer in length."
            )
            self.wrong(path, "BASE_TYPE_BAD_LENGTH" if least else "BASE_TYPE_MAX_LENGTH", bounds)
            return False
        if len(value) < least:
            if len(value) == 0 and isinstance(value, str):
                self.wrong(path, "BASE_TYPE_REQUIRED", "This field is required")
            else:
                self.wrong(path, "BASE_TYPE_BAD_LENGTH", f"Must be between {least} and {most} in length.")
            return False
        return True

    def objects(self, value: Any, path: Path, *, most: int, least: int = 0) -> list[Json]:
        """Return the objects of a list after checking type and length; an empty list for anything unusable."""
        items = [] if value is None else as_list(value)
        if items is None:
            self.wrong(path, "LIST_TYPE_CONVERT", "Only iterables may be used in a ListType")
            return []
        self.length(items, path, most=most, least=least)
        found: list[Json] = []
        for index, item in enumerate(items):
            shape = as_object(item)
            if shape is None:
                self.wrong(
                    (*path, index), "MODEL_TYPE_CONVERT", "Only dictionaries may be used in a ModelType"
                )
            else:
                found.append(shape)
        return found

    def number(
        self,
        value: Any,
        path: Path,
        *,
        least: int | None = None,
        most: int | None = None,
        required: bool = False,
    ) -> bool:
        """Check that a value is an integer in the range; None passes unless required."""
        if value is None:
            if required:
                self.wrong(path, "BASE_TYPE_REQUIRED", "This field is required")
            return False
        if not isinstance(value, int) or isinstance(value, bool):
            self.wrong(path, "NUMBER_TYPE_COERCE", f'Value "{value}" is not int.')
            return False
        if most is not None and value > most:
            self.wrong(path, "NUMBER_TYPE_MAX", f"int value should be less than or equal to {most}.")
            return False
        if least is not None and value < least:
            self.wrong(path, "NUMBER_TYPE_MIN", f"int value should be greater than or equal to {least}.")
            return False
        return True

    def choice(self, value: Any, path: Path, choices: tuple[int | str, ...]) -> bool:
        """Check that a value is one of a few."""
        if value not in choices:
            listed = ", ".join(str(c) for c in choices)
            self.wrong(path, "BASE_TYPE_CHOICES", f"Value must be one of ({listed}).")
            return False
        return True

    def url(self, value: Any, path: Path, *, schemes: tuple[str, ...], most: int = 2048) -> None:
        """Check an address by its scheme."""
        if not self.text(value, path, most=most, required=True):
            return
        if value.split(":", 1)[0].lower() not in schemes:
            listed = ", ".join(repr(s) for s in schemes)
            self.wrong(
                path,
                "URL_TYPE_INVALID_SCHEME",
                f'Scheme "{value.split(":", 1)[0]}" is not supported. Scheme must be one of ({listed}).',
            )
