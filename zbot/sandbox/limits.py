"""Discord's form checks on messages, callbacks and commands, with the cross-field rules its OpenAPI document lacks."""

import re
from typing import Any

from zbot.sandbox import commands, components
from zbot.sandbox.form import Form, Path
from zbot.sandbox.refusal import FormError, Json, as_list, as_object
from zbot.sandbox.world import COMPONENTS_V2

MAX_CONTENT = 2000
MAX_EMBEDS = 10
MAX_EMBED_TEXT = 6000
"""All texts of all embeds of a message together."""
MAX_ATTACHMENTS = 10
MAX_NONCE = 25
MAX_CHOICES = 25
MAX_REQUEST_BYTES = 25 * 1024 * 1024


def message_errors(body: Json, *, v2: bool | None = None) -> list[FormError]:
    """Return what Discord would refuse in a message body; `v2` defaults to the body's own flag.

    An edit of a V2 message passes v2=True, since that flag cannot be taken off again. Whether a message is empty
    depends on what it held before, so `Messages` asks that.
    """
    form = Form()
    flags = body.get("flags")
    form.number(flags, ("flags",), least=0)
    if v2 is None:
        v2 = bool(flags_of(body) & COMPONENTS_V2)
    form.text(body.get("content"), ("content",), most=MAX_CONTENT)
    embeds = form.objects(body.get("embeds"), ("embeds",), most=MAX_EMBEDS)
    total = 0
    for index, embed in enumerate(embeds):
        total += _embed(form, embed, ("embeds", index))
    if total > MAX_EMBED_TEXT:
        form.wrong(
            ("embeds",), "MAX_EMBED_SIZE_EXCEEDED", f"Embed size exceeds maximum size of {MAX_EMBED_TEXT}"
        )
    if v2:
        for key in ("content", "embeds", "poll", "sticker_ids"):
            if body.get(key):
                form.wrong(
                    (key,),
                    "MESSAGE_CANNOT_USE_LEGACY_FIELDS_WITH_COMPONENTS_V2",
                    f"The '{key}' field cannot be used when using MessageFlags.IS_COMPONENTS_V2",
                )
    form.errors += components.message_components_errors(body.get("components"), v2=v2)
    seen: set[str] = set()
    for index, item in enumerate(
        form.objects(body.get("attachments"), ("attachments",), most=MAX_ATTACHMENTS)
    ):
        number = str(item.get("id", ""))
        if not number.isdecimal():
            form.wrong(
                ("attachments", index, "id"), "NUMBER_TYPE_COERCE", f'Value "{number}" is not snowflake.'
            )
        elif number in seen:
            form.wrong(
                ("attachments", index, "id"),
                "SET_TYPE_ALREADY_CONTAINS_VALUE",
                "The set already contains this value",
            )
        seen.add(number)
        form.text(item.get("filename"), ("attachments", index, "filename"), most=1024, least=1)
        form.text(item.get("description"), ("attachments", index, "description"), most=1024)
    nonce = body.get("nonce")
    if nonce is not None and not isinstance(nonce, int):
        form.text(nonce, ("nonce",), most=MAX_NONCE)
    _allowed_mentions(form, body.get("allowed_mentions"))
    return form.errors


def callback_errors(body: Json, *, with_message: bool = True) -> list[FormError]:
    """Return what Discord would refuse in an interaction callback, the type itself aside.

    Without `with_message` a message in it is left to `Messages`, which looks at each before it takes it.
    """
    kind = body.get("type")
    data = as_object(body.get("data"))
    if kind in (8, 9) and data is None:
        return [FormError(path=("data",), code="BASE_TYPE_REQUIRED", message="This field is required")]
    if data is None and body.get("data") is not None:
        return [
            FormError(
                path=("data",),
                code="MODEL_TYPE_CONVERT",
                message="Only dictionaries may be used in a ModelType",
            )
        ]
    fields = data or {}
    found: list[FormError] = []
    if kind in (4, 7) and with_message:
        found = message_errors(fields)
    elif kind == 8:
        form = Form()
        choices = form.objects(fields.get("choices"), ("choices",), most=MAX_CHOICES)
        for index, choice in enumerate(choices):
            commands.check_choice(form, choice, ("choices", index), kind=None)
        found = form.errors
    elif kind == 9:
        found = components.modal_errors(fields)
    return within("data", found)


def within(name: str, errors: list[FormError]) -> list[FormError]:
    """Return the errors of an object that is a field of another one."""
    return [FormError(path=(name, *error.path), code=error.code, message=error.message) for error in errors]


def numbered_modal(modal: Json) -> Json:
    """Return the modal as the client gets it, with component ids filled in."""
    return {**modal, "components": components.numbered(modal["components"], modal=True)}


