"""The small commands, what all commands have in common, and that docs/cli.md tells of each of them."""

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
from PIL import Image, PngImagePlugin

from tests.bot_process import REPOSITORY
from tests.fakes import a_job, a_png
from tests.zbot.cli.conftest import Run
from tests.zbot.cli.painting import CARD, paint
from zbot import images
from zbot.__main__ import app
from zbot.cli import problems
from zbot.errors import ConfigError, EngineDead, GenerationError, StoreUnavailable
from zbot.request import ImageRequest
from zbot.store import Store

REQUEST = ImageRequest(prompt="a fox", seed=7, width=256, height=256)
CLI_PAGE = REPOSITORY / "docs" / "cli.md"


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the interpreter with the settings of this test and no token."""
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


# --- recipe ---


def test_recipe_prints_how_a_picture_was_made_of_the_png_and_of_its_copy(run: Run, here: Path) -> None:
    png = paint(replace(REQUEST, width=512, height=512))
    (here / "fox.png").write_bytes(png)
    (here / "fox.webp").write_bytes(images.fit(png, len(png) - 1)[0])
    done = run("recipe", "fox.png")
    said = json.loads(done.stdout)
    assert (said["prompt"], said["seed"], said["model"], said["versions"]["torch"]) == (
        "a fox",
        7,
        "tiny",
        "2.13.0",
    )
    assert '\n  "prompt": "a fox",\n' in done.stdout
    assert run("recipe", "fox.webp").stdout == done.stdout


def test_a_strangers_recipe_cannot_steer_the_terminal(run: Run, here: Path) -> None:
    prompt = "一只 \x1b[2J \x9b31m \u202eoof\x7f \ud800"
    recipe = images.Recipe.of(replace(REQUEST, prompt=prompt), CARD)
    text = PngImagePlugin.PngInfo()
    text.add_itxt(images.RECIPE_KEY, json.dumps(json.loads(recipe.to_json())))
    Image.new("RGB", (8, 8)).save(here / "x.png", pnginfo=text)
    done = run("recipe", "x.png")
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e\ud800]", done.stdout)
    assert json.loads(done.stdout)["prompt"] == prompt


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (None, "x.png: No such file or directory.\n"),
        (b"", "The file is empty.\n"),
        (b"not a picture", "This is not a picture I can read. These I can: PNG, JPEG, WebP.\n"),
        (a_png(1), "This picture does not say how it was made: it is not one of"),
    ],
)
def test_a_file_without_a_recipe_is_one_sentence(run: Run, here: Path, data: bytes | None, says: str) -> None:
    if data is not None:
        (here / "x.png").write_bytes(data)
    done = run("recipe", "x.png")
    assert done.exit_code == 2
    assert done.stderr.startswith(says) and done.stderr.count("\n") == 1


# --- health ---


@pytest.mark.parametrize(
    ("facts", "code", "says"),
    [
        (None, 1, "The bot does not run here."),
        (
            {"age_s": 1, "connected": True},
            0,
            "The bot runs and is connected; the engine is ready, 3 jobs wait.",
        ),
        ({"age_s": 1, "connected": False}, 1, "The bot runs but is not connected to Discord."),
        ({"age_s": 100, "connected": True}, 1, "The bot has not given a sign of life for 100 s."),
    ],
)
def test_health_says_how_the_bot_is_and_leaves_with_0_only_if_it_is_well(
    run: Run, tmp_path: Path, facts: dict[str, Any] | None, code: int, says: str
) -> None:
    (tmp_path / "data").mkdir()
    if facts is not None:
        facts = {"written_at": time.time() - facts.pop("age_s"), "engine": "ready", "waiting": 3, **facts}
        (tmp_path / "data" / "health.json").write_text(json.dumps(facts))
    done = run("health")
    assert (done.exit_code, done.stdout.strip()) == (code, says)


# --- backup ---


@pytest.fixture
async def database(tmp_path: Path) -> Path:
    """The database of a bot that has a job in it."""
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / "zbot.db"
    async with Store(path) as store:
        await a_job(store)
    return path


def test_backup_beside_a_writer_is_a_whole_copy_without_secrets(run: Run, database: Path, here: Path) -> None:
    with closing(sqlite3.connect(database, isolation_level=None)) as bot:
        (token,) = bot.execute("SELECT interaction_token FROM job").fetchone()
        bot.execute("BEGIN IMMEDIATE")  # the bot is in the middle of a transaction
        bot.execute("UPDATE job SET prompt = 'half'")
        done = run("backup", "copies/monday.db")
        bot.execute("ROLLBACK")
    assert (done.exit_code, done.stderr) == (0, f"copies/monday.db is a whole copy of {database}.\n")
    copy = here / "copies" / "monday.db"
    assert [path.name for path in copy.parent.iterdir()] == ["monday.db"]
    assert copy.stat().st_mode & 0o077 == 0
    assert token and token.encode() not in copy.read_bytes()
    with closing(sqlite3.connect(copy)) as opened:
        (prompt,) = opened.execute("SELECT prompt FROM job").fetchone()
        assert prompt != "half"
        assert opened.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_backup_replaces_nothing_unasked_and_the_database_never(run: Run, database: Path, here: Path) -> None:
    (here / "x.db").write_bytes(b"mine")
    assert run("backup", "x.db").stderr == "x.db is there already; choose another name or add --force.\n"
    assert (here / "x.db").read_bytes() == b"mine"
    assert run("backup", "x.db", "--force").exit_code == 0
    before = database.read_bytes()
    (here / "link.db").symlink_to(database)
    for itself in (database, "link.db"):
        done = run("backup", itself, "--force")
        assert done.exit_code == 2 and "is the database itself; name another file." in done.stderr
    assert run("backup", here).stderr == f"{here} is a directory; name a file in it.\n"
    assert database.read_bytes() == before


def test_backup_of_no_database_and_of_a_damaged_one_is_one_sentence(
    run: Run, tmp_path: Path, here: Path
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    done = run("backup", "x.db")
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith(f"There is no database at {data / 'zbot.db'}")
    (data / "zbot.db").write_bytes(b"not a database" * 1000)
    done = run("backup", "x.db")
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert "could not be copied to x.db: file is not a database." in done.stderr
    assert not (here / "x.db").exists()


# --- what all have in common ---


@pytest.mark.parametrize("arguments", ["--help", "generate --help", "weights --help", "health"])
def test_nothing_heavy_is_imported_before_it_is_needed(arguments: str) -> None:
    code = (
        "import sys\n"
        f"sys.argv = ['zbot', *{arguments.split()!r}]\n"
        "from zbot.__main__ import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'PIL', 'diffusers', 'transformers', 'modelscope', 'aiohttp', 'rich', 'discord'}\n"
        "sys.stderr.write(' '.join(heavy & set(sys.modules)))"
    )
    done = python("-c", code)
    assert done.stdout and done.stderr == ""


def test_every_setting_that_is_wrong_is_told_by_every_command(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZBOT_MODLE", "tiny")
    for arguments in (["generate"], ["health"], ["backup", "x"], ["weights", "path"]):
        done = run(*arguments)
        assert done.exit_code == 2
        assert done.stderr == "ZBOT_MODLE is not a setting: did you mean ZBOT_MODEL?\n"


def test_a_reader_that_goes_away_is_no_complaint(here: Path) -> None:
    (here / "fox.png").write_bytes(paint(REQUEST))
    for arguments in (["--help"], ["recipe", "fox.png"]):
        process = subprocess.Popen(
            [sys.executable, "-m", "zbot", *arguments],
            # An empty one counts as not set: what is printed stays in the buffer until the end.
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": ""},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        complaint = process.stderr.read()
        process.stderr.close()
        assert process.wait() in (0, 1)
        assert complaint == b""


STANDING_STILL = """
import asyncio, sys
from pathlib import Path
import zbot.engine.start
from tests.zbot.cli.painting import PaintingEngine
from zbot import weights

