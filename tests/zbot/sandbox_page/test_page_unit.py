"""What the sandbox's page promises in its files: closed to the outside, nothing inline, every word in both languages."""

import re
from pathlib import Path

import pytest

from zbot import sandbox

PAGE = Path(sandbox.__file__).parent / "page"
SCRIPTS = sorted(PAGE.glob("*.js"))
STYLES = sorted(PAGE.glob("*.css"))
FILES = sorted(path for path in PAGE.iterdir() if path.is_file())
INDEX = (PAGE / "index.html").read_text(encoding="utf-8")
NAMESPACE = "http://www.w3.org/2000/svg"


def strings(language: str) -> dict[str, str]:
    source = (PAGE / "i18n.js").read_text(encoding="utf-8")
    table = re.search(rf"^  {language}: \{{\n(.*?)^  \}},$", source, re.DOTALL | re.MULTILINE)
    assert table is not None
    return dict(re.findall(r"^    (\w+): (.+),$", table[1], re.MULTILINE))


def test_policy_of_the_page_allows_only_its_own_files() -> None:
    found = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', INDEX)
    assert found is not None
    policy = {name: value for name, _, value in (part.strip().partition(" ") for part in found[1].split(";"))}
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["require-trusted-types-for"] == "'script'"
    assert "unsafe" not in found[1] and "*" not in found[1]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_file_names_an_outside_host(path: Path) -> None:
    text = path.read_text(encoding="utf-8").replace(NAMESPACE, "")
    assert re.findall(r"(?:https?:)?//[\w-]+\.[\w.-]+", text) == []
    assert "@import" not in text


def test_everything_the_page_loads_is_there_and_everything_there_is_loaded() -> None:
    wanted = set(re.findall(r'(?:src|href)="/static/([^"]+)"', INDEX))
    for script in SCRIPTS:
        wanted |= set(re.findall(r'from "\./([^"]+)"', script.read_text(encoding="utf-8")))
    assert wanted | {"index.html"} == {path.name for path in FILES}


def test_markup_has_no_inline_script_style_or_handler() -> None:
    assert not re.search(r"<style|\sstyle=|\son\w+=", INDEX)
    assert re.findall(r"<script([^>]*)>(.*?)</script>", INDEX, re.DOTALL) == [
        (' type="module" src="/static/app.js"', "")
    ]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_never_parse_text_as_markup_or_code(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|DOMParser", text
    )


def test_every_word_is_there_in_both_languages_with_the_same_values() -> None:
    english, chinese = strings("en"), strings("zh")
    assert english.keys() == chinese.keys()
    for key, text in english.items():
        # The plural entries repeat their value in each form; what counts is which values there are.
        assert set(re.findall(r"\{(\w+)\}", text)) == set(re.findall(r"\{(\w+)\}", chinese[key])), key
        assert chinese[key] != text, key


def test_every_word_that_is_used_exists_and_every_one_that_exists_is_used() -> None:
    source = "".join(path.read_text(encoding="utf-8") for path in SCRIPTS if path.name != "i18n.js")
    i18n = (PAGE / "i18n.js").read_text(encoding="utf-8")
    direct = set(re.findall(r'\bt\("(\w+)"', source + i18n))
    chosen: set[str] = set()
    for call in re.findall(r"\bt\((?:[^()]|\([^()]*\))*\)", source):
        if "?" in call.split(",")[0]:  # t(condition ? "one" : "other", …)
            chosen |= set(re.findall(r'[?:] "(\w+)"', call))
    assert direct | chosen == set(strings("en"))


def test_motion_colours_and_the_phone_are_cared_for() -> None:
    style = "".join(path.read_text(encoding="utf-8") for path in STYLES)
    assert "prefers-reduced-motion: reduce" in style
    assert "prefers-color-scheme: dark" in style
    assert "max-width: 760px" in style
    assert ":focus-visible" in style


def test_both_schemes_define_the_same_colours_with_readable_text() -> None:
    style = (PAGE / "style.css").read_text(encoding="utf-8")
    light, dark = (
        dict(re.findall(r"(--[\w-]+): (#[0-9a-f]{6});", part))
        for part in style.split("prefers-color-scheme: dark")[:2]
    )
    dark = {name: value for name, value in dark.items() if name in light}
    pairs = [("--ink", "--canvas"), ("--ink-soft", "--canvas"), ("--muted", "--canvas"), ("--muted", "--side"), ("--muted", "--raised"),
             ("--accent-text", "--accent-soft"), ("--danger", "--danger-soft"), ("--warn", "--warn-soft"), ("--canvas", "--ink")]  # fmt: skip
    for scheme in (light, {**light, **dark}):
        for text, ground in pairs:
            assert contrast(scheme[text], scheme[ground]) >= 4.5, (text, ground, scheme[text], scheme[ground])


def contrast(one: str, other: str) -> float:
    """Return the contrast ratio of WCAG 2.2 (its definitions "contrast ratio" and "relative luminance")."""

    def luminance(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        red, green, blue = (
            part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
        )
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)
