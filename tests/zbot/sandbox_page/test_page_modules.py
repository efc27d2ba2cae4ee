"""What the page's modules make of typed lines and of messages' text, run in the browser that runs them for people."""

import functools
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser import Browser, available
from zbot import sandbox

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not available(), reason="Chromium and chromedriver are not installed"),
]

PAGE = Path(sandbox.__file__).parent / "page"
PEOPLE = {
    "users": [{"id": "12", "name": "bo", "display_name": "Bo"}],
    "channels": [{"id": "110", "name": "pictures"}],
}
IMAGINE = {
    "id": "1",
    "name": "imagine",
    "name_localizations": {"zh-CN": "画图"},
    "description": "Draw",
    "options": [
        {"type": 4, "name": "seed", "description": "Seed", "min_value": 0, "max_value": 4294967295},
        {
            "type": 3,
            "name": "prompt",
            "description": "What",
            "required": True,
            "name_localizations": {"zh-CN": "提示词"},
        },
        {"type": 3, "name": "aspect", "description": "Shape", "choices": [{"name": "16:9", "value": "16:9"}]},
        {"type": 5, "name": "hd", "description": "Fine"},
        {"type": 6, "name": "who", "description": "Whose"},
        {"type": 3, "name": "style", "description": "Style"},
    ],
}


class _Files(http.server.SimpleHTTPRequestHandler):
    """Serves the page's files where the sandbox serves them, and nothing else."""

    def translate_path(self, path: str) -> str:
        return str(PAGE / Path(path).name) if path.startswith("/static/") else "/nowhere"

    def do_GET(self) -> None:
        if self.path == "/":
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"<!doctype html><title>modules</title><div id=out></div>")
        else:
            super().do_GET()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Files, directory=str(PAGE)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        with Browser() as started:
            started.open(f"http://127.0.0.1:{server.server_port}/")
            started.call("POST", "/execute/async", {"script": _LOAD, "args": []})
            yield started
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


_LOAD = """
const done = arguments[0];
Promise.all(["commands", "markdown", "i18n", "media", "dom"].map((name) => import(`/static/${name}.js`)))
  .then(([commands, markdown, i18n, media, dom]) => { window.page = {...commands, ...markdown, ...i18n, ...media, ...dom}; done(true); });
"""


def read(browser: Browser, line: str, locale: str = "en-US") -> Any:
    return browser.script(
        f"""
        page.setLocale({json.dumps(locale)});
        const entries = page.entriesOf([{json.dumps(IMAGINE)}], "110");
        const known = page.lineEntry(arguments[0], entries);
        return known && page.readOptions(known.entry, known.rest, {json.dumps(PEOPLE)}).texts;
        """,
        line,
    )


def render(browser: Browser, text: str) -> str:
    """Return the text as the page shows it, its elements written as <tag>…</tag>."""
    return browser.script(
        """
        const people = {user: (id) => "user" + id, channel: (id) => "channel" + id};
        return page.fill(document.getElementById("out"), page.markdown(arguments[0], people)).innerHTML;
        """,
        text,
    )


@pytest.mark.parametrize(
    ("line", "texts"),
    [
        ("/imagine a fox --ar 16:9", {"prompt": "a fox --ar 16:9"}),
        ("/imagine prompt: a fox seed: 7", {"prompt": "a fox", "seed": "7"}),
        ("/imagine a fox seed: 7 aspect: 16:9", {"prompt": "a fox", "seed": "7", "aspect": "16:9"}),
        (
            "/imagine a poster, style: art deco, seed: of doubt",
            {"prompt": "a poster, style: art deco, seed: of doubt"},
        ),
        ("/imagine seed: 7 prompt: two\nlines", {"seed": "7", "prompt": "two\nlines"}),
        ("/imagine prompt: a fox seed: many", {"prompt": "a fox", "seed": "many"}),
        ("/imagine a fox who: @bo hd: yes", {"prompt": "a fox", "who": "@bo", "hd": "yes"}),
        ("/imagine PROMPT: a fox", {"prompt": "a fox"}),
        ("/imagine", {}),
        ("/imagination a fox", None),
        ("imagine a fox", None),
    ],
)
def test_typed_line_is_read_as_it_is_meant(browser: Browser, line: str, texts: dict[str, str] | None) -> None:
    assert read(browser, line) == texts


def test_chinese_names_and_the_wide_colon_are_read(browser: Browser) -> None:
    assert read(browser, "/画图 提示词\uff1a一只狐狸 seed: 7", "zh-CN") == {"prompt": "一只狐狸", "seed": "7"}
    assert read(browser, "/imagine 一只狐狸", "zh-CN") == {"prompt": "一只狐狸"}


def test_required_options_come_first_and_elsewhere_nothing_is_offered(browser: Browser) -> None:
    names = browser.script(
        f"return page.entriesOf([{json.dumps(IMAGINE)}], '110')[0].options.map((o) => o.name)"
    )
    assert names == ["prompt", "seed", "aspect", "hd", "who", "style"]
    elsewhere = json.dumps({**IMAGINE, "channel_ids": ["999"]})
    assert browser.script(f"return page.entriesOf([{elsewhere}], '110')") == []


