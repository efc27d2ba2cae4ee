import os
from pathlib import Path

import pytest

from zbot import config
from zbot.config import SANDBOX_TOKEN, Settings, load_settings, setting_names
from zbot.errors import ConfigError

TOKEN = "a.real.token"
DISCORD_TOKEN, ZBOT = "DISCORD_TOKEN", "ZBOT_"


@pytest.fixture(autouse=True)
def nothing_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.upper().startswith((ZBOT, DISCORD_TOKEN)):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def env(text: str) -> None:
    Path(".env").write_text(text, encoding="utf-8")


def refused(sandbox: bool = False) -> str:
    with pytest.raises(ConfigError) as caught:
        load_settings(sandbox=sandbox)
    return str(caught.value)


def test_one_line_is_enough():
    env(f"DISCORD_TOKEN={TOKEN}\n")
    settings = load_settings()
    assert settings.discord_token.get_secret_value() == TOKEN
    assert (settings.guild_ids, settings.max_waiting_per_person, settings.max_waiting) == ((), 10, 200)
    assert (settings.model, settings.stall_s, settings.preview) == ("Tongyi-MAI/Z-Image-Turbo", 60.0, True)


def test_the_environment_wins_over_the_file(monkeypatch: pytest.MonkeyPatch):
    env(f"DISCORD_TOKEN={TOKEN}\nZBOT_MAX_WAITING=5\nZBOT_MODEL=tiny\n")
    monkeypatch.setenv("ZBOT_MAX_WAITING", "6")
    settings = load_settings()
    assert (settings.max_waiting, settings.model) == (6, "tiny")


@pytest.mark.parametrize("line", ["", "DISCORD_TOKEN=", "DISCORD_TOKEN=   "])
def test_without_a_token_one_sentence_says_where_to_put_it(line: str):
    env(line)
    message = refused()
    assert message.count("\n") == 0
    assert (
        "DISCORD_TOKEN is not set" in message and "cp .env.example .env" in message and "make try" in message
    )


def test_a_token_with_blanks_around_it_is_taken_without_them(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DISCORD_TOKEN", f" {TOKEN}\n")
    assert load_settings().discord_token.get_secret_value() == TOKEN


@pytest.mark.parametrize(
    ("written", "expected"), [("1", (1,)), ("1,2", (1, 2)), (" 1 , 2 ,", (1, 2)), ("", ()), (" ", ())]
)
def test_server_ids_are_numbers_with_commas_between(
    monkeypatch: pytest.MonkeyPatch, written: str, expected: tuple[int, ...]
):
    monkeypatch.setenv("DISCORD_TOKEN", TOKEN)
    monkeypatch.setenv("ZBOT_GUILD_IDS", written)
    assert load_settings().guild_ids == expected


def test_every_bad_setting_is_named_at_once():
    env(
        f"DISCORD_TOKEN={TOKEN}\nZBOT_GUILD_IDS=my server\nZBOT_MAX_WAITING=0\nZBOT_PLACEMENT=moon\n"
        "ZBOT_QUANTIZATION=int3\nZBOT_STALL_S=soon\nZBOT_COMPILE=maybe\n"
    )
    message = refused()
    names = {line.split(":")[0] for line in message.splitlines()}
    assert names == {
        f"ZBOT_{name}"
        for name in ("GUILD_IDS", "MAX_WAITING", "PLACEMENT", "QUANTIZATION", "STALL_S", "COMPILE")
    }
    assert all(".env.example" in line for line in message.splitlines())


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("ZBOT_MAX_WAITNG", "ZBOT_MAX_WAITING"),
        ("zbot_guild_id", "ZBOT_GUILD_IDS"),
        ("DISCORD_TOKN", "DISCORD_TOKEN"),
    ],
)
def test_a_misspelt_setting_is_refused_with_the_right_name(name: str, near: str):
    env(f"DISCORD_TOKEN={TOKEN}\n{name}=1\n")
    message = refused()
    assert name.upper() in message and f"did you mean {near}?" in message


