"""Keeps the card busy: the end of one picture (decoding, PNG) overlaps the denoising of the next."""

import asyncio
from dataclasses import dataclass

from zbot.engine import Drawn, Engine, OnStep, Step
from zbot.request import ImageRequest


@dataclass(frozen=True, slots=True)
class Drawing:
    """One picture under way; `card_free` is set once the next may begin, or when this one ended otherwise."""

    task: asyncio.Task[Drawn]
    card_free: asyncio.Event


def start(engine: Engine, request: ImageRequest, on_step: OnStep) -> Drawing:
    """Start one picture; call only once the drawing before it has set its `card_free`."""
    card_free = asyncio.Event()

    def step(step: Step) -> None:
        on_step(step)
        if step.number == step.total:
            card_free.set()

    task = asyncio.create_task(engine.draw(request, step))
    task.add_done_callback(lambda _: card_free.set())
    return Drawing(task, card_free)
