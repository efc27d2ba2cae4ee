"""Message and modal components: which may stand where, their limits, unique ids, and the numbers Discord gives them."""

from collections.abc import Callable, Iterator
from typing import Any

import orjson

from zbot.sandbox.form import Form, Path
from zbot.sandbox.refusal import FormError, Json, as_list, as_object

ROW, BUTTON, STRING_SELECT, TEXT_INPUT = 1, 2, 3, 4
SELECTS = (3, 5, 6, 7, 8)
SECTION, TEXT, THUMBNAIL, GALLERY, FILE, SEPARATOR, CONTAINER, LABEL = 9, 10, 11, 12, 13, 14, 17, 18
FILE_UPLOAD, RADIO_GROUP, CHECKBOX_GROUP, CHECKBOX = 19, 21, 22, 23
V2_TOP = (ROW, SECTION, TEXT, GALLERY, FILE, SEPARATOR, CONTAINER)
V2_INSIDE = (ROW, SECTION, TEXT, GALLERY, FILE, SEPARATOR)
IN_LABEL = (*SELECTS, TEXT_INPUT, FILE_UPLOAD, RADIO_GROUP, CHECKBOX_GROUP, CHECKBOX)
MAX_V2_COMPONENTS = 40
MAX_V2_TEXT = 4000
NULLABLE = ("accent_color", "description")
MEDIA_SCHEMES = ("http", "https", "attachment")


def message_components_errors(components: Any, *, v2: bool) -> list[FormError]:
    """Return what Discord would refuse in a message's component list."""
    form = Form()
    path: Path = ("components",)
    rows = form.objects(components, path, most=MAX_V2_COMPONENTS if v2 else 5)
    for index, component in enumerate(rows):
        if form.choice(component.get("type"), (*path, index, "type"), V2_TOP if v2 else (ROW,)):
            CHECKS[component["type"]](form, component, (*path, index))
    everything = list(walk(rows))
    if v2:
        if len(everything) > MAX_V2_COMPONENTS:
            form.wrong(
                path,
                "COMPONENT_MAX_TOTAL_COMPONENTS_EXCEEDED",
                f"The total number of components cannot exceed {MAX_V2_COMPONENTS}",
            )
        words = sum(len(c.get("content") or "") for c in everything if c.get("type") == TEXT)
        if words > MAX_V2_TEXT:
            form.wrong(
                path,
                "COMPONENT_TOTAL_DISPLAYABLE_TEXT_SIZE_EXCEEDED",
                f"The total displayable text size cannot exceed {MAX_V2_TEXT}",
            )
    _unique(form, everything, path)
    return form.errors


def modal_errors(modal: Json) -> list[FormError]:
    """Return what Discord would refuse in the data of a modal callback."""
    form = Form()
    form.text(modal.get("title"), ("title",), most=45, required=True)
    form.text(modal.get("custom_id"), ("custom_id",), most=100, required=True)
    rows = form.objects(modal.get("components"), ("components",), most=5, least=1)
    for index, component in enumerate(rows):
        path: Path = ("components", index)
        if not form.choice(component.get("type"), (*path, "type"), (ROW, TEXT, LABEL)):
            continue
        if component["type"] == ROW:
            inner = form.objects(component.get("components"), (*path, "components"), most=1, least=1)
            for item in inner:
                if form.choice(item.get("type"), (*path, "components", 0, "type"), (TEXT_INPUT,)):
                    _text_input(form, item, (*path, "components", 0), own_label=True)
        elif component["type"] == TEXT:
            _text(form, component, path)
        else:
            _label(form, component, path)
    _unique(form, list(walk(rows)), ("components",))
    return form.errors


def walk(components: list[Json]) -> Iterator[Json]:
    """Yield every component, those inside others too, in the order of the document."""
    for component in components:
        yield component
        inner = [as_object(item) for item in as_list(component.get("components")) or ()]
        inner += [as_object(component.get(key)) for key in ("accessory", "component")]
        yield from walk([item for item in inner if item is not None])


def numbered(components: list[Json], *, modal: bool = False) -> list[Json]:
    """Return a copy in which every component has its `id`, as Discord fills them in from 1, and its defaults.

    `required` has a meaning in modals only; in messages Discord drops it.
    """
    copied: list[Json] = orjson.loads(orjson.dumps(components))  # seven times quicker than copy.deepcopy
    everything = list(walk(copied))
    taken = {c["id"] for c in everything if c.get("id")}
    following = 1
    for component in everything:
        if not component.get("id"):
            while following in taken:
                following += 1
            component["id"] = following
            taken.add(following)
        for holder in (component, *component.get("options", ())):
            emoji = as_object(holder.get("emoji"))
            if emoji is not None and emoji.get("id") is None:
                emoji.pop("id", None)  # a plain emoji has no id in Discord's answers
        if component["type"] in SELECTS:
            component.setdefault("min_values", 1)
            component.setdefault("max_values", 1)
            if not modal:
                component.pop("required", None)
        elif component["type"] == GALLERY:
            for item in component["items"]:
                item.setdefault("description", None)
                item.setdefault("spoiler", False)
        elif component["type"] in (FILE, THUMBNAIL):
            component.setdefault("spoiler", False)
            if component["type"] == THUMBNAIL:
                component.setdefault("description", None)
        elif component["type"] == SEPARATOR:
            component.setdefault("divider", True)
            component.setdefault("spacing", 1)
        elif component["type"] == CONTAINER:
            component.setdefault("accent_color", None)
            component.setdefault("spoiler", False)
        for key in [key for key, value in component.items() if value is None and key not in NULLABLE]:
            del component[key]
    return copied


