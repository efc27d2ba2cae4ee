"""Who and what there is in the sandbox: two guilds, their channels and people, direct messages, and all messages."""

import hashlib
import hmac
import os
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from zbot.sandbox import permissions
from zbot.sandbox.clock import Clock
from zbot.sandbox.refusal import Json, Refusal

if TYPE_CHECKING:
    from zbot.sandbox.interactions import Interaction

APPLICATION_ID = 1_100_000_000_000_000_001
TEAM_ID = 1_100_000_000_000_000_100
ELSEWHERE_ID = 1_100_000_000_000_000_200
DEFAULT_FILE_LIMIT_BYTES = 10 * 1024 * 1024
"""What a guild without boosts takes for one file since 2024."""
SIGNED_FOR_S = 24 * 3600
JOINED_AT = datetime(2026, 1, 5, 9, 0, tzinfo=UTC)

EPHEMERAL = 1 << 6
LOADING = 1 << 7
SUPPRESS_EMBEDS = 1 << 2
SUPPRESS_NOTIFICATIONS = 1 << 12
COMPONENTS_V2 = 1 << 15


@dataclass(slots=True, kw_only=True)
class User:
    """An account: a person, or the bot."""

    id: int
    name: str
    display_name: str
    locale: str = "en-US"
    bot: bool = False


@dataclass(slots=True, kw_only=True)
class Role:
    """A role of a guild; the one whose id is the guild's is @everyone."""

    id: int
    name: str
    bits: int
    position: int


@dataclass(slots=True, kw_only=True)
class Overwrite:
    """Bits that a channel allows or denies to a role (`kind` 0) or to one member (`kind` 1)."""

    target_id: int
    kind: int
    allow: int = 0
    deny: int = 0


@dataclass(slots=True, kw_only=True)
class Channel:
    """A text channel of a guild, or the direct messages of one person with the bot."""

    id: int
    name: str
    guild_id: int | None = None
    recipient_id: int | None = None
    position: int = 0
    overwrites: list[Overwrite] = field(default_factory=list[Overwrite])


@dataclass(slots=True, kw_only=True)
class Guild:
    """A server: roles, channels, and which account holds which roles."""

    id: int
    name: str
    owner_id: int
    roles: dict[int, Role]
    members: dict[int, list[int]]
    premium_tier: int = 0
    file_limit_bytes: int = DEFAULT_FILE_LIMIT_BYTES


@dataclass(slots=True, kw_only=True)
class Attachment:
    """A file that a message, or an option of a command, carries; the bytes are in memory."""

    id: int
    channel_id: int
    filename: str
    content_type: str
    data: bytes
    description: str | None = None
    width: int | None = None
    height: int | None = None
    ephemeral: bool = False


@dataclass(slots=True, kw_only=True, eq=False)
class Message:
    """A message as it stands now; edits change it in place and `revision` counts them."""

    id: int
    channel_id: int
    author: User
    created_at: datetime
    content: str = ""
    embeds: list[Json] = field(default_factory=list[Json])
    attachments: list[Attachment] = field(default_factory=list[Attachment])
    components: list[Json] = field(default_factory=list[Json])
    flags: int = 0
    edited_at: datetime | None = None
    interaction: "Interaction | None" = None
    touched_by: list[int] = field(default_factory=list[int])
    """Interactions that answered with this message, or on it: those who wait for them hear of its edits."""
    nonce: str | int | None = None
    reference_id: int | None = None
    allowed_mentions: Json | None = None
    reactions: dict[str, set[int]] = field(default_factory=dict[str, set[int]])
    revision: int = 0
    deleted: bool = False

    @property
    def ephemeral(self) -> bool:
        """Say whether only the person who asked can read it."""
        return bool(self.flags & EPHEMERAL)

    @property
    def loading(self) -> bool:
        """Say whether it is a deferred response that still waits for its content."""
        return bool(self.flags & LOADING)

    def walk(self) -> list[Json]:
        """Return every component of the message, nested ones after those that hold them."""
        found: list[Json] = []
        waiting = list(self.components)
        while waiting:
            component = waiting.pop(0)
            found.append(component)
            waiting.extend(component.get("components", ()))
            waiting.extend(component[key] for key in ("accessory", "component") if key in component)
        return found

    @property
    def buttons(self) -> list[Json]:
        """Return the buttons of the message in their order."""
        return [component for component in self.walk() if component["type"] == 2]

    @property
    def text(self) -> str:
        """Return all words of the message that a reader sees: content, embeds, text components."""
        parts = [self.content]
        for embed in self.embeds:
            parts += [embed.get("title", ""), embed.get("description", "")]
            parts += [f"{row['name']}\n{row['value']}" for row in embed.get("fields", ())]
            parts.append(embed.get("footer", {}).get("text", ""))
        parts += [component["content"] for component in self.walk() if component["type"] == 10]
        return "\n".join(part for part in parts if part)


