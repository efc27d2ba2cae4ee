"""The life of an interaction: sent to the bot, acknowledged within 3 seconds or failed, answered for 15 minutes."""

import base64
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from zbot.sandbox import limits, permissions, shapes
from zbot.sandbox.clock import Timer
from zbot.sandbox.events import Bus, Event
from zbot.sandbox.messages import Messages, Upload
from zbot.sandbox.refusal import FormError, Json, Refusal, invalid_form
from zbot.sandbox.world import EPHEMERAL, LOADING, Channel, Message, User, World

ACKNOWLEDGE_WITHIN_S = 3.0
TOKEN_LIVES_S = 15 * 60.0

COMMAND, COMPONENT, AUTOCOMPLETE, MODAL_SUBMIT = 2, 3, 4, 5
REPLY, DEFERRED_REPLY, DEFERRED_UPDATE, UPDATE, CHOICES, MODAL = 4, 5, 6, 7, 8, 9

FAILURE_TEXTS = {
    COMMAND: "The application did not respond",
    COMPONENT: "This interaction failed",
    MODAL_SUBMIT: "Something went wrong. Try again.",
}


@dataclass(slots=True, kw_only=True, eq=False)
class Interaction:
    """One thing a person did that the bot has to answer."""

    id: int
    token: str
    type: int
    user: User
    channel: Channel
    data: Json
    created_at: float
    name: str = ""
    text: str = ""
    message: Message | None = None
    opened_by: "Interaction | None" = None
    original: Message | None = None
    messages: list[Message] = field(default_factory=list[Message])
    ack_type: int | None = None
    acked_after_s: float | None = None
    modal: Json | None = None
    choices: list[Json] | None = None
    failed: str = ""
    sent_at: float = 0.0
    timer: Timer | None = None
    followup_fills_original: bool = False
    payload: Json = field(default_factory=dict[str, object])

    def integration_owners(self) -> dict[str, str]:
        """Return `authorizing_integration_owners`: the guild that installed the bot, "0" in direct messages."""
        return {"0": "0" if self.channel.guild_id is None else str(self.channel.guild_id)}

    def take(self, message: Message) -> None:
        """Count a message among the answers to this interaction."""
        if message not in self.messages:
            self.messages.append(message)
            message.touched_by.append(self.id)


