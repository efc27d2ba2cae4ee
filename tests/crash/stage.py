"""The stage of the fault matrix: bots to kill, the sandbox they talk to, and the invariants afterwards."""

import asyncio
import contextlib
import os
import re
import sqlite3
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.crash.picture import png_of
from tests.nursery import ROOT, Forked, Nursery
from zbot.sandbox import Handle, Message, Sandbox

TOKEN = "crash-matrix-token-that-no-log-may-show"
TERMINAL = ("delivered", "failed", "cancelled", "undeliverable")
SETTLE_WITHIN_S = 60.0


@dataclass(slots=True, eq=False)
class Stage:
    """One data directory, one sandbox, and the bots that come and go."""

    nursery: Nursery
    sandbox: Sandbox
    data: Path
    settings: dict[str, str] = field(default_factory=dict[str, str])
    victims: list[Forked] = field(default_factory=list[Forked])

    @property
    def log(self) -> Path:
        """What every bot on this stage has logged."""
        return self.data / "bot.log"

    def start(self, **extra: str) -> Forked:
        """Start a bot on the data directory."""
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("ZBOT_", "CRASH_"))},
            "DISCORD_TOKEN": TOKEN,
            "ZBOT_DATA_DIR": str(self.data),
            "ZBOT_MODEL": "tiny",
            "ZBOT_DISCORD_API": self.sandbox.api_url,
            "ZBOT_DISCORD_GATEWAY": self.sandbox.gateway_url,
            **self.settings,
            **extra,
        }
        victim = self.nursery.start(
            "tests.crash.victim", log=self.log, environment=environment, directory=ROOT
        )
        self.victims.append(victim)
        return victim

    async def started(self, **extra: str) -> Forked:
        """Start a bot and wait until it hears people."""
        identifies = self.sandbox.gateway.identifies
        victim = self.start(**extra)
        await self.until(
            lambda: self.sandbox.gateway.identifies > identifies and self.sandbox.gateway.online, victim
        )
        return victim

    async def until(
        self, probe: Callable[[], Any], victim: Forked | None = None, *, within_s: float = SETTLE_WITHIN_S
    ) -> Any:
        """Return the first true value of a probe of files or counters that nothing announces.

        Raises:
            Died: the bot has ended. TimeoutError: with the end of the log.
        """
        deadline = time.monotonic() + within_s
        while not (value := probe()):
            if victim is not None and victim.ended.done():
                raise Died(f"exit code {victim.ended.result()}\n{self.tail()}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"not within {within_s} s: {self.rows()}\n{self.tail()}")
            await asyncio.sleep(0.01)
        return value

    def tail(self) -> str:
        """Return the end of the log."""
        return self.log.read_text()[-4_000:] if self.log.exists() else ""

    def query(self, sql: str, *values: object) -> list[sqlite3.Row]:
        """Ask the database as it is; nothing while there is none."""
        if not (self.data / "zbot.db").exists():
            return []
        with contextlib.closing(sqlite3.connect(self.data / "zbot.db", timeout=5)) as connection:
            connection.row_factory = sqlite3.Row
            try:
                return connection.execute(sql, values).fetchall()
            except sqlite3.OperationalError as error:
                if "no such table" in str(error):
                    return []
                raise

    def rows(self) -> list[dict[str, Any]]:
        """Return every job."""
        return [dict(row) for row in self.query("SELECT * FROM job ORDER BY id")]

    def open_jobs(self) -> int:
        """Return how many jobs are not settled: not terminal, or their outcome not told."""
        rows = self.query(
            "SELECT count(*) AS count FROM job WHERE state IN ('queued', 'running') OR told_at IS NULL"
        )
        return rows[0]["count"] if rows else 0

    async def settle(self, victim: Forked | None = None, *, within_s: float = SETTLE_WITHIN_S) -> None:
        """Wait until every accepted job is told of."""
        await self.until(lambda: self.open_jobs() == 0, victim, within_s=within_s)

    def bot_messages(self) -> list[Message]:
        """Return the bot's messages that everybody sees, in all channels."""
        return [
            message
            for messages in self.sandbox.world.messages.values()
            for message in messages.values()
            if message.author is self.sandbox.world.bot and not message.ephemeral
        ]

    def check(self, *, billed_undelivered: int = 0, may_trace: bool = False) -> None:
        """Check the invariants on what is left; call when the bot has ended and all is settled.

        `may_trace` where discord.py itself logs a traceback, as it does when it cannot reach the gateway.
        """
        jobs = self.rows()
        problems: list[str] = []

        def require(holds: bool, sentence: str) -> None:
            if not holds:
                problems.append(sentence)

        for job in jobs:
            name = f"job {job['id']} ({job['state']})"
            require(job["state"] in TERMINAL, f"I1: {name} is not terminal")
            require(job["attempts"] == 0, f"{name} has spent {job['attempts']} attempts")
            require(job["interaction_token"] is None, f"I7: {name} keeps its token")
        require(len({job["interaction_id"] for job in jobs}) == len(jobs), "an interaction made two jobs")
        self._check_usage(jobs, require)
        self._check_messages(jobs, require)
        self._check_files(jobs, require)
        (integrity,) = self.query("PRAGMA integrity_check") or [("ok",)]
        require(integrity[0] == "ok", f"I5: {integrity[0]}")
        require(not self.query("PRAGMA foreign_key_check"), "I5: foreign keys")
        self._check_secrets(require, may_trace=may_trace)
        undelivered = sum(job["state"] == "undeliverable" for job in jobs)
        require(undelivered == billed_undelivered, f"{undelivered} jobs are undeliverable")
        assert not problems, "\n".join(problems) + f"\n{jobs}\n{self.tail()}"

    def _check_usage(self, jobs: list[dict[str, Any]], require: Callable[[bool, str], None]) -> None:
        rendered = [job for job in jobs if job["state"] in ("rendered", "delivered", "undeliverable")]
        usage = {row["job_id"]: dict(row) for row in self.query("SELECT * FROM usage")}
        require(set(usage) == {job["id"] for job in rendered}, f"I2: usage of {sorted(usage)}")
        for job in rendered:
            bill = usage.get(job["id"], {})
            wanted = (job["user_id"], job["num_images"], job["width"] * job["height"] * job["num_images"])
            require(
                (bill.get("user_id"), bill.get("pictures"), bill.get("pixels")) == wanted,
                f"I2: the bill of job {job['id']} is {bill}",
            )

    def _check_messages(self, jobs: list[dict[str, Any]], require: Callable[[bool, str], None]) -> None:
        by_name: dict[str, list[Message]] = {}
        for message in self.bot_messages():
            for attachment in message.attachments:
                by_name.setdefault(attachment.filename, []).append(message)
        for job in jobs:
            names = _names(job)
            holders = {message.id for name in names for message in by_name.get(name, ())}
            copies = sum(len(by_name.get(name, ())) for name in names)
            if job["state"] == "delivered" and job["deleted_at"] is None:
                require(
                    len(holders) == 1 and copies == len(names),
                    f"I3: job {job['id']} stands in {len(holders)} messages with {copies} pictures",
                )
                require(holders == {job["message_id"]}, f"I3: job {job['id']} is elsewhere than its row says")
            else:
                require(not holders, f"I3: job {job['id']} ({job['state']}) was posted")
        known = {job["message_id"] for job in jobs}
        for message in self.bot_messages():
            told = message.interaction.id if message.interaction else message.nonce
            owner = next((job for job in jobs if str(job["interaction_id"]) == str(told)), None)
            if owner is not None and owner["state"] != "undeliverable":
                require(
                    message.id in known or not owner["message_id"],
                    f"I3: a message of job {owner['id']} beside its own still stands: {message.content!r}",
                )
        for request in self.sandbox.requests:
            body = request.json if isinstance(request.json, dict) else {}
            body = body.get("data") or body if request.route == "callback" else body
            if request.route in (
                "callback",
                "original_edit",
                "followup",
                "channel_send",
                "channel_edit",
            ) and ("content" in body or "embeds" in body):
                parse = (body.get("allowed_mentions") or {"parse": ["everyone"]}).get("parse")
                require(parse == [], f"I8: {request.route} lets {parse} be mentioned")

    def _check_files(self, jobs: list[dict[str, Any]], require: Callable[[bool, str], None]) -> None:
        wanted = {
            name: png_of((job["seed"] + index) % 2**32, job["prompt"])
            for job in jobs
            if job["state"] in ("rendered", "delivered", "undeliverable") and job["deleted_at"] is None
            for index, name in enumerate(_names(job))
        }
        images = self.data / "images"
        there = {path.name for path in images.iterdir()} if images.exists() else set[str]()
        require(there == set(wanted), f"I4: files {sorted(there)}, wanted {sorted(wanted)}")
        for name in there & set(wanted):
            require(
                (images / name).read_bytes() == wanted[name], f"I4: {name} is not the picture of its seed"
            )

    def _check_secrets(self, require: Callable[[bool, str], None], *, may_trace: bool) -> None:
        log = self.log.read_text() if self.log.exists() else ""
        tokens = {interaction.token for interaction in self.sandbox.interactions._by_id.values()}
        require(TOKEN not in log, "I7: the bot's token is in the log")
        require(not any(token in log for token in tokens), "I7: an interaction's token is in the log")
        require(may_trace or "Traceback" not in log, "a traceback is in the log")


class Died(Exception):
    """The bot ended while something was expected of it."""


def _names(job: dict[str, Any]) -> list[str]:
    return [f"zbot-{job['id']}-{index}.png" for index in range(1, job["num_images"] + 1)]


async def tell_story(stage: Stage) -> None:
    """One of each: a job cancelled while it is drawn, and behind it a single picture and three of one prompt."""
    ada, bo = stage.sandbox.person("Ada"), stage.sandbox.person("Bo")
    held = await ada.slash("imagine", prompt="a hold", seed=1)
    shown = await held.message()
    single = await bo.slash("imagine", prompt="a boat", seed=2)
    several = await ada.slash("imagine", prompt="three boats", seed=3, count=3)
    await single.message()
    await several.message()
    job_id = next(
        int(found[1]) for b in shown.buttons if (found := re.search(r"cancel:(\d+)", b["custom_id"]))
    )
    await stage.until(lambda: stage.query("SELECT 1 FROM job WHERE id = ? AND state = 'running'", job_id))
    await ada.press(shown, f"zbot:cancel:{job_id}")
    await stage.until(lambda: len(stage.rows()) == 3 and stage.open_jobs() == 0)


async def survive(stage: Stage, victim: Forked, story: Awaitable[None]) -> bool:
    """Go through a story until it ends or the bot does; say whether the bot was killed."""
    telling = asyncio.ensure_future(story)
    await asyncio.wait({telling, victim.ended}, return_when=asyncio.FIRST_COMPLETED)
    if telling.done():
        telling.result()
        return False
    telling.cancel()
    await asyncio.wait({telling})
    return True


async def recover(stage: Stage, **extra: str) -> Forked:
    """Start a bot on what is left, see it draw again, and wait until everything is settled."""
    (stage.data / "release").touch()
    victim = await stage.started(**extra)
    mo = stage.sandbox.person("Mo")
    await stage.sandbox.synced("imagine")
    probe = await mo.slash("imagine", prompt="still here", seed=9)
    await _delivered(probe)
    await stage.settle(victim)
    return victim


async def _delivered(handle: Handle) -> Message:
    return await handle.message(
        lambda message: any(a.filename.endswith(".png") for a in message.attachments),
        timeout_s=SETTLE_WITHIN_S,
    )
