"""`python -m planted`: plants each bug in turn and lets the levels find it that should, each in a process and a time of its own.

Which level that is, and what it may take (states of one model, seeds of the simulation), says the table in `planted.bugs`. One line a bug:
the named interleavings that found it, the level above that did, after how many states or seeds, and seconds of processor time; at the end
one line of counts. Exit status 0: each was found by all its named interleavings and by a level above them.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from planted.bugs import BUGS, Bug, Search
from planted.children import Ended, prepare, run
from planted.finding import Found, found
from support.again import make

NAMED = "named"
LEVELS = (NAMED, "model", "simulation")


class Hunt:
    """For one bug after the other; may be used from several threads."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.levels = options.levels.split(",")
        self.cases: dict[str, list[Ended]] = {}

    def hunt(self, bug: Bug) -> list[Found]:
        """What each level found that was asked; above the named interleavings the first that finds it is enough, unless `--all`."""
        result: list[Found] = []
        if NAMED in self.levels:
            result.append(self._ask(bug, NAMED, ["planted.named", bug.name]))
        for finder in bug.finders:
            level = "model" if isinstance(finder, Search) else "simulation"
            if level in self.levels:
                result.append(self._ask(bug, level, finder.arguments(bug.name)))
                if result[-1].how and not self.options.all:
                    break
        return result

    def _ask(self, bug: Bug, level: str, arguments: list[str]) -> Found:
        ended = run(arguments[0], arguments[1:], self.options.seconds)
        self.cases.setdefault(bug.name, []).append(ended)
        return Found(level, found(level, ended, bug.told), ended.seconds, again(bug, level, arguments[1:]))


def again(bug: Bug, level: str, arguments: Sequence[str]) -> str:
    if level == NAMED:
        return make("planted", ["--only", bug.name, "--levels", NAMED, "--cases"])
    return make({"model": "model", "simulation": "simulate"}[level], arguments)


def verdict(finds: Sequence[Found], levels: Sequence[str]) -> bool:
    named = all(f.how for f in finds if f.level == NAMED)
    above = [f for f in finds if f.level != NAMED]
    return named and (any(f.how for f in above) if above else list(levels) == [NAMED])


def line(bug: Bug, finds: Sequence[Found]) -> str:
    told = "; ".join(f"{f.level} {f.how or 'NOT FOUND'} in {f.seconds:.1f} s" for f in finds) or "NOT FOUND"
    return f"{bug.name:32} {told}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="planted", description="Planted bugs: which level finds each, and how soon.")
    parser.add_argument("--only", action="append", default=[], metavar="BUG", choices=list(BUGS), help="this bug; may be repeated")
    parser.add_argument("--levels", default=",".join(LEVELS), help="some of named, model, simulation (default all)")
    parser.add_argument("--seconds", type=float, default=300.0, help="for each bug and level, at most (default 300)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: one a core)")
    parser.add_argument("--all", action="store_true", help="every level that should find it, not only the first that does")
    parser.add_argument("--cases", action="store_true", help="what the levels printed, and how to see each bug again")
    options = parser.parse_args(arguments)
    began = time.monotonic()
    chosen = [BUGS[name] for name in options.only] or list(BUGS.values())
    hunt, unfound, by_level = Hunt(options), [], dict.fromkeys(LEVELS, 0)
    prepare()
    with ThreadPoolExecutor(options.jobs) as pool:
        for bug, finds in zip(chosen, pool.map(hunt.hunt, chosen), strict=True):
            say(line(bug, finds))
            for f in finds if options.cases else ():
                say(f"  see it again: {f.command}")
            for ended in hunt.cases[bug.name] if options.cases else ():
                say(ended.output)
            for f in finds:
                by_level[f.level] += bool(f.how)
            if not verdict(finds, hunt.levels):
                unfound.append(bug.name)
    told = ", ".join(f"{level} {by_level[level]}" for level in hunt.levels)
    say(
        f"planted {len(chosen)} found {len(chosen) - len(unfound)} ({told}) seconds {time.monotonic() - began:.0f}"
        + (f" not found: {', '.join(unfound)}" if unfound else "")
    )
    return 1 if unfound else 0


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
