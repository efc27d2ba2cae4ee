"""The settings: read from the environment and `.env`, checked all at once, secrets never printed."""

import difflib
import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from zbot.errors import ConfigError

DEFAULT_MODEL = "Tongyi-MAI/Z-Image-Turbo"
TOKEN = "DISCORD_TOKEN"  # noqa: S105 the setting's name
PREFIX = "ZBOT_"
# Where relative paths begin: a restart from another directory must find the same data again.
ROOT = Path(__file__).resolve().parents[1]
SANDBOX_TOKEN = "sandbox-token"  # noqa: S105 opens nothing but the stand-in on this machine
# Read by the tests alone; a developer's shell may have it while the bot runs.
_OF_THE_TESTS = {"ZBOT_DISCORD_OPENAPI"}


class Settings(BaseSettings):
    """Every setting of zbot; the description of each is its line in `.env.example` and in `docs/settings.md`."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_file=".env", env_file_encoding="utf-8", extra="ignore", frozen=True
    )

    discord_token: SecretStr = Field(
        validation_alias=AliasChoices(TOKEN, "discord_token"),
        description="The bot's token, from the Bot page of the Discord developer portal. The only required line.",
    )
    guild_ids: Annotated[tuple[int, ...], NoDecode] = Field(
        default=(),
        description="Servers the bot works in, ids with commas between. Empty: every server it was invited to.",
    )
    model: str = Field(
        default=DEFAULT_MODEL,
        description="What draws: a ModelScope id that was fetched before, a local directory, or `tiny`.",
    )
    data_dir: Path = Field(default=Path("data"), description="Where the database and the pictures are kept.")
    cache_dir: Path | None = Field(
        default=None,
        description="Where model files and compiled kernels are kept, an absolute path. Empty: `cache` in the data directory.",
    )
    lora_dir: Path | None = Field(
        default=None,
        description="Where LoRA files (`*.safetensors`) are, each named by its file. Empty: `loras` in the data directory.",
    )
    max_waiting_per_person: int = Field(
        default=10, ge=1, description="Jobs that one person may have waiting."
    )
    max_waiting: int = Field(default=200, ge=1, description="Jobs that may wait in all.")
    device: str = Field(
        default="auto",
        pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$",
        description="What draws: `auto` is the first card, else Apple's, else the processor; or `cuda:1`, `mps`, `cpu`.",
    )
    placement: Literal[
        "auto",
        "resident",
        "tiled",
        "encoder_offload",
        "group_offload",
        "model_offload",
        "sequential_offload",
    ] = Field(default="auto", description="How the model lies in memory; `auto` chooses by what is free.")
    precision: Literal["auto", "bf16", "fp32", "fp8"] = Field(
        default="auto",
        description="Number format: `auto` is bf16 on a GPU and fp32 for the tiny model on a CPU. "
        "`fp8` is faster and smaller on newer NVIDIA cards, and lossy.",
    )
    quantization: str = Field(
        default="none",
        pattern=r"^(none|int8|nf4|gguf:.+)$",
        description="Smaller numbers for the transformer, for small cards: `none`, `int8`, `nf4` or `gguf:FILE`. Lossy.",
    )
    compile: Literal["auto", "off"] = Field(
        default="auto", description="`off` draws with the stock pipeline: slower, no compilation."
    )
    preview: bool = Field(default=True, description="Show a small picture while a job is drawn.")
    stall_s: float = Field(
        default=60.0,
        gt=0,
        description="Seconds without a step after which the engine is replaced; raise it on slow machines.",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        default="INFO", description="How much is logged."
    )
    sandbox_port: int = Field(
        default=8787,
        ge=0,
        le=65535,
        description="Port of the sandbox's page on 127.0.0.1; 0 takes a free one.",
    )
    discord_api: str | None = Field(
        default=None,
        description="Another address for Discord's HTTP API, for tests: http://127.0.0.1:8787/api/v10",
    )
    discord_gateway: str | None = Field(
        default=None,
        description="Another address for Discord's gateway, for tests: ws://127.0.0.1:8787/gateway",
    )

    @field_validator("guild_ids", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return (
            [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value
        )

    @field_validator("lora_dir", mode="before")
    @classmethod
    def _unset_if_empty(cls, value: object) -> object:
        return None if value == "" else value

    @field_validator("discord_token")
    @classmethod
    def _has_text(cls, value: SecretStr) -> SecretStr:
        if not value.get_secret_value().strip():
            raise ValueError("is empty")
        return SecretStr(value.get_secret_value().strip())

    @property
    def dtype(self) -> str:
        """The engine's name of the number format."""
        return {"bf16": "bfloat16", "fp32": "float32", "fp8": "float8"}.get(self.precision, "auto")

    @property
    def data(self) -> Path:
        """The data directory, absolute; a relative one lies beside `bot.py`."""
        return ROOT / self.data_dir.expanduser()

    @property
    def cache(self) -> Path:
        """The one root for model files and compiled kernels."""
        return self.cache_dir.expanduser() if self.cache_dir else self.data / "cache"

    @property
    def images_dir(self) -> Path:
        """Where the pictures are kept."""
        return self.data / "images"

    @property
    def loras(self) -> Path:
        """The directory of the LoRA files, absolute; it need not be there."""
        return ROOT / self.lora_dir.expanduser() if self.lora_dir else self.data / "loras"

    @property
    def database(self) -> Path:
        """The SQLite file."""
        return self.data / "zbot.db"


