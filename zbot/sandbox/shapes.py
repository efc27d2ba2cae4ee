"""Discord's JSON for what the world holds; every field that discord.py or Discord's own document requires."""

import re
from typing import TYPE_CHECKING, Any

from zbot.sandbox.refusal import Json, as_list, as_object
from zbot.sandbox.world import (
    COMPONENTS_V2,
    JOINED_AT,
    Attachment,
    Channel,
    Guild,
    Message,
    Role,
    User,
    World,
)

if TYPE_CHECKING:
    from zbot.sandbox.interactions import Interaction

APPLICATION_FLAGS = 1 << 23
"""APPLICATION_COMMAND_BADGE: the app has at least one global command."""
FILE_SCHEME = "attachment://"
FILE_COMPONENT = 13
MENTION = re.compile(r"<@!?(\d+)>")


def user_json(user: User) -> Json:
    """Return the user object."""
    shape: Json = {
        "id": str(user.id),
        "username": user.name,
        "avatar": None,
        "discriminator": "0",
        "public_flags": 0,
        "flags": 0,
        "global_name": None if user.bot else user.display_name,
        "primary_guild": None,
        "avatar_decoration_data": None,
    }
    if user.bot:
        shape["bot"] = True
    return shape


def self_json(user: User) -> Json:
    """Return the bot's own user object, as `/users/@me` gives it."""
    return user_json(user) | {"mfa_enabled": True, "locale": "en-US", "verified": True, "email": None}


def application_json(world: World) -> Json:
    """Return the application, as `/oauth2/applications/@me` gives it."""
    owner = next(user for user in world.users.values() if user.name == "owner")
    return {
        "id": str(world.bot.id),
        "name": world.bot.display_name,
        "icon": None,
        "description": "",
        "summary": "",
        "type": None,
        "bot": user_json(world.bot),
        "bot_public": False,
        "bot_require_code_grant": False,
        "integration_types_config": {"0": {}},
        "verify_key": "0" * 64,
        "flags": APPLICATION_FLAGS,
        "flags_new": str(APPLICATION_FLAGS),
        "redirect_uris": [],
        "interactions_endpoint_url": None,
        "role_connections_verification_url": None,
        "owner": user_json(owner) | {"bot": False},
        "approximate_guild_count": len([g for g in world.guilds.values() if world.bot.id in g.members]),
        "approximate_user_install_count": 0,
        "approximate_user_authorization_count": 0,
        "explicit_content_filter": 0,
        "team": None,
        "eligible_oauth2_scopes": [],
    }


def role_json(role: Role) -> Json:
    """Return the role object."""
    return {
        "id": str(role.id),
        "name": role.name,
        "permissions": str(role.bits),
        "position": role.position,
        "color": 0,
        "colors": {"primary_color": 0, "secondary_color": None, "tertiary_color": None},
        "hoist": False,
        "managed": role.name == "zbot",
        "mentionable": False,
        "icon": None,
        "unicode_emoji": None,
        "flags": 0,
    }


def member_json(world: World, guild: Guild, user: User, *, with_user: bool = True) -> Json:
    """Return the member object, without its user where Discord leaves that out (messages, resolved data)."""
    shape: Json = {
        "avatar": None,
        "banner": None,
        "communication_disabled_until": None,
        "flags": 0,
        "joined_at": JOINED_AT.isoformat(),
        "nick": None,
        "pending": False,
        "premium_since": None,
        "roles": [str(role_id) for role_id in guild.members.get(user.id, ())],
        "mute": False,
        "deaf": False,
    }
    if with_user:
        shape["user"] = user_json(user)
    return shape


def channel_json(world: World, channel: Channel) -> Json:
    """Return the channel object of a guild's text channel or of direct messages."""
    newest = max(world.messages.get(channel.id, ()), default=None)
    shape: Json = {
        "id": str(channel.id),
        "flags": 0,
        "last_message_id": None if newest is None else str(newest),
    }
    if channel.guild_id is None:
        recipients = [] if channel.recipient_id is None else [user_json(world.user(channel.recipient_id))]
        return shape | {"type": 1, "recipients": recipients}
    return shape | {
        "type": 0,
        "guild_id": str(channel.guild_id),
        "name": channel.name,
        "topic": None,
        "position": channel.position,
        "parent_id": None,
        "nsfw": False,
        "rate_limit_per_user": 0,
        "last_pin_timestamp": None,
        "permission_overwrites": [
            {"id": str(o.target_id), "type": o.kind, "allow": str(o.allow), "deny": str(o.deny)}
            for o in channel.overwrites
        ],
    }


