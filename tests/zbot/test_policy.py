import asyncio
import itertools
import tempfile
import threading
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.fakes import MODEL, a_request, an_origin
from zbot import policy
from zbot.errors import QueueFull, QuotaExceeded
from zbot.policy import Limits, Load, Waiting
from zbot.store import Store

UNIT = 16 * 16  # the smallest cost: 16x16 pixels in one step
FLOODER = 0


def a_load(**fields: int | bool) -> Load:
    return Load(
        **(  # type: ignore[arg-type]
            {
                "waiting_of_person": 0,
                "waiting_in_all": 0,
                "busy": False,
                "virtual_time": 0,
                "served_until": 0,
                "person_finish": 0,
            }
            | fields
        )
    )


@dataclass
class Model:
    """The line as `policy` means it, without a database: what the store must agree with."""

    jobs: dict[int, Waiting] = field(default_factory=dict)  # waiting
    on_card: dict[int, Waiting] = field(default_factory=dict)
    ended: list[Waiting] = field(default_factory=list)  # drawn
    virtual_time: int = 0
    served_until: int = 0
    ids: itertools.count = field(default_factory=lambda: itertools.count(1))  # type: ignore[type-arg]

    def submit(self, user_id: int, cost: int) -> int:
        mine = [
            job
            for job in (*self.jobs.values(), *self.on_card.values(), *self.ended)
            if job.user_id == user_id
        ]
        load = a_load(
            busy=bool(self.jobs or self.on_card),
            virtual_time=self.virtual_time,
            served_until=self.served_until,
            person_finish=max((job.start_tag + job.cost for job in mine), default=0),
        )
        start, finish = policy.tags(load, cost)
        assert finish == start + cost
        if not load.busy:
            self.virtual_time = max(self.virtual_time, self.served_until)
        job = Waiting(job_id=next(self.ids), user_id=user_id, cost=cost, start_tag=start)
        self.jobs[job.job_id] = job
        return job.job_id

    def claim(self) -> Waiting | None:
        line = policy.order(self.jobs.values())
        if not line or len(self.on_card) == 2:
            return None
        job = self.on_card[line[0].job_id] = self.jobs.pop(line[0].job_id)
        self.virtual_time = max(self.virtual_time, job.start_tag)
        self.served_until = max(self.served_until, job.start_tag + job.cost)
        return job

    def complete(self, job_id: int) -> None:
        self.ended.append(self.on_card.pop(job_id))

    def put_back(self, job_id: int) -> None:
        self.jobs[job_id] = self.on_card.pop(job_id)

    def cancel(self, job_id: int) -> None:
        gone = self.jobs.pop(job_id, None) or self.on_card.pop(job_id)
        finish = gone.start_tag + gone.cost
        later = [job for job in self.jobs.values() if job.user_id == gone.user_id and job.start_tag >= finish]
        if later:
            up = policy.moves_up(gone.cost, min(job.start_tag for job in later), self.virtual_time)
            for job in later:
                self.jobs[job.job_id] = Waiting(
                    job_id=job.job_id, user_id=job.user_id, cost=job.cost, start_tag=job.start_tag - up
                )

    def serve(self, count: int) -> list[int]:
        """Draw the next jobs one after the other; return whose they were."""
        served: list[int] = []
        for _ in range(count):
            job = self.claim()
            assert job is not None
            self.complete(job.job_id)
            served.append(job.user_id)
        return served


# --- who may submit ---


def test_a_person_may_have_so_many_waiting_and_no_more():
    limits = Limits(per_person=2, in_all=10)
    policy.admit(a_load(waiting_of_person=1, waiting_in_all=5), limits)
    with pytest.raises(QuotaExceeded) as caught:
        policy.admit(a_load(waiting_of_person=2, waiting_in_all=5), limits)
    assert caught.value.facts == {"limit": 2}


def test_so_many_may_wait_in_all_and_no_more():
    limits = Limits(per_person=2, in_all=10)
    policy.admit(a_load(waiting_in_all=9), limits)
    with pytest.raises(QueueFull) as caught:
        policy.admit(a_load(waiting_in_all=10), limits)
    assert caught.value.facts == {"limit": 10}


