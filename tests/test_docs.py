"""Nothing the program offers is missing in its documents, and nothing in them is missing in the program."""

import re
from pathlib import Path

import pytest

from tests import docs
from tests.commands import payloads
from tests.docs import ROOT
from zbot.config import TOKEN, load_settings, setting_names
from zbot.flags import KNOWN_FLAGS

READMES = [ROOT / "README.md", ROOT / "README.zh-CN.md"]
PAGES = [*READMES, *(ROOT / "docs").rglob("*.md"), ROOT / ".env.example"]


@pytest.mark.parametrize("path", [".env.example", "docs/settings.md", "docs/commands.md"])
def test_the_documents_say_what_the_code_says(path: str):
    written = (ROOT / path).read_text("utf-8")
    assert written == docs.documents()[ROOT / path], "run: python -m tests.docs"


def test_every_setting_stands_in_the_example_and_on_the_page_and_back():
    example, page = ((ROOT / name).read_text("utf-8") for name in (".env.example", "docs/settings.md"))
    assert set(re.findall(r"^#?([A-Z_]+)=", example, re.MULTILINE)) == set(setting_names())
    assert set(re.findall(r"^\| `([A-Z_]+)`", page, re.MULTILINE)) == set(setting_names())


def test_the_example_with_a_token_is_a_valid_env_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in setting_names():
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    example = (ROOT / ".env.example").read_text("utf-8").replace(f"{TOKEN}=", f"{TOKEN}=a.b.c")
    Path(".env").write_text(example, "utf-8")
    settings = load_settings()
    monkeypatch.delenv(TOKEN, raising=False)
    Path(".env").write_text(re.sub(r"^#([A-Z_]+=.)", r"\1", example, flags=re.MULTILINE), "utf-8")
    assert load_settings() == settings, "a default in the example is not the default of the code"


def test_only_the_token_is_required():
    example = (ROOT / ".env.example").read_text("utf-8")
    assert re.findall(r"^([A-Z_]+)=", example, re.MULTILINE) == [TOKEN]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_page_names_a_setting_that_does_not_exist(page: Path):
    named = set(re.findall(r"\bZBOT_[A-Z_]*[A-Z]\b", page.read_text("utf-8")))
    assert named <= set(setting_names()) | {"ZBOT_DISCORD_OPENAPI"}


@pytest.mark.parametrize("page", [*READMES, ROOT / "docs" / "commands.md"], ids=lambda page: page.name)
async def test_every_command_and_option_stands_on_the_page_and_back(page: Path):
    text = page.read_text("utf-8")
    commands = await payloads()
    assert set(re.findall(r"^(?:\| `|## )/([a-z]+)`?", text, re.MULTILINE)) == {
        each["name"] for each in commands
    }
    for option in next(each for each in commands if each["name"] == "imagine")["options"]:
        assert f"`{option['name']}`" in text


@pytest.mark.parametrize("page", READMES, ids=lambda page: page.name)
def test_the_table_of_settings_gives_their_defaults(page: Path):
    row = re.compile(r"^\| `([A-Z_]+)` \| (.+?) \|", re.MULTILINE)
    defaults = dict(row.findall((ROOT / "docs" / "settings.md").read_text("utf-8")))
    given = dict(
        row.findall(
            page.read_text("utf-8").replace("| 必填 |", "| required |").replace("| 空 |", "| empty |")
        )
    )
    assert TOKEN in given
    assert given.items() <= defaults.items()


@pytest.mark.parametrize("page", READMES, ids=lambda page: page.name)
def test_the_flags_of_a_prompt_stand_on_the_page(page: Path):
    for flag in KNOWN_FLAGS.split(", "):
        assert flag in page.read_text("utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_to_a_file_leads_somewhere(page: Path):
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
        assert (page.parent / target).exists(), target
