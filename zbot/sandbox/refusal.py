"""Discord's refusals: the error codes an interaction bot meets, and the JSON shape they come in."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

Json = dict[str, Any]

MESSAGES: dict[int, tuple[int, str]] = {
    0: (404, "404: Not Found"),
    10002: (404, "Unknown Application"),
    10003: (404, "Unknown Channel"),
    10004: (404, "Unknown Guild"),
    10007: (404, "Unknown Member"),
    10008: (404, "Unknown Message"),
    10013: (404, "Unknown User"),
    10014: (404, "Unknown Emoji"),
    10015: (404, "Unknown Webhook"),
    10062: (404, "Unknown interaction"),
    10063: (404, "Unknown application command"),
    30015: (400, "Maximum number of attachments in a message reached (10)"),
    40001: (401, "Unauthorized"),
    40005: (413, "Request entity too large"),
    40060: (400, "Interaction has already been acknowledged."),
    50001: (403, "Missing Access"),
    50005: (403, "Cannot edit a message authored by another user"),
    50006: (400, "Cannot send an empty message"),
    50007: (403, "Cannot send messages to this user"),
    50013: (403, "Missing Permissions"),
    50027: (401, "Invalid Webhook Token"),
    50035: (400, "Invalid Form Body"),
    50083: (400, "Thread is archived"),
    50109: (400, "The request body contains invalid JSON."),
}
"""Code -> (HTTP status, text). The codes are those of Discord's list; 50027 for a dead interaction token and 10062
for one that was never acknowledged in time were both seen in bots' logs, the list does not promise them."""


def as_object(value: Any) -> Json | None:
    """Return the value if it is a JSON object, else None."""
    return cast(Json, value) if isinstance(value, dict) else None


def as_list(value: Any) -> list[Any] | None:
    """Return the value if it is a JSON list, else None."""
    return cast("list[Any]", value) if isinstance(value, list) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class FormError:
    """One field that Discord would not take; `path` leads to it through objects and lists."""

    path: tuple[str | int, ...]
    code: str
    message: str

    def __str__(self) -> str:
        return (
            "$"
            + "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in self.path)
            + f": {self.message}"
        )


class Refusal(Exception):
    """An answer of Discord's that is an error; the REST face turns it into status and JSON."""

    def __init__(self, code: int, *, status: int | None = None, message: str | None = None) -> None:
        default_status, default_message = MESSAGES.get(code, (400, "Bad Request"))
        super().__init__(message or default_message)
        self.code = code
        self.status = status or default_status
        self.message = message or default_message
        self.form_errors: Sequence[FormError] = ()

    def body(self) -> Json:
        """Return the JSON object that Discord sends with this refusal."""
        answer: Json = {"message": self.message, "code": self.code}
        if self.form_errors:
            answer["errors"] = nested(self.form_errors)
        return answer


def invalid_form(errors: Sequence[FormError]) -> Refusal:
    """Return the 50035 refusal that carries these field errors."""
    refusal = Refusal(50035)
    refusal.form_errors = tuple(errors)
    return refusal


def nested(errors: Sequence[FormError]) -> Json:
    """Return field errors in Discord's nested form: `{"embeds": {"0": {"title": {"_errors": [...]}}}}`."""
    root: Json = {}
    for error in errors:
        node = root
        for step in error.path:
            node = node.setdefault(str(step), {})
        node.setdefault("_errors", []).append({"code": error.code, "message": error.message})
    return root
