"""Discord's endpoints that an interaction bot uses, as plain functions from a parsed request to JSON."""

from typing import Any

from zbot.sandbox import limits, permissions, shapes
from zbot.sandbox.commands import Commands, without_localizations
from zbot.sandbox.gateway import Gateway
from zbot.sandbox.interactions import Interaction, Interactions
from zbot.sandbox.messages import Messages
from zbot.sandbox.refusal import FormError, Json, Refusal, invalid_form
from zbot.sandbox.rest import Call, Route, snowflake
from zbot.sandbox.world import COMPONENTS_V2, Channel, Guild, Message, World

WEBHOOK = "/webhooks/{application_id}/{token}"
MESSAGES = "/channels/{channel_id}/messages"


class Routes:
    """The handlers, bound to the parts of one sandbox."""

    def __init__(
        self,
        *,
        world: World,
        messages: Messages,
        interactions: Interactions,
        commands: Commands,
        gateway: Gateway,
        base_url: str,
    ) -> None:
        self._world = world
        self._messages = messages
        self._interactions = interactions
        self._commands = commands
        self._gateway = gateway
        self._base_url = base_url

    def table(self) -> list[Route]:
        """Return every endpoint; the literal paths come before those with parameters."""

        def webhook(name: str, method: str, template: str, handler: Any) -> Route:
            return Route(
                name=name,
                method=method,
                template=WEBHOOK + template,
                handler=handler,
                bucket="webhook",
                major="token",
                bot=False,
            )

        def channel(name: str, method: str, template: str, handler: Any, bucket: str = "other") -> Route:
            return Route(
                name=name,
                method=method,
                template="/channels/{channel_id}" + template,
                handler=handler,
                bucket=bucket,
                major="channel_id",
            )

        def get(name: str, template: str, handler: Any) -> Route:
            return Route(name=name, method="GET", template=template, handler=handler)

        def commands(name: str, method: str, template: str, handler: Any) -> Route:
            return Route(
                name=name,
                method=method,
                template=template,
                handler=handler,
                bucket="commands",
                major="guild_id",
            )

        return [
            Route(
                name="callback",
                method="POST",
                template="/interactions/{interaction_id}/{token}/callback",
                handler=self.callback,
                bucket=None,
                bot=False,
            ),
            webhook("followup", "POST", "", self.followup),
            webhook("original_get", "GET", "/messages/@original", self.webhook_get),
            webhook("original_edit", "PATCH", "/messages/@original", self.webhook_edit),
            webhook("original_delete", "DELETE", "/messages/@original", self.webhook_delete),
            webhook("webhook_get", "GET", "/messages/{message_id}", self.webhook_get),
            webhook("webhook_edit", "PATCH", "/messages/{message_id}", self.webhook_edit),
            webhook("webhook_delete", "DELETE", "/messages/{message_id}", self.webhook_delete),
            channel("channel_send", "POST", "/messages", self.channel_send, "channel_send"),
            channel("channel_history", "GET", "/messages", self.channel_history),
            channel("channel_message", "GET", "/messages/{message_id}", self.channel_message),
            channel("channel_edit", "PATCH", "/messages/{message_id}", self.channel_edit, "channel_edit"),
            channel(
                "channel_delete", "DELETE", "/messages/{message_id}", self.channel_delete, "channel_delete"
            ),
            channel(
                "reaction_add",
                "PUT",
                "/messages/{message_id}/reactions/{emoji}/@me",
                self.reaction_add,
                "reaction",
            ),
            channel(
                "reaction_remove",
                "DELETE",
                "/messages/{message_id}/reactions/{emoji}/@me",
                self.reaction_remove,
                "reaction",
            ),
            channel("typing", "POST", "/typing", self.typing),
            channel("channel_get", "GET", "", self.channel_get),
            commands("commands_put", "PUT", "/applications/{application_id}/commands", self.commands_put),
            commands("commands_get", "GET", "/applications/{application_id}/commands", self.commands_get),
            commands(
                "guild_commands_put",
                "PUT",
                "/applications/{application_id}/guilds/{guild_id}/commands",
                self.commands_put,
            ),
            commands(
                "guild_commands_get",
                "GET",
                "/applications/{application_id}/guilds/{guild_id}/commands",
                self.commands_get,
            ),
            get("me", "/users/@me", self.me),
            get("my_guilds", "/users/@me/guilds", self.my_guilds),
            Route(
                name="dm_create",
                method="POST",
                template="/users/@me/channels",
                handler=self.dm_create,
                bucket="dm",
            ),
            get("user", "/users/{user_id}", self.user),
            get("application", "/oauth2/applications/@me", self.application),
            get("application", "/applications/@me", self.application),
            Route(name="gateway", method="GET", template="/gateway", handler=self.gateway_get, bot=False),
            get("gateway_bot", "/gateway/bot", self.gateway_bot),
            get("guild", "/guilds/{guild_id}", self.guild),
            get("guild_channels", "/guilds/{guild_id}/channels", self.guild_channels),
            get("guild_roles", "/guilds/{guild_id}/roles", self.guild_roles),
            get("guild_member", "/guilds/{guild_id}/members/{user_id}", self.guild_member),
        ]

    # Interactions

    def callback(self, call: Call) -> Json | None:
        """Take the first answer to an interaction; 204 unless the caller asks with_response."""
        number, token = call.id("interaction_id"), call.params["token"]
        answer = self._interactions.acknowledge(number, token, call.form, call.uploads)
        return answer if call.query.get("with_response", "").lower() in ("1", "true") else None

    def followup(self, call: Call) -> Json:
        """Post a followup message."""
        return self._shape(self._interactions.follow_up(self._webhook(call), call.form, call.uploads))

    def webhook_get(self, call: Call) -> Json:
        """Return @original or a followup."""
        return self._shape(self._webhook_message(call))

    def webhook_edit(self, call: Call) -> Json:
        """Edit @original or a followup."""
        message = self._webhook_message(call)
        call.record.v2 = bool((message.flags | limits.flags_of(call.form)) & COMPONENTS_V2)
        self._messages.edit(message, call.form, call.uploads)
        return self._shape(message)

    def webhook_delete(self, call: Call) -> None:
        """Delete @original or a followup."""
        self._messages.delete(self._webhook_message(call))

    def _webhook(self, call: Call) -> Interaction:
        return self._interactions.by_token(call.id("application_id"), call.params["token"])

    def _webhook_message(self, call: Call) -> Message:
        return self._interactions.message_of(self._webhook(call), call.params.get("message_id", "@original"))

    # Channels

    def channel_send(self, call: Call) -> Json:
        """Post as the bot itself."""
        channel = self._seen(call)
        needed = permissions.SEND_MESSAGES
        needed |= permissions.ATTACH_FILES if call.uploads else 0
        needed |= permissions.EMBED_LINKS if call.form.get("embeds") else 0
        needed |= permissions.READ_MESSAGE_HISTORY if call.form.get("message_reference") else 0
        self._world.require(channel, needed)
        return self._shape(self._messages.create(channel, call.form, call.uploads))

    def channel_history(self, call: Call) -> list[Json]:
        """Return messages, newest first; none where the bot may not read the history, as Discord does."""
        channel = self._seen(call)
        if not self._world.bits(channel, self._world.bot.id) & permissions.READ_MESSAGE_HISTORY:
            return []
        limit = call.query.get("limit", "50")
        if not limit.isdecimal() or not 1 <= int(limit) <= 100:
            raise invalid_form(
                [
                    FormError(
                        path=("limit",),
                        code="NUMBER_TYPE_MAX",
                        message="int value should be between 1 and 100.",
                    )
                ]
            )
        found = [m for m in self._world.messages.get(channel.id, {}).values() if not m.ephemeral]
        found.sort(key=lambda message: message.id, reverse=True)
        if "before" in call.query:
            found = [m for m in found if m.id < call.asked_id("before")]
        elif "after" in call.query:
            found = [m for m in found if m.id > call.asked_id("after")][-int(limit) :]
        elif "around" in call.query:
            centre, half = call.asked_id("around"), int(limit) // 2
            newer = [m for m in found if m.id > centre]
            found = newer[max(0, len(newer) - half) :] + [m for m in found if m.id <= centre][: half + 1]
        return [self._shape(message) for message in found[: int(limit)]]

    def channel_message(self, call: Call) -> Json:
        """Return one message."""
        channel = self._seen(call)
        self._world.require(channel, permissions.READ_MESSAGE_HISTORY)
        return self._shape(self._public(channel, call))

    def channel_edit(self, call: Call) -> Json:
        """Edit a message of the bot's own."""
        channel = self._seen(call)
        message = self._public(channel, call)
        if message.author is not self._world.bot:
            raise Refusal(50005)
        call.record.v2 = bool((message.flags | limits.flags_of(call.form)) & COMPONENTS_V2)
        self._messages.edit(message, call.form, call.uploads)
        return self._shape(message)

    def channel_delete(self, call: Call) -> None:
        """Delete a message: an own one, or with MANAGE_MESSAGES anyone's."""
        channel = self._seen(call)
        message = self._public(channel, call)
        if message.author is not self._world.bot:
            self._world.require(channel, permissions.MANAGE_MESSAGES)
        self._messages.delete(message)

    def reaction_add(self, call: Call) -> None:
        """Add the bot's reaction."""
        channel = self._seen(call)
        self._world.require(channel, permissions.ADD_REACTIONS | permissions.READ_MESSAGE_HISTORY)
        message = self._public(channel, call)
        if len(call.params["emoji"]) > 64:
            raise Refusal(10014)
        message.reactions.setdefault(call.params["emoji"], set()).add(self._world.bot.id)

    def reaction_remove(self, call: Call) -> None:
        """Take the bot's reaction away."""
        message = self._public(self._seen(call), call)
        users = message.reactions.get(call.params["emoji"], set())
        users.discard(self._world.bot.id)
        if not users:
            message.reactions.pop(call.params["emoji"], None)

    def typing(self, call: Call) -> None:
        """Accept the typing sign."""
        self._world.require(self._seen(call), permissions.SEND_MESSAGES)

    def channel_get(self, call: Call) -> Json:
        """Return a channel."""
        return shapes.channel_json(self._world, self._seen(call))

    def dm_create(self, call: Call) -> Json:
        """Open direct messages with a person."""
        user = self._world.user(snowflake(call.form.get("recipient_id"), "recipient_id"))
        if user.bot:
            raise Refusal(50007)
        return shapes.channel_json(self._world, self._world.dm_channel(user.id))

    def _seen(self, call: Call) -> Channel:
        channel = self._world.channel(call.id("channel_id"))
        self._world.require(channel, 0)
        return channel

    def _public(self, channel: Channel, call: Call) -> Message:
        message = self._world.message(channel.id, call.id("message_id"))
        # An ephemeral message is not in the channel; only its interaction's webhook reaches it.
        if message.ephemeral:
            raise Refusal(10008)
        return message

    def _shape(self, message: Message) -> Json:
        return shapes.message_json(self._world, message, self._base_url)

    # Commands

    def commands_put(self, call: Call) -> list[Json]:
        """Overwrite the commands of a scope."""
        return self._commands.overwrite(self._scope(call), call.body)

    def commands_get(self, call: Call) -> list[Json]:
        """Return the commands of a scope."""
        found = self._commands.listed(self._scope(call))
        if call.query.get("with_localizations", "").lower() in ("1", "true"):
            return found
        return [without_localizations(command) for command in found]

    def _scope(self, call: Call) -> int | None:
        if call.id("application_id") != self._world.bot.id:
            raise Refusal(10002)
        if "guild_id" not in call.params:
            return None
        guild = self._world.guilds.get(call.id("guild_id"))
        if guild is None or self._world.bot.id not in guild.members:
            raise Refusal(50001)
        return guild.id

    # Looking up

    def me(self, _call: Call) -> Json:
        """Return the bot's account."""
        return shapes.self_json(self._world.bot)

    def application(self, _call: Call) -> Json:
        """Return the application."""
        return shapes.application_json(self._world)

    def user(self, call: Call) -> Json:
        """Return an account."""
        return shapes.user_json(self._world.user(call.id("user_id")))

    def my_guilds(self, _call: Call) -> list[Json]:
        """Return the guilds the bot is in."""
        mine = [guild for guild in self._world.guilds.values() if self._world.bot.id in guild.members]
        return [shapes.my_guild_json(self._world, guild) for guild in mine]

    def gateway_get(self, _call: Call) -> Json:
        """Return the gateway's address."""
        return {"url": self._gateway.url}

    def gateway_bot(self, _call: Call) -> Json:
        """Return the gateway's address and how many sessions may still be started today."""
        left = max(0, 1000 - self._gateway.identifies)
        limit = {"total": 1000, "remaining": left, "reset_after": 86_400_000, "max_concurrency": 1}
        return {"url": self._gateway.url, "shards": 1, "session_start_limit": limit}

    def guild(self, call: Call) -> Json:
        """Return a guild, with counts where asked."""
        guild = self._world.guild(call.id("guild_id"))
        shape = shapes.guild_json(self._world, guild)
        if call.query.get("with_counts", "").lower() in ("1", "true"):
            shape |= {
                "approximate_member_count": len(guild.members),
                "approximate_presence_count": len(guild.members),
            }
        return shape

    def guild_channels(self, call: Call) -> list[Json]:
        """Return a guild's channels."""
        guild = self._world.guild(call.id("guild_id"))
        return [shapes.channel_json(self._world, channel) for channel in self._world.guild_channels(guild.id)]

    def guild_roles(self, call: Call) -> list[Json]:
        """Return a guild's roles."""
        return [shapes.role_json(role) for role in self._world.guild(call.id("guild_id")).roles.values()]

    def guild_member(self, call: Call) -> Json:
        """Return one member."""
        guild: Guild = self._world.guild(call.id("guild_id"))
        user = self._world.users.get(call.id("user_id"))
        if user is None or user.id not in guild.members:
            raise Refusal(10007)
        return shapes.member_json(self._world, guild, user)
