"""Prompts that `faulty_child` answers with a fault: the bug when the picture is finished, the others at step 2."""

POISON = "poison the card"
ASSERT = "assert on the card"
HANG = "hang for ever"
OUT_OF_MEMORY = "out of memory"
BUG = "a mistake of ours"
