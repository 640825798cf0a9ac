"""The simulation itself: seeds hold, the same seed is the same history, failures shrink; and seeds that once found a bug."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace

import pytest

from planted.bugs import planted
from simulation import tangles
from simulation.knots import draw
from simulation.plan import Event, base
from simulation.run import run
from simulation.shrink import shrink
from simulation.tally import Tally
from simulation.traces import Printer

pytestmark = pytest.mark.timeout(300)  # a second or two each, on a machine that has nothing else to do

ONCE_FAILED = {
    "a record of what was backed out outlives its segment": replace(base(3002), poacher=True, quiet=(), calm=False),
    "a member that stops and cannot leave every structure was taken for one that lives": replace(
        base(31679),
        poacher=True,
        idle_s=1.5,
        events=(
            Event(15.811446751214238, "everything dies", for_s=0.9637314518774855),
            Event(16.88910770373722, "store out of reach", "owner of S.G", 2.0066166518419326, "app1"),
            Event(17.430166913814993, "drain", "owner of G.S", 2.5599779995969696),
        ),
    ),
}
"""What a seed has found -> its plan."""


def history(seed: int) -> str:
    """Everything that is traced, and how many steps it took."""
    out = io.StringIO()
    printer = Printer(out)
    with printer.logs():
        result = run(draw(seed), trace=printer)
    return hashlib.sha256(f"{out.getvalue()}{result.steps}{result.counts}".encode()).hexdigest()


@pytest.mark.parametrize("seed", range(3))
def test_every_invariant_holds(seed: int) -> None:
    result = run(draw(seed))
    assert result.violations == []
    assert result.counts.sent > 10 and result.counts.lost == result.counts.duplicated == 0
    assert sum(result.events.values()) >= 10 and result.simulated_s >= 60


def test_a_tangled_seed_holds_and_has_what_it_aims_at() -> None:
    result = run(tangles.draw(0))
    assert result.violations == []
    assert result.events["answers lost"] + result.events["late"] > 0 and result.done["start"] and result.done["stop"]


@pytest.mark.parametrize("found", ONCE_FAILED)
def test_what_once_failed_holds(found: str) -> None:
    assert run(ONCE_FAILED[found]).violations == []


def test_the_tally_tells_what_became_of_each_message() -> None:
    tally = Tally()
    bodies = {}
    for number in range(1, 7):
        sent, body = tally.send("f", 0, 50, expires=number == 6)
        bodies[number] = body
        sent.state = {3: "refused", 4: "unknown"}.get(number, "acknowledged")
        tally.ids[b"%d" % number] = sent
    tally.committing([bodies[n] for n in (1, 1, 3, 4)])
    tally.arrived([bodies[n] for n in (1, 1, 3, 4)])
    tally.arrived([b"nobody sent this"])
    for revision, number in enumerate((5, 2)):
        tally.published("R", revision, "IN.R", b"%d" % number)
    counts = tally.counts()
    assert (counts.sent, counts.acknowledged, counts.ok, counts.lost) == (6, 4, 1, 2)
    assert (counts.duplicated, counts.unexpected, counts.recovered, counts.out_of_order, counts.expired) == (1, 2, 1, 1, 1)


def test_another_seed_is_another_history() -> None:
    assert history(7) != history(8)


def test_the_same_seed_is_the_same_history_in_another_process() -> None:
    """Also 2954, where getters once woke in the order of a set of names; 285, where a drain ended sessions in that of their addresses."""
    code = "import logging; logging.disable(50); from simulation.test_simulation import history; print(*map(history, (7, 2954, 285)))"
    told = set()
    for hash_seed in ("1", "3"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        told.add(done.stdout.strip())
    assert len(told) == 1 and all(told)


def test_a_failure_shrinks_to_the_events_that_matter() -> None:
    events = draw(3).events
    guilty = {events[2], events[-1]}
    tried: list[int] = []

    def fails(some: Sequence[Event]) -> bool:
        tried.append(len(some))
        return guilty <= set(some)

    assert set(shrink(events, fails)) == guilty
    assert len(tried) < 60
    assert shrink(events, fails, seconds=0.0) == list(events), "it ends in time"


def test_a_hasty_run_ends_with_what_is_violated_first() -> None:
    with planted("acknowledged_before_the_commit"):
        whole, hasty = run(draw(0)), run(draw(0), hasty=True)
    assert hasty.violations[0] == whole.violations[0]
    assert hasty.simulated_s < whole.simulated_s / 2
