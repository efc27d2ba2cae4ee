"""The people of the sandbox as tests drive them: type, press, submit, and wait for what comes."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from zbot.sandbox.interactions import Interaction
from zbot.sandbox.options import ClientRefusal
from zbot.sandbox.refusal import Json
from zbot.sandbox.world import Attachment, Channel, Message, User

if TYPE_CHECKING:
    from zbot.sandbox.server import Sandbox

T = TypeVar("T")
TIMEOUT_S = 10.0


class Handle:
    """One interaction that a person sent, and everything the bot answered to it."""

    def __init__(self, sandbox: "Sandbox", interaction: Interaction) -> None:
        self._sandbox = sandbox
        self.interaction = interaction

    @property
    def id(self) -> int:
        """Return the interaction's id."""
        return self.interaction.id

    @property
    def acked_after_s(self) -> float | None:
        """Return the time from sending to the bot's acknowledgement, by a monotonic clock, or None."""
        return self.interaction.acked_after_s

    @property
    def failed(self) -> bool:
        """Say whether the person sees that the application did not respond."""
        return bool(self.interaction.failed)

    @property
    def messages(self) -> list[Message]:
        """Return the messages of the answer that still stand: the original response, then followups."""
        return [message for message in self.interaction.messages if not message.deleted]

    async def acknowledged(self, *, timeout_s: float = TIMEOUT_S) -> float:
        """Wait for the first answer and return how long it took in seconds. Raises: TimeoutError."""
        return await self._until(lambda: self.interaction.acked_after_s, timeout_s, "an acknowledgement")

    async def message(
        self,
        fits: Callable[[Message], bool] = lambda message: not message.loading,
        *,
        timeout_s: float = TIMEOUT_S,
    ) -> Message:
        """Wait for a message of the answer that fits (by default the first with content). Raises: TimeoutError."""

        def probe() -> Message | None:
            return next((message for message in self.messages if fits(message)), None)

        return await self._until(
            probe, timeout_s, f"a message for {self.interaction.text or self.interaction.name!r}"
        )

    async def modal(self, *, timeout_s: float = TIMEOUT_S) -> "Handle":
        """Wait until the bot opened a modal, and return this handle for `Person.submit`. Raises: TimeoutError."""
        await self._until(lambda: self.interaction.modal, timeout_s, "a modal")
        return self

    @property
    def form(self) -> Json:
        """Return the open modal: custom_id, title, components. Raises: LookupError if there is none."""
        if self.interaction.modal is None:
            raise LookupError("no modal is open")
        return self.interaction.modal

    async def failure(self, *, timeout_s: float = TIMEOUT_S) -> str:
        """Wait until the interaction failed and return why. Raises: TimeoutError."""
        return await self._until(lambda: self.interaction.failed or None, timeout_s, "a failure")

    async def _until(self, probe: Callable[[], T | None], timeout_s: float, what: str) -> T:
        topic = ("interaction", self.interaction.id)
        return await self._sandbox.bus.until(probe, topic=topic, timeout_s=timeout_s, what=what)


class Person:
    """One of the people; every act raises ClientRefusal where Discord's client would not send it."""

    def __init__(self, sandbox: "Sandbox", user: User) -> None:
        self._sandbox = sandbox
        self.user = user

    @property
    def id(self) -> int:
        """Return the account's id."""
        return self.user.id

    async def slash(self, command: str, *, channel: str | int = "pictures", **options: Any) -> Handle:
        """Send a slash command; subcommands are further words of `command`.

        Values are what the option takes; bytes become an uploaded file, a `Person` their id.
        """
        return self.slash_now(command, channel=channel, **options)

    def slash_now(self, command: str, *, channel: str | int = "pictures", **options: Any) -> Handle:
        """Send a slash command without giving way to anything else: for hundreds at once."""
        place = self._place(channel)
        found, given = self._command(command, place, options)
        return Handle(self._sandbox, self._sandbox.client.command(self.user, place, found["id"], given))

    async def autocomplete(
        self, command: str, *, channel: str | int = "pictures", timeout_s: float = TIMEOUT_S, **options: Any
    ) -> list[Json]:
        """Ask for completions of the last option given and return the choices. Raises: TimeoutError."""
        place = self._place(channel)
        found, given = self._command(command, place, options)
        innermost = given
        while innermost and "options" in innermost[-1]:
            innermost = innermost[-1]["options"]
        innermost[-1]["focused"] = True
        sent = self._sandbox.client.command(self.user, place, found["id"], given, autocomplete=True)

        def probe() -> list[Json] | None:
            return sent.choices

        topic = ("interaction", sent.id)
        return await self._sandbox.bus.until(probe, topic=topic, timeout_s=timeout_s, what="completions")

    async def press(self, message: Message, which: str) -> Handle:
        """Press the button with this custom_id, or else this label."""
        custom_id = next(
            (
                button["custom_id"]
                for button in message.buttons
                if which in (button.get("custom_id"), button.get("label"))
            ),
            which,
        )
        return Handle(self._sandbox, self._sandbox.client.press(self.user, message, custom_id))

    async def choose(self, message: Message, custom_id: str, values: Sequence[str]) -> Handle:
        """Choose these values in a menu."""
        return Handle(self._sandbox, self._sandbox.client.press(self.user, message, custom_id, values))

    async def submit(self, modal: Handle, values: dict[str, Any] | None = None) -> Handle:
        """Send the modal that this interaction opened; what is not given keeps its prefilled value."""
        return Handle(self._sandbox, self._sandbox.client.submit(self.user, modal.interaction, values or {}))

    def upload(self, data: bytes, filename: str = "picture.png") -> Attachment:
        """Keep a file that an attachment option can name by its id."""
        channel = self._sandbox.world.dm_channel(self.user.id)
        return self._sandbox.messages_store.keep(channel, filename, data)

    def say(self, text: str, *, channel: str | int = "pictures") -> Message:
        """Write an ordinary message."""
        place = self._place(channel)
        return self._sandbox.messages_store.create(place, {"content": text}, [], author=self.user)

    def sees(self, message: Message) -> bool:
        """Say whether this person can read the message."""
        return self._sandbox.world.visible(message, self.user.id)

    def _place(self, channel: str | int) -> Channel:
        return self._sandbox.channel(channel, person=self)

    def _command(self, command: str, place: Channel, options: dict[str, Any]) -> tuple[Json, list[Json]]:
        name, *subcommands = command.split()
        found = self._sandbox.client.find(self.user, place, name)
        given: list[Json] = [{"name": key, "value": self._value(value)} for key, value in options.items()]
        for subcommand in reversed(subcommands):
            given = [{"name": subcommand, "options": given}]
        return found, given

    def _value(self, value: Any) -> Any:
        if isinstance(value, bytes):
            return str(self.upload(value).id)
        if isinstance(value, Person):
            return str(value.id)
        return value


__all__ = ["ClientRefusal", "Handle", "Person"]