class Engine(PaintingEngine):
    async def draw(self, request, on_step):
        if request.seed == 2:
            print("standing still", flush=True)
            await asyncio.Event().wait()
        return await super().draw(request, on_step)
    async def close(self):
        Path("closed").touch()

files = weights.locate("tiny", Path.cwd())
zbot.engine.start.process_engine = lambda *_, **__: Engine(revision=files.revision)
from zbot.__main__ import main
main()
"""


def test_ctrl_c_ends_the_engine_without_a_traceback_and_leaves_whole_files(here: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", STANDING_STILL, "generate", "--seeds", "1:4"],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "standing still\n"
    process.send_signal(signal.SIGINT)
    _, complaint = process.communicate(timeout=30)
    assert process.returncode == 130
    assert complaint in ("", "result-1.png: seed 1, 0.25 s\n")
    assert (here / "closed").exists()
    assert [path.name for path in here.iterdir() if "part" in path.name] == []


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (ConfigError("A setting is wrong; change it."), "A setting is wrong; change it."),
        (StoreUnavailable("locked"), "The database cannot be used at the moment (locked); try again."),
        (
            EngineDead("killed"),
            "The drawing process has ended (killed); `python -m zbot doctor` looks for the cause.",
        ),
        (
            GenerationError("odd"),
            "The picture could not be drawn (odd); `python -m zbot doctor` looks for the cause.",
        ),
        (OSError(28, "No space left on device", "x.png"), "x.png: No space left on device."),
        (OSError("odd"), "The disk: odd."),
    ],
)
def test_an_expected_error_has_its_sentence(error: Any, says: str) -> None:
    assert problems.sentence(error) == says


# --- docs/cli.md ---


def commands() -> Iterator[tuple[str, Any]]:
    """Yield every command with its full name."""
    group = typer.main.get_command(app)
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        if hasattr(command, "commands"):
            for inner, one in command.commands.items():
                yield f"{name} {inner}", one
        else:
            yield name, command


def section(name: str) -> str:
    """Return what the page says under a command's heading."""
    found = re.search(rf"^##+ `{re.escape(name)}`\n(.*?)(?=^## |^### |\Z)", CLI_PAGE.read_text(), re.M | re.S)
    return found[1] if found else ""