class World:
    """Everything there is, looked up by id; refuses with Discord's codes."""

    def __init__(self, clock: Clock, base_url: str) -> None:
        self.clock = clock
        self.base_url = base_url
        self.bot = User(id=APPLICATION_ID, name="zbot", display_name="zbot", bot=True)
        self.users: dict[int, User] = {self.bot.id: self.bot}
        self.guilds: dict[int, Guild] = {}
        self.channels: dict[int, Channel] = {}
        self.messages: dict[int, dict[int, Message]] = {}
        self.attachments: dict[int, Attachment] = {}
        self._signing_key = os.urandom(32)
        populate(self)

    # Looking up

    def user(self, user_id: int) -> User:
        """Return the account of this id. Raises: Refusal 10013."""
        if user_id not in self.users:
            raise Refusal(10013)
        return self.users[user_id]

    def guild(self, guild_id: int) -> Guild:
        """Return a guild the bot is in. Raises: Refusal 10004, as Discord says for guilds one cannot see."""
        guild = self.guilds.get(guild_id)
        if guild is None or self.bot.id not in guild.members:
            raise Refusal(10004)
        return guild

    def channel(self, channel_id: int) -> Channel:
        """Return a channel. Raises: Refusal 10003."""
        if channel_id not in self.channels:
            raise Refusal(10003)
        return self.channels[channel_id]

    def message(self, channel_id: int, message_id: int) -> Message:
        """Return a message that still stands. Raises: Refusal 10008."""
        message = self.messages.get(channel_id, {}).get(message_id)
        if message is None:
            raise Refusal(10008)
        return message

    def dm_channel(self, user_id: int) -> Channel:
        """Return the direct messages of this person with the bot."""
        for channel in self.channels.values():
            if channel.recipient_id == user_id:
                return channel
        channel = Channel(id=self.clock.snowflake(), name=self.bot.display_name, recipient_id=user_id)
        self.channels[channel.id] = channel
        return channel

    def people(self) -> list[User]:
        """Return the accounts that are not bots, oldest first."""
        return [user for user in self.users.values() if not user.bot]

    def guild_channels(self, guild_id: int) -> list[Channel]:
        """Return a guild's channels by position."""
        found = [channel for channel in self.channels.values() if channel.guild_id == guild_id]
        return sorted(found, key=lambda channel: channel.position)

    def channels_of(self, user_id: int) -> list[Channel]:
        """Return the channels this person can see: of the guilds first, the direct messages last."""
        found = [
            channel
            for guild in self.guilds.values()
            for channel in self.guild_channels(guild.id)
            if self.bits(channel, user_id) & permissions.VIEW_CHANNEL
        ]
        return [*found, self.dm_channel(user_id)]

    def visible(self, message: Message, user_id: int) -> bool:
        """Say whether this person may read the message."""
        if message.deleted or message.channel_id not in self.channels:
            return False
        if message.ephemeral and (message.interaction is None or message.interaction.user.id != user_id):
            return False
        return bool(self.bits(self.channels[message.channel_id], user_id) & permissions.VIEW_CHANNEL)

    # Rights

    def guild_bits(self, guild: Guild, user_id: int) -> int:
        """Return what this member may do in the guild, channels aside; 0 for a stranger."""
        if user_id not in guild.members:
            return 0
        if user_id == guild.owner_id:
            return permissions.ALL
        bits = 0
        for role_id in (guild.id, *guild.members[user_id]):
            bits |= guild.roles[role_id].bits
        return permissions.ALL if bits & permissions.ADMINISTRATOR else bits

    def bits(self, channel: Channel, user_id: int) -> int:
        """Return what this account may do in the channel; 0 if it cannot see it."""
        if channel.guild_id is None:
            return permissions.DIRECT if user_id in (channel.recipient_id, self.bot.id) else 0
        guild = self.guilds[channel.guild_id]
        if user_id not in guild.members:
            return 0
        if user_id == guild.owner_id:
            return permissions.ALL
        roles = {role_id: guild.roles[role_id].bits for role_id in (guild.id, *guild.members[user_id])}
        return permissions.in_channel(
            guild_id=guild.id, member_id=user_id, roles=roles, overwrites=channel.overwrites
        )

    def require(self, channel: Channel, needed: int) -> None:
        """Check that the bot holds these bits in the channel. Raises: Refusal 50001 (cannot see it), 50013."""
        held = self.bits(channel, self.bot.id)
        if not held & permissions.VIEW_CHANNEL:
            raise Refusal(50001)
        if needed & ~held:
            raise Refusal(50013)

    def file_limit_bytes(self, channel: Channel) -> int:
        """Return how large one file may be in this channel."""
        return (
            DEFAULT_FILE_LIMIT_BYTES
            if channel.guild_id is None
            else self.guilds[channel.guild_id].file_limit_bytes
        )

    # The CDN's signed addresses

    def sign(self, attachment: Attachment) -> str:
        """Return the path and query under which the file can be fetched for the next 24 hours."""
        path = f"/cdn/attachments/{attachment.channel_id}/{attachment.id}/{attachment.filename}"
        issued = int(self.clock.now())
        expires = issued + SIGNED_FOR_S
        return f"{path}?ex={expires:x}&is={issued:x}&hm={self._mac(attachment.id, expires)}"

    def signed(self, attachment_id: int, query: dict[str, str]) -> bool:
        """Say whether the query of a CDN address is ours and has not expired."""
        try:
            expires = int(query.get("ex", ""), 16)
        except ValueError:
            return False
        genuine = hmac.compare_digest(query.get("hm", ""), self._mac(attachment_id, expires))
        return genuine and self.clock.now() < expires

    def _mac(self, attachment_id: int, expires: int) -> str:
        return hmac.new(
            self._signing_key, f"{attachment_id}:{expires:x}".encode(), hashlib.sha256
        ).hexdigest()


