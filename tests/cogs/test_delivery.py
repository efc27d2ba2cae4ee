import io
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from unittest.mock import AsyncMock, Mock

import discord
import pytest
from PIL import Image

from cogs import _delivery
from cogs._delivery import TOKEN_LIFE, TOO_LARGE, DiscordMessenger
from tests.fakes import a_job, a_png
from zbot.engine import Step
from zbot.store import Store


def noisy(side: int) -> bytes:
    """Return a PNG that does not compress."""
    buffer = io.BytesIO()
    Image.effect_noise((side, side), 120).convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()


def refusal(status: int, code: int) -> discord.HTTPException:
    response = Mock()
    response.status = status
    return discord.HTTPException(response, {"code": code, "message": "no"})


def test_pictures_that_fit_go_out_byte_by_byte(tmp_path: Path):
    pictures = [tmp_path / f"zbot-1-{index}.png" for index in (1, 2)]
    for index, picture in enumerate(pictures):
        picture.write_bytes(a_png(index))
    files, kind = _delivery._load(pictures, 10_000)
    assert files == [(picture.name, a_png(index)) for index, picture in enumerate(pictures)] and kind is None


def test_a_picture_too_large_is_re_encoded_and_that_is_said(tmp_path: Path):
    small, large = tmp_path / "zbot-1-1.png", tmp_path / "zbot-1-2.png"
    small.write_bytes(a_png(1))
    large.write_bytes(noisy(128))
    limit_bytes = len(large.read_bytes()) // 2
    files, kind = _delivery._load([small, large], limit_bytes)
    assert kind and kind.isupper()
    assert files[0] == (small.name, a_png(1))
    assert len(files[1][1]) <= limit_bytes and files[1][0] == f"zbot-1-2.{kind.lower()}"
    assert Image.open(io.BytesIO(files[1][1])).size == (128, 128)
    assert large.read_bytes() == noisy(128) or large.stat().st_size > limit_bytes, "the original stays"


@pytest.mark.parametrize(
    ("status", "code", "closed"),
    [
        (404, 10003, True),  # unknown channel
        (403, 50001, True),  # missing access
        (403, 50013, True),  # missing permissions
        (400, 50083, True),  # thread archived
        (404, 0, True),
        (403, 0, False),  # a proxy, not Discord
        (413, 0, False),
        (400, TOO_LARGE, False),
        (429, 0, False),
        (500, 0, False),
        (502, 0, False),
    ],
)
def test_a_way_is_closed_when_discord_itself_says_so(status: int, code: int, closed: bool):
    assert _delivery._is_closed(refusal(status, code)) == closed


async def test_a_token_lives_fourteen_minutes_and_until_it_is_forgotten(store: Store):
    job = await a_job(store)
    assert _delivery._token_lives(job)
    assert not _delivery._token_lives(
        replace(job, created_at=job.created_at - TOKEN_LIFE - timedelta(seconds=1))
    )
    assert not _delivery._token_lives(replace(job, origin=replace(job.origin, interaction_token=None)))


@pytest.mark.parametrize(
    ("age_s", "is_noted", "waits"), [(1, False, True), (1, True, False), (6, False, False)]
)
async def test_an_outcome_waits_for_a_first_answer_that_may_still_be_on_its_way(
    store: Store, monkeypatch: pytest.MonkeyPatch, age_s: float, is_noted: bool, waits: bool
):
    job = await a_job(store)
    created_at = datetime.now(UTC) - timedelta(seconds=age_s)
    job = replace(job, created_at=created_at, message_id=7 if is_noted else None)
    messenger = DiscordMessenger(Mock(spec=discord.Client))
    monkeypatch.setattr(messenger, "_edit_original", AsyncMock(side_effect=refusal(404, 10015)))
    monkeypatch.setattr(messenger, "_show_in_channel", AsyncMock(return_value=9))
    if waits:
        with pytest.raises(discord.HTTPException):
            await messenger.tell(job)
    else:
        await messenger.tell(job)
        messenger._show_in_channel.assert_awaited_once()  # type: ignore[attr-defined]


async def test_a_preview_has_another_name_than_the_picture(store: Store):
    job = await a_job(store)
    assert _delivery._preview(job, Step(number=1, total=8)) is None
    ((name, data),) = _delivery._preview(job, Step(number=1, total=8, preview=b"jpeg")) or []
    assert name not in job.file_names and data == b"jpeg"


def test_one_request_holds_all_pictures_of_a_job():
    assert _delivery.REQUEST_LIMIT_BYTES < 25 * 2**20