class Interactions:
    """All interactions by id and by token, and what the bot may do with each."""

    def __init__(self, world: World, bus: Bus, messages: Messages, base_url: str) -> None:
        self._world = world
        self._bus = bus
        self._messages = messages
        self._base_url = base_url
        self._by_id: dict[int, Interaction] = {}
        self._by_token: dict[str, Interaction] = {}

    def create(
        self,
        *,
        type: int,
        user: User,
        channel: Channel,
        data: Json,
        name: str = "",
        text: str = "",
        message: Message | None = None,
        opened_by: Interaction | None = None,
    ) -> Interaction:
        """Make an interaction and publish it (`interaction`), so that the gateway sends it; the 3 seconds begin."""
        clock = self._world.clock
        number = clock.snowflake()
        secret = f"interaction:{number}:{secrets.token_urlsafe(80)}"
        interaction = Interaction(
            id=number,
            token=base64.urlsafe_b64encode(secret.encode()).decode().rstrip("="),
            type=type,
            user=user,
            channel=channel,
            data=data,
            created_at=clock.monotonic(),
            name=name,
            text=text,
            message=message,
            opened_by=opened_by,
        )
        self._by_id[interaction.id] = interaction
        self._by_token[interaction.token] = interaction
        interaction.payload = self._payload(interaction)
        interaction.timer = clock.call_later(ACKNOWLEDGE_WITHIN_S, lambda: self._fail(interaction))
        interaction.sent_at = time.perf_counter()
        self._bus.publish(Event(kind="interaction", subject=interaction), ("interaction", interaction.id))
        return interaction

    def get(self, interaction_id: int) -> Interaction:
        """Return an interaction. Raises: Refusal 10062."""
        if interaction_id not in self._by_id:
            raise Refusal(10062)
        return self._by_id[interaction_id]

    def acknowledge(self, interaction_id: int, token: str, body: Json, uploads: Sequence[Upload]) -> Json:
        """Take the bot's first answer and return the callback response object.

        Raises:
            Refusal: 10062 too late or unknown, 40060 not the first, 50035 a bad body.
        """
        interaction = self.get(interaction_id)
        if not secrets.compare_digest(interaction.token, token):
            raise Refusal(10062)
        if interaction.ack_type is not None:
            raise Refusal(40060)
        if interaction.failed:
            raise Refusal(10062)
        kind: int = body.get("type", 0)
        data: Json = body.get("data") or {}
        if kind not in allowed_answers(interaction):
            raise invalid_form(
                [
                    FormError(
                        path=("type",),
                        code="BASE_TYPE_CHOICES",
                        message=f'Value of field "type" must be one of {allowed_answers(interaction)}.',
                    )
                ]
            )
        if errors := limits.callback_errors(body, with_message=False):
            raise invalid_form(errors)
        self._answer(interaction, kind, data, uploads)
        interaction.ack_type = kind
        interaction.acked_after_s = time.perf_counter() - interaction.sent_at
        if interaction.timer is not None:
            interaction.timer.cancel()
        if interaction.opened_by is not None:
            interaction.opened_by.modal = None
        self._bus.publish(Event(kind="acknowledged", subject=interaction), ("interaction", interaction.id))
        if kind == MODAL:
            self._bus.publish(Event(kind="modal", subject=interaction), ("interaction", interaction.id))
        return self._callback_response(interaction, kind)

    def _answer(self, interaction: Interaction, kind: int, data: Json, uploads: Sequence[Upload]) -> None:
        channel = self._world.channel(interaction.channel.id)
        if kind in (REPLY, DEFERRED_REPLY):
            flags = 0
            if kind == DEFERRED_REPLY:
                flags = LOADING | limits.flags_of(data) & EPHEMERAL
                interaction.followup_fills_original = True
            message = self._messages.create(
                channel, data, uploads, interaction=interaction, forced_flags=flags, field="data"
            )
            interaction.original = message
        elif kind in (DEFERRED_UPDATE, UPDATE):
            assert interaction.message is not None
            if interaction.message.deleted:
                raise Refusal(10008)
            interaction.original = interaction.message
            interaction.take(interaction.message)
            if kind == UPDATE:
                self._messages.edit(interaction.message, data, uploads, field="data")
        elif kind == CHOICES:
            interaction.choices = data.get("choices") or []
        elif kind == MODAL:
            interaction.modal = limits.numbered_modal(data)

    def by_token(self, application_id: int, token: str) -> Interaction:
        """Return the interaction whose webhook this is, if it may still be used.

        Raises:
            Refusal: 10015 for a webhook that is not there (wrong application, never acknowledged), 50027 when the
                15 minutes are over, 10003 when the channel is gone, 50001 when the bot has left the guild.
        """
        interaction = self._by_token.get(token)
        if application_id != self._world.bot.id:
            raise Refusal(10015)
        if interaction is None or self.token_age_s(interaction) >= TOKEN_LIVES_S:
            raise Refusal(50027)
        if interaction.ack_type is None:
            raise Refusal(10015)
        channel = self._world.channel(interaction.channel.id)
        if (
            channel.guild_id is not None
            and self._world.bot.id not in self._world.guilds[channel.guild_id].members
        ):
            raise Refusal(50001)
        return interaction

    def token_age_s(self, interaction: Interaction) -> float:
        """Return how old the interaction is by the sandbox's clock."""
        return self._world.clock.monotonic() - interaction.created_at

    def message_of(self, interaction: Interaction, which: str) -> Message:
        """Return `@original` or the message of this id, if it is this interaction's. Raises: Refusal 10008."""
        if which == "@original":
            found = interaction.original
        else:
            found = next((m for m in interaction.messages if str(m.id) == which), None)
        if found is None or found.deleted:
            raise Refusal(10008)
        return found

    def follow_up(self, interaction: Interaction, body: Json, uploads: Sequence[Upload]) -> Message:
        """Post a followup; right after a deferred reply it fills the loading message instead, as Discord documents."""
        original = interaction.original
        if (
            interaction.followup_fills_original
            and original is not None
            and original.loading
            and not original.deleted
        ):
            interaction.followup_fills_original = False
            self._messages.edit(original, body, uploads)
            return original
        return self._messages.create(interaction.channel, body, uploads, interaction=interaction)

    def _fail(self, interaction: Interaction) -> None:
        interaction.failed = "timeout"
        self._bus.publish(
            Event(kind="failed", subject=interaction, reason="timeout"), ("interaction", interaction.id)
        )

    def _callback_response(self, interaction: Interaction, kind: int) -> Json:
        told: Json = {
            "id": str(interaction.id),
            "type": interaction.type,
            "channel_id": str(interaction.channel.id),
        }
        if interaction.channel.guild_id is not None:
            told["guild_id"] = str(interaction.channel.guild_id)
        original = interaction.original
        if original is not None:
            told |= {
                "response_message_id": str(original.id),
                "response_message_loading": original.loading,
                "response_message_ephemeral": original.ephemeral,
            }
        answer: Json = {"interaction": told}
        if kind in (REPLY, UPDATE) and original is not None:
            answer["resource"] = {
                "type": kind,
                "message": shapes.message_json(self._world, original, self._base_url),
            }
        return answer

    def _payload(self, interaction: Interaction) -> Json:
        """Return what INTERACTION_CREATE carries."""
        world, user, channel = self._world, interaction.user, interaction.channel
        payload: Json = {
            "id": str(interaction.id),
            "application_id": str(world.bot.id),
            "type": interaction.type,
            "token": interaction.token,
            "version": 1,
            "data": interaction.data,
            "channel_id": str(channel.id),
            "channel": shapes.channel_json(world, channel)
            | {"permissions": str(world.bits(channel, user.id))},
            "locale": user.locale,
            "app_permissions": str(world.bits(channel, world.bot.id)),
            "entitlements": [],
            "entitlement_sku_ids": [],
            "authorizing_integration_owners": interaction.integration_owners(),
            "context": 0 if channel.guild_id is not None else 1,
            "attachment_size_limit": world.file_limit_bytes(channel),
        }
        if channel.guild_id is not None:
            guild = world.guilds[channel.guild_id]
            payload["guild_id"] = str(guild.id)
            payload["guild"] = {"id": str(guild.id), "locale": "en-US", "features": []}
            payload["guild_locale"] = "en-US"
            payload["member"] = shapes.member_json(world, guild, user) | {
                "permissions": str(world.bits(channel, user.id))
            }
        else:
            payload["user"] = shapes.user_json(user)
        if interaction.message is not None:
            payload["message"] = shapes.message_json(world, interaction.message, self._base_url)
        return payload


def allowed_answers(interaction: Interaction) -> tuple[int, ...]:
    """Return the callback types that Discord takes for this interaction."""
    if interaction.type == AUTOCOMPLETE:
        return (CHOICES,)
    if interaction.type == COMPONENT:
        return (REPLY, DEFERRED_REPLY, DEFERRED_UPDATE, UPDATE, MODAL)
    if interaction.type == MODAL_SUBMIT:
        return (REPLY, DEFERRED_REPLY) + (
            (DEFERRED_UPDATE, UPDATE) if interaction.message is not None else ()
        )
    return (REPLY, DEFERRED_REPLY, MODAL)


def may_moderate(world: World, channel: Channel, user: User) -> bool:
    """Say whether this person may delete other people's messages here."""
    return bool(world.bits(channel, user.id) & permissions.MANAGE_MESSAGES)
