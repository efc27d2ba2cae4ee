"""Messages made, edited and deleted from request bodies and uploaded files, with the checks that need the whole message."""

import io
import mimetypes
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from PIL import Image

from zbot.sandbox import components, limits
from zbot.sandbox.events import Bus, Event
from zbot.sandbox.refusal import FormError, Json, Refusal, invalid_form
from zbot.sandbox.world import (
    COMPONENTS_V2,
    EPHEMERAL,
    LOADING,
    SUPPRESS_EMBEDS,
    SUPPRESS_NOTIFICATIONS,
    Attachment,
    Channel,
    Message,
    User,
    World,
)

if TYPE_CHECKING:
    from zbot.sandbox.interactions import Interaction

SETTABLE = SUPPRESS_EMBEDS | SUPPRESS_NOTIFICATIONS | COMPONENTS_V2
NONCE_WINDOW_S = 300.0
"""How long a nonce with enforce_nonce is remembered; Discord says "in the past few minutes"."""
MAX_FILES = 10
UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """One file part of a request: `files[index]`."""

    index: int
    filename: str
    data: bytes


class Messages:
    """Creates, edits and deletes; each change is one event on the bus under message, channel and interaction."""

    def __init__(self, world: World, bus: Bus) -> None:
        self._world = world
        self._bus = bus
        self._nonces: dict[tuple[int, str], tuple[float, Message]] = {}

    def create(
        self,
        channel: Channel,
        body: Json,
        uploads: Sequence[Upload],
        *,
        author: User | None = None,
        interaction: "Interaction | None" = None,
        forced_flags: int = 0,
        field: str = "",
    ) -> Message:
        """Post a message and return it; the earlier one where an enforced nonce was seen in this channel.

        `field` is the name of the request's field that the body is, "" for the whole request.

        Raises:
            Refusal: 50035 for a field, 50006 for an empty message, 40005 and 30015 for files.
        """
        nonce = body.get("nonce")
        remembered = (channel.id, str(nonce)) if nonce is not None and body.get("enforce_nonce") else None
        if remembered is not None:
            earlier = self._nonces.get(remembered)
            if earlier is not None and self._world.clock.monotonic() - earlier[0] < NONCE_WINDOW_S:
                return earlier[1]
        allowed = SETTABLE | (EPHEMERAL if interaction is not None else 0)
        flags = (limits.flags_of(body) & allowed) | forced_flags
        message = Message(
            id=self._world.clock.snowflake(),
            channel_id=channel.id,
            author=author or self._world.bot,
            created_at=self._world.clock.datetime(),
            flags=flags,
            interaction=interaction,
            nonce=nonce,
            reference_id=self._reference(channel, body),
        )
        if not flags & LOADING:
            self._fill(message, body, uploads, channel, field)
        self._world.messages.setdefault(channel.id, {})[message.id] = message
        if interaction is not None:
            interaction.take(message)
        if remembered is not None:
            self._nonces[remembered] = (self._world.clock.monotonic(), message)
        self._tell("message_created", message)
        return message

    def edit(self, message: Message, body: Json, uploads: Sequence[Upload], *, field: str = "") -> None:
        """Change a message as a PATCH asks; what the body does not name stays. Raises: as `create`."""
        flags = message.flags & ~LOADING
        if body.get("flags") is not None:
            settable = limits.flags_of(body) & (SUPPRESS_EMBEDS | COMPONENTS_V2)
            flags = flags & ~SUPPRESS_EMBEDS | settable | message.flags & COMPONENTS_V2
        draft = Message(
            id=message.id,
            channel_id=message.channel_id,
            author=message.author,
            created_at=message.created_at,
            content=message.content,
            embeds=message.embeds,
            attachments=list(message.attachments),
            components=message.components,
            flags=flags,
        )
        self._fill(draft, body, uploads, self._world.channel(message.channel_id), field)
        was_loading = message.loading
        message.content, message.embeds = draft.content, draft.embeds
        message.attachments, message.components = draft.attachments, draft.components
        message.flags = flags
        message.allowed_mentions = draft.allowed_mentions
        message.edited_at = None if was_loading else self._world.clock.datetime()
        message.revision += 1
        self._tell("message_edited", message)

    def delete(self, message: Message) -> None:
        """Take a message away for everyone."""
        message.deleted = True
        self._world.messages.get(message.channel_id, {}).pop(message.id, None)
        for attachment in message.attachments:
            self._world.attachments.pop(attachment.id, None)
        self._tell("message_deleted", message)

    def keep(
        self, channel: Channel, filename: str, data: bytes, *, description: str | None = None
    ) -> Attachment:
        """Store a file under a clean name with its type and, for a picture, its size in pixels."""
        clean = UNSAFE.sub("_", filename.replace("\\", "/").rsplit("/", 1)[-1]).strip(".") or "unknown"
        content_type = mimetypes.guess_type(clean)[0] or "application/octet-stream"
        size = picture_size(data) if content_type.startswith("image/") else None
        attachment = Attachment(
            id=self._world.clock.snowflake(),
            channel_id=channel.id,
            filename=clean[:256],
            content_type=content_type,
            data=data,
            description=description,
            width=size[0] if size else None,
            height=size[1] if size else None,
        )
        self._world.attachments[attachment.id] = attachment
        return attachment

    def _fill(
        self, message: Message, body: Json, uploads: Sequence[Upload], channel: Channel, field: str
    ) -> None:
        """Apply a body to a message that nobody sees yet, and check the whole that comes of it."""
        v2 = bool(message.flags & COMPONENTS_V2)
        if errors := limits.message_errors(body, v2=v2):
            raise invalid_form(limits.within(field, errors) if field else errors)
        if any(len(upload.data) > self._world.file_limit_bytes(channel) for upload in uploads):
            raise Refusal(40005)
        if "content" in body:
            message.content = (body["content"] or "").strip()
        if "embeds" in body:
            message.embeds = [{"type": "rich"} | embed for embed in body["embeds"] or ()]
        if "components" in body:
            message.components = components.numbered(body["components"] or [])
        message.allowed_mentions = body.get("allowed_mentions")
        wanted = self._attachments(message, body, uploads)
        names = {filename for filename, _ in wanted}
        if v2 and (errors := components.missing_files(message.components, names)):
            raise invalid_form(errors)
        if v2 and (message.content or message.embeds):
            path = "content" if message.content else "embeds"
            raise invalid_form(
                [
                    FormError(
                        path=(path,),
                        code="MESSAGE_CANNOT_USE_LEGACY_FIELDS_WITH_COMPONENTS_V2",
                        message="The 'content' and 'embeds' fields cannot be used with IS_COMPONENTS_V2",
                    )
                ]
            )
        shown = message.components if v2 else message.content or message.embeds or wanted
        if not shown and not body.get("sticker_ids") and not body.get("poll"):
            raise Refusal(50006)
        message.attachments = [
            kept
            if isinstance(kept, Attachment)
            else self.keep(channel, name, kept[0].data, description=kept[1])
            for name, kept in wanted
        ]
        for attachment in message.attachments:
            attachment.ephemeral = message.ephemeral

    def _attachments(
        self, message: Message, body: Json, uploads: Sequence[Upload]
    ) -> list[tuple[str, "Attachment | tuple[Upload, str | None]"]]:
        """Return what the message will carry: old files that stay, then new ones, by the body's `attachments` list."""
        listed: list[Json] | None = body.get("attachments")
        wanted: list[tuple[str, Attachment | tuple[Upload, str | None]]] = []
        if listed is None:
            kept = message.attachments if "attachments" not in body else []
            wanted += [(attachment.filename, attachment) for attachment in kept]
            wanted += [(upload.filename, (upload, None)) for upload in uploads]
        else:
            old = {attachment.id: attachment for attachment in message.attachments}
            new = {upload.index: upload for upload in uploads}
            for position, item in enumerate(listed):
                key = int(item["id"])
                if key in old:
                    if item.get("description") is not None:
                        old[key].description = item["description"]
                    wanted.append((old[key].filename, old[key]))
                elif key in new:
                    upload = new.pop(key)
                    name = item.get("filename") or upload.filename
                    renamed = Upload(index=upload.index, filename=name, data=upload.data)
                    wanted.append((name, (renamed, item.get("description"))))
                else:
                    raise invalid_form(
                        [
                            FormError(
                                path=("attachments", position, "id"),
                                code="NUMBER_TYPE_UNKNOWN_ATTACHMENT",
                                message=f"Attachment {key} is neither in the message nor in the upload",
                            )
                        ]
                    )
            wanted += [(upload.filename, (upload, None)) for upload in new.values()]
        if len(wanted) > MAX_FILES:
            raise Refusal(30015)
        return wanted

    def _reference(self, channel: Channel, body: Json) -> int | None:
        reference: dict[str, Any] | None = body.get("message_reference")
        if not isinstance(reference, dict):
            return None
        number = str(reference.get("message_id"))
        referred = int(number) if number.isdecimal() else 0
        if referred not in self._world.messages.get(channel.id, {}):
            if reference.get("fail_if_not_exists", True):
                raise invalid_form(
                    [
                        FormError(
                            path=("message_reference",),
                            code="REPLIES_UNKNOWN_MESSAGE",
                            message="Unknown message",
                        )
                    ]
                )
            return None
        return referred

    def _tell(self, kind: str, message: Message) -> None:
        waiting = [("interaction", interaction_id) for interaction_id in message.touched_by]
        topics = (("message", message.id), ("channel", message.channel_id), *waiting)
        self._bus.publish(Event(kind=kind, subject=message), *topics)


def picture_size(data: bytes) -> tuple[int, int] | None:
    """Return width and height from a picture's header, or None if it is not one (nothing is decoded)."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.size
    except Exception:
        # Pillow raises many classes on a stranger's bytes; Discord then simply shows a file without a picture.
        return None
