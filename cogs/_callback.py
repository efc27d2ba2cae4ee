"""First answers with as little work as they need: hundreds of people may wait for theirs within the same 3 seconds."""

from typing import Any

import aiohttp
import discord
import orjson
import yarl
from discord.http import MultipartParameters, Route, json_or_text
from discord.webhook.async_ import AsyncWebhookAdapter, async_context

_HEADERS = {"Content-Type": "application/json"}


def answer_lightly() -> None:
    """Have discord.py send first answers through this module, in this task and those that it starts."""
    async_context.set(_Adapter())


class _Adapter(AsyncWebhookAdapter):
    """discord.py's own way, shortened for first answers that are taken at once.

    They have no rate limit of their own to wait for, and of the response only its ids are handed on: discord.py would
    build a whole message from it, which nobody reads.
    """

    async def create_interaction_response(
        self,
        interaction_id: int,
        token: str,
        *,
        session: aiohttp.ClientSession,
        proxy: str | None = None,
        proxy_auth: aiohttp.BasicAuth | None = None,
        params: MultipartParameters,
    ) -> Any:
        """Send a first answer and return what Discord says of it; raises what discord.py's does."""
        if not params.files:
            url = f"{Route.BASE}/interactions/{interaction_id}/{token}/callback?with_response=1"
            async with session.post(
                yarl.URL(url, encoded=True),
                data=orjson.dumps(params.payload),
                headers=_HEADERS,
                proxy=proxy,
                proxy_auth=proxy_auth,
            ) as response:
                if response.status == 200:
                    return {"interaction": orjson.loads(await response.read())["interaction"]}
                if 400 <= response.status < 500 and response.status != 429:
                    kind = discord.NotFound if response.status == 404 else discord.HTTPException
                    raise kind(response, await json_or_text(response))
        # Files, or a server that is busy: the long way, which knows how long to wait. Sending twice does no harm,
        # because Discord takes one first answer and refuses every other.
        return await super().create_interaction_response(
            interaction_id, token, session=session, proxy=proxy, proxy_auth=proxy_auth, params=params
        )