@pytest.mark.parametrize("name", [name for name, _ in commands()])
def test_every_command_and_option_is_in_the_docs_with_an_example(name: str) -> None:
    said, command = section(name), dict(commands())[name]
    assert f"python -m zbot {name}" in said, f"docs/cli.md has no section with an example of {name}"
    missing = [
        option
        for parameter in command.params
        if parameter.param_type_name == "option"
        for option in parameter.opts
        if option.startswith("--") and option not in ("--help",) and f"`{option}" not in said
    ]
    assert not missing


def test_the_docs_name_no_command_or_option_that_is_not_there() -> None:
    text = CLI_PAGE.read_text()
    known = dict(commands())
    headings = re.findall(r"^##+ `([^`]+)`$", text, re.M)
    assert headings and set(headings) == set(known)
    every = {option for one in known.values() for parameter in one.params for option in parameter.opts}
    for name, command in known.items():
        used = re.findall(rf"^python -m zbot {re.escape(name)}\b([^#\n]*)", text, re.M)
        options = {option for parameter in command.params for option in parameter.opts}
        unquoted = [re.sub(r'"[^"]*"', "", line) for line in used]
        assert {word for line in unquoted for word in re.findall(r"(?<=\s)--?[a-z][\w-]*", line)} <= options
    # Flags inside a prompt are no options of ours.
    flags = {"--ar", "--n", "--help", "--sandbox"}
    assert set(re.findall(r"`(--[a-z][\w-]*)", text)) <= every | flags