def test_a_setting_that_is_like_none_is_to_be_removed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DISCORD_TOKEN", TOKEN)
    monkeypatch.setenv("ZBOT_XYZZY_QUUX", "1")
    assert "ZBOT_XYZZY_QUUX is not a setting: remove it" in refused()


def test_a_setting_of_the_tests_is_no_mistake(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DISCORD_TOKEN", TOKEN)
    monkeypatch.setenv("ZBOT_DISCORD_OPENAPI", "openapi.json")
    load_settings()


def test_secrets_and_values_are_never_printed():
    env(f"DISCORD_TOKEN={TOKEN}\nZBOT_MAX_WAITING={TOKEN}\n")
    assert TOKEN not in refused()
    env(f"DISCORD_TOKEN={TOKEN}\n")
    settings = load_settings()
    assert TOKEN not in f"{settings!r} {settings} {settings.model_dump_json()}"


def test_a_setting_cannot_be_changed_later(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DISCORD_TOKEN", TOKEN)
    settings = load_settings()
    with pytest.raises(Exception, match="frozen"):
        settings.max_waiting = 5


# --- the sandbox ---


def test_the_sandbox_needs_nothing():
    settings = load_settings(sandbox=True)
    assert settings.discord_token.get_secret_value() == SANDBOX_TOKEN
    assert (settings.model, settings.data_dir.name) == ("tiny", "sandbox")


@pytest.mark.parametrize("place", ["environment", "file"])
def test_the_sandbox_never_sees_the_real_bots_token_servers_or_data(
    monkeypatch: pytest.MonkeyPatch, place: str, tmp_path: Path
):
    lines = {"DISCORD_TOKEN": TOKEN, "ZBOT_GUILD_IDS": "1,2", "ZBOT_DATA_DIR": str(tmp_path / "data")}
    if place == "file":
        env("\n".join(f"{name}={value}" for name, value in lines.items()))
    else:
        for name, value in lines.items():
            monkeypatch.setenv(name, value)
    settings = load_settings(sandbox=True)
    assert settings.discord_token.get_secret_value() == SANDBOX_TOKEN
    assert settings.guild_ids == ()
    assert settings.database == tmp_path / "data" / "sandbox" / "zbot.db"
    assert settings.cache == tmp_path / "data" / "cache"


def test_the_sandbox_draws_with_another_model_when_told_to():
    env("ZBOT_MODEL=some/model\n")
    assert load_settings(sandbox=True).model == "some/model"


def test_the_sandbox_refuses_bad_settings_too():
    env("ZBOT_MAX_WAITING=many\n")
    assert "ZBOT_MAX_WAITING" in refused(sandbox=True)


# --- what follows from the settings ---


def test_a_relative_data_directory_does_not_move_with_the_shell(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("DISCORD_TOKEN", TOKEN)
    monkeypatch.setattr(config, "ROOT", tmp_path)
    before = load_settings()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    after = load_settings()
    assert before.data == after.data == tmp_path / "data"
    assert before.images_dir == tmp_path / "data" / "images"


def test_the_cache_has_a_place_of_its_own_when_it_is_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("DISCORD_TOKEN", TOKEN)
    monkeypatch.setenv("ZBOT_CACHE_DIR", str(tmp_path / "models"))
    settings = load_settings()
    assert settings.cache == tmp_path / "models"


@pytest.mark.parametrize(
    ("precision", "dtype"), [("auto", "auto"), ("bf16", "bfloat16"), ("fp32", "float32")]
)
def test_the_number_format_has_the_engines_name(monkeypatch: pytest.MonkeyPatch, precision: str, dtype: str):
    monkeypatch.setenv("DISCORD_TOKEN", TOKEN)
    monkeypatch.setenv("ZBOT_PRECISION", precision)
    assert load_settings().dtype == dtype


def test_every_field_has_a_name_in_the_environment_and_a_description():
    assert set(setting_names().values()) == set(Settings.model_fields)
    assert all(name == name.upper() for name in setting_names())
    assert all(field.description for field in Settings.model_fields.values())
