from pathlib import Path

import pytest

from tests.fakes import a_job, a_png
from zbot import images
from zbot.job import JobState
from zbot.recovery import clean_up
from zbot.store import Store

KEPT = {JobState.RENDERED, JobState.DELIVERED, JobState.UNDELIVERABLE}


@pytest.fixture
def images_dir(data_dir: Path) -> Path:
    return data_dir / "images"


@pytest.mark.parametrize("state", JobState)
async def test_pictures_of_drawn_jobs_stay_and_of_others_go(store: Store, images_dir: Path, state: JobState):
    job = await a_job(store, state)
    for name in job.file_names:
        images.write_atomic(images_dir / name, a_png(1))
    await clean_up(store, images_dir)
    left = {path.name for path in images_dir.iterdir()}
    assert left == (set(job.file_names) if state in KEPT else set())


async def test_deleted_pictures_and_those_without_a_row_go(store: Store, images_dir: Path):
    job = await a_job(store, JobState.DELIVERED)
    await store.deleted(job.id)
    for name in (*job.file_names, "zbot-404-1.png"):
        images.write_atomic(images_dir / name, a_png(1))
    await clean_up(store, images_dir)
    assert list(images_dir.iterdir()) == []


async def test_half_written_files_go(store: Store, images_dir: Path, monkeypatch: pytest.MonkeyPatch):
    job = await a_job(store, JobState.DELIVERED)
    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", lambda *_, **__: None)  # as after kill -9: nobody clears up
        patched.setattr("os.replace", _killed)
        patched.setattr(Path, "replace", _killed)
        with pytest.raises(KeyboardInterrupt):
            images.write_atomic(images_dir / job.file_names[0], a_png(1))
    assert len(list(images_dir.iterdir())) == 1
    await clean_up(store, images_dir)
    assert list(images_dir.iterdir()) == []


def _killed(*_: object) -> None:
    raise KeyboardInterrupt


async def test_what_is_not_ours_stays(store: Store, images_dir: Path):
    for name in ("holiday.png", "zbot-1.png", "zbot-x-1.png", "notes.txt"):
        (images_dir / name).write_bytes(b"")
    await clean_up(store, images_dir)
    assert len(list(images_dir.iterdir())) == 4
