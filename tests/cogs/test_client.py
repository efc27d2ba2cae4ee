from unittest.mock import Mock

from cogs._client import ZBot
from zbot.store import Store


async def test_a_closed_client_hands_on_nothing_that_comes_late():
    client = ZBot(guild_ids=(), store=Mock(spec=Store))
    await client.close()
    client.dispatch("ready")