def guild_json(world: World, guild: Guild) -> Json:
    """Return the guild object of `GET /guilds/{id}`."""
    return {
        "id": str(guild.id),
        "name": guild.name,
        "icon": None,
        "description": None,
        "home_header": None,
        "splash": None,
        "discovery_splash": None,
        "features": [],
        "banner": None,
        "owner_id": str(guild.owner_id),
        "application_id": None,
        "region": "deprecated",
        "afk_channel_id": None,
        "afk_timeout": 300,
        "system_channel_id": None,
        "system_channel_flags": 0,
        "widget_enabled": False,
        "widget_channel_id": None,
        "verification_level": 0,
        "roles": [role_json(role) for role in guild.roles.values()],
        "default_message_notifications": 0,
        "mfa_level": 0,
        "explicit_content_filter": 0,
        "max_presences": None,
        "max_members": 500_000,
        "max_stage_video_channel_users": 50,
        "max_video_channel_users": 25,
        "vanity_url_code": None,
        "premium_tier": guild.premium_tier,
        "premium_subscription_count": 0,
        "preferred_locale": "en-US",
        "rules_channel_id": None,
        "safety_alerts_channel_id": None,
        "public_updates_channel_id": None,
        "premium_progress_bar_enabled": False,
        "premium_progress_bar_enabled_user_updated_at": None,
        "nsfw": False,
        "nsfw_level": 0,
        "emojis": [],
        "stickers": [],
        "incidents_data": None,
    }


def guild_create_json(world: World, guild: Guild) -> Json:
    """Return what GUILD_CREATE carries: the guild, its channels, and the bot's own member (no member intent)."""
    return guild_json(world, guild) | {
        "joined_at": JOINED_AT.isoformat(),
        "large": False,
        "unavailable": False,
        "member_count": len(guild.members),
        "voice_states": [],
        "members": [member_json(world, guild, world.bot)],
        "channels": [channel_json(world, channel) for channel in world.guild_channels(guild.id)],
        "threads": [],
        "presences": [],
        "stage_instances": [],
        "guild_scheduled_events": [],
        "soundboard_sounds": [],
    }


def my_guild_json(world: World, guild: Guild) -> Json:
    """Return the short guild object of `/users/@me/guilds`."""
    return {
        "id": str(guild.id),
        "name": guild.name,
        "icon": None,
        "banner": None,
        "owner": False,
        "permissions": str(world.guild_bits(guild, world.bot.id)),
        "features": [],
    }


def attachment_json(world: World, attachment: Attachment, base: str) -> Json:
    """Return the attachment object; `base` goes before the CDN path ("" makes addresses relative)."""
    url = base + world.sign(attachment)
    shape: Json = {
        "id": str(attachment.id),
        "filename": attachment.filename,
        "size": len(attachment.data),
        "url": url,
        "proxy_url": url,
        "content_type": attachment.content_type,
    }
    if attachment.description is not None:
        shape["description"] = attachment.description
    if attachment.width is not None and attachment.height is not None:
        shape |= {"width": attachment.width, "height": attachment.height}
    if attachment.ephemeral:
        shape["ephemeral"] = True
    return shape


def message_json(world: World, message: Message, base: str) -> Json:
    """Return the message object, with `attachment://` addresses turned into CDN ones."""
    by_name = {attachment.filename: attachment for attachment in message.attachments}
    shown, embeds, rows = message.attachments, message.embeds, message.components
    if by_name and (message.flags & COMPONENTS_V2 or embeds):
        used = _names_used(rows) | _names_used(embeds)
        shown = [a for a in message.attachments if a.filename not in used]
        embeds = [_resolved(world, embed, by_name, base, media=False) for embed in embeds]
        rows = [_resolved(world, row, by_name, base, media=True) for row in rows]
    shape: Json = {
        "id": str(message.id),
        "type": _message_type(message),
        "channel_id": str(message.channel_id),
        "author": user_json(message.author),
        "content": message.content,
        "timestamp": message.created_at.isoformat(),
        "edited_timestamp": None if message.edited_at is None else message.edited_at.isoformat(),
        "tts": False,
        "mention_everyone": False,
        "mentions": [user_json(user) for user in _mentioned(world, message)],
        "mention_roles": [],
        "attachments": [attachment_json(world, a, base) for a in shown],
        "embeds": embeds,
        "components": rows,
        "flags": message.flags,
        "pinned": False,
    }
    if message.author.bot:
        shape["application_id"] = str(message.author.id)
    if message.nonce is not None:
        shape["nonce"] = message.nonce
    if message.reference_id is not None:
        shape["message_reference"] = {
            "type": 0,
            "channel_id": str(message.channel_id),
            "message_id": str(message.reference_id),
        }
    if message.reactions:
        shape["reactions"] = [
            _reaction(emoji, users, world.bot.id) for emoji, users in message.reactions.items()
        ]
    interaction = message.interaction
    if interaction is not None:
        shape["webhook_id"] = str(message.author.id)
        shape["interaction_metadata"] = _metadata(interaction)
        if interaction.type == 2:
            shape["interaction"] = {
                "id": str(interaction.id),
                "type": 2,
                "name": interaction.name,
                "user": user_json(interaction.user),
            }
    return shape