def missing_files(components: list[Json], names: set[str]) -> list[FormError]:
    """Return an error for each `attachment://` address that no file of the message answers to."""
    form = Form()
    for component in walk(components):
        media: list[Json] = [component[key] for key in ("media", "file") if key in component]
        media += [item["media"] for item in component.get("items", ())]
        for item in media:
            url: str = item["url"]
            if url.startswith("attachment://") and url.removeprefix("attachment://") not in names:
                form.wrong(
                    ("components",),
                    "UNFURLED_MEDIA_ITEM_REFERENCED_ATTACHMENT_NOT_FOUND",
                    f"The referenced attachment was not found: {url}",
                )
    return form.errors


def _unique(form: Form, everything: list[Json], path: Path) -> None:
    seen: set[str] = set()
    ids: set[int] = set()
    for component in everything:
        custom_id = component.get("custom_id")
        if isinstance(custom_id, str):
            if custom_id in seen:
                form.wrong(
                    path,
                    "COMPONENT_CUSTOM_ID_DUPLICATED",
                    f"Component custom id cannot be duplicated: {custom_id}",
                )
            seen.add(custom_id)
        number = component.get("id")
        if number:
            if number in ids:
                form.wrong(path, "COMPONENT_ID_DUPLICATED", f"Component id cannot be duplicated: {number}")
            ids.add(number)


def _row(form: Form, row: Json, path: Path) -> None:
    children = form.objects(row.get("components"), (*path, "components"), most=5, least=1)
    kinds = [child.get("type") for child in children]
    if any(kind in SELECTS for kind in kinds) and len(kinds) > 1:
        form.wrong(
            (*path, "components"),
            "COMPONENT_LAYOUT_WIDTH_EXCEEDED",
            "The specified component exceeds the maximum width",
        )
    for index, child in enumerate(children):
        here = (*path, "components", index)
        if form.choice(child.get("type"), (*here, "type"), (BUTTON, *SELECTS)):
            CHECKS[child["type"]](form, child, here)


def _button(form: Form, button: Json, path: Path) -> None:
    if not form.choice(button.get("style"), (*path, "style"), (1, 2, 3, 4, 5, 6)):
        return
    style: int = button["style"]
    if button.get("label") is not None:
        form.text(button["label"], (*path, "label"), most=80)
    if style != 6 and not button.get("label") and not button.get("emoji"):
        form.wrong(path, "BUTTON_COMPONENT_INVALID_LABEL_OR_EMOJI", "A button must have a label or an emoji")
    if style == 5:
        form.url(button.get("url"), (*path, "url"), schemes=("http", "https", "discord"), most=512)
        if button.get("custom_id") is not None:
            form.wrong(
                path, "BUTTON_COMPONENT_CUSTOM_ID_AND_URL", "A custom id and url cannot both be specified"
            )
    elif style == 6:
        form.text(button.get("sku_id"), (*path, "sku_id"), most=20, required=True)
    else:
        form.text(button.get("custom_id"), (*path, "custom_id"), most=100, required=True)
        if button.get("url") is not None:
            form.wrong(
                path, "BUTTON_COMPONENT_CUSTOM_ID_AND_URL", "A custom id and url cannot both be specified"
            )


def _select(form: Form, select: Json, path: Path) -> None:
    form.text(select.get("custom_id"), (*path, "custom_id"), most=100, required=True)
    form.text(select.get("placeholder"), (*path, "placeholder"), most=150)
    form.number(select.get("min_values"), (*path, "min_values"), least=0, most=25)
    form.number(select.get("max_values"), (*path, "max_values"), least=1, most=25)
    least, most = select.get("min_values"), select.get("max_values")
    if isinstance(least, int) and isinstance(most, int) and least > most:
        form.wrong((*path, "min_values"), "NUMBER_TYPE_MAX", "min_values must not be more than max_values")
    if select.get("type") == STRING_SELECT:
        _options(form, select.get("options"), (*path, "options"), least=1, most=25)


def _options(form: Form, options: Any, path: Path, *, least: int, most: int) -> None:
    seen: set[str] = set()
    for index, option in enumerate(form.objects(options, path, least=least, most=most)):
        form.text(option.get("label"), (*path, index, "label"), most=100, required=True)
        form.text(option.get("description"), (*path, index, "description"), most=100)
        if form.text(option.get("value"), (*path, index, "value"), most=100, required=True):
            if option["value"] in seen:
                form.wrong(
                    (*path, index, "value"),
                    "SELECT_COMPONENT_OPTION_VALUE_DUPLICATED",
                    "The specified option value is already used",
                )
            seen.add(option["value"])


