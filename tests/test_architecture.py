"""Holds the rooms apart, and the catalogues, commands and errors together: read from the code itself."""

import ast
import json
import re
import string
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.commands import payloads
from zbot import errors
from zbot.errors import GenerationError, ZBotError
from zbot.text import LOCALES, catalogue

ROOT = Path(__file__).resolve().parents[1]
ROOM = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in [ROOT / "bot.py", *(ROOT / "zbot").rglob("*.py"), *(ROOT / "cogs").glob("*.py")]
}
STANDARD = set(sys.stdlib_module_names)

# Who may import whom. What is not named here is held by the rules for its family further down.
MAY_IMPORT = {
    "zbot.errors": "",
    "zbot.text": "errors",
    "zbot.request": "errors",
    "zbot.flags": "errors",
    "zbot.loras": "errors",
    "zbot.job": "request",
    "zbot.policy": "errors job",
    "zbot.database": "errors",
    "zbot.writer": "database errors",
    "zbot.store": "database errors job policy request writer",
    "zbot.queue": "errors job policy request store",
    "zbot.engine": "request",
    "zbot.engine.overlap": "engine request",
    "zbot.generator": "engine engine.overlap errors images job policy queue request store",
    "zbot.outbox": "errors job store",
    "zbot.progress": "engine errors job queue",
    "zbot.recovery": "images job store",
    "zbot.images": "engine errors png request",
    "zbot.png": "",
    "zbot.config": "errors",
    "zbot.card": "",
    "zbot.datadir": "errors",
    "zbot.health": "",
    "zbot.logs": "",
    "zbot.services": "config generator outbox progress queue store",
}
# Which rooms may import what is not ours; everything else of that kind may not.
THIRD_PARTIES = {
    "torch|diffusers|transformers|triton|safetensors": r"zbot\.engine\.(zimage|_\w+)",
    "discord": r"cogs\..*",
    "modelscope|modelscope_hub|huggingface_hub": r"zbot\.weights\..*",
    "aiosqlite": r"zbot\.database",
    "pydantic|pydantic_settings|dotenv": r"zbot\.config",
    "typer|rich": r"zbot\.(cli\..*|__main__)",
    "aiohttp|yarl|orjson": r"zbot\.(sandbox|doctor)\..*|cogs\._\w+",
    "PIL": r"zbot\.(images|sandbox\..*|engine\..*|cli\..*)",
    "numpy": r"zbot\.(png|engine\..*|weights\..*|cli\..*)",
}
SQL = re.compile(
    r"\b(SELECT\s|INSERT\s+INTO|UPDATE\s+\w+\s+SET|DELETE\s+FROM|CREATE\s+\w+|DROP\s+TABLE|BEGIN\s)"
)
PRAGMA = re.compile(r"\bPRAGMA\s")


@cache
def tree(room: str) -> ast.Module:
    return ast.parse(ROOM[room].read_text("utf-8"))


