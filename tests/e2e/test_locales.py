"""Everybody is answered in the language of their Discord: Chinese or English."""

from tests.bot_process import BotProcess
from tests.e2e.desk import Desk
from tests.e2e.scene import E2E, facts_of, job_of, labels_of, refusal, result
from zbot.sandbox import Sandbox
from zbot.sandbox.people import Person

pytestmark = E2E


async def test_commands_options_and_descriptions_are_synced_in_chinese_too(
    sandbox: Sandbox, bot: BotProcess
) -> None:
    commands = {command["name"]: command for _, command in sandbox.commands.everywhere()}
    chinese = {name: command["name_localizations"]["zh-CN"] for name, command in commands.items()}
    assert (
        chinese
        | {
            "imagine": "画图",
            "queue": "排队",
            "cancel": "取消",
            "usage": "用量",
            "help": "帮助",
        }
        == chinese
    )
    for command in commands.values():
        assert command["description_localizations"]["zh-CN"] != command["description"]
        for option in command.get("options", ()):
            assert option["name_localizations"]["zh-CN"] != option["name"]
            assert option["description_localizations"]["zh-CN"] != option["description"]
    options = {option["name"]: option for option in commands["imagine"]["options"]}
    assert (options["seed"]["min_value"], options["seed"]["max_value"]) == (0, 4294967295)
    assert (options["count"]["min_value"], options["count"]["max_value"]) == (1, 4)
    assert options["prompt"]["max_length"] == 6000
    assert [name for name, option in options.items() if option.get("required")] == ["prompt"]
    assert len(options["aspect"]["choices"]) == 9


async def test_bo_is_answered_in_chinese_from_the_line_to_the_result(
    bot: BotProcess, desk: Desk, ada: Person, bo: Person
) -> None:
    await result(await ada.slash("imagine", prompt="so that a time is known"))
    desk.on("blocks", hold_at=1)
    await ada.slash("imagine", prompt="blocks")
    await desk.held("blocks")
    first = await bo.slash("imagine", prompt="雪地里的红狐狸", seed=7)
    second = await bo.slash("imagine", prompt="第二张")
    assert (await first.message()).content.startswith("下一个就是你 · 预计 <t:")
    assert (await second.message()).content.startswith("排在第 2 位 · 预计 <t:")
    assert labels_of(await second.message()) == ["取消"]
    desk.forget()
    message = await result(first)
    assert facts_of(message) == f"种子 `7` · 256×256 · 8 步 · 用时 0.50 秒 · <@{bo.id}>"
    assert labels_of(message) == ["重画", "修改", "详情", "删除"]


async def test_a_button_answers_in_the_language_of_who_pressed_it(
    sandbox: Sandbox, bot: BotProcess, ada: Person, bo: Person
) -> None:
    message = await result(await bo.slash("imagine", prompt="谁按的"))
    assert (await (await ada.press(message, "详情")).message()).embeds[0]["title"].startswith("How job")
    assert (await (await bo.press(message, "详情")).message()).embeds[0]["title"].startswith("任务")
    form = await (await bo.press(message, "修改")).modal()
    assert form.form["title"] == "修改后再画"
    assert [label["label"] for label in form.form["components"]] == ["提示词", "种子（留空则随机）", "画幅"]
    rerolled = await result(await ada.press(message, "重画"))
    assert labels_of(rerolled)[0] == "Re-roll"
    told = await (await bo.press(message, "删除")).message(lambda answer: answer.ephemeral)
    assert told.content == f"任务 {job_of(message)} 的图片已删除。"


async def test_commands_and_refusals_are_in_chinese_for_bo(bot: BotProcess, bo: Person) -> None:
    assert (await (await bo.slash("queue")).message()).embeds[0][
        "description"
    ] == "没有人在排队，也没有正在画的图。"
    assert (await (await bo.slash("help")).message()).embeds[0]["title"] == "怎么在这里画图"
    assert (await (await bo.slash("usage")).message()).embeds[0]["title"] == "Bo 画了多少"
    assert (await refusal(await bo.slash("imagine", prompt="狐狸 --v 6"))).startswith("不认识参数 --v。")
    assert await refusal(await bo.slash("cancel", job="1234567")) == "这个任务已经不在了。"


async def test_other_kinds_of_chinese_read_chinese_and_everybody_else_english(
    sandbox: Sandbox, bot: BotProcess
) -> None:
    taiwan = sandbox.add_person("Tai", locale="zh-TW")
    paris = sandbox.add_person("Pari", locale="fr")
    assert (await (await taiwan.slash("queue")).message()).embeds[0]["title"] == "队列"
    assert (await (await paris.slash("queue")).message()).embeds[0]["title"] == "The line"


async def test_chinese_help_names_the_commands_as_a_chinese_discord_shows_them(
    bot: BotProcess, bo: Person
) -> None:
    text = (await (await bo.slash("help")).message()).text
    for word in ("/画图", "/排队", "/取消", "/用量", "画幅", "种子", "张数", "步数"):
        assert word in text
