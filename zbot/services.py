"""What the commands work with, in one value: built in `bot.py`, handed to every cog."""

from dataclasses import dataclass

from zbot.config import Settings
from zbot.generator import Generator
from zbot.outbox import Outbox
from zbot.progress import Herald
from zbot.queue import Queue
from zbot.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """The running core."""

    settings: Settings
    store: Store
    queue: Queue
    generator: Generator
    herald: Herald
    outbox: Outbox
    native_size: int  # pixels of the loaded model's square side
