"""The composition root: settings, logging, the core, the Discord client, and how they start and stop."""

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from zbot.config import Settings
    from zbot.engine import Engine

log = logging.getLogger("zbot")

FLUSH_WITHIN_S = 5.0
CLOSE_WITHIN_S = 3.0


def main() -> int:
    """Start the bot; the exit code is 0 after a clean stop and 2 if it cannot start as it is set up."""
    parser = argparse.ArgumentParser(description="A Discord bot that draws pictures with Z-Image-Turbo.")
    parser.add_argument(
        "--sandbox",
        action="store_true",
        help="try it without an account, token or GPU: a chat page on 127.0.0.1 stands in for Discord",
    )
    arguments = parser.parse_args()
    os.umask(0o077)  # prompts and tokens are nobody else's

    # Imported late, so that `--help` answers at once.
    from zbot import datadir
    from zbot.config import load_settings
    from zbot.errors import ConfigError, WeightsError
    from zbot.logs import set_up

    try:
        settings = load_settings(sandbox=arguments.sandbox)
        set_up(settings.log_level, settings.discord_token.get_secret_value())
        with datadir.locked(settings.data):
            asyncio.run(run_in_sandbox(settings) if arguments.sandbox else run(settings))
    except (ConfigError, WeightsError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


async def run_in_sandbox(settings: "Settings") -> None:
    """Run the bot against the stand-in for Discord, which lives as long as the bot.

    Raises:
        ConfigError: the page's port cannot be had.
    """
    from zbot.errors import ConfigError
    from zbot.sandbox import Sandbox

    try:
        sandbox = Sandbox(port=settings.sandbox_port, token=settings.discord_token.get_secret_value())
    except OSError as error:
        raise ConfigError(
            f"Port {settings.sandbox_port} cannot be had ({error.strerror}): end what uses it, or take another "
            f"one: make try PORT={settings.sandbox_port % 65535 + 1}."
        ) from error
    async with sandbox:
        addresses = {"discord_api": sandbox.api_url, "discord_gateway": sandbox.gateway_url}
        print(f"zbot's sandbox is ready: open {sandbox.url}", flush=True)
        await run(settings.model_copy(update=addresses))


async def run(settings: "Settings", make_engine: "Callable[[Settings], Engine] | None" = None) -> None:
    """Run the bot until SIGTERM or SIGINT, or until a part of it fails; tests bring an engine of their own.

    The caller holds the data directory's lock. A model that is missing or damaged does not end it: it says so, and draws once
    that is mended.

    Raises:
        ConfigError, WeightsError: it cannot start as it is set up.
    """
    from cogs._client import ZBot, point_at
    from cogs._delivery import DiscordMessenger
    from zbot import health, policy, weights
    from zbot.engine.start import LocatingEngine
    from zbot.generator import Generator
    from zbot.outbox import Outbox
    from zbot.progress import Herald
    from zbot.queue import Queue
    from zbot.recovery import clean_up
    from zbot.services import Services
    from zbot.store import Store
    from zbot.weights.native import expected_native_size

    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    point_at(settings.discord_api, settings.discord_gateway)

    async with contextlib.AsyncExitStack() as stack:
        model = weights.find_place(settings.model, settings.cache)
        store = await stack.enter_async_context(Store(settings.database))
        await clean_up(store, settings.images_dir)

        client = ZBot(guild_ids=settings.guild_ids, store=store)
        messenger = DiscordMessenger(client)
        limits = policy.Limits(per_person=settings.max_waiting_per_person, in_all=settings.max_waiting)
        queue = Queue(store, limits)
        herald = Herald(queue, messenger)
        outbox = Outbox(
            store=store, messenger=messenger, images_dir=settings.images_dir, before_outcome=herald.close
        )
        engine = (make_engine or LocatingEngine)(settings)
        generator = Generator(
            store=store,
            queue=queue,
            engine=engine,
            model=model.model,
            images_dir=settings.images_dir,
            watcher=herald,
            rendered=outbox.ring,
        )
        queue.connect(stop_drawing=generator.stop_drawing, line_changed=herald.line_changed)
        client.services = Services(
            settings=settings,
            store=store,
            queue=queue,
            generator=generator,
            herald=herald,
            outbox=outbox,
            native_size=expected_native_size(model),
        )
        await queue.recover(model.model)

        tasks = {
            "generator": asyncio.create_task(generator.run()),
            "discord": asyncio.create_task(
                client.run_until_closed(settings.discord_token.get_secret_value())
            ),
            "outbox": asyncio.create_task(outbox.run()),
            "herald": asyncio.create_task(herald.run()),
            "health": asyncio.create_task(health.keep_writing(settings.data / "health.json", client.health)),
        }
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({stopping, *tasks.values()}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            log.info("stopping")
            generator.stop()
            await asyncio.wait({tasks["generator"]})
            await outbox.flush(FLUSH_WITHIN_S)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_WITHIN_S):
                    await client.close()
            for task in (stopping, *tasks.values()):
                task.cancel()
            await asyncio.wait({stopping, *tasks.values()})
            (settings.data / "health.json").unlink(missing_ok=True)
        for name, task in tasks.items():
            if not task.cancelled() and (error := task.exception()):
                log.critical("%s has failed", name)
                raise error


if __name__ == "__main__":
    sys.exit(main())
