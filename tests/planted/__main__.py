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


def command(level: str, bug: str, seeds: int) -> list[str]:
    arguments = {
        NAMED: ["planted.named", bug],
        "model": ["model", "--planted", bug],
        "simulation": ["simulation", "--planted", bug, "--seeds", str(seeds), "--jobs", "1", "--no-shrink"],
    }
    return [sys.executable, "-m", *arguments[level]]


def attempt(level: str, bug: str, seeds: int, seconds: float) -> Outcome:
    """Found: exit status 1 with a case in what was printed, within the time."""
    began = time.monotonic()
    try:
        ended = subprocess.run(command(level, bug, seeds), capture_output=True, text=True, timeout=seconds, check=False, env=os.environ)
        status, output = ended.returncode, ended.stdout + ended.stderr
    except subprocess.TimeoutExpired as expired:
        status, output = -1, _text(expired.stdout)
    found = status == 1 and "Traceback (most recent call last)" not in output
    return Outcome(level, found, effort(level, output) if found else "", time.monotonic() - began, output)


def _text(output: str | bytes | None) -> str:
    return output.decode(errors="replace") if isinstance(output, bytes) else output or ""


def effort(level: str, output: str) -> str:
    """From the line of counts that each level ends with."""
    patterns = {NAMED: r"(\d+) of \d+ named", "model": r"states (\d+) ", "simulation": r"(\d+) seeds,"}
    found = re.findall(patterns[level], output)
    unit = {NAMED: "tests", "model": "states in other models", "simulation": "seeds"}[level]
    if level == "model" and (steps := re.findall(r"(?m)^\S.*after (\d+) states", output)):
        return f"{steps[-1]} states"
    return f"{found[-1]} {unit}" if found else "?"


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
    parser.add_argument("--seconds", type=float, default=300.0, help="for each bug and level, at most (default 300)")
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
            say(f"{bug.name:32} {outcome.level:11} {told:38} {outcome.seconds:6.1f} s")
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