def test_a_job_may_lose_the_engine_once_and_not_twice():
    assert policy.is_retried(1)
    assert not policy.is_retried(2)


# --- who is next ---


def test_a_job_begins_at_the_present_or_where_the_persons_last_one_ends():
    assert policy.tags(a_load(busy=True, virtual_time=5, served_until=9), 3) == (5, 8)
    assert policy.tags(a_load(busy=True, virtual_time=5, served_until=9, person_finish=20), 3) == (20, 23)
    assert policy.tags(a_load(busy=False, virtual_time=5, served_until=9), 3) == (9, 12), (
        "an idle card owes nobody"
    )


@given(
    lights=st.lists(
        st.tuples(st.integers(0, 150 * 4), st.integers(1, 4)), min_size=1, max_size=8
    ),  # arrival and cost
    flood=st.lists(st.integers(1, 4), min_size=200, max_size=200),
)
def test_beside_a_flooder_nobody_waits_longer_than_active_people_times_the_largest_job(
    lights: list[tuple[int, int]], flood: list[int]
):
    line, now = Model(), 0
    for cost in flood:
        line.submit(FLOODER, cost)
    arrivals = sorted((at, user_id, cost) for user_id, (at, cost) in enumerate(lights, start=1))
    arrived_at: dict[int, int] = {}
    largest, active = max(flood + [cost for _, cost in lights]), 1 + len(lights)
    while line.jobs or arrivals:
        while arrivals and arrivals[0][0] <= now:
            at, user_id, cost = arrivals.pop(0)
            arrived_at[line.submit(user_id, cost)] = at
        job = line.claim()
        if job is None:
            now = arrivals[0][0]
            continue
        if job.job_id in arrived_at:
            assert now - arrived_at[job.job_id] <= active * largest
        now += job.cost
        line.complete(job.job_id)


@given(st.lists(st.integers(1, 4), min_size=2, max_size=6))
def test_who_always_waits_gets_an_equal_share_of_the_work(costs: list[int]):
    line = Model()
    for _ in range(40):
        for user_id, cost in enumerate(costs):
            line.submit(user_id, cost)
    got = dict.fromkeys(range(len(costs)), 0)
    for _ in range(20 * len(costs)):
        job = line.claim()
        assert job is not None
        line.complete(job.job_id)
        got[job.user_id] += job.cost
        if min(sum(waiting.user_id == user for waiting in line.jobs.values()) for user in got) == 0:
            break
        assert max(got.values()) - min(got.values()) <= 2 * max(costs)


def test_a_second_job_stands_behind_everybodys_first():
    line = Model()
    for user_id in (1, 1, 1, 2, 3):
        line.submit(user_id, 5)
    assert line.serve(5) == [1, 2, 3, 1, 1]


def test_four_pictures_count_as_four():
    line = Model()
    for cost in (4, 4):
        line.submit(1, cost)
    for _ in range(8):
        line.submit(2, 1)
    assert line.serve(6) == [1, 2, 2, 2, 2, 1]


@pytest.mark.parametrize("drew_once_before", [False, True])
def test_hours_of_absence_are_no_credit(drew_once_before: bool):
    line = Model()
    if drew_once_before:
        line.submit(2, 1)
        line.serve(1)
    for _ in range(500):
        line.submit(1, 1)
    line.serve(400)
    for _ in range(10):
        line.submit(2, 1)
    served = line.serve(20)
    assert abs(served.count(1) - served.count(2)) <= 1
    assert max(len(list(run)) for _, run in itertools.groupby(served)) <= 2


def test_whoever_drew_while_nobody_else_waited_owes_nothing():
    line = Model()
    for _ in range(300):
        line.submit(1, 4)
        line.serve(1)
    for _ in range(10):
        line.submit(1, 1)
        line.submit(2, 1)
    served = line.serve(20)
    assert max(len(list(run)) for _, run in itertools.groupby(served)) <= 2


def test_in_an_idle_line_nobody_is_overtaken_by_who_came_after():
    line = Model()
    line.submit(9, 50)
    line.serve(1)
    for user_id in (1, 2, 3):
        line.submit(user_id, 4)
    assert line.serve(3) == [1, 2, 3]


