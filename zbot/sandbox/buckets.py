"""Rate-limit buckets: Discord's headers on every answer, and 429 for who goes on regardless."""

import hashlib
import math
from dataclasses import dataclass

from zbot.sandbox.clock import Clock
from zbot.sandbox.refusal import Json

RULES: dict[str, tuple[int, float]] = {
    "webhook": (5, 2.0),
    "channel_send": (5, 5.0),
    "channel_edit": (5, 5.0),
    "channel_delete": (5, 1.0),
    "reaction": (4, 1.0),
    "dm": (10, 10.0),
    "commands": (10, 10.0),
    "other": (50, 1.0),
}
"""Bucket -> (requests, window in seconds). Discord promises no figures; these are what bots' logs show (5 per 2 s
for an interaction's webhook: discord-api-docs #2701)."""
GLOBAL_LIMIT, GLOBAL_WINDOW_S = 50, 1.0
"""Requests a second with the bot token over all routes; webhooks of interactions do not count towards it."""


@dataclass(slots=True)
class Window:
    """What is left of one bucket until it resets; fixed windows, begun by the first request."""

    limit: int
    remaining: int
    resets_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether a request may pass, and the headers (and body) that tell."""

    passes: bool
    headers: dict[str, str]
    body: Json


class Buckets:
    """Counts requests per bucket and major parameter, by the sandbox's clock."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._windows: dict[tuple[str, str], Window] = {}
        self.enabled = True
        self.exceeded = 0

    def take(self, bucket: str, major: str, *, counts_globally: bool) -> Verdict:
        """Count one request; `major` is the channel, guild or webhook the bucket belongs to."""
        limit, window_s = RULES[bucket]
        now = self._clock.monotonic()
        if counts_globally and self.enabled:
            whole = self._window(("global", ""), GLOBAL_LIMIT, GLOBAL_WINDOW_S, now)
            if whole.remaining <= 0:
                return self._refusal({"X-RateLimit-Global": "true"}, whole.resets_at - now, everywhere=True)
            whole.remaining -= 1
        window = self._window((bucket, major), limit, window_s, now)
        passes = window.remaining > 0 or not self.enabled
        window.remaining = max(0, window.remaining - 1)
        left_s = max(0.001, window.resets_at - now)
        remaining = window.remaining if self.enabled else limit
        headers = {
            "X-RateLimit-Limit": str(limit),
            "X-RateLimit-Remaining": str(remaining),
            "X-RateLimit-Reset": f"{self._clock.now() + left_s:.3f}",
            "X-RateLimit-Reset-After": f"{left_s:.3f}",
            "X-RateLimit-Bucket": hashlib.sha256(bucket.encode()).hexdigest()[:32],
        }
        if passes:
            return Verdict(passes=True, headers=headers, body={})
        return self._refusal(headers, left_s, everywhere=False)

    def _window(self, key: tuple[str, str], limit: int, window_s: float, now: float) -> Window:
        window = self._windows.get(key)
        if window is None or now >= window.resets_at:
            if len(self._windows) > 4096:
                self._windows = {k: w for k, w in self._windows.items() if now < w.resets_at}
            window = self._windows[key] = Window(limit, limit, now + window_s)
        return window

    def _refusal(self, headers: dict[str, str], left_s: float, *, everywhere: bool) -> Verdict:
        self.exceeded += 1
        return Verdict(
            passes=False,
            headers=headers | limited_headers(left_s, everywhere=everywhere),
            body=limited_body(left_s, everywhere=everywhere),
        )


def limited_headers(retry_after_s: float, *, everywhere: bool) -> dict[str, str]:
    """Return the headers of a 429 that comes from Discord itself and not from Cloudflare: with Via."""
    return {
        "Retry-After": str(math.ceil(retry_after_s)),
        "Via": "1.1 sandbox",
        "X-RateLimit-Scope": "global" if everywhere else "user",
    }


def limited_body(retry_after_s: float, *, everywhere: bool) -> Json:
    """Return the JSON of a 429."""
    return {
        "message": "You are being rate limited.",
        "code": 0,
        "retry_after": round(retry_after_s, 3),
        "global": everywhere,
    }
