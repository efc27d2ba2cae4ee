import pytest
from hypothesis import given
from hypothesis import strategies as st

from zbot.errors import InvalidRequest
from zbot.flags import KNOWN_FLAGS, Flags, parse_flags
from zbot.request import build_request


def test_the_flags_of_the_manual_are_read():
    assert parse_flags(f"a fox {KNOWN_FLAGS.replace(',', '')}") == Flags(
        prompt="a fox     ", aspect="16:9", seed=7, num_images=4, steps=8, lora="name:0.8"
    )


@pytest.mark.parametrize("dash", ["--", "\u2014", "\u2013"])
def test_a_phone_may_make_one_dash_of_two_hyphens(dash: str):
    assert parse_flags(f"a fox {dash}ar 16:9 {dash}seed 7") == Flags(prompt="a fox  ", aspect="16:9", seed=7)


def test_a_flag_may_stand_anywhere():
    flags = parse_flags("--seed 7 a red fox --n 2 in the snow")
    assert (flags.prompt.split(), flags.seed, flags.num_images) == (
        ["a", "red", "fox", "in", "the", "snow"],
        7,
        2,
    )


@pytest.mark.parametrize("written", ["--seed=7", "--SEED 7", "--seed\u30007", "--seed\n7", "--seed +7"])
def test_a_flag_may_be_written_in_several_ways(written: str):
    assert parse_flags(f"a fox {written}").seed == 7


def test_long_names_mean_the_same():
    assert parse_flags("x --aspect 4:3 --count 2") == Flags(prompt="x  ", aspect="4:3", num_images=2)


def test_of_two_alike_the_last_counts():
    assert parse_flags("a fox --seed 1 --seed 2").seed == 2


@pytest.mark.parametrize("written", ["--no text", "--v 6", "--stylize=250", "\u2014no", "--x-y"])
def test_an_unknown_flag_is_refused_with_the_known_ones(written: str):
    with pytest.raises(InvalidRequest) as caught:
        parse_flags(f"a fox {written}")
    assert caught.value.code == "flag_unknown"
    assert caught.value.facts["known"] == KNOWN_FLAGS
    assert str(caught.value.facts["flag"]).startswith("--")


@pytest.mark.parametrize(
    "written",
    ["--seed", "--seed seven", "--seed --n 4", "--n 1.5", "--n 4,", "--seed \u0667", "--steps " + "9" * 30],
)
def test_a_flag_without_a_proper_value_is_refused(written: str):
    with pytest.raises(InvalidRequest) as caught:
        parse_flags(f"a fox {written}")
    assert caught.value.code == "flag_value"


@pytest.mark.parametrize(
    ("written", "code"),
    [
        ("--seed -1", "seed_range"),
        ("--n 9", "count_range"),
        ("--steps 0", "steps_range"),
        ("--ar 5:1", "aspect_unknown"),
    ],
)
def test_a_value_out_of_range_reaches_the_rule_that_refuses_it(written: str, code: str):
    flags = parse_flags(f"a fox {written}")
    with pytest.raises(InvalidRequest) as caught:
        build_request(
            prompt=flags.prompt,
            native_size=1024,
            aspect=flags.aspect,
            seed=flags.seed,
            steps=flags.steps,
            num_images=flags.num_images,
        )
    assert caught.value.code == code


@pytest.mark.parametrize(
    "prompt",
    [
        "a state-of-the-art fox",
        "well--known fox",
        "1990\u20132000, a fox",
        "a fox \u2014 red",
        "a fox -- red",
        "x --1",
    ],
)
def test_dashes_that_are_no_flags_stay_in_the_prompt(prompt: str):
    assert parse_flags(prompt) == Flags(prompt=prompt)


@given(st.text(alphabet=st.characters(exclude_characters="-\u2013\u2014"), max_size=100))
def test_a_prompt_without_dashes_stays_as_it_is(prompt: str):
    assert parse_flags(prompt) == Flags(prompt=prompt)


@given(st.text(max_size=120))
def test_any_text_is_read_or_refused_with_a_known_code(prompt: str):
    try:
        parse_flags(prompt)
    except InvalidRequest as error:
        assert error.code in {"flag_unknown", "flag_value"}


def test_a_flag_right_after_a_chinese_character_is_one() -> None:
    assert parse_flags("一只狐狸--ar 16:9") == Flags(prompt="一只狐狸", aspect="16:9")


def test_two_hyphens_inside_a_latin_word_are_part_of_it() -> None:
    assert parse_flags("a well--known fox").prompt == "a well--known fox"
