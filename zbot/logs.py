"""Logging to standard error, without secrets at any level."""

import logging
import re
from typing import Any

# Interaction and webhook tokens stand in URLs: /webhooks/<id>/<token>, /interactions/<id>/<token>/callback.
_URL_TOKEN = re.compile(r"(/(?:webhooks|interactions)/\d+/)[\w\-.%=]+")
# Signatures of Discord's CDN, and anything that is shaped like a bot token.
_SIGNATURE = re.compile(r"([?&](?:hm|ex|is)=)[0-9a-f]+")
_BOT_TOKEN = re.compile(r"\b[\w-]{23,28}\.[\w-]{6,7}\.[\w-]{27,}\b")
HIDDEN = "[hidden]"


class RedactingFormatter(logging.Formatter):
    """Hides tokens in the finished text, so that messages, arguments and tracebacks are all covered."""

    def __init__(self, *args: Any, secret: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._secret = secret

    def format(self, record: logging.LogRecord) -> str:
        """Return the line without secrets."""
        return redact(super().format(record), self._secret)


def redact(text: str, secret: str = "") -> str:
    """Return the text without the bot's token, interaction tokens and CDN signatures."""
    if secret:
        text = text.replace(secret, HIDDEN)
    text = _URL_TOKEN.sub(rf"\1{HIDDEN}", text)
    text = _SIGNATURE.sub(rf"\1{HIDDEN}", text)
    return _BOT_TOKEN.sub(HIDDEN, text)


def set_up(level: str, secret: str) -> None:
    """Send everything of `level` and above to standard error, with `secret` hidden."""
    handler = logging.StreamHandler()
    handler.setFormatter(
        RedactingFormatter(
            "%(asctime)s %(levelname)-7s %(name)s: %(message)s", "%Y-%m-%d %H:%M:%S", secret=secret
        )
    )
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # At DEBUG these two print whole gateway events and every value bound in SQL: prompts and tokens.
    for name in ("discord", "aiosqlite"):
        logging.getLogger(name).setLevel(max(logging.INFO, logging.getLogger().level))
    # One line at every start about audio, which a bot of pictures does not send.
    logging.getLogger("discord.client").addFilter(
        lambda record: "PyNaCl" not in record.getMessage() and "davey" not in record.getMessage()
    )