@cache
def imports(room: str) -> frozenset[str]:
    """Return every module a room imports, wherever in the file it does so."""
    found: set[str] = set()
    for node in ast.walk(tree(room)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{room}: a relative import"
            module = node.module or ""
            # `from zbot import store` imports the module zbot.store, `from zbot.store import Store` too.
            found.update(
                name if (name := f"{module}.{alias.name}") in ROOM else module for alias in node.names
            )
    return frozenset(found)


def ours(room: str) -> set[str]:
    return {module for module in imports(room) if module.split(".")[0] in ("zbot", "cogs", "bot", "tests")}


def strings(room: str) -> Iterator[tuple[int, str]]:
    """Yield the string constants of a room with their lines, without its docstrings."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree(room))
        if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree(room)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.lineno, node.value


# --- rooms ---


def rooms(beginning: str) -> list[str]:
    return [room for room in ROOM if room == beginning or room.startswith(f"{beginning}.")]


def test_a_room_imports_its_neighbours_and_nobody_else():
    wrong: dict[str, set[str]] = {}
    for room, neighbours in MAY_IMPORT.items():
        allowed = {f"zbot.{name}" for name in neighbours.split()}
        if more := ours(room) - allowed:
            wrong[room] = more
    assert wrong == {}


def test_every_room_of_the_core_stands_in_the_table():
    core = {room for room in ROOM if re.fullmatch(r"zbot\.\w+", room)}
    apart = {"__main__", "cli", "doctor", "sandbox", "weights", "models", "locales", "migrations"}
    assert core - {f"zbot.{name}" for name in apart} == {room for room in MAY_IMPORT if room.count(".") == 1}


def test_what_is_not_ours_is_imported_where_it_belongs():
    wrong: set[tuple[str, str]] = set()
    for room in ROOM:
        for module in {module.split(".")[0] for module in imports(room)} - STANDARD - {"zbot", "cogs"}:
            places = [place for names, place in THIRD_PARTIES.items() if module in names.split("|")]
            if not places or not re.fullmatch(places[0], room):
                wrong.add((room, module))
    assert wrong == set()


def test_the_core_knows_no_discord():
    outside = {"discord", "cogs", "bot", "tests"}
    assert not [
        room for room in rooms("zbot") if outside & {module.split(".")[0] for module in imports(room)}
    ]


def test_the_sandbox_stands_alone():
    assert not [
        (room, module)
        for room in rooms("zbot.sandbox")
        for module in ours(room)
        if not module.startswith("zbot.sandbox")
    ]


def test_the_model_files_are_kept_without_the_bot():
    assert not [
        (room, module)
        for room in rooms("zbot.weights")
        for module in ours(room)
        if module != "zbot.errors" and not module.startswith("zbot.weights")
    ]


def test_the_engine_knows_neither_line_nor_database():
    allowed = re.compile(r"zbot(\.(engine(\..*)?|errors|images|loras|png|request|weights(\..*)?))?")
    assert not [
        (room, module)
        for room in rooms("zbot.engine")
        for module in ours(room)
        if not allowed.fullmatch(module)
        and (room, module) not in (("zbot.engine.start", "zbot.config"), ("zbot.engine.start", "zbot.card"))
    ]


def test_a_private_part_is_imported_by_its_own_family_alone():
    assert not [
        (other, room)
        for room in ROOM
        if re.fullmatch(r".*\._[a-z]\w*", room)
        for other in ROOM
        if room in imports(other) and not other.startswith(room.rpartition(".")[0]) and other != "bot"
    ]


def test_a_command_family_imports_the_core_discord_and_the_shared_parts_alone():
    wrong: set[tuple[str, str]] = set()
    for room in rooms("cogs"):
        wrong |= {(room, module) for module in ours(room) if module.startswith("cogs") and "._" not in module}
        if "._" not in room:
            third = {module.split(".")[0] for module in imports(room)} - STANDARD
            wrong |= {(room, module) for module in third - {"zbot", "discord", "cogs"}}
    assert wrong == set()


def test_a_command_family_reads_no_database_and_starts_no_engine():
    forbidden = {"zbot.store", "zbot.database", "zbot.writer", "zbot.engine.process", "zbot.engine.start"}
    assert not [room for room in rooms("cogs") if "._" not in room and ours(room) & forbidden]


def test_nobody_imports_the_composition_root():
    assert not [room for room in ROOM if "bot" in imports(room)]


def test_sql_stands_in_the_store_alone():
    elsewhere = [room for room in ROOM if room not in ("zbot.store", "zbot.database")]
    assert not [(room, line) for room in elsewhere for line, text in strings(room) if SQL.search(text)]
    # The doctor only asks whether the file is whole.
    others = [room for room in elsewhere if room not in rooms("zbot.doctor")]
    assert not [(room, line) for room in others for line, text in strings(room) if PRAGMA.search(text)]


def test_every_room_says_what_it_is_for():
    assert not [
        room for room in ROOM if ROOM[room].read_text("utf-8").strip() and not ast.get_docstring(tree(room))
    ]


# --- what is loaded ---


def python(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    ).stdout


def test_the_bot_answers_for_help_at_once():
    took_s = []
    for _ in range(3):
        began = time.perf_counter()
        answer = subprocess.run(
            [sys.executable, "bot.py", "--help"], cwd=ROOT, capture_output=True, check=True
        )
        took_s.append(time.perf_counter() - began)
    assert b"--sandbox" in answer.stdout
    assert min(took_s) < 0.5


def test_help_loads_neither_torch_nor_discord():
    code = (
        "import json, runpy, sys\n"
        "sys.argv = ['bot.py', '--help']\n"
        "try: runpy.run_path('bot.py', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "print(json.dumps(sorted(name for name in sys.modules if '.' not in name)))"
    )
    loaded = set(json.loads(python(code).splitlines()[-1]))
    assert not loaded & {
        "torch",
        "discord",
        "diffusers",
        "transformers",
        "pydantic",
        "zbot",
        "PIL",
        "aiohttp",
    }


def test_nothing_the_bot_runs_with_loads_torch():
    modules = sorted(ours("bot") | {room for room in ROOM if room.startswith("cogs")})
    code = f"import importlib, sys\nfor name in {modules!r}: importlib.import_module(name)\n"
    code += "print(*(name for name in ('torch', 'diffusers', 'transformers', 'modelscope') if name in sys.modules))"
    assert python(code).split() == []


# --- sentences ---


def fields(sentence: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(sentence) if name is not None}


@pytest.mark.parametrize("locale", LOCALES)
def test_every_catalogue_has_the_same_sentences(locale: str):
    assert set(catalogue(locale)) == set(catalogue("en"))
    assert all(text.strip() for text in catalogue(locale).values())


def test_a_sentence_has_the_same_facts_in_every_language():
    for key, english in catalogue("en").items():
        assert all(fields(catalogue(locale)[key]) == fields(english) for locale in LOCALES), key
        assert "" not in fields(english), f"{key}: a fact without a name"


def calls(room: str) -> Iterator[ast.Call]:
    yield from (node for node in ast.walk(tree(room)) if isinstance(node, ast.Call))


def pattern(node: ast.expr) -> str | None:
    """Return a pattern for the values that a string or an f-string can have; None for anything else."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.escape(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(
            re.escape(part.value) if isinstance(part, ast.Constant) else r"(\w+)" for part in node.values
        )
    return None


