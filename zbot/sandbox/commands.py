"""Application commands: the rules of their form, and the list that the bot synced, globally and per guild."""

import json
import re
from typing import Any

from zbot.sandbox.clock import Clock
from zbot.sandbox.events import Bus, Event
from zbot.sandbox.form import Form, Path
from zbot.sandbox.refusal import FormError, Json, as_list, as_object, invalid_form

CHAT, USER, MESSAGE = 1, 2, 3
MAX_COMMANDS = {CHAT: 100, USER: 15, MESSAGE: 15}
MAX_COMMAND_CHARACTERS = 8000
SUBCOMMAND, GROUP, STRING, INTEGER, NUMBER = 1, 2, 3, 4, 10
NAME = re.compile(r"^[-_'\w]{1,32}$")
LOCALES = frozenset(
    (
        "id",
        "da",
        "de",
        "en-GB",
        "en-US",
        "es-ES",
        "es-419",
        "fr",
        "hr",
        "it",
        "lt",
        "hu",
        "nl",
        "no",
        "pl",
        "pt-BR",
        "ro",
        "fi",
        "sv-SE",
        "vi",
        "tr",
        "cs",
        "el",
        "bg",
        "ru",
        "uk",
        "hi",
        "th",
        "zh-CN",
        "ja",
        "zh-TW",
        "ko",
    )
)


def commands_errors(body: Any) -> list[FormError]:
    """Return what Discord would refuse in a bulk overwrite of commands."""
    form = Form()
    items = as_list(body)
    if items is None:
        form.wrong((), "LIST_TYPE_CONVERT", "Only iterables may be used in a ListType")
        return form.errors
    seen: set[tuple[int, str]] = set()
    counts = dict.fromkeys(MAX_COMMANDS, 0)
    for index, item in enumerate(items):
        found = as_object(item)
        if found is None:
            form.wrong((index,), "MODEL_TYPE_CONVERT", "Only dictionaries may be used in a ModelType")
            continue
        kind: int = found.get("type") or CHAT
        if not form.choice(kind, (index, "type"), (CHAT, USER, MESSAGE)):
            continue
        _command(form, found, kind, (index,))
        counts[kind] += 1
        key = (kind, str(found.get("name")))
        if key in seen:
            form.wrong(
                (index, "name"),
                "APPLICATION_COMMANDS_DUPLICATE_NAME",
                "Application command names must be unique",
            )
        seen.add(key)
    for kind, count in counts.items():
        if count > MAX_COMMANDS[kind]:
            form.wrong((), "BASE_TYPE_MAX_LENGTH", f"Must be {MAX_COMMANDS[kind]} or fewer in length.")
    return form.errors


def _command(form: Form, command: Json, kind: int, path: Path) -> None:
    if kind == CHAT:
        _name(form, command.get("name"), (*path, "name"))
        form.text(command.get("description"), (*path, "description"), most=100, required=True)
        _options(form, command.get("options"), (*path, "options"), depth=0)
    else:
        form.text(command.get("name"), (*path, "name"), most=32, required=True)
        if command.get("description"):
            form.wrong(
                (*path, "description"),
                "APPLICATION_COMMAND_DESCRIPTION_NOT_EMPTY",
                "Context menu commands cannot have a description",
            )
        if command.get("options"):
            form.wrong(
                (*path, "options"),
                "APPLICATION_COMMAND_OPTIONS_NOT_EMPTY",
                "Context menu commands cannot have options",
            )
    _localizations(form, command, path, chat=kind == CHAT)
    permissions = command.get("default_member_permissions")
    if permissions is not None and not str(permissions).isdecimal():
        form.wrong(
            (*path, "default_member_permissions"), "NUMBER_TYPE_COERCE", f'Value "{permissions}" is not int.'
        )
    for key, allowed in (("contexts", (0, 1, 2)), ("integration_types", (0, 1))):
        for index, value in enumerate(command.get(key) or ()):
            form.choice(value, (*path, key, index), allowed)
    if _characters(command) > MAX_COMMAND_CHARACTERS:
        form.wrong(
            path, "APPLICATION_COMMAND_TOO_LARGE", f"Command exceeds maximum size ({MAX_COMMAND_CHARACTERS})"
        )


