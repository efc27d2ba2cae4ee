"""Places in line, the time that is left, and the step a picture is at: told, and kept current."""

from tests.bot_process import BotProcess
from tests.e2e.desk import Desk
from tests.e2e.scene import (
    E2E,
    labels_of,
    result,
)
from zbot.sandbox import Sandbox
from zbot.sandbox.people import Person

pytestmark = E2E


async def test_progress_shows_the_step_and_can_be_cancelled_meanwhile(
    bot: BotProcess, desk: Desk, ada: Person
) -> None:
    desk.on("slowly", hold_at=3)
    desk.on("slowly", hold_at=(0, 3), times=1)
    handle = await ada.slash("imagine", prompt="slowly now", count=2)
    before = await desk.held("slowly")
    await (await ada.slash("queue")).message()  # the bot has learned meanwhile which message it edits
    before.go_on()
    first = await desk.held("slowly")
    message = await handle.message(lambda message: "Drawing" in message.content)
    assert message.content == "Drawing picture 1 of 2 · step 3 of 8"
    assert labels_of(message) == ["Cancel"]
    first.go_on()
    await handle.message(lambda message: message.content == "Drawing picture 2 of 2 · step 3 of 8")
    desk.forget()
    assert (await result(handle)).content == ""


async def test_places_in_line_are_told_and_kept_current(
    sandbox: Sandbox, bot: BotProcess, desk: Desk, ada: Person, bo: Person, mo: Person
) -> None:
    desk.on("in line", hold_at=1)
    await ada.slash("imagine", prompt="first in line")
    first = await desk.held("first in line")
    second = await (await mo.slash("imagine", prompt="second in line")).message()
    third = await (await ada.slash("imagine", prompt="third in line")).message()
    # The time that follows is this machine's own, learned from the jobs before.
    assert second.content.startswith("Next in line · ready <t:")
    assert third.content.startswith("Place 2 in line · ready <t:")
    assert labels_of(third) == ["Cancel"]
    first.go_on()
    await sandbox.message("pictures", lambda m: m is third and m.content.startswith("Next in line"))


async def test_the_line_is_fair_a_newcomer_goes_before_a_flooder(
    bot: BotProcess, desk: Desk, sandbox: Sandbox
) -> None:
    flooder, newcomer = sandbox.add_person("Flo"), sandbox.add_person("Nell")
    desk.on("flood 0", hold_at=0)
    handles = [await flooder.slash("imagine", prompt="flood 0")]
    first = await desk.held("flood 0")
    handles += [await flooder.slash("imagine", prompt=f"flood {n}") for n in range(1, 5)]
    handles += [await newcomer.slash("imagine", prompt="not a flood")]
    for handle in handles:
        await handle.acknowledged()
    first.go_on()
    for handle in handles:
        await result(handle)
    order = [picture.prompt for picture in desk.of("flood")]
    assert order == ["flood 0", "not a flood", "flood 1", "flood 2", "flood 3", "flood 4"]