def patterns(node: ast.expr) -> list[str]:
    if isinstance(node, ast.IfExp):
        return patterns(node.body) + patterns(node.orelse)
    found = pattern(node)
    return [] if found is None else [found]


SAID = [
    (f"{room}:{call.lineno}", wanted, {word.arg or "**" for word in call.keywords})
    for room in ROOM
    for call in calls(room)
    if isinstance(call.func, ast.Name) and call.func.id == "say" and "zbot.text" in imports(room)
    for wanted in patterns(call.args[0])
]


def test_every_sentence_that_is_said_stands_in_the_catalogue_and_gets_its_facts():
    assert SAID
    for place, wanted, facts in SAID:
        keys = [key for key in catalogue("en") if re.fullmatch(wanted, key)]
        assert keys, f"{place}: no sentence {wanted}"
        if "**" not in facts and len(keys) == 1:
            assert fields(catalogue("en")[keys[0]]) <= facts, place


def test_no_sentence_stands_there_for_nothing():
    words = {text for room in ROOM if room != "zbot.text" for _, text in strings(room)}
    codes = [wanted for _, wanted, _ in raised()] + [kind.default_code for kind in kinds(ZBotError)]
    cogs = "\n".join(ROOM[room].read_text("utf-8") for room in rooms("cogs"))

    def is_said(key: str) -> bool:
        section, name = key.split(".", 1)
        if section == "name":  # Discord asks for the names of commands and of options
            return bool(re.search(rf'name="{name}"|\b{name}: ', cogs))
        if section == "command":  # phrase("imagine_prompt")
            return name in words
        if section == "error":
            return name in words or any(re.fullmatch(code, name) for code in codes)
        matches = [match for _, wanted, _ in SAID if (match := re.fullmatch(wanted, key))]
        # What an f-string puts into a key stands somewhere as a word of its own.
        return any(words.issuperset(match.groups()) for match in matches)

    assert [key for key in catalogue("en") if not is_said(key)] == []


# --- errors ---


def kinds(base: type[ZBotError]) -> set[type[ZBotError]]:
    return {base}.union(*(kinds(kind) for kind in base.__subclasses__()))


