"""The one exception tree of zbot.

ZBotError
├── InvalidRequest          what was asked for cannot be drawn as written
├── NotAllowed              this person, or this place, may not do that
├── QuotaExceeded           this person has too much waiting already
├── QueueFull               the whole line is full
├── JobNotFound             no such job, or it is no longer there
├── StoreUnavailable        the database cannot take a write in time
├── GenerationError         a picture could not be drawn
│   ├── OutOfMemory
│   ├── NonFiniteOutput
│   ├── LoraError           the LoRA file is gone, damaged or for another model
│   ├── EngineDead          the engine's process ended or stood still
│   └── GenerationCancelled
├── Undeliverable           the channel is gone, or closed to the bot
├── WeightsError            the model's files are missing, short or damaged
└── ConfigError             a setting cannot be used

An error that a member may see carries a `code`; its sentence in each language stands in `zbot/locales/` under
`error.<code>`, filled in from `facts`. Errors for the admin alone (`WeightsError`, `ConfigError`) are their own sentence.
"""

from typing import ClassVar


class ZBotError(Exception):
    """Base of every error zbot raises on purpose; `code` names its sentence and `facts` fill it in."""

    default_code: ClassVar[str] = "internal"

    def __init__(self, detail: str = "", /, *, code: str | None = None, **facts: str | float) -> None:
        super().__init__(detail)
        self.detail = detail
        self.code = code or self.default_code
        self.facts = facts

    def __str__(self) -> str:
        if self.detail:
            return self.detail
        facts = ", ".join(f"{name}={value!r}" for name, value in self.facts.items())
        return f"{self.code}({facts})" if facts else self.code


class InvalidRequest(ZBotError):
    """A request that cannot be drawn as written; `code` says which rule it breaks."""

    default_code = "invalid_request"


class NotAllowed(ZBotError):
    """This person, or this place, may not do that."""

    default_code = "not_allowed"


class QuotaExceeded(ZBotError):
    """One person's limit is reached; `facts["limit"]` is the limit."""

    default_code = "quota_exceeded"


class QueueFull(ZBotError):
    """The whole line is full; `facts["limit"]` is the limit."""

    default_code = "queue_full"


class JobNotFound(ZBotError):
    """No such job, or its picture is no longer kept."""

    default_code = "job_not_found"


class StoreUnavailable(ZBotError):
    """The database cannot take a write in time: locked, full, read-only or broken."""

    default_code = "store_unavailable"


class GenerationError(ZBotError):
    """A picture could not be drawn."""

    default_code = "generation"


class OutOfMemory(GenerationError):
    """The card has too little memory for this picture, also after a retry in a smaller way."""

    default_code = "out_of_memory"


class NonFiniteOutput(GenerationError):
    """The latents are not finite or the picture is flat: a numerical failure, never a result."""

    default_code = "non_finite"


class LoraError(GenerationError):
    """A LoRA file is gone, damaged or for another model; the text names it."""

    default_code = "lora"


class EngineDead(GenerationError):
    """The engine's process ended, or reported no step for too long and was ended."""

    default_code = "engine_dead"

    def __init__(self, detail: str = "", /, *, code: str | None = None, on_card: bool = False) -> None:
        super().__init__(detail, code=code, on_card=on_card)
        self.on_card = on_card  # this picture was on the card when it died; others only waited behind it


class GenerationCancelled(GenerationError):
    """Drawing was stopped on request."""

    default_code = "cancelled"


class Undeliverable(ZBotError):
    """A message can never be shown: the channel is gone, or closed to the bot."""

    default_code = "undeliverable"


class WeightsError(ZBotError):
    """The model's files are missing, short or damaged; the text names the file and the command that mends it."""

    default_code = "weights"


class ConfigError(ZBotError):
    """A setting cannot be used; the text names it and its repair."""

    default_code = "config"
