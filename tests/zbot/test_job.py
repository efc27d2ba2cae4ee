from datetime import UTC, datetime

import pytest

from tests.fakes import a_request, an_origin
from zbot.job import TRANSITIONS, Job, JobId, JobState

ENDS = {JobState.DELIVERED, JobState.FAILED, JobState.CANCELLED, JobState.UNDELIVERABLE}


def test_every_state_has_its_row_in_the_table():
    assert set(TRANSITIONS) == set(JobState)


@pytest.mark.parametrize("state", JobState)
def test_exactly_the_terminal_states_lead_nowhere(state: JobState):
    assert (not TRANSITIONS[state]) == (state in ENDS)


def test_every_state_can_be_reached_from_queued():
    reached, before = {JobState.QUEUED}, set[JobState]()
    while reached != before:
        before = set(reached)
        reached |= {target for origin in before for target in TRANSITIONS[origin]}
    assert reached == set(JobState)


def test_what_is_drawn_cannot_be_cancelled():
    assert JobState.CANCELLED not in TRANSITIONS[JobState.RENDERED]


def test_file_names_are_built_from_integers_alone():
    job = Job(
        id=JobId(12),
        state=JobState.QUEUED,
        request=a_request(prompt="../../etc/passwd\x00", num_images=3),
        origin=an_origin(),
        message_id=None,
        attempts=0,
        start_tag=0,
        finish_tag=1,
        created_at=datetime.now(UTC),
    )
    assert job.file_names == ("zbot-12-1.png", "zbot-12-2.png", "zbot-12-3.png")
