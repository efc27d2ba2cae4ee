from dataclasses import replace
from datetime import UTC, datetime

import discord
import pytest

from cogs import _answers
from tests.fakes import a_request, an_origin
from zbot.engine import Step
from zbot.job import Job, JobId, JobState
from zbot.progress import Drawing
from zbot.queue import Place
from zbot.request import MAX_PROMPT_CHARACTERS
from zbot.text import LOCALES, catalogue

WORST = "``` @everyone [x](https://x.y) 👨‍👩‍👧‍👦 " * 200


def a_job(locale: str = "en-US", **fields: object) -> Job:
    job = Job(
        id=JobId(17),
        state=JobState.QUEUED,
        request=a_request(prompt="a fox", seed=7, num_images=2),
        origin=an_origin(99, locale=locale),
        message_id=None,
        attempts=0,
        start_tag=0,
        finish_tag=1,
        created_at=datetime.now(UTC),
        gpu_s=3.25,
    )
    return replace(job, **fields)  # type: ignore[arg-type]


def buttons(answer: _answers.Answer) -> list[str]:
    if answer.view is None:
        return []
    return [str(item.custom_id) for item in answer.view.children if isinstance(item, discord.ui.DynamicItem)]


def shown(answer: _answers.Answer) -> str:
    return f"{answer.content}\n{answer.embed.description}"


def every_answer(job: Job) -> list[_answers.Answer]:
    return [
        _answers.waiting(job, Place(place=3, eta_s=60.0)),
        _answers.drawing(job, Drawing(picture=1, step=Step(number=2, total=8))),
        _answers.result(replace(job, unused_prompt=WORST), re_encoded="WEBP"),
        _answers.lost(job),
        _answers.ended(replace(job, state=JobState.CANCELLED)),
        _answers.ended(replace(job, state=JobState.FAILED, error_code="out_of_memory")),
    ]


@pytest.mark.parametrize(
    ("place", "line"),
    [
        (Place(place=1, eta_s=None), "Next in line."),
        (Place(place=4, eta_s=None), "Place 4 in line."),
        (Place(place=1, eta_s=60.0), "Next in line · ready <t:"),
        (Place(place=4, eta_s=60.0), "Place 4 in line · ready <t:"),
    ],
)
def test_a_waiting_job_shows_its_place_and_when(place: Place, line: str):
    assert _answers.waiting(a_job(), place).content.startswith(line)


def test_a_running_job_shows_its_step():
    drawing = Drawing(picture=2, step=Step(number=3, total=8))
    assert _answers.drawing(a_job(), drawing).content == "Drawing picture 2 of 2 · step 3 of 8"
    single = a_job(request=a_request(num_images=1))
    assert _answers.drawing(single, drawing).content == "Drawing · step 3 of 8"


def test_a_result_says_all_that_one_needs_to_draw_it_again():
    text = shown(
        _answers.result(a_job(request=a_request(num_images=2, seed=2**32 - 1, width=64, height=32, steps=5)))
    )
    for fact in ("`4294967295`", "`0`", "64×32", "5 steps", "3.2 s", "<@99>", "a fox"):
        assert fact in text


def test_a_result_says_what_was_left_out_and_what_was_re_encoded():
    answer = _answers.result(a_job(unused_prompt="the long `tail`"), re_encoded="WEBP")
    assert "the long ˋtailˋ" in shown(answer) and "WEBP" in shown(answer)
    assert "not used" not in shown(_answers.result(a_job()))


def test_a_failure_says_why_in_the_requesters_language():
    failed = a_job(state=JobState.FAILED, error_code="out_of_memory")
    assert catalogue("en")["error.out_of_memory"] in shown(_answers.ended(failed))
    chinese = a_job("zh-CN", state=JobState.FAILED, error_code="out_of_memory")
    assert catalogue("zh-CN")["error.out_of_memory"] in shown(_answers.ended(chinese))


@pytest.mark.parametrize("code", [None, "a_code_of_another_version"])
def test_a_failure_without_a_known_reason_has_a_sentence_too(code: str | None):
    failed = a_job(state=JobState.FAILED, error_code=code)
    assert catalogue("en")["error.internal"] in shown(_answers.ended(failed))


def test_every_state_has_its_buttons():
    waiting, drawing, result, lost, cancelled, failed = every_answer(a_job())
    for answer in (waiting, drawing):
        assert buttons(answer) == ["zbot:cancel:17"]
    for answer in (result, lost, failed):
        assert buttons(answer) == [f"zbot:{action}:17" for action in ("reroll", "edit", "details", "delete")]
    assert buttons(cancelled) == []


@pytest.mark.parametrize("locale", LOCALES)
@pytest.mark.parametrize(
    "prompt", ["a fox", WORST[:MAX_PROMPT_CHARACTERS], "🦊" * 3_000, "雪" * MAX_PROMPT_CHARACTERS]
)
def test_every_answer_is_within_discords_limits(locale: str, prompt: str):
    for answer in every_answer(a_job(locale, request=a_request(prompt=prompt, num_images=4))):
        assert len(answer.content) <= 2_000
        assert len((answer.embed.description or "").encode("utf-16-le")) // 2 <= 4_096
        assert len(answer.embed) <= 6_000


def test_a_prompt_stands_in_a_fence_and_nowhere_else():
    prompt = "@everyone ``` [x](https://x.y)"
    for answer in every_answer(a_job(request=a_request(prompt=prompt))):
        text = shown(answer)
        assert text.count("```") == 2
        assert (
            "@everyone" in text.split("```")[1]
            and "@everyone" not in text.split("```")[2].replace(WORST, "")[:50]
        )
