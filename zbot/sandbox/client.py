"""What Discord's own client does for a person: list commands, check a form, send commands, presses and modals."""

from collections.abc import Mapping, Sequence
from typing import Any

from zbot.sandbox import permissions
from zbot.sandbox.commands import CHAT, Commands
from zbot.sandbox.components import (
    CHECKBOX,
    CHECKBOX_GROUP,
    FILE_UPLOAD,
    RADIO_GROUP,
    SELECTS,
    TEXT_INPUT,
    walk,
)
from zbot.sandbox.gateway import Gateway
from zbot.sandbox.interactions import (
    AUTOCOMPLETE,
    COMMAND,
    COMPONENT,
    MODAL_SUBMIT,
    Interaction,
    Interactions,
)
from zbot.sandbox.options import BotOffline, ClientRefusal, Options
from zbot.sandbox.refusal import Json
from zbot.sandbox.shapes import attachment_json
from zbot.sandbox.world import Channel, Message, User, World


class Client:
    """Sends on behalf of people, and refuses with a sentence what their client would not send."""

    def __init__(
        self, *, world: World, commands: Commands, interactions: Interactions, gateway: Gateway
    ) -> None:
        self._world = world
        self._commands = commands
        self._interactions = interactions
        self._gateway = gateway

    def commands_for(self, user: User) -> list[Json]:
        """Return the commands this person may use somewhere, each with `channel_ids` that say where."""
        found: list[Json] = []
        for guild_id, command in self._commands.everywhere():
            where = [
                str(c.id)
                for c in self._world.channels_of(user.id)
                if self._usable(user, c, guild_id, command)
            ]
            if where and command["type"] == CHAT:
                found.append(command | {"channel_ids": where})
        return found

    def find(self, user: User, channel: Channel, name: str) -> Json:
        """Return the command of this name that the person may use here, a guild's own first. Raises: ClientRefusal."""
        fitting = [
            (guild_id, command)
            for guild_id, command in self._commands.everywhere()
            if command["name"] == name and self._usable(user, channel, guild_id, command)
        ]
        if not fitting:
            raise ClientRefusal(f"There is no command /{name} here.")
        return max(fitting, key=lambda pair: pair[0] is not None)[1]

    def command(
        self,
        user: User,
        channel: Channel,
        command_id: str,
        options: Sequence[Json],
        *,
        autocomplete: bool = False,
    ) -> Interaction:
        """Send a slash command, or ask for the completion of its focused option.

        Raises:
            ClientRefusal: unknown command, missing or wrong option, no access. BotOffline: nobody would hear it.
        """
        self._may_act(user, channel)
        known = [(scope, found) for scope, found in self._commands.everywhere() if found["id"] == command_id]
        if not known:
            raise ClientRefusal("There is no such command.")
        guild_id, command = known[0]
        if not self._usable(user, channel, guild_id, command):
            raise ClientRefusal(f"/{command['name']} cannot be used here.")
        form = Options(self._world, channel, complete=not autocomplete)
        data: Json = {
            "id": command["id"],
            "name": command["name"],
            "type": command["type"],
            "options": form.build(command.get("options", ()), options),
        }
        if guild_id is not None:
            data["guild_id"] = str(guild_id)
        if form.resolved:
            data["resolved"] = form.resolved
        return self._interactions.create(
            type=AUTOCOMPLETE if autocomplete else COMMAND,
            user=user,
            channel=channel,
            data=data,
            name=" ".join([command["name"], *(word for word in form.words if ": " not in word)]),
            text=" ".join([f"/{command['name']}", *form.words]),
        )

    def press(
        self, user: User, message: Message, custom_id: str, values: Sequence[str] | None = None
    ) -> Interaction:
        """Press a button or choose from a menu. Raises: ClientRefusal, BotOffline."""
        channel = self._world.channels.get(message.channel_id)
        if channel is None or not self._world.visible(message, user.id):
            raise ClientRefusal("The message is not there.")
        self._may_act(user, channel)
        component = next((c for c in walk(message.components) if c.get("custom_id") == custom_id), None)
        if component is None:
            raise ClientRefusal(f"The message has no button {custom_id!r}.")
        if component.get("disabled"):
            raise ClientRefusal("That button is switched off.")
        data: Json = {"custom_id": custom_id, "component_type": component["type"], "id": component["id"]}
        if component["type"] in SELECTS:
            data["values"] = _chosen(component, values or ())
        return self._interactions.create(
            type=COMPONENT,
            user=user,
            channel=channel,
            data=data,
            name=custom_id,
            text=component.get("label", ""),
            message=message,
        )

    def submit(self, user: User, opener: Interaction, values: Mapping[str, Any]) -> Interaction:
        """Send the modal that `opener` was answered with. Raises: ClientRefusal, BotOffline."""
        if opener.modal is None or opener.user is not user:
            raise ClientRefusal("That form is not open.")
        self._may_act(user, opener.channel)
        known = {c["custom_id"] for c in walk(opener.modal["components"]) if "custom_id" in c}
        if strange := set(values) - known:
            raise ClientRefusal(f"The form has no field {sorted(strange)[0]!r}.")
        resolved: Json = {}
        data: Json = {
            "custom_id": opener.modal["custom_id"],
            "components": [self._filled(opener, c, values, resolved) for c in opener.modal["components"]],
        }
        if resolved:
            data["resolved"] = resolved
        return self._interactions.create(
            type=MODAL_SUBMIT,
            user=user,
            channel=opener.channel,
            data=data,
            name=opener.modal["custom_id"],
            text=opener.modal["title"],
            message=opener.message,
            opened_by=opener,
        )

    def _filled(
        self, opener: Interaction, component: Json, values: Mapping[str, Any], resolved: Json
    ) -> Json:
        """Return the submitted form of one modal component, with the value the person gave or the one prefilled."""
        kind = component["type"]
        shape: Json = {"type": kind, "id": component["id"]}
        if "components" in component:
            return shape | {
                "components": [self._filled(opener, c, values, resolved) for c in component["components"]]
            }
        if "component" in component:
            return shape | {"component": self._filled(opener, component["component"], values, resolved)}
        if "custom_id" not in component:
            return shape
        custom_id = component["custom_id"]
        shape["custom_id"] = custom_id
        given = values.get(custom_id)
        required = component.get("required", True) is not False
        if kind == TEXT_INPUT:
            text = str(component.get("value", "") if given is None else given)
            if required and not text:
                raise ClientRefusal(f"Field {custom_id!r} is required.")
            if text and not component.get("min_length", 0) <= len(text) <= component.get("max_length", 4000):
                raise ClientRefusal(f"Field {custom_id!r} is too short or too long.")
            return shape | {"value": text}
        if kind in (CHECKBOX, RADIO_GROUP):
            if kind == RADIO_GROUP and given is not None:
                _chosen(component | {"max_values": 1}, [given])
            if kind == RADIO_GROUP and given is None and required:
                raise ClientRefusal(f"Field {custom_id!r} is required.")
            return shape | {"value": bool(given) if kind == CHECKBOX else given}
        listed = [given] if isinstance(given, str) else list(given or ())
        if not listed and kind in (3, CHECKBOX_GROUP):
            listed = [option["value"] for option in component.get("options", ()) if option.get("default")]
        if not listed and not required:
            return shape | {"values": []}
        if kind == FILE_UPLOAD:
            for key in listed:
                attachment = self._world.attachments.get(int(key))
                if attachment is None:
                    raise ClientRefusal(f"Field {custom_id!r}: the file is not there.")
                found = attachment_json(self._world, attachment, self._world.base_url)
                resolved.setdefault("attachments", {})[key] = found
            return shape | {"values": listed}
        return shape | {"values": _chosen(component, listed)}

    def _usable(self, user: User, channel: Channel, guild_id: int | None, command: Json) -> bool:
        """Say whether Discord would offer this command to this person in this channel."""
        if channel.guild_id is None:
            contexts = command.get("contexts")
            direct = command.get("dm_permission", True) if contexts is None else 1 in contexts
            return guild_id is None and direct and channel.recipient_id == user.id
        if guild_id not in (None, channel.guild_id) or 0 not in (command.get("contexts") or (0,)):
            return False
        guild = self._world.guilds[channel.guild_id]
        if self._world.bot.id not in guild.members:
            return False
        held = self._world.bits(channel, user.id)
        needed = command.get("default_member_permissions")
        if needed is not None and not held & permissions.ADMINISTRATOR:
            allowed = int(needed) != 0 and not int(needed) & ~held
            return allowed and bool(held & permissions.USE_APPLICATION_COMMANDS)
        return bool(held & permissions.USE_APPLICATION_COMMANDS)

    def _may_act(self, user: User, channel: Channel) -> None:
        if (
            channel.id not in self._world.channels
            or not self._world.bits(channel, user.id) & permissions.VIEW_CHANNEL
        ):
            raise ClientRefusal("You cannot see this channel.")
        if not self._gateway.reachable:
            raise BotOffline("The bot is offline.")


def _chosen(component: Json, values: Sequence[str]) -> list[str]:
    """Return the chosen values of a menu. Raises: ClientRefusal for too few, too many or unknown ones."""
    most = component.get(
        "max_values", len(component.get("options", ())) if component["type"] == CHECKBOX_GROUP else 1
    )
    if not component.get("min_values", 1) <= len(values) <= most:
        raise ClientRefusal("That is not the right number of choices.")
    if "options" in component:
        known = {option["value"] for option in component["options"]}
        if strange := [value for value in values if value not in known]:
            raise ClientRefusal(f"{strange[0]!r} is not one of the choices.")
    return list(values)