def _options(form: Form, options: Any, path: Path, *, depth: int) -> None:
    seen: set[str] = set()
    optional_seen = False
    for index, option in enumerate(form.objects(options, path, most=25)):
        here = (*path, index)
        kind = option.get("type")
        allowed = ((1, 2) if depth == 0 else (1,) if depth == 1 else ()) + tuple(range(3, 12))
        if not form.choice(kind, (*here, "type"), allowed):
            continue
        _name(form, option.get("name"), (*here, "name"))
        form.text(option.get("description"), (*here, "description"), most=100, required=True)
        _localizations(form, option, here, chat=True)
        if option.get("name") in seen:
            form.wrong(
                (*here, "name"), "APPLICATION_COMMAND_OPTIONS_NAME_INVALID", "Option names must be unique"
            )
        seen.add(str(option.get("name")))
        if kind in (SUBCOMMAND, GROUP):
            _options(form, option.get("options"), (*here, "options"), depth=1 if kind == GROUP else 2)
            continue
        if option.get("required") and optional_seen:
            form.wrong(
                here,
                "APPLICATION_COMMAND_OPTIONS_REQUIRED_INVALID",
                "Required options must be placed before non-required options",
            )
        optional_seen = optional_seen or not option.get("required")
        _value_rules(form, option, here)


def _value_rules(form: Form, option: Json, here: Path) -> None:
    """Check choices, autocomplete and bounds of an option that holds a value."""
    kind = option["type"]
    choices = form.objects(option.get("choices"), (*here, "choices"), most=25)
    if choices and option.get("autocomplete"):
        form.wrong(
            here,
            "APPLICATION_COMMAND_OPTIONS_CHOICES_AND_AUTOCOMPLETE",
            "Choices and autocomplete cannot both be set",
        )
    if (choices or option.get("autocomplete")) and kind not in (STRING, INTEGER, NUMBER):
        form.wrong(
            (*here, "choices"), "APPLICATION_COMMAND_OPTIONS_CHOICES_INVALID", "This type takes no choices"
        )
    names: set[str] = set()
    for index, choice in enumerate(choices):
        check_choice(form, choice, (*here, "choices", index), kind=kind)
        if choice.get("name") in names:
            form.wrong(
                (*here, "choices", index, "name"),
                "APPLICATION_COMMAND_OPTIONS_CHOICE_NAME_EXISTS",
                "The option choice name already exists",
            )
        names.add(str(choice.get("name")))
    if kind == STRING:
        form.number(option.get("min_length"), (*here, "min_length"), least=0, most=6000)
        form.number(option.get("max_length"), (*here, "max_length"), least=1, most=6000)
        least, most = option.get("min_length"), option.get("max_length")
    else:
        least, most = option.get("min_value"), option.get("max_value")
        if least is not None or most is not None:
            form.choice(kind, (*here, "type"), (INTEGER, NUMBER))
    if least is not None and most is not None and least > most:
        form.wrong(
            here, "APPLICATION_COMMAND_OPTIONS_MIN_MAX_INVALID", "The minimum is greater than the maximum"
        )


def check_choice(form: Form, choice: Json, path: Path, *, kind: int | None) -> None:
    """Check one choice of an option, or (kind None) of an autocomplete answer."""
    form.text(choice.get("name"), (*path, "name"), most=100, required=True)
    value = choice.get("value")
    if isinstance(value, str) and kind in (STRING, None):
        form.text(value, (*path, "value"), most=100)
    elif isinstance(value, bool) or not isinstance(value, int | float) or kind == STRING:
        form.wrong(
            (*path, "value"),
            "BASE_TYPE_REQUIRED" if value is None else "NUMBER_TYPE_COERCE",
            f'Value "{value}" does not fit.',
        )
    for locale, name in _texts(choice, "name_localizations").items():
        form.choice(locale, (*path, "name_localizations", locale), tuple(sorted(LOCALES)))
        form.text(name, (*path, "name_localizations", locale), most=100, required=True)


def _name(form: Form, name: Any, path: Path) -> None:
    if form.text(name, path, most=32, required=True) and (not NAME.match(name) or name != name.lower()):
        form.wrong(path, "APPLICATION_COMMAND_INVALID_NAME", "Command name is invalid")


def _localizations(form: Form, holder: Json, path: Path, *, chat: bool) -> None:
    for key in ("name_localizations", "description_localizations"):
        for locale, text in _texts(holder, key).items():
            here = (*path, key, locale)
            if not form.choice(locale, here, tuple(sorted(LOCALES))):
                continue
            if key == "name_localizations" and chat:
                _name(form, text, here)
            else:
                form.text(text, here, most=32 if key == "name_localizations" else 100, required=True)