def _section(form: Form, section: Json, path: Path) -> None:
    texts = form.objects(section.get("components"), (*path, "components"), most=3, least=1)
    for index, text in enumerate(texts):
        if form.choice(text.get("type"), (*path, "components", index, "type"), (TEXT,)):
            _text(form, text, (*path, "components", index))
    accessory = as_object(section.get("accessory"))
    if accessory is None:
        form.wrong((*path, "accessory"), "BASE_TYPE_REQUIRED", "This field is required")
    elif form.choice(accessory.get("type"), (*path, "accessory", "type"), (BUTTON, THUMBNAIL)):
        CHECKS[accessory["type"]](form, accessory, (*path, "accessory"))


def _text(form: Form, text: Json, path: Path) -> None:
    form.text(text.get("content"), (*path, "content"), most=MAX_V2_TEXT, required=True)


def _media(
    form: Form, holder: Json, path: Path, key: str = "media", schemes: tuple[str, ...] = MEDIA_SCHEMES
) -> None:
    media = as_object(holder.get(key))
    if media is None:
        form.wrong((*path, key), "BASE_TYPE_REQUIRED", "This field is required")
    else:
        form.url(media.get("url"), (*path, key, "url"), schemes=schemes)
    form.text(holder.get("description"), (*path, "description"), most=1024)


def _gallery(form: Form, gallery: Json, path: Path) -> None:
    for index, item in enumerate(form.objects(gallery.get("items"), (*path, "items"), most=10, least=1)):
        _media(form, item, (*path, "items", index))


def _file(form: Form, file: Json, path: Path) -> None:
    _media(form, file, path, key="file", schemes=("attachment",))


def _separator(form: Form, separator: Json, path: Path) -> None:
    if separator.get("spacing") is not None:
        form.choice(separator["spacing"], (*path, "spacing"), (1, 2))


def _container(form: Form, container: Json, path: Path) -> None:
    form.number(container.get("accent_color"), (*path, "accent_color"), least=0, most=0xFFFFFF)
    inside = form.objects(container.get("components"), (*path, "components"), most=MAX_V2_COMPONENTS, least=1)
    for index, component in enumerate(inside):
        here = (*path, "components", index)
        if form.choice(component.get("type"), (*here, "type"), V2_INSIDE):
            CHECKS[component["type"]](form, component, here)


def _label(form: Form, label: Json, path: Path) -> None:
    form.text(label.get("label"), (*path, "label"), most=45, required=True)
    form.text(label.get("description"), (*path, "description"), most=100)
    inner = as_object(label.get("component"))
    if inner is None:
        form.wrong((*path, "component"), "BASE_TYPE_REQUIRED", "This field is required")
        return
    here = (*path, "component")
    if not form.choice(inner.get("type"), (*here, "type"), IN_LABEL):
        return
    if inner["type"] == TEXT_INPUT:
        _text_input(form, inner, here, own_label=False)
    elif inner["type"] in SELECTS:
        _select(form, inner, here)
    else:
        form.text(inner.get("custom_id"), (*here, "custom_id"), most=100, required=True)
        if inner["type"] in (RADIO_GROUP, CHECKBOX_GROUP):
            least = 2 if inner["type"] == RADIO_GROUP else 1
            _options(form, inner.get("options"), (*here, "options"), least=least, most=10)
        if inner["type"] == FILE_UPLOAD:
            form.number(inner.get("min_values"), (*here, "min_values"), least=0, most=10)
            form.number(inner.get("max_values"), (*here, "max_values"), least=1, most=10)


def _text_input(form: Form, field: Json, path: Path, *, own_label: bool) -> None:
    form.text(field.get("custom_id"), (*path, "custom_id"), most=100, required=True)
    form.choice(field.get("style"), (*path, "style"), (1, 2))
    if own_label:
        form.text(field.get("label"), (*path, "label"), most=45, required=True)
    form.text(field.get("placeholder"), (*path, "placeholder"), most=100)
    form.number(field.get("min_length"), (*path, "min_length"), least=0, most=4000)
    form.number(field.get("max_length"), (*path, "max_length"), least=1, most=4000)
    least, most = field.get("min_length") or 0, field.get("max_length") or 4000
    if isinstance(least, int) and isinstance(most, int) and least > most:
        form.wrong((*path, "min_length"), "NUMBER_TYPE_MAX", "min_length must not be more than max_length")
    elif isinstance(most, int):
        form.text(field.get("value"), (*path, "value"), most=most)


CHECKS: dict[int, Callable[[Form, Json, Path], None]] = {
    ROW: _row,
    BUTTON: _button,
    **dict.fromkeys(SELECTS, _select),
    SECTION: _section,
    TEXT: _text,
    THUMBNAIL: _media,
    GALLERY: _gallery,
    FILE: _file,
    SEPARATOR: _separator,
    CONTAINER: _container,
}