@given(
    before=st.lists(st.integers(1, 4), max_size=4),
    taken_back=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    after=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    others=st.lists(st.tuples(st.integers(2, 4), st.integers(1, 4)), max_size=8),
    backwards=st.booleans(),
)
def test_cancelled_jobs_leave_no_debt(
    before: list[int],
    taken_back: list[int],
    after: list[int],
    others: list[tuple[int, int]],
    backwards: bool,
):
    with_them, without = Model(), Model()
    for line in (with_them, without):
        for user_id, cost in others:
            line.submit(user_id, cost)
        for cost in before:
            line.submit(1, cost)
    cancelled = [with_them.submit(1, cost) for cost in taken_back]
    for line in (with_them, without):
        for cost in after:
            line.submit(1, cost)
    for job_id in reversed(cancelled) if backwards else cancelled:
        with_them.cancel(job_id)
    tags = [
        sorted((job.user_id, job.start_tag, job.cost) for job in line.jobs.values())
        for line in (with_them, without)
    ]
    assert tags[0] == tags[1]


def test_a_job_taken_back_gives_no_credit_either():
    assert policy.moves_up(100, first_start=30, virtual_time=20) == 10
    assert policy.moves_up(100, first_start=20, virtual_time=20) == 0
    assert policy.moves_up(5, first_start=30, virtual_time=20) == 5


@given(st.permutations([Waiting(job_id=i, user_id=i, cost=1, start_tag=i // 3) for i in range(9)]))
def test_ties_go_to_whoever_came_first(waiting: list[Waiting]):
    assert [job.job_id for job in policy.order(waiting)] == list(range(9))


# --- the database agrees ---

_OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.integers(1, 4), st.integers(1, 4)),
        st.tuples(
            st.sampled_from(["claim", "complete", "put_back", "cancel"]), st.integers(0, 9), st.just(0)
        ),
    ),
    min_size=5,
    max_size=40,
)


# One person asks twice before another; what follows an idle card; a later job moves up.
@example([("submit", 1, 1), ("submit", 1, 1), ("submit", 2, 1), ("claim", 0, 0), ("claim", 0, 0)])
@example([("submit", 1, 4), ("claim", 0, 0), ("complete", 0, 0), ("submit", 2, 1), ("submit", 3, 1)])
@example([("submit", 1, 4), ("submit", 1, 1), ("submit", 2, 1), ("cancel", 0, 0), ("claim", 0, 0)])
@settings(max_examples=40)
@given(_OPERATIONS)
def test_the_database_orders_the_line_as_policy_says(operations: list[tuple[str, int, int]]):
    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(_compare(Path(directory) / "zbot.db", operations))


async def _compare(path: Path, operations: list[tuple[str, int, int]]) -> None:
    line = Model()
    async with Store(path) as store:
        for name, which, cost in operations:
            if name == "submit":
                accepted = await store.accept(
                    a_request(width=16, height=16, steps=cost),
                    an_origin(which),
                    admit=partial(policy.admit, limits=Limits()),
                    tags=policy.tags,
                    withdrawn=threading.Event(),
                )
                assert accepted.job.id == line.submit(which, cost * UNIT)
                before = [job.job_id for job in policy.order(line.jobs.values())].index(accepted.job.id)
                assert accepted.jobs_before == before
            elif name == "claim":
                claimed, expected = await store.claim(), line.claim()
                assert (claimed and claimed.id) == (expected and expected.job_id)
            else:
                choice = sorted(line.on_card if name != "cancel" else line.jobs | line.on_card)
                if not choice:
                    continue
                job_id = choice[which % len(choice)]
                if name == "complete":
                    assert await store.complete(job_id, gpu_s=1, model=MODEL, unused_prompt="")  # type: ignore[arg-type]
                elif name == "put_back":
                    assert await store.put_back(job_id, spend_attempt=False)  # type: ignore[arg-type]
                else:
                    assert await store.cancel(job_id)  # type: ignore[arg-type]
                getattr(line, name)(job_id)
            assert await store.waiting() == policy.order(line.jobs.values())
