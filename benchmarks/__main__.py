"""`python -m benchmarks [load] [fairness] [queue] [memory] [--json FILE]`; with a card also `gpu` or `hardware` and their options."""

import argparse
import importlib
import runpy
import sys
from pathlib import Path

from benchmarks.tables import Table, load_of_others, machine, say, write_json

EVERYWHERE = ("load", "fairness", "queue", "memory")
WITH_A_CARD = ("gpu", "hardware")


def main() -> None:
    """Run the benchmarks that are named, by default all that need no card."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(EVERYWHERE + WITH_A_CARD))
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results there")
    arguments, further = parser.parse_known_args()
    names: list[str] = arguments.names or list(EVERYWHERE)
    if unknown := set(names) - {*EVERYWHERE, *WITH_A_CARD}:
        parser.error(f"there is no benchmark {sorted(unknown)[0]}: {', '.join(EVERYWHERE + WITH_A_CARD)}")
    if further and not set(names) & set(WITH_A_CARD):
        parser.error(f"unknown option {further[0]}")
    if warning := load_of_others():
        say(warning)
    print(f"{machine()}\n")
    tables: list[Table] = []
    for name in names:
        if name in WITH_A_CARD:
            sys.argv[:] = [f"python -m benchmarks {name}", *further]
            runpy.run_module(f"benchmarks.{name}", run_name="__main__")
            continue
        for table in importlib.import_module(f"benchmarks.{name}").main():
            print(table.text(), flush=True)
            print(flush=True)
            tables.append(table)
    if arguments.json:
        write_json(arguments.json, tables)


if __name__ == "__main__":
    main()
