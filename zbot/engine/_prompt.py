"""Finds the tail of a prompt that the text encoder never sees."""

from collections.abc import Callable
from typing import Any


def unused_tail(prompt: str, read: Callable[[str], list[int]]) -> str:
    """Return what of the prompt can be left out without changing the tokens that `read` returns for it.

    `read` templates, tokenizes and cuts, as the text encoder's input is made; so this holds for a limit in tokens as
    well as for a template that cuts characters.
    """
    seen = read(prompt)
    if not prompt or read(prompt[:-1]) != seen:
        return ""
    too_short, enough = 0, len(prompt) - 1
    while too_short < enough:
        middle = (too_short + enough) // 2
        if read(prompt[:middle]) == seen:
            enough = middle
        else:
            too_short = middle + 1
    # A cut within a word can join other tokens; the shortest that is certain is the one that was looked at.
    return prompt[enough:] if read(prompt[:enough]) == seen else ""


def token_reader(tokenizer: Any, max_tokens: int) -> Callable[[str], list[int]]:
    """Return the function prompt -> token ids that ZImagePipeline applies, padding aside."""

    def read(prompt: str) -> list[int]:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=True,
        )
        return list(tokenizer(text, truncation=True, max_length=max_tokens).input_ids)

    return read