def flags_of(body: Json) -> int:
    """Return the flags a body asks for; 0 for anything that is not a number (the form check says so)."""
    flags = body.get("flags")
    return flags if isinstance(flags, int) else 0


def is_empty(body: Json, *, files: bool = False) -> bool:
    """Say whether a new message with this body would show nothing (50006)."""
    if flags_of(body) & COMPONENTS_V2:
        return not body.get("components")
    shown = (
        str(body.get("content") or "").strip()
        or body.get("embeds")
        or body.get("sticker_ids")
        or body.get("poll")
    )
    return not shown and not files and not body.get("attachments")


_MESSAGE_ROUTES: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("POST", re.compile(r"^/webhooks/\d+/[^/]+$")),
    ("PATCH", re.compile(r"^/webhooks/\d+/[^/]+/messages/(@original|\d+)$")),
    ("POST", re.compile(r"^/channels/\d+/messages$")),
    ("PATCH", re.compile(r"^/channels/\d+/messages/\d+$")),
)
_CALLBACK = re.compile(r"^/interactions/\d+/[^/]+/callback$")
_COMMANDS = re.compile(r"^/applications/\d+/(guilds/\d+/)?commands$")


def cross_field_errors(method: str, path: str, body: Any, *, v2: bool | None = None) -> list[str]:
    """Return, as sentences, what this request breaks of the rules that Discord's document does not state.

    `path` begins after `/api/v10`. Rules the document does state are checked too: saying the same thing twice is
    harmless, and the server enforces them all.
    """
    found: list[FormError] = []
    form = as_object(body)
    if method == "POST" and _CALLBACK.match(path) and form is not None:
        found = callback_errors(form)
        if form.get("type") == 4 and is_empty(as_object(form.get("data")) or {}):
            found = [*found, FormError(path=("data",), code="50006", message="Cannot send an empty message")]
    elif method == "PUT" and _COMMANDS.match(path):
        found = commands.commands_errors(body)
    elif form is not None and any(method == m and pattern.match(path) for m, pattern in _MESSAGE_ROUTES):
        found = message_errors(form, v2=v2)
        if method == "POST" and is_empty(form):
            found = [*found, FormError(path=(), code="50006", message="Cannot send an empty message")]
    return [str(error) for error in found]


def _embed(form: Form, embed: Json, path: Path) -> int:
    """Check one embed and return how many characters it counts for the total."""
    total = 0

    def text(holder: Any, key: str, here: Path, most: int, *, required: bool = False) -> None:
        nonlocal total
        value = (as_object(holder) or {}).get(key)
        form.text(value, (*here, key), most=most, required=required)
        total += len(value) if isinstance(value, str) else 0

    text(embed, "title", path, 256)
    text(embed, "description", path, 4096)
    for index, row in enumerate(form.objects(embed.get("fields"), (*path, "fields"), most=25)):
        text(row, "name", (*path, "fields", index), 256, required=True)
        text(row, "value", (*path, "fields", index), 1024, required=True)
    if embed.get("footer") is not None:
        text(embed["footer"], "text", (*path, "footer"), 2048, required=True)
    if embed.get("author") is not None:
        text(embed["author"], "name", (*path, "author"), 256, required=True)
    form.number(embed.get("color"), (*path, "color"), least=0, most=0xFFFFFF)
    for key in ("image", "thumbnail"):
        if embed.get(key) is not None:
            url = (as_object(embed[key]) or {}).get("url")
            form.url(url, (*path, key, "url"), schemes=components.MEDIA_SCHEMES)
    if embed.get("url") is not None:
        form.url(embed["url"], (*path, "url"), schemes=("http", "https"))
    return total


def _allowed_mentions(form: Form, allowed: Any) -> None:
    if allowed is None:
        return
    mentions = as_object(allowed)
    if mentions is None:
        form.wrong(
            ("allowed_mentions",), "MODEL_TYPE_CONVERT", "Only dictionaries may be used in a ModelType"
        )
        return
    parse = as_list(mentions.get("parse")) or []
    for index, kind in enumerate(parse):
        form.choice(kind, ("allowed_mentions", "parse", index), ("roles", "users", "everyone"))
    for kind in ("users", "roles"):
        listed = as_list(mentions.get(kind)) or []
        form.length(listed, ("allowed_mentions", kind), most=100)
        if listed and kind in parse:
            form.wrong(
                ("allowed_mentions",),
                "MESSAGE_ALLOWED_MENTIONS_PARSE_EXCLUSIVE",
                f'parse:["{kind}"] and {kind}: [ids...] are mutually exclusive.',
            )
