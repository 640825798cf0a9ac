"""`python -m model`: searches every model, prints what each had, and ends with one line of counts. Exit status 1: an invariant is broken.

`--replay FILE` goes one way again (the JSON that a violation prints) and shows what each step writes, `--planted NAME` plants a bug first.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from model import canonical
from model.catalogue import MODELS, Entry, find
from model.quiet import quiet
from model.search import Counts, Violation, replay, search
from model.traces import changes
from support.again import make


def main(arguments: Sequence[str]) -> int:
    options = _options(arguments)
    if options.planted:
        importlib.import_module("planted.bugs").apply(options.planted)
    if options.list:
        for entry in MODELS:
            say(f"{entry.name}{' (deep)' if entry.deep else ''}: {entry.make().bounds}")
        return 0
    with quiet():
        if options.replay:
            return _replay(options.replay)
        chosen = [find(name) for name in options.only] or [e for e in MODELS if options.deep or not e.deep]
        return _search(chosen, options.at_most, options.planted)


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="model", description="Every state of a small group, through the real rules.")
    parser.add_argument("--deep", action="store_true", help="larger bounds too: minutes to hours")
    parser.add_argument("--only", action="append", default=[], metavar="MODEL", help="this model; may be repeated")
    parser.add_argument("--list", action="store_true", help="the models and their bounds")
    parser.add_argument("--at-most", type=int, default=0, metavar="STATES", help="give up a model there (not exhausted: exit status 1)")
    parser.add_argument("--planted", default="", metavar="BUG", help="plant this bug first")
    parser.add_argument("--replay", default="", metavar="FILE", help="go the way of a violation again; - = standard input")
    return parser.parse_args(arguments)


def _search(entries: Sequence[Entry], at_most: int, planted: str) -> int:
    total, violations = Counts(), 0
    for entry in entries:
        canonical.forget()
        model = entry.make()
        say(f"{entry.name}: {model.bounds}")
        try:
            counts = search(model, at_most)
        except Violation as violation:
            violations += 1
            _add(total, violation.counts)
            say(f"  violated after {violation.counts.states} states\n{violation}")
            case = json.dumps({"model": violation.model, "steps": violation.steps})
            again = [*(["--planted", planted] if planted else []), "--replay", "-"]
            say(f"see it again, with what each step writes: {make('model', again)} <<'CASE'\n{case}\nCASE")
            continue
        say(
            f"  {'exhausted' if counts.exhausted else 'NOT EXHAUSTED'}: {counts.states} states, "
            f"{counts.transitions} transitions, depth {counts.depth}, {counts.seconds:.1f} s"
        )
        _add(total, counts)
    say(
        f"models {len(entries)} states {total.states} transitions {total.transitions} depth {total.depth} "
        f"seconds {total.seconds:.0f} violations {violations}"
    )
    return 0 if total.exhausted and not violations else 1


def _add(total: Counts, counts: Counts) -> None:
    total.states += counts.states
    total.transitions += counts.transitions
    total.depth = max(total.depth, counts.depth)
    total.seconds += counts.seconds
    total.exhausted = total.exhausted and counts.exhausted


def _replay(path: str) -> int:
    case = json.loads(sys.stdin.read() if path == "-" else Path(path).read_text())
    steps = case["steps"]

    def show(i: int, before: Any, after: Any) -> None:
        say(f"{i + 1:4}  {steps[i]}")
        for line in changes(before, after):
            say(f"        {line}")

    try:
        replay(find(case["model"]).make(), steps, show)
    except Violation as violation:
        say(f"VIOLATED in step {len(violation.steps)}, {violation.steps[-1]}: {violation.what}")
        return 1
    except LookupError as error:
        say(f"the way is barred: {error}")
        return 2
    say(f"{len(steps)} steps, every invariant holds")
    return 0


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
