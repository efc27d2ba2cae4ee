"""The log tells the admin what happens, and nobody anything about tokens and prompts."""

from tests.e2e.conftest import StartBot
from tests.e2e.desk import Desk
from tests.e2e.scene import E2E, refusal, result, settled
from zbot.sandbox import Sandbox
from zbot.sandbox.people import Person

pytestmark = E2E


async def test_the_log_at_info_and_at_debug_holds_no_token_and_at_info_no_prompt(
    start_bot: StartBot, sandbox: Sandbox, desk: Desk, ada: Person
) -> None:
    prompt = "nobody else's business"
    for level in ("INFO", "DEBUG"):
        bot = await start_bot(ZBOT_LOG_LEVEL=level)
        desk.on("business", error="engine_dead", times=1)
        sandbox.faults.add("original_edit", status=503)
        handle = await ada.slash("imagine", prompt=prompt)
        message = await result(handle)
        await (await ada.press(message, "Details")).message()
        sandbox.clock.advance(16 * 60)
        await refusal(await ada.slash("imagine", prompt=f"{prompt} --bad 1"))
        await settled(bot)
        await bot.terminate()
        assert sandbox.token not in bot.log
        assert handle.interaction.token not in bot.log
        if level == "INFO":
            assert prompt not in bot.log
