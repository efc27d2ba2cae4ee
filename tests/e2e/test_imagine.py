"""`/imagine` from the command to the picture in the channel."""

from tests.bot_process import BotProcess
from tests.e2e.desk import Desk
from tests.e2e.scene import (
    E2E,
    facts_of,
    files_of,
    in_state,
    job_for,
    jobs,
    labels_of,
    prompt_of,
    result,
    rows,
    seeds_of,
    settled,
    sizes_of,
)
from zbot.images import read_recipe
from zbot.sandbox import Sandbox
from zbot.sandbox.people import Person

pytestmark = E2E


async def test_the_picture_stands_in_the_channel_with_its_facts(
    sandbox: Sandbox, bot: BotProcess, ada: Person, bo: Person
) -> None:
    handle = await ada.slash("imagine", prompt="a red fox in the snow", seed=7)
    message = await result(handle)

    assert await handle.acknowledged() < 1.5
    assert bo.sees(message)
    assert prompt_of(message) == "a red fox in the snow"
    assert facts_of(message) == f"Seed `7` · 256×256 · 8 steps · drawn in 0.50 s · for <@{ada.id}>"
    assert labels_of(message) == ["Re-roll", "Edit", "Details", "Delete"]
    assert [attachment.filename for attachment in message.attachments] == ["zbot-1-1.png"]
    recipe = read_recipe(message.attachments[0].data)
    assert (recipe.prompt, recipe.seed, recipe.steps) == ("a red fox in the snow", 7, 8)


async def test_the_first_answer_becomes_the_result_so_there_is_one_message(
    sandbox: Sandbox, bot: BotProcess, ada: Person
) -> None:
    before = len(sandbox.messages("pictures"))
    handle = await ada.slash("imagine", prompt="one message only")
    first = await handle.message()
    assert await result(handle) is first
    await settled(bot)
    assert len(sandbox.messages("pictures")) == before + 1


async def test_the_row_is_committed_before_the_answer(sandbox: Sandbox, bot: BotProcess, ada: Person) -> None:
    sandbox.faults.add("callback", stall_s=0.3)
    handle = ada.slash_now("imagine", prompt="committed first")
    await in_state(bot, handle, "queued", "running", "rendered")
    assert handle.acked_after_s is None
    await result(handle)


async def test_usage_is_written_once_and_the_token_is_forgotten(bot: BotProcess, ada: Person) -> None:
    handle = await ada.slash("imagine", prompt="what it costs", count=2, steps=5)
    message = await result(handle)
    job = await in_state(bot, handle, "delivered")
    assert job["interaction_token"] is None
    assert job["message_id"] == message.id
    (usage,) = rows(bot, "SELECT * FROM usage WHERE job_id = ?", job["id"])
    assert (usage["user_id"], usage["pictures"], usage["pixels"], usage["steps"]) == (
        ada.id,
        2,
        2 * 256 * 256,
        5,
    )
    assert usage["gpu_s"] == 1.0


async def test_count_posts_the_pictures_of_the_seeds_that_follow_each_the_same_as_alone(
    bot: BotProcess, ada: Person
) -> None:
    together = await result(await ada.slash("imagine", prompt="three of a kind", seed=40, count=3))
    assert seeds_of(together) == [40, 41, 42]
    assert facts_of(together).startswith("Seeds") or facts_of(together).startswith("Seed ")
    names = [attachment.filename for attachment in together.attachments]
    assert [name.rsplit("-", 1)[1] for name in names] == ["1.png", "2.png", "3.png"]
    for index, picture in enumerate(files_of(together)):
        alone = await result(await ada.slash("imagine", prompt="three of a kind", seed=40 + index))
        assert files_of(alone) == [picture]


async def test_after_the_largest_seed_comes_zero(bot: BotProcess, ada: Person) -> None:
    message = await result(await ada.slash("imagine", prompt="the largest seed", seed=4294967295, count=2))
    assert seeds_of(message) == [4294967295, 0]


async def test_without_a_seed_every_job_gets_its_own_and_shows_it(bot: BotProcess, ada: Person) -> None:
    handles = [await ada.slash("imagine", prompt="by chance") for _ in range(3)]
    shown = [seeds_of(await result(handle))[0] for handle in handles]
    assert len(set(shown)) == 3
    assert shown == [job_for(bot, handle)["seed"] for handle in handles]


async def test_every_aspect_that_is_offered_gives_its_shape(
    sandbox: Sandbox, bot: BotProcess, ada: Person
) -> None:
    command = next(command for _, command in sandbox.commands.everywhere() if command["name"] == "imagine")
    aspects = [
        choice["value"]
        for option in command["options"]
        if option["name"] == "aspect"
        for choice in option["choices"]
    ]
    assert aspects == ["1:1", "4:3", "3:2", "16:9", "21:9", "3:4", "2:3", "9:16", "9:21"]
    for aspect in aspects:
        ((width, height),) = sizes_of(
            await result(await ada.slash("imagine", prompt="shapes", aspect=aspect))
        )
        across, down = map(int, aspect.split(":"))
        assert width % 16 == 0 and height % 16 == 0
        assert abs(width / height - across / down) < 0.09 * across / down
        assert 0.7 < width * height / 256**2 < 1.1


async def test_what_did_not_fit_the_model_is_said(bot: BotProcess, desk: Desk, ada: Person) -> None:
    desk.on("endless", unused_prompt="and so on and on")
    message = await result(await ada.slash("imagine", prompt="an endless story, and so on and on"))
    note = facts_of(message).splitlines()[-1]
    assert note == "-# The prompt is too long for the model; this part was not used: “and so on and on”"


async def test_the_same_interaction_delivered_twice_is_one_job_and_one_message(
    sandbox: Sandbox, bot: BotProcess, desk: Desk, ada: Person
) -> None:
    desk.on("twice", hold_at=1)
    handle = await ada.slash("imagine", prompt="heard twice")
    sandbox.replay(handle)
    held = await desk.held("twice")
    sandbox.replay(handle)
    await sandbox.requests.wait(lambda request: request.route == "callback" and request.code == 40060)
    held.go_on()
    await result(handle)
    await settled(bot)
    assert len(handle.messages) == 1
    assert len(desk.of("twice")) == 1
    assert len([job for job in jobs(bot) if job["interaction_id"] == handle.id]) == 1
