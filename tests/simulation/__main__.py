"""`python -m simulation`: many seeds, or one with a readable trace. Exit status 0: all seeds were played, and in
each every invariant held.

A failure prints its seed and the shortest list of its events that still fails, numbered as in the seed's whole list, so that `--events`
plays these alone.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from math import inf

from simulation.plan import KINDS, Plan
from simulation.run import COMMANDS, Result, run
from simulation.seeds import draw, prepare, results
from simulation.shrink import shrink
from simulation.tally import Counts
from simulation.traces import Printer
from support.again import make

SHOWN = 12
say = partial(print, flush=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=100, help="how many (default 100)")
    parser.add_argument("--from", type=int, default=0, dest="first", help="the first seed")
    parser.add_argument("--seed", type=int, help="only this one, with a readable trace")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: one a core)")
    parser.add_argument("--failures", type=int, default=1, help="go on until so many seeds have failed (default 1)")
    parser.add_argument("--minutes", type=float, default=inf, help="end after so long; that is a failure unless all seeds were played")
    parser.add_argument("--planted", metavar="NAME", help="with this bug planted")
    parser.add_argument(
        "--only", action="append", default=[], metavar="KIND", choices=sorted(KINDS), help="this kind of fault; may be repeated"
    )
    parser.add_argument("--tangled", action="store_true", help="other histories: little but knots, each at one channel and member")
    parser.add_argument("--no-shrink", action="store_true", help="leave a failing seed's list of events as it is")
    parser.add_argument("--events", type=numbers, metavar="N,N", help="of --seed, only the events with these numbers (or: none)")
    options = parser.parse_args(arguments)
    if options.seed is not None:
        return one(options)
    return many(options)


def numbers(text: str) -> list[int]:
    return [] if text == "none" else [int(number) for number in text.split(",")]


def one(options: argparse.Namespace) -> int:
    prepare(options.planted, logs=True)
    printer = Printer(sys.stdout)
    plan = draw(options.seed, options.only, tangled=options.tangled)
    chosen = range(len(plan.events)) if options.events is None else options.events
    printer.plan(plan, chosen)
    with printer.logs():
        result = run(plan, [plan.events[number] for number in chosen], printer)
    say(f"seed {options.seed}: {result.counts}; {result.simulated_s:.0f} s simulated, drained {result.drained_s:.1f} s after the faults")
    for violation in result.violations:
        say(f"VIOLATED {violation}")
    return 1 if result.violations else 0


def many(options: argparse.Namespace) -> int:
    began = time.monotonic()
    total = Total()
    failed: list[Result] = []
    seeds = range(options.first, options.first + options.seeds)
    for result in results(seeds, options.jobs, options.planted, options.only, tangled=options.tangled):
        total.add(result)
        if result.violations:
            failed.append(result)
            say(f"seed {result.plan.seed} FAILED: {result.violations[0]}")
            if len(failed) >= options.failures:
                break
        if time.monotonic() - began > 60 * options.minutes:
            break
    prepare(options.planted)
    for result in failed:
        _explain(result, options)
    late = not failed and total.seeds < options.seeds
    if late:
        say(f"{total.seeds} of {options.seeds} seeds: not all were played within {options.minutes:g} minutes")
    say(f"{total} in {time.monotonic() - began:.0f} s; failed {len(failed)}")
    return 1 if failed or late else 0


class Total:
    def __init__(self) -> None:
        self.seeds = 0
        self.hours = 0.0
        self.events: Counter[str] = Counter()
        self.done: Counter[str] = Counter()
        self.counts = Counts()
        self.drained_s = 0.0

    def add(self, result: Result) -> None:
        self.seeds += 1
        self.hours += result.simulated_s / 3600
        self.events += result.events
        self.done += result.done
        self.counts.add(result.counts)
        self.drained_s = max(self.drained_s, result.drained_s)

    def __str__(self) -> str:
        faults = {kind: n for kind, n in self.events.items() if kind not in COMMANDS}
        tried = sum(self.events.values()) - sum(faults.values())
        done = ", ".join(f"{kind} {self.done[kind]} of {self.events[kind]}" for kind in sorted(COMMANDS))
        kinds = ", ".join(f"{kind} {n}" for kind, n in sorted(faults.items()))
        return (
            f"simulated: {self.seeds} seeds, {self.hours:.1f} hours, {sum(faults.values())} faults ({kinds}); "
            f"commands tried {tried}, done {self.done.total()} ({done}); "
            f"messages: {self.counts}; drained within {self.drained_s:.1f} s"
        )


def _again(options: argparse.Namespace, seed: int, events: Sequence[int] | None = None) -> str:
    """The command that plays a seed, or some of its events, again."""
    told = ["--planted", options.planted] if options.planted else []
    told += ["--tangled"] * options.tangled
    told += [word for kind in options.only for word in ("--only", kind)]
    told += [] if events is None else ["--events", ",".join(map(str, events)) or "none"]
    return make("simulate", told, SEED=seed)


def _explain(result: Result, options: argparse.Namespace) -> None:
    plan = result.plan
    say(f"\nseed {plan.seed} violates:")
    for violation in result.violations[:SHOWN]:
        say(f"  {violation}")
    say(f"see it again: {_again(options, plan.seed)}")
    if options.no_shrink:
        return
    kept = shrink(range(len(plan.events)), lambda some: bool(_first(plan, some)))
    what = _first(plan, kept)
    say(f"with {len(kept)} of {len(plan.events)} events alone (structures {', '.join(plan.structures)}): {what}")
    for number in kept:
        say(f"  {number:2} {plan.events[number]}")
    say(f"see that: {_again(options, plan.seed, kept)}\n")


def _first(plan: Plan, events: Sequence[int]) -> str:
    """What some of the events alone violate first."""
    violations = run(plan, [plan.events[number] for number in events], hasty=True).violations
    gc.collect()
    return violations[0] if violations else ""


if __name__ == "__main__":
    sys.exit(main())