def setting_names() -> dict[str, str]:
    """Return every setting's environment variable with the field it fills."""
    return {
        (TOKEN if name == "discord_token" else PREFIX + name.upper()): name for name in Settings.model_fields
    }


def load_settings(*, sandbox: bool = False, needs_token: bool = True) -> Settings:
    """Read the settings; the environment wins over `.env`. The command line needs no token.

    The sandbox needs no token, knows no other server than its own, keeps its data apart from the real bot's, and
    draws with the tiny model unless another one is set.

    Raises:
        ConfigError: every setting that cannot be used, in one text, each with its repair.
    """
    problems = _unknown_names()
    given: dict[str, Any] = {}
    if sandbox or not needs_token:
        given["discord_token"] = SANDBOX_TOKEN
    if sandbox:
        given["guild_ids"] = ()
    try:
        settings = Settings(**given)
    except ValidationError as error:
        problems += [
            _explain(dict(problem)) for problem in error.errors(include_input=False, include_url=False)
        ]
        raise ConfigError("\n".join(problems)) from None
    if problems:
        raise ConfigError("\n".join(problems))
    if sandbox:
        model = settings.model if "model" in settings.model_fields_set else "tiny"
        # Fetched models serve both: the cache stays where the real bot has it.
        apart = {"data_dir": settings.data / "sandbox", "cache_dir": settings.cache, "model": model}
        settings = settings.model_copy(update=apart)
    return settings


def _unknown_names() -> list[str]:
    known = setting_names()
    names = {name for name in os.environ if name.startswith(PREFIX)}
    env_file = Path(".env")
    if env_file.is_file():
        from dotenv import dotenv_values

        names |= {name for name in dotenv_values(env_file) if name.upper() != TOKEN}
    by_word = {name.removeprefix(PREFIX): name for name in known}
    problems: list[str] = []
    for name in sorted({name.upper() for name in names} - known.keys() - _OF_THE_TESTS):
        # Compared without what every name begins with, which would make all of them alike.
        near = difflib.get_close_matches(name.removeprefix(PREFIX), by_word, n=1)
        advice = (
            f"did you mean {by_word[near[0]]}?" if near else "remove it; .env.example lists what there is."
        )
        problems.append(f"{name} is not a setting: {advice}")
    return problems


def _explain(problem: dict[str, Any]) -> str:
    field = str(problem["loc"][0])
    name = TOKEN if field in (TOKEN, "discord_token") else PREFIX + field.upper()
    if name == TOKEN:
        return (
            f"{TOKEN} is not set: put the bot's token into .env (cp .env.example .env), "
            "or try zbot without one: make try."
        )
    return f"{name}: {problem['msg'].removeprefix('Value error, ')}. See .env.example."