@pytest.mark.parametrize(
    ("option", "text", "read_as"),
    [
        ({"type": 4, "name": "seed", "max_value": 9}, "10", "error"),
        ({"type": 4, "name": "seed", "min_value": 1}, "0", "error"),
        ({"type": 4, "name": "seed"}, "1.5", "error"),
        ({"type": 4, "name": "seed"}, " 4294967295 ", 4294967295),
        ({"type": 10, "name": "scale"}, "0,5", 0.5),
        ({"type": 5, "name": "hd"}, "No", False),
        ({"type": 6, "name": "who"}, "<@12>", "12"),
        ({"type": 6, "name": "who"}, "nobody", "error"),
        ({"type": 3, "name": "prompt", "max_length": 3}, "狐狸狐狸", "error"),
        ({"type": 3, "name": "style", "choices": [{"name": "Ink", "value": "i"}]}, "ink", "i"),
        ({"type": 3, "name": "style", "choices": [{"name": "Ink", "value": "i"}]}, "oil", "error"),
    ],
)
def test_value_is_checked_before_it_is_sent(
    browser: Browser, option: dict[str, Any], text: str, read_as: Any
) -> None:
    browser.script("page.setLocale('en-US')")
    answer = browser.script(
        f"return page.coerce({json.dumps(option)}, arguments[0], {json.dumps(PEOPLE)})", text
    )
    assert ("error" in answer) if read_as == "error" else answer == {"value": read_as}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (
            "**bold** *it* `c` ~~s~~ __u__",
            "<p><strong>bold</strong> <em>it</em> <code>c</code> <s>s</s> <u>u</u></p>",
        ),
        ("a_snake_case 2 * 3 * 4", "<p>a_snake_case 2 * 3 * 4</p>"),
        ("\\*plain\\* \\<@5\\>", "<p>*plain* &lt;@5&gt;</p>"),
        ("`**raw**`", "<p><code>**raw**</code></p>"),
        (
            "<@12> <#110>",
            '<p><span class="mention">@user12</span> <span class="mention">#channel110</span></p>',
        ),
        ("> one\n> two", "<blockquote><p>one\ntwo</p></blockquote>"),
        ("- a\n- b", "<ul><li>a</li><li>b</li></ul>"),
        ("# T", "<h3>T</h3>"),
        ("-# small", '<p class="subtext">small</p>'),
        ("<img src=x onerror=alert(1)>", "<p>&lt;img src=x onerror=alert(1)&gt;</p>"),
        ("a --ar 1:1 -- b", '<p>a <span class="unbroken">--a</span>r 1:1 -- b</p>'),
        ("a · b `c · d`", "<p>a&nbsp;· b <code>c · d</code></p>"),
        ("`--n 4`", '<p><code><span class="unbroken">--n</span> 4</code></p>'),
    ],
)
def test_text_of_a_message_is_shown_as_written(browser: Browser, text: str, shown: str) -> None:
    assert render(browser, text) == shown


def test_code_block_keeps_its_text(browser: Browser) -> None:
    assert "<pre" in render(browser, "```py\nx = '<b>'\n```") and "x = '&lt;b&gt;'" in render(
        browser, "```py\nx = '<b>'\n```"
    )


@pytest.mark.parametrize(
    "text",
    [
        "https://example.org/a",
        "[here](https://example.org/a)",
        "<https://example.org/a>",
        "[x](javascript:alert(1))",
    ],
)
def test_foreign_address_is_shown_and_never_a_link(browser: Browser, text: str) -> None:
    shown = render(browser, text)
    assert "<a" not in shown and ("example.org/a" in shown or "javascript" in shown)


def test_own_address_is_a_link(browser: Browser) -> None:
    own = browser.script("return location.origin + '/cdn/x.png'")
    assert f'<a href="{own}"' in render(browser, f"see {own}")


def test_relative_time_is_marked_to_be_kept_current(browser: Browser) -> None:
    assert 'data-relative="1" ' in render(browser, "<t:1:R>") or 'data-relative="1">' in render(
        browser, "<t:1:R>"
    )
    assert "data-relative" not in render(browser, "<t:1:f>")


@pytest.mark.parametrize(
    "text",
    ["*" * 3000, "**a" * 1500, "_" * 3000, "||" * 2000, "> " * 1500, "`" * 3000, "[" * 3000, "\\" * 3000],
)
def test_hostile_text_is_rendered_quickly(browser: Browser, text: str) -> None:
    spent_ms = browser.script(
        "const start = performance.now(); page.markdown(arguments[0], {user: String, channel: String}); return performance.now() - start",
        text,
    )
    assert spent_ms < 1000


def test_pictures_are_loaded_from_the_sandbox_only(browser: Browser) -> None:
    assert (
        browser.script("return page.localAddress('http://127.0.0.1:9/cdn/a.png?ex=1')") == "/cdn/a.png?ex=1"
    )
    assert browser.script("return page.localAddress('/cdn/a.png')") == "/cdn/a.png"
    assert browser.script("return page.localAddress('https://cdn.example.org/a.png')") is None
    assert browser.script("return page.localAddress('javascript:alert(1)')") is None
