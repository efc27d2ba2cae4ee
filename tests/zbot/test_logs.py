import logging
from collections.abc import Iterator

import pytest

from zbot.logs import HIDDEN, redact, set_up

SECRET = "my-very-secret-value"
# Shaped like the real ones, and of no use to anybody.
BOT_TOKEN = ".".join(("MTIzNDU2Nzg5MDEyMzQ1Njc4", "GaBcDe", "x" * 38))  # no whole token stands in a file
INTERACTION_TOKEN = "aW50ZXJhY3Rpb246" + "Q" * 150
URL = f"https://discord.com/api/v10/webhooks/42/{INTERACTION_TOKEN}/messages/@original"


@pytest.fixture(autouse=True)
def put_back() -> Iterator[None]:
    """Leave the logging of the other tests as it was."""
    root, names = logging.getLogger(), ("discord", "aiosqlite", "discord.client")
    handlers, level = root.handlers[:], root.level
    levels = {name: logging.getLogger(name).level for name in names}
    filters = logging.getLogger("discord.client").filters[:]
    yield
    root.handlers[:], root.level = handlers, level
    for name, before in levels.items():
        logging.getLogger(name).setLevel(before)
    logging.getLogger("discord.client").filters[:] = filters


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        (f"the token is {BOT_TOKEN}.", BOT_TOKEN),
        (f"PATCH {URL}", INTERACTION_TOKEN),
        (f"POST /api/v10/interactions/7/{INTERACTION_TOKEN}/callback", INTERACTION_TOKEN),
        ("https://cdn.discordapp.com/a/b.png?ex=66aa77bb&is=1234abcd&hm=deadbeef99", "deadbeef99"),
        ("https://cdn.discordapp.com/a/b.png?ex=66aa77bb&is=1234abcd&hm=deadbeef99", "66aa77bb"),
        (f"Authorization: Bot {SECRET}", SECRET),
    ],
)
def test_secrets_are_hidden(text: str, secret: str):
    hidden = redact(text, SECRET)
    assert secret not in hidden and HIDDEN in hidden


def test_the_rest_of_a_line_stays():
    assert redact(f"PATCH {URL} gave 404") == (
        f"PATCH https://discord.com/api/v10/webhooks/42/{HIDDEN}/messages/@original gave 404"
    )
    assert redact("job 17 took 3.25 s at 127.0.0.1:8787") == "job 17 took 3.25 s at 127.0.0.1:8787"


@pytest.mark.parametrize("level", ["DEBUG", "INFO", "WARNING"])
def test_no_secret_is_logged_at_any_level(capsys: pytest.CaptureFixture[str], level: str):
    set_up(level, SECRET)
    log = logging.getLogger("zbot.test")
    try:
        raise ValueError(f"{URL} refused {BOT_TOKEN}")
    except ValueError:
        log.exception("it failed with %s and %r", SECRET, {"token": BOT_TOKEN})
    log.warning(f"{URL}")
    logging.getLogger("discord.http").debug("PATCH %s", URL)
    logging.getLogger("aiosqlite").debug("executing INSERT with %s", SECRET)
    written = capsys.readouterr().err
    assert "it failed" in written and "Traceback" in written
    for secret in (SECRET, BOT_TOKEN, INTERACTION_TOKEN):
        assert secret not in written
    assert "executing" not in written, "aiosqlite prints bound values at DEBUG"


def test_libraries_that_print_whole_events_stay_at_info():
    set_up("DEBUG", SECRET)
    assert logging.getLogger().level == logging.DEBUG
    for name in ("discord", "aiosqlite"):
        assert not logging.getLogger(name).isEnabledFor(logging.DEBUG)
    set_up("ERROR", SECRET)
    assert not logging.getLogger("discord").isEnabledFor(logging.WARNING)
