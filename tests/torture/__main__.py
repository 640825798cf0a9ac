"""`python -m torture --minutes M [--seed S]`: real processes on a real etcd, with every kind of fault. Exit status 0 only when clean."""

from __future__ import annotations

import argparse
import asyncio
import logging
import shutil
import sys
import tempfile
import time
from pathlib import Path

import structlog

from planted.bugs import BUGS
from support.again import make
from torture.faults import ALL_KINDS
from torture.report import Report
from torture.run import EVERY_KIND_MINUTES, RATE, Torture


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="torture", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="of faults; the drain comes on top (default 10)")
    parser.add_argument("--seed", type=int, help="for the order and the moments of the faults (default: of the clock)")
    parser.add_argument("--rate", type=float, default=RATE, help=f"messages a second in each direction (default {RATE:g})")
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object")
    parser.add_argument("--keep", type=Path, help="folder for data and logs (default: a temporary one, removed when clean)")
    parser.add_argument("--only", action="append", default=[], metavar="KIND", help="only this kind of fault (may be said again)")
    parser.add_argument("--planted", default="", metavar="BUG", choices=list(BUGS), help="with this bug in every process")
    options = parser.parse_args(arguments)
    if unknown := set(options.only) - ALL_KINDS:
        parser.error(f"no such kind of fault: {', '.join(sorted(unknown))}; there are: {', '.join(sorted(ALL_KINDS))}")
    seed = options.seed if options.seed is not None else time.time_ns() % 1_000_000
    directory = options.keep.absolute() if options.keep else Path(tempfile.mkdtemp(prefix="qsg-torture-"))
    out = sys.stderr if options.json else sys.stdout

    def say(text: str) -> None:
        out.write(text + "\n")
        out.flush()

    _quiet(directory)
    run = Torture(directory, minutes=options.minutes, seed=seed, rate=options.rate, only=options.only, planted=options.planted, say=say)
    report = asyncio.run(run.run())
    if report.missing and options.minutes >= EVERY_KIND_MINUTES:
        report.problems.append(f"seed {seed}: these kinds of fault never came: {', '.join(report.missing)}")
    if report.clean and options.keep is None:
        shutil.rmtree(directory, ignore_errors=True)
    else:
        report.logs, report.again = str(directory), _again(options, seed)
    _tell(report, as_json=options.json)
    return 0 if report.clean else 1


def _again(options: argparse.Namespace, seed: int) -> str:
    told = ["--seed", str(seed), *(word for kind in options.only for word in ("--only", kind))]
    told += ["--planted", options.planted] if options.planted else []
    told += ["--rate", f"{options.rate:g}"] if options.rate != RATE else []
    return make("torture", told, MINUTES=f"{options.minutes:g}")


def _quiet(directory: Path) -> None:
    """What this process's own clients have to say goes to a file."""
    folder = directory / "log"
    folder.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(level=logging.INFO, filename=folder / "torture.log", format="%(asctime)s %(levelname)s %(message)s", force=True)
    structlog.configure(logger_factory=structlog.stdlib.LoggerFactory(), processors=[structlog.processors.JSONRenderer()])


def _tell(report: Report, *, as_json: bool) -> None:
    out = sys.stderr if as_json else sys.stdout
    lines = ["", "gaps in arrivals by kind of fault (ms; detect, claim, resume: median/longest)", report.table(), ""]
    lines += [f"{kind}: {effect}" for kind, effect in sorted(report.effects.items())]
    lines += report.problems
    lines += [f"data and logs: {report.logs}", f"the same faults again: {report.again}"] if report.logs else []
    out.write("\n".join([*lines, report.line()]) + "\n")
    if as_json:
        sys.stdout.write(report.json() + "\n")


if __name__ == "__main__":
    sys.exit(main())
