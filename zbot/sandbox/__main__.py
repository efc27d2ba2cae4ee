"""`python -m zbot.sandbox`: the stand-in alone, for a bot started by hand and for work on the page."""

import argparse
import asyncio
import contextlib

from zbot.sandbox.server import DEFAULT_PORT, DEFAULT_TOKEN, serve


def main() -> None:
    """Read the options and serve until interrupted."""
    parser = argparse.ArgumentParser(prog="python -m zbot.sandbox", description=__doc__)
    parser.add_argument("--port", type=int, default=DEFAULT_PORT, help="0 takes any free one")
    parser.add_argument("--token", default=DEFAULT_TOKEN, help="what the bot has to log in with")
    arguments = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(arguments.port, arguments.token))


if __name__ == "__main__":
    main()