def _metadata(interaction: "Interaction") -> Json:
    """Return what a message tells of the interaction it answers; a modal's answer tells of the opener too."""
    shape: Json = {
        "id": str(interaction.id),
        "type": interaction.type,
        "user": user_json(interaction.user),
        "authorizing_integration_owners": interaction.integration_owners(),
    }
    if interaction.opened_by is not None:
        shape["triggering_interaction_metadata"] = _metadata(interaction.opened_by)
    elif interaction.message is not None:
        shape["interacted_message_id"] = str(interaction.message.id)
    return shape


def _message_type(message: Message) -> int:
    if message.interaction is not None and message.interaction.type == 2:
        return 20  # CHAT_INPUT_COMMAND
    return 19 if message.reference_id is not None else 0


def _mentioned(world: World, message: Message) -> list[User]:
    """Return who is pinged: `allowed_mentions` decides, and where it is absent Discord's defaults, which ping people."""
    allowed = message.allowed_mentions
    named = [int(found) for found in MENTION.findall(message.content)]
    if allowed is not None and "users" not in allowed.get("parse", ()):
        listed = {int(user_id) for user_id in allowed.get("users") or ()}
        named = [user_id for user_id in named if user_id in listed]
    return [world.users[user_id] for user_id in dict.fromkeys(named) if user_id in world.users]


def _reaction(emoji: str, users: set[int], bot_id: int) -> Json:
    return {
        "emoji": {"id": None, "name": emoji},
        "count": len(users),
        "count_details": {"burst": 0, "normal": len(users)},
        "burst_colors": [],
        "me_burst": False,
        "me": bot_id in users,
    }


def _names_used(value: Any) -> set[str]:
    """Return the names of the files that an embed or component shows by `attachment://`."""
    shape, items = as_object(value), as_list(value)
    if shape is None:
        return set[str]().union(*(_names_used(inner) for inner in items or ()))
    found = set[str]().union(*(_names_used(inner) for key, inner in shape.items() if key != "url"))
    name = _file_name(shape.get("url"))
    return found if name is None else found | {name}


def _file_name(url: Any) -> str | None:
    return url.removeprefix(FILE_SCHEME) if isinstance(url, str) and url.startswith(FILE_SCHEME) else None


def _resolved(world: World, value: Any, by_name: dict[str, Attachment], base: str, *, media: bool) -> Any:
    """Return a copy of an embed or component in which each media object names its CDN address and size."""
    given, items = as_object(value), as_list(value)
    if items is not None:
        return [_resolved(world, inner, by_name, base, media=media) for inner in items]
    if given is None:
        return value
    shape: Json = {key: _resolved(world, inner, by_name, base, media=media) for key, inner in given.items()}
    if shape.get("type") == FILE_COMPONENT:
        file = by_name[_file_name(given["file"]["url"]) or ""]
        return shape | {"name": file.filename, "size": len(file.data)}
    attachment = by_name.get(_file_name(shape.get("url")) or "")
    if attachment is None:
        return shape
    shape["url"] = shape["proxy_url"] = base + world.sign(attachment)
    if attachment.width is not None and attachment.height is not None:
        shape |= {"width": attachment.width, "height": attachment.height}
    if media:
        shape |= {"attachment_id": str(attachment.id), "id": str(attachment.id)}
        shape["content_type"] = attachment.content_type
    return shape
