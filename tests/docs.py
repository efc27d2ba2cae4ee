"""What the program says of itself, as documents: `python -m tests.docs` writes them anew."""

import asyncio
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from tests.commands import payloads
from zbot.config import TOKEN, Settings, setting_names

ROOT = Path(__file__).resolve().parents[1]
_REGENERATE = "Written by `python -m tests.docs` from the code; change it there."


def env_example() -> str:
    """Return `.env.example`: every setting with its description, unset but for the token."""
    blocks = [
        f"# Settings of zbot: cp .env.example .env, and put the token into the first line.\n# {_REGENERATE}\n"
    ]
    for name, field in _fields():
        if name == TOKEN:
            blocks.append(f"# {field.description}\n{name}=\n")
        else:
            values = f" One of: {', '.join(choices)}." if (choices := _choices(field)) else ""
            blocks.append(f"# {field.description}{values}\n#{name}={_default(field)}\n")
    return "\n".join(blocks)


def settings_page() -> str:
    """Return `docs/settings.md`."""
    lines = [
        "# Settings",
        "",
        f"<!-- {_REGENERATE} -->",
        "",
        "They are read from the environment and from `.env` in the directory of the start; the environment wins. All are checked",
        "at the start: what cannot be used, and what does not exist, is named with its repair, and the exit code is 2.",
        "",
        "| setting | default | what it is |",
        "| --- | --- | --- |",
    ]
    for name, field in _fields():
        default = "required" if name == TOKEN else f"`{_default(field)}`" if _default(field) else "empty"
        values = (
            f" One of {', '.join(f'`{choice}`' for choice in choices)}."
            if (choices := _choices(field))
            else ""
        )
        lines.append(f"| `{name}` | {default} | {field.description}{values} |")
    return "\n".join(lines) + "\n"


async def commands_page() -> str:
    """Return `docs/commands.md`."""
    lines = ["# Commands", "", f"<!-- {_REGENERATE} -->"]
    for command in await payloads():
        lines += ["", f"## /{command['name']}", "", f"{command['description']}. {_chinese(command)}"]
        if options := command.get("options"):
            lines += ["", "| option | what it is | values |", "| --- | --- | --- |"]
            lines += [f"| `{each['name']}` | {each['description']} | {_values(each)} |" for each in options]
    return "\n".join(lines) + "\n"


def _fields() -> list[tuple[str, FieldInfo]]:
    return [(name, Settings.model_fields[field]) for name, field in setting_names().items()]


def _default(field: FieldInfo) -> str:
    value = field.default
    if value is None or value is PydanticUndefined or value == ():
        return ""
    return (
        str(value).lower()
        if isinstance(value, bool)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )


def _choices(field: FieldInfo) -> tuple[str, ...]:
    if field.annotation is bool:
        return ("true", "false")
    return get_args(field.annotation) if get_origin(field.annotation) is Literal else ()


def _chinese(command: dict[str, Any]) -> str:
    return f"In Chinese: `/{command['name_localizations']['zh-CN']}`."


def _values(option: dict[str, Any]) -> str:
    if choices := option.get("choices"):
        return ", ".join(str(choice["name"]) for choice in choices)
    low, high = (option.get(f"{end}_value", option.get(f"{end}_length")) for end in ("min", "max"))
    required = "required" if option.get("required") else "optional"
    if low is None:
        return required
    unit = " characters" if "max_length" in option else ""
    return f"{required}, {low} to {high}{unit}"


def documents() -> dict[Path, str]:
    """Return every written document with its text."""
    return {
        ROOT / ".env.example": env_example(),
        ROOT / "docs" / "settings.md": settings_page(),
        ROOT / "docs" / "commands.md": asyncio.run(commands_page()),
    }


if __name__ == "__main__":
    for path, text in documents().items():
        path.write_text(text, encoding="utf-8")
