"""`python -m planted`: plants each bug in turn and runs the levels that should find it, each in a process and a time of its own.

Prints a table (bug, the levels that found it, after how many seeds or states, seconds) and one line of counts. Exit status 0: each was
found by a level above the named tests (where one is asked for), and by its named tests. `--only BUG`, `--levels named,model,simulation`.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from planted.bugs import BUGS, Bug

NAMED = "named"
LEVELS = (NAMED, "model", "simulation")


@dataclass(frozen=True, slots=True)
class Outcome:
    level: str
    found: bool
    after: str
    """How many tests, states or seeds that took, as the level printed it."""
    seconds: float
    output: str


def commands(level: str, bug: str, seeds: int) -> list[list[str]]:
    """What a level is asked, one after the other until something is found: the model, each of its models for itself."""
    if level == NAMED:
        return [["planted.named", bug]]
    if level == "simulation":
        return [["simulation", "--planted", bug, "--seeds", str(seeds), "--jobs", "1", "--no-shrink"]]
    listed = _run(["model", "--list"], 60.0)[1]
    models = [line.partition(":")[0] for line in listed.splitlines() if ":" in line]
    models.sort(key=lambda name: not name.startswith(BUGS[bug].model))
    return [["model", "--planted", bug, "--only", name] for name in models if not name.endswith("(deep)")]


def _run(arguments: Sequence[str], seconds: float) -> tuple[int, str]:
    """Exit status (-1: not ended in time) and what was printed."""
    try:
        ended = subprocess.run(
            [sys.executable, "-m", *arguments], capture_output=True, text=True, timeout=seconds, check=False, env=os.environ
        )
    except subprocess.TimeoutExpired as expired:
        return -1, _text(expired.stdout)
    return ended.returncode, ended.stdout + ended.stderr


def attempt(level: str, bug: str, seeds: int, seconds: float) -> Outcome:
    """Found: exit status 1 with a case in what was printed, within the time. A level that breaks has found nothing."""
    began = time.monotonic()
    printed = ""
    for command in commands(level, bug, seeds):
        left = seconds - (time.monotonic() - began)
        status, output = _run(command, left) if left > 0 else (-1, "")
        printed += output
        if status == 1 and "Traceback (most recent call last)" not in output:
            return Outcome(level, True, effort(level, printed), time.monotonic() - began, printed)
    return Outcome(level, False, "", time.monotonic() - began, printed)


def _text(output: str | bytes | None) -> str:
    return output.decode(errors="replace") if isinstance(output, bytes) else output or ""


def effort(level: str, output: str) -> str:
    """How much that took, from what the level printed."""
    if level == "model":
        states = sum(int(n) for n in re.findall(r"exhausted: (\d+) states", output))
        case = re.search(r"(?m)^model ([^:]+): .*\n((?:.*\n)*?)\{", output)
        return f"{states} states, then {len(case[2].splitlines())} steps of {case[1]!r}" if case else f"{states} states"
    patterns = {NAMED: r"(\d+) of \d+ named", "simulation": r"(\d+) seeds,"}
    found = re.findall(patterns[level], output)
    return f"{found[-1]} {'tests' if level == NAMED else 'seeds'}" if found else "?"


def levels_of(bug: Bug, wanted: Sequence[str]) -> list[str]:
    return [level for level in (NAMED, *bug.levels) if level in wanted]


def outcomes(bug: Bug, wanted: Sequence[str], options: argparse.Namespace) -> Iterable[Outcome]:
    """Named tests, then the levels above, quickest first, until one has found it (`--all`: every one)."""
    for level in levels_of(bug, wanted):
        outcome = attempt(level, bug.name, options.seeds, options.seconds)
        yield outcome
        if outcome.found and level != NAMED and not options.all:
            return


def verdict(bug: Bug, seen: Sequence[Outcome], wanted: Sequence[str]) -> bool:
    asked = levels_of(bug, wanted)
    above = [o for o in seen if o.level != NAMED]
    named = [o for o in seen if o.level == NAMED]
    return all(o.found for o in named) and (any(o.found for o in above) or set(asked) <= {NAMED})


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="planted", description="Planted bugs: which level finds each, and how soon.")
    parser.add_argument("--only", action="append", default=[], metavar="BUG", choices=list(BUGS), help="this bug; may be repeated")
    parser.add_argument("--levels", default=",".join(LEVELS), help="some of named, model, simulation (default all)")
    parser.add_argument("--seeds", type=int, default=300, help="of the simulation, at most, for each bug (default 300)")
    parser.add_argument("--seconds", type=float, default=600.0, help="for each bug and level, at most (default 600)")
    parser.add_argument("--all", action="store_true", help="every level that should find it, not only the first that does")
    parser.add_argument("--cases", action="store_true", help="what the level printed, so that it can be seen again")
    options = parser.parse_args(arguments)
    wanted = [level for level in options.levels.split(",") if level == NAMED or importlib.util.find_spec(level) is not None]
    unfound = []
    began = time.monotonic()
    chosen = [BUGS[name] for name in options.only] or list(BUGS.values())
    for bug in chosen:
        seen = []
        for outcome in outcomes(bug, wanted, options):
            seen.append(outcome)
            told = f"found after {outcome.after}" if outcome.found else "NOT FOUND"
            say(f"{bug.name:32} {outcome.level:11} {told:52} {outcome.seconds:6.1f} s")
            if options.cases:
                say(outcome.output)
        if not verdict(bug, seen, wanted):
            unfound.append(bug.name)
    say(
        f"planted {len(chosen)} found {len(chosen) - len(unfound)} levels {','.join(wanted)} seconds {time.monotonic() - began:.0f}"
        + (f" not found: {', '.join(unfound)}" if unfound else "")
    )
    return 1 if unfound else 0


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
