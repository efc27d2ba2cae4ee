"""The values of a slash command's options, checked and resolved as Discord's own client does before it sends them."""

from collections.abc import Sequence
from typing import Any

from zbot.sandbox import shapes
from zbot.sandbox.refusal import Json
from zbot.sandbox.world import Channel, World

SUBCOMMAND, GROUP, STRING, INTEGER, BOOLEAN, USER, CHANNEL, ROLE, MENTIONABLE, NUMBER, ATTACHMENT = range(
    1, 12
)


class ClientRefusal(Exception):
    """What the person's client says instead of sending anything; the text is one sentence."""


class BotOffline(ClientRefusal):
    """No bot is connected to the gateway."""


class Options:
    """Turns what a person filled in into the `options` and `resolved` of an interaction."""

    def __init__(self, world: World, channel: Channel, *, complete: bool) -> None:
        self._world = world
        self._channel = channel
        self._complete = complete
        """False for autocomplete: the form is not finished, so nothing is required and bounds do not matter yet."""
        self.resolved: dict[str, Json] = {}
        self.words: list[str] = []

    def build(self, known: Sequence[Json], given: Sequence[Json]) -> list[Json]:
        """Return the `options` list of the interaction's data. Raises: ClientRefusal."""
        by_name = {option["name"]: option for option in known}
        seen: set[str] = set()
        built: list[Json] = []
        for item in given:
            name = str(item.get("name"))
            if name not in by_name:
                raise ClientRefusal(f"There is no option {name!r}.")
            if name in seen:
                raise ClientRefusal(f"Option {name!r} is given twice.")
            seen.add(name)
            option = by_name[name]
            kind: int = option["type"]
            if kind in (SUBCOMMAND, GROUP):
                self.words.append(name)
                inner = self.build(option.get("options", ()), item.get("options") or ())
                built.append({"name": name, "type": kind, "options": inner})
                return built
            value = item.get("value")
            if value is None or (value == "" and kind != STRING):
                if not item.get("focused"):
                    seen.discard(name)
                    continue
                value = ""
            shape: Json = {"name": name, "type": kind}
            if item.get("focused"):
                shape |= {"value": str(value), "focused": True}
            else:
                shape["value"] = self._value(option, value)
                self.words.append(f"{name}: {self._shown(kind, shape['value'])}")
            built.append(shape)
        if self._complete:
            self._nothing_missing(known, seen)
        return built

    def _nothing_missing(self, known: Sequence[Json], seen: set[str]) -> None:
        if any(option["type"] in (SUBCOMMAND, GROUP) for option in known):
            raise ClientRefusal("Choose one of the subcommands.")
        for option in known:
            if option.get("required") and option["name"] not in seen:
                raise ClientRefusal(f"Option {option['name']!r} is required.")

    def _value(self, option: Json, value: Any) -> Any:
        name, kind = option["name"], option["type"]
        if kind in (INTEGER, NUMBER):
            value = _number(name, value, whole=kind == INTEGER)
        elif kind == BOOLEAN:
            if value in ("true", "false"):
                value = value == "true"
            if not isinstance(value, bool):
                raise ClientRefusal(f"Option {name!r} is either true or false.")
        elif kind == STRING:
            value = str(value)
            if option.get("required") and self._complete and not value.strip():
                raise ClientRefusal(f"Option {name!r} is required.")
        else:
            return self._resolve(name, kind, str(value))
        if not self._complete:
            return value
        if option.get("choices") and value not in [choice["value"] for choice in option["choices"]]:
            raise ClientRefusal(f"Option {name!r}: {value!r} is not one of the choices.")
        if kind == STRING:
            _bounded(
                name,
                len(str(value)),
                option.get("min_length"),
                option.get("max_length", 6000),
                unit=" characters",
            )
        elif kind in (INTEGER, NUMBER):
            _bounded(name, value, option.get("min_value"), option.get("max_value"), unit="")
        return value

    def _resolve(self, name: str, kind: int, value: str) -> str:
        """Add the object that an id stands for to `resolved`; in autocomplete Discord leaves it out."""
        number = int(value) if value.isdecimal() else 0
        guild = None if self._channel.guild_id is None else self._world.guilds[self._channel.guild_id]
        if kind == ATTACHMENT:
            attachment = self._world.attachments.get(number)
            if attachment is None:
                raise ClientRefusal(f"Option {name!r}: the file is not there.")
            if len(attachment.data) > self._world.file_limit_bytes(self._channel):
                raise ClientRefusal(f"Option {name!r}: the file is too large for this place.")
            # Absolute, since the bot fetches it.
            shape = shapes.attachment_json(self._world, attachment, self._world.base_url) | {
                "ephemeral": True
            }
            self._add("attachments", value, shape)
        elif kind in (USER, MENTIONABLE) and number in self._world.users:
            user = self._world.users[number]
            self._add("users", value, shapes.user_json(user))
            if guild is not None and number in guild.members:
                member = shapes.member_json(self._world, guild, user, with_user=False)
                bits = self._world.bits(self._channel, number)
                self._add("members", value, member | {"permissions": str(bits)})
        elif kind in (ROLE, MENTIONABLE) and guild is not None and number in guild.roles:
            self._add("roles", value, shapes.role_json(guild.roles[number]))
        elif kind == CHANNEL and number in self._world.channels:
            found = shapes.channel_json(self._world, self._world.channels[number])
            self._add("channels", value, found | {"permissions": "0"})
        else:
            raise ClientRefusal(f"Option {name!r}: {value!r} is not here.")
        return value

    def _add(self, kind: str, key: str, shape: Json) -> None:
        if self._complete:
            self.resolved.setdefault(kind, {})[key] = shape

    def _shown(self, kind: int, value: Any) -> str:
        if kind == ATTACHMENT:
            return self._world.attachments[int(value)].filename
        if kind in (USER, MENTIONABLE) and int(value) in self._world.users:
            return "@" + self._world.users[int(value)].display_name
        return str(value)


def _number(name: str, value: Any, *, whole: bool) -> int | float:
    try:
        if isinstance(value, bool):
            raise ValueError
        number = float(value)
        if whole:
            number = int(value) if isinstance(value, str) else int(number)
            if not isinstance(value, str) and number != value:
                raise ValueError
    except (ValueError, TypeError, OverflowError):
        raise ClientRefusal(f"Option {name!r} is a {'whole ' if whole else ''}number.") from None
    if not abs(number) <= 2**53:
        raise ClientRefusal(f"Option {name!r} is out of the range that Discord takes.")
    return number


def _bounded(name: str, value: float, least: float | None, most: float | None, *, unit: str) -> None:
    if least is not None and value < least:
        raise ClientRefusal(f"Option {name!r} is at least {least}{unit}.")
    if most is not None and value > most:
        raise ClientRefusal(f"Option {name!r} is at most {most}{unit}.")