def populate(world: World) -> None:
    """Put in the people, guilds and channels that every sandbox begins with."""
    people: list[dict[str, Any]] = [
        {"name": "ada", "display_name": "Ada", "locale": "en-US"},
        {"name": "bo", "display_name": "Bo", "locale": "zh-CN"},
        {"name": "mo", "display_name": "Mo", "locale": "en-GB"},
    ]
    for index, person in enumerate(people):
        user = User(id=APPLICATION_ID + 10 + index, **person)
        world.users[user.id] = user
    ada, bo, mo = world.people()
    owner = User(id=APPLICATION_ID + 9, name="owner", display_name="Owner", bot=True)
    world.users[owner.id] = owner  # listed with the bots so that nobody in the page is above all rules
    for guild_id, name, channel_names in (
        (TEAM_ID, "Picture Team", ("pictures", "drafts", "quiet")),
        (ELSEWHERE_ID, "Elsewhere", ("general",)),
    ):
        everyone = Role(id=guild_id, name="@everyone", bits=permissions.EVERYONE, position=0)
        bot_role = Role(id=guild_id + 1, name="zbot", bits=permissions.EVERYONE, position=1)
        moderator = Role(
            id=guild_id + 2,
            name="moderator",
            bits=permissions.EVERYONE | permissions.MANAGE_MESSAGES,
            position=2,
        )
        world.guilds[guild_id] = Guild(
            id=guild_id,
            name=name,
            owner_id=owner.id,
            roles={role.id: role for role in (everyone, bot_role, moderator)},
            members={owner.id: [], world.bot.id: [bot_role.id], ada.id: [], bo.id: [], mo.id: [moderator.id]},
        )
        for index, channel_name in enumerate(channel_names):
            channel = Channel(id=guild_id + 10 + index, name=channel_name, guild_id=guild_id, position=index)
            if channel_name == "quiet":
                channel.overwrites.append(
                    Overwrite(target_id=bot_role.id, kind=0, deny=permissions.SEND_MESSAGES)
                )
            world.channels[channel.id] = channel
    for index, user in enumerate((ada, bo, mo)):
        channel = Channel(id=APPLICATION_ID + 30 + index, name=world.bot.display_name, recipient_id=user.id)
        world.channels[channel.id] = channel
