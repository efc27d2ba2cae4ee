"""What `make try` gives a person: the real bot, the tiny model, and a page in a browser."""

import asyncio
from pathlib import Path

import pytest

from tests.bot_process import bot_process
from tests.browser import ENTER, Browser, available

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not available(), reason="Chromium and chromedriver are not installed"),
]
DRAWN_S = 60.0  # the first picture waits for the model
BUTTONS = "[...document.querySelector('.message .row').children]"
PICTURES = (
    "[...document.querySelectorAll('.message .picture img')].filter(i => i.complete && i.naturalWidth > 0)"
)


async def test_a_visitor_types_imagine_sees_the_picture_and_rerolls_it(tmp_path: Path) -> None:
    # Nothing is set: that is what a person has who just fetched zbot.
    settings = {"ZBOT_SANDBOX_PORT": "0", "ZBOT_MODEL": ""}
    async with bot_process(tmp_path / "bot", settings=settings, start=False) as bot:
        await bot.launch("--sandbox")
        line = await bot.logged("open http://127.0.0.1:")
        await asyncio.to_thread(visit, line.rsplit(" ", 1)[1], tmp_path)
        code, took_s = await bot.terminate()
        assert (code, took_s < 20) == (0, True)
    assert "Traceback" not in bot.log


def visit(url: str, screenshots: Path) -> None:
    """Do what a visitor does, at desktop width and then on a phone; keep what they saw."""
    with Browser(width=1280, height=860) as browser:
        browser.colours("light")
        browser.open(url)
        browser.wait_for("#status.is-online")
        browser.type("#composer-input", "/imagine a red circle on blue --seed 7")
        browser.press(ENTER)
        browser.wait_for(".message", text="Cancel")
        browser.wait_until(f"{PICTURES}.length === 1", timeout_s=DRAWN_S)
        first = browser.script(f"return {PICTURES}[0].currentSrc")
        assert browser.script(f"return [{PICTURES}[0].naturalWidth, {PICTURES}[0].naturalHeight]") == [
            256,
            256,
        ]
        assert "7" in browser.find(".message").text and "for @Ada" in browser.find(".message").text
        browser.screenshot(screenshots / "desktop-light.png")

        browser.wait_for(".message button", text="Re-roll").click()
        browser.wait_until(f"{PICTURES}.length === 2", timeout_s=DRAWN_S)
        assert browser.script(f"return {PICTURES}[1].currentSrc") != first
        shown = browser.script(
            f"""
            const pixels = image => {{
              const canvas = document.createElement("canvas");
              canvas.width = canvas.height = 256;
              canvas.getContext("2d").drawImage(image, 0, 0);
              return canvas.toDataURL();
            }};
            return {PICTURES}.map(pixels);
            """
        )
        assert shown[0] != shown[1]

        browser.wait_for(".message button", text="Details").click()
        browser.wait_for(".message .only-you")
        browser.colours("dark")
        browser.screenshot(screenshots / "desktop-dark.png")

        browser.viewport(390, 844, phone=True, scale=2)
        browser.wait_until("document.documentElement.scrollWidth <= innerWidth")
        browser.wait_until(f"{BUTTONS}.length === 4 && new Set({BUTTONS}.map(b => b.offsetTop)).size === 1")
        browser.screenshot(screenshots / "phone-dark.png")
        browser.wait_for(".message button", text="Edit").click()
        browser.wait_for("#modal[open]")
        browser.screenshot(screenshots / "phone-form.png")
        assert browser.console() == []