ERRORS = {
    kind.__name__: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, ZBotError)
}


def raised() -> Iterator[tuple[str, str, set[str]]]:
    """Yield where an error is made, its code as a pattern, and the facts it is given."""
    for room in ROOM:
        if room.startswith("zbot.sandbox"):
            continue
        for node in ast.walk(tree(room)):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Name) and node.exc.id in ERRORS:
                yield f"{room}:{node.lineno}", ERRORS[node.exc.id].default_code, set()
            if not (
                isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ERRORS
            ):
                continue
            words = {word.arg: word.value for word in node.keywords if word.arg}
            if any(word.arg is None for word in node.keywords):
                continue  # rebuilt from what another process sent: checked where that was raised
            code = words.pop("code", None)
            for wanted in patterns(code) if code is not None else [ERRORS[node.func.id].default_code]:
                yield f"{room}:{node.lineno}", wanted, set(words)


def test_every_error_has_its_sentence_in_every_language_and_the_facts_for_it():
    assert len(list(raised())) > 30
    for place, code, facts in raised():
        for locale in LOCALES:
            keys = [key for key in catalogue(locale) if re.fullmatch(rf"error\.{code}", key)]
            assert keys, f"{place}: no sentence error.{code} in {locale}"
            for key in keys:
                assert fields(catalogue(locale)[key]) <= facts, f"{place}: {key}"


def test_every_kind_of_error_has_a_sentence():
    assert not [name for name, kind in ERRORS.items() if f"error.{kind.default_code}" not in catalogue("en")]


def test_a_failed_job_is_explained_from_its_code_alone():
    codes = {kind.default_code for kind in kinds(GenerationError)} | {"engine_stalled", "internal"}
    assert not [code for code in codes if fields(catalogue("en")[f"error.{code}"])], "the row keeps no facts"


# --- what Discord takes ---

DESCRIPTION, NAME = 100, re.compile(r"[-_'\w]{1,32}")


def localised(thing: dict[str, Any], field: str) -> list[str]:
    return [thing[field], *(thing.get(f"{field}_localizations") or {}).values()]


async def test_commands_options_and_descriptions_are_within_discords_limits():
    commands = await payloads()
    assert len(commands) <= 100
    for locale in ("en", "zh-CN"):
        names = [
            (command.get("name_localizations") or {}).get(locale, command["name"]) for command in commands
        ]
        assert len(set(names)) == len(names)
    for command in commands:
        things = [command, *command.get("options", [])]
        for thing in things:
            for name in localised(thing, "name"):
                assert NAME.fullmatch(name) and name == name.lower(), name
            for description in localised(thing, "description"):
                assert 1 <= len(description) <= DESCRIPTION, description
        options = command.get("options", [])
        assert len(options) <= 25 and len({option["name"] for option in options}) == len(options)
        required = [bool(option.get("required")) for option in options]
        assert required == sorted(required, reverse=True), "Discord wants the required options first"
        choices = [choice for option in options for choice in option.get("choices", [])]
        assert all(len(option.get("choices", [])) <= 25 for option in options)
        assert all(1 <= len(choice["name"]) <= 100 for choice in choices)
        letters = sum(
            len(max(localised(thing, field), key=len))
            for thing in things
            for field in ("name", "description")
        )
        assert letters + sum(len(str(choice["name"]) + str(choice["value"])) for choice in choices) <= 8_000


async def test_commands_are_for_servers_alone_and_translated():
    for command in await payloads():
        assert command["contexts"] in ([0], None) or command["name"] == "help", command["name"]
        assert set(command["name_localizations"]) == {"zh-CN", "zh-TW"}
        assert set(command["description_localizations"]) == {"zh-CN", "zh-TW"}


@pytest.mark.parametrize("locale", LOCALES)
def test_what_stands_on_buttons_and_forms_is_within_discords_limits(locale: str):
    for key, text in catalogue(locale).items():
        section = key.split(".", 1)[0]
        limit = {"button": 80, "modal": 45, "usage": 256, "details": 256, "status": 256}.get(section, 2_000)
        assert len(text) <= limit, key