def _texts(holder: Json, key: str) -> Json:
    """Return a map of localizations, empty where there is none."""
    return as_object(holder.get(key)) or {}


def _characters(command: Json) -> int:
    """Return what counts for the limit of 8000: names, descriptions and values, each in its longest language."""
    total = 0
    for key in ("name", "description"):
        texts = [
            str(command.get(key) or ""),
            *(str(t) for t in _texts(command, f"{key}_localizations").values()),
        ]
        total += max(len(text) for text in texts)
    for choice in command.get("choices") or ():
        total += len(str(choice.get("name"))) + len(str(choice.get("value")))
    options = [as_object(option) for option in as_list(command.get("options")) or ()]
    return total + sum(_characters(option) for option in options if option is not None)


class Commands:
    """The synced commands by scope: None for the global list, a guild id for a guild's own."""

    def __init__(self, clock: Clock, bus: Bus, application_id: int) -> None:
        self._clock = clock
        self._bus = bus
        self._application_id = application_id
        self._scopes: dict[int | None, list[Json]] = {}

    def overwrite(self, guild_id: int | None, body: Any) -> list[Json]:
        """Replace a scope's commands; an unchanged one keeps id and version. Raises: Refusal 50035."""
        if errors := commands_errors(body):
            raise invalid_form(errors)
        earlier = {(c["type"], c["name"]): c for c in self._scopes.get(guild_id, ())}
        stored = [self._stored(guild_id, command, earlier) for command in body]
        self._scopes[guild_id] = stored
        self._bus.publish(Event(kind="commands"), "commands")
        return stored

    def listed(self, guild_id: int | None) -> list[Json]:
        """Return the commands of one scope, with their localizations."""
        return self._scopes.get(guild_id, [])

    def everywhere(self) -> list[tuple[int | None, Json]]:
        """Return every command with its scope."""
        return [(guild_id, command) for guild_id, commands in self._scopes.items() for command in commands]

    def _stored(self, guild_id: int | None, command: Json, earlier: dict[tuple[int, str], Json]) -> Json:
        kind = command.get("type") or CHAT
        permissions = command.get("default_member_permissions")
        shape: Json = {
            "application_id": str(self._application_id),
            "type": kind,
            "name": command["name"],
            "name_localizations": command.get("name_localizations"),
            "description": command.get("description") or "",
            "description_localizations": command.get("description_localizations"),
            "default_member_permissions": None if permissions is None else str(permissions),
            "nsfw": bool(command.get("nsfw")),
        }
        if guild_id is None:
            shape["dm_permission"] = command.get("dm_permission", True) is not False
            shape["contexts"] = command.get("contexts")
            shape["integration_types"] = command.get("integration_types") or [0]
        else:
            shape["guild_id"] = str(guild_id)
        if command.get("options"):
            shape["options"] = [_stored_option(option) for option in command["options"]]
        before = earlier.get((kind, command["name"]))
        number = str(self._clock.snowflake())
        if before is None:
            return {"id": number, "version": number} | shape
        same = json.dumps({k: before.get(k) for k in shape}, sort_keys=True) == json.dumps(
            shape, sort_keys=True
        )
        same = same and len(before) == len(shape) + 2
        return {"id": before["id"], "version": before["version"] if same else number} | shape


def _stored_option(option: Json) -> Json:
    """Return an option as Discord gives it back: what is false, null or empty is left out."""
    kept: Json = {
        # By identity: a least value of 0 equals False, and is kept.
        key: value
        for key, value in option.items()
        if not (value is None or value is False or value == []) or key == "value"
    }
    kept.setdefault("description", "")
    if "options" in kept:
        kept["options"] = [_stored_option(inner) for inner in kept["options"]]
    if "choices" in kept:
        choices: list[Json] = kept["choices"]
        kept["choices"] = [{k: v for k, v in choice.items() if v is not None} for choice in choices]
    return kept


def without_localizations(command: Json) -> Json:
    """Return a command as a GET without `with_localizations` gives it."""
    shape = {key: value for key, value in command.items() if not key.endswith("_localizations")}
    for key in ("options", "choices"):
        if key in shape:
            shape[key] = [without_localizations(inner) for inner in shape[key]]
    return shape
