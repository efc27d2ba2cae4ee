"""How much may wait: refused with what to do, to the asker alone, and before anything is shown in public."""

from tests.e2e.conftest import StartBot
from tests.e2e.desk import Desk
from tests.e2e.scene import E2E, job_for, jobs, refusal, result
from zbot.sandbox import Sandbox
from zbot.sandbox.people import Person

pytestmark = E2E


async def test_the_limits_of_a_person_and_of_the_line_refuse_in_private_and_write_nothing(
    start_bot: StartBot, sandbox: Sandbox, desk: Desk, ada: Person, bo: Person, mo: Person
) -> None:
    bot = await start_bot(ZBOT_MAX_WAITING_PER_PERSON="2", ZBOT_MAX_WAITING="3")
    desk.on("limited", hold_at=1)
    handles = [await ada.slash("imagine", prompt="limited 0")]
    await desk.held("limited 0")
    handles += [await ada.slash("imagine", prompt=f"limited {number}") for number in (1, 2)]
    for handle in handles:
        await handle.acknowledged()
    public = len(sandbox.messages("pictures"))

    refused = await ada.slash("imagine", prompt="limited 3")
    assert await refusal(refused) == (
        "You already have as many jobs waiting as one person may (2). Wait for one, or take one back with /cancel."
    )
    assert job_for(bot, refused) is None

    last = await mo.slash("imagine", prompt="limited 4")
    await last.acknowledged()
    full = await bo.slash("imagine", prompt="limited 5")
    assert await refusal(full) == "队列满了：已有 3 个任务在等。请过几分钟再试；没有计入你的用量。"
    assert job_for(bot, full) is None

    shown = [message for message in sandbox.messages("pictures") if not message.ephemeral]
    assert len(shown) == public + 1
    assert len(jobs(bot)) == 4
    desk.forget()
    for handle in (*handles, last):
        await result(handle)
    await result(await ada.slash("imagine", prompt="there is room again"))


async def test_a_button_is_held_to_the_same_limits(
    start_bot: StartBot, sandbox: Sandbox, desk: Desk, ada: Person, bo: Person
) -> None:
    await start_bot(ZBOT_MAX_WAITING_PER_PERSON="1")
    first = await result(await ada.slash("imagine", prompt="a seed of many"))
    desk.on("blocks", hold_at=1)
    await bo.slash("imagine", prompt="blocks")
    await desk.held("blocks")
    await (await ada.press(first, "Re-roll")).acknowledged()
    assert "/cancel" in await refusal(await ada.press(first, "Re-roll"))
    form = await (await ada.press(first, "Edit")).modal()
    assert "/cancel" in await refusal(await ada.submit(form))
