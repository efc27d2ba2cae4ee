"""What the command line is asked to draw."""

from pathlib import Path

import pytest

from zbot.cli.batch import Asked, batch_of, pictures_of, read_prompts, seeds_of, sweep_of
from zbot.errors import ConfigError

PLAIN = Asked(prompt="")


def prompts(text: str | bytes, defaults: Asked = PLAIN) -> list[Asked]:
    Path("prompts.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_prompts(Path("prompts.txt"), defaults)


def test_a_sweep_ends_before_its_second_number() -> None:
    assert list(seeds_of("40:45")) == [40, 41, 42, 43, 44]
    assert seeds_of("4294967295:4294967296")[-1] == 4294967295
    assert len(seeds_of("0:1000")) == 1000


@pytest.mark.parametrize(
    "text",
    ["40", "40:", ":45", "45:40", "40:40", "-1:4", "a:b", "1:2:3", "0:1001", "4294967296:4294967297", "٤:٥"],
)
def test_what_is_no_sweep_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--seeds"):
        seeds_of(text)


def test_a_sweep_draws_one_request_with_every_seed() -> None:
    pictures = sweep_of(Asked(prompt="a fox --ar 16:9", steps=3), range(40, 42), 1024)
    assert [picture.request.seed for picture in pictures] == [40, 41]
    assert {(one.request.width, one.request.height, one.request.steps) for one in pictures} == {
        (1280, 720, 3)
    }
    for prompt in ("a fox --seed 7", "a fox --n 2"):
        with pytest.raises(ConfigError, match="out of the prompt"):
            sweep_of(Asked(prompt=prompt), range(40, 42), 1024)


def test_flags_in_the_prompt_win_over_options() -> None:
    asked = Asked(
        prompt="a fox --ar 3:2 --seed 7 --n 2 --steps 4", seed=1, steps=1, count=1, width=64, height=64
    )
    first, second = pictures_of(asked, 1024)
    assert (first.request.width, first.request.height) == (1248, 832)
    assert (first.request.seed, second.request.seed, first.request.steps) == (7, 8, 4)
    assert not first.seed_is_free
    assert pictures_of(Asked(prompt="a fox"), 1024)[0].seed_is_free


def test_lines_and_json_lines_may_be_mixed_with_comments() -> None:
    text = '\ufeff# mine\r\n\r\na fox --seed 3\r\n  {"prompt": "a cat", "seed": 5, "aspect": "16:9"}\r\na\u2028dog'
    asked = prompts(text, Asked(prompt="", steps=4, width=512))
    assert [one.prompt for one in asked] == ["a fox --seed 3", "a cat", "a\u2028dog"]
    assert [one.place for one in asked] == ["prompts.txt:3", "prompts.txt:4", "prompts.txt:5"]
    pictures = [one.request for one in batch_of(asked, 1024)]
    assert [(one.seed, one.steps) for one in pictures[:2]] == [(3, 4), (5, 4)]
    assert [(one.width, one.height) for one in pictures] == [(512, 1024), (1280, 720), (512, 1024)]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"prompt": "a"', "prompts.txt:2: this is not JSON"),
        ('{"prompt": "a", "cfg": 1}', "prompts.txt:2: unknown cfg; known: prompt, aspect, seed"),
        ('{"seed": 1}', "prompts.txt:2: a text under “prompt” is needed"),
        ('{"prompt": 1}', "prompts.txt:2: a text under “prompt” is needed"),
        ('{"prompt": "a", "seed": "1"}', "prompts.txt:2: “seed” must be a whole number"),
        ('{"prompt": "a", "seed": true}', "prompts.txt:2: “seed” must be a whole number"),
        ('{"prompt": "a", "aspect": 1}', "prompts.txt:2: “aspect” must be a text"),
        ('{"prompt": "a", "aspect": "1:1", "width": 64}', "prompts.txt:2: say either “aspect” or"),
        ('{"prompt": "a", "steps": 99}', "prompts.txt:2: 99 steps cannot be done"),
        ("a --ar 7:1", "prompts.txt:2: “7:1” is not a shape"),
        ("a --cfg 7", "prompts.txt:2: I do not know the flag --cfg"),
        ("[" * 100_000, ""),
        ("{" * 100_000, "prompts.txt:2: this is not JSON"),
        (b"\xff\xfe", "prompts.txt:2: this is not UTF-8"),
    ],
)
def test_a_line_that_cannot_be_drawn_is_named(line: str | bytes, says: str) -> None:
    if not says:
        assert prompts(line)[0].prompt == line  # a plain prompt, however odd
        return
    text = line if isinstance(line, bytes) else line.encode()
    with pytest.raises(ConfigError) as problem:
        batch_of(prompts(b"fine\n" + text), 1024)
    assert says in str(problem.value)


def test_a_file_without_prompts_and_no_file_are_refused() -> None:
    with pytest.raises(ConfigError, match="there is no prompt in it"):
        prompts("# nothing\n\n")
    with pytest.raises(ConfigError, match="No such file"):
        read_prompts(Path("nowhere.txt"), PLAIN)
