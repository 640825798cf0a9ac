"""The observers of the simulation find what they are for, and the seed says how to see it again."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

import pytest
from google.protobuf.message import Message

from planted.bugs import planted
from qsg.pb import records_pb2 as pb
from qsg.rules import keys
from qsg.store.contract import Delete, Put
from simulation import __main__ as command
from simulation import seeds
from simulation.faults import Faults
from simulation.knots import IDLE_S, KNOTS_MAX, draw
from simulation.landscape import MEMBERS, Channels, Landscape
from simulation.loop import SimLoop
from simulation.plan import FAULTS_LEAST, KINDS, LOAD_S, PUT, Event, base
from simulation.run import run
from support.histories import Ownership

pytestmark = pytest.mark.timeout(300)

SEEDS = 12
"""Most find it in the first or second; which one that is changes with every change of the product."""


@pytest.mark.parametrize(
    ("bug", "told"),
    [
        ("deleted_before_the_confirm", "is deleted, and "),
        ("confirmed_before_the_commit", "confirmed, and "),
        ("watch_from_the_wrong_revision", "a live copy of "),
        ("verdict_by_name", "and lives, is declared dead by "),
    ],
)
def test_what_is_wrong_is_told(bug: str, told: str) -> None:
    seen: list[str] = []
    for seed in range(SEEDS):
        with planted(bug):
            seen += run(draw(seed)).violations
        if any(told in violation for violation in seen):
            return
    raise AssertionError(seen[:3])


def test_an_entry_that_outlives_its_owner_is_told() -> None:
    """At the end, also of an owner whose next incarnation lives."""
    loop = SimLoop("entries")
    land = Landscape(loop, "0", ("admin",), lambda where, what: None, Channels())
    try:
        history = land.observer.histories["admin"]
        live = history.live = dict.fromkeys(MEMBERS, 7) | {"Y": 8}

        def checked(owner: str, incarnation: int) -> list[str]:
            started = pb.ChannelStatus(channel="C", partner="R", owner=owner, owner_incarnation=incarnation, state=pb.RUNNING)
            history.table.saw(keys.status_in("C", "R"), started.SerializeToString())
            del land.violations[:]
            land.observer._check_keys("admin", land.structures["admin"])
            return land.violations[:]

        assert checked("X", live["X"]) == checked("Y", live["Y"]) == []
        for owner, incarnation in (("X", 6), ("Y", 7), ("V", 7)):
            (told,) = checked(owner, incarnation)
            assert told.endswith(f"ti/C/R is still owned by {owner} {incarnation}, which is gone")
    finally:
        land.close()
        loop.close()


@pytest.fixture
def land() -> Iterator[Landscape]:
    loop = SimLoop("told")
    made = Landscape(loop, "0", ("admin",), lambda where, what: None, Channels())
    yield made
    made.close()
    loop.close()


def write(land: Landscape, *records: tuple[bytes, Message | None]) -> None:
    ops = [Delete(key) if record is None else Put(key, record.SerializeToString()) for key, record in records]

    async def committed() -> None:
        land.structures["admin"].txn((), ops, ())

    land.loop.run_until_complete(committed())


@pytest.mark.parametrize("deleted", [False, True])
def test_a_fence_that_is_closed_over_what_the_partner_has_is_told(land: Landscape, deleted: bool) -> None:
    fence = pb.SenderFence(stream=b"s", epoch=1, open=True, channel="G.R", partner="R")
    header = keys.header("R", 5, keys.suffix("X.0", 1, 1))
    write(land, (keys.sender_fence("R"), fence), (header, pb.SegmentHeader(entries=[pb.Entry()])))
    position = pb.Position(create_revision=land.structures["admin"].state.revision, suffix=bytes(keys.suffix("X.0", 1, 1)), index=0)
    write(land, (keys.receiver_progress(b"s"), pb.Progress(confirmed={5: position})))
    fence.open = False
    del land.violations[:]
    write(land, (keys.sender_fence("R"), fence), *([(header, None)] if deleted else []))
    assert [v for v in land.violations if "which the partner has" in v] == land.violations and bool(land.violations) != deleted


@pytest.mark.parametrize("commanded", [False, True])
def test_a_channel_that_leaves_stopped_without_a_command_is_told(land: Landscape, commanded: bool) -> None:
    write(land, (keys.status_out("G.R"), pb.ChannelStatus(channel="G.R", owner="X", state=pb.STOPPED)))
    land.releasing["G.R"] += commanded
    del land.violations[:]
    write(land, (keys.status_out("G.R"), None))
    assert bool(land.violations) != commanded and all("no command was given" in v for v in land.violations)


def test_a_channel_that_runs_without_its_lock_is_told(land: Landscape) -> None:
    entry = pb.ChannelStatus(channel="G.R", transmission_queue="R", owner="X", epoch=1, state=pb.RUNNING)
    ownership = land.observer.histories["admin"].queues["R"] = Ownership("R", pb.Lock(member="X", epoch=1))
    land.observer._check_lock(entry, "admin")
    assert not land.violations
    ownership.lock = None
    land.observer._check_lock(entry, "admin")
    assert land.violations[0].endswith("without its lock")


def test_a_bug_makes_the_command_fail_with_a_seed_to_be_seen_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in (command, seeds):
        monkeypatch.setattr(module, "prepare", lambda planted, logs=False: None)  # it is for a process of its own
    with planted("claims_not_released"):
        assert command.main(["--seeds", "20", "--jobs", "1", "--only", "kill queue manager"]) == 1
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1].endswith("failed 1")
    whole = re.search(r"see it again: make simulate SEED=(\d+) ARGS=\"(--only 'kill queue manager')\"", printed)
    fewer = re.search(r"see that: make simulate SEED=(\d+) ARGS=\"(--only 'kill queue manager' --events [0-9,none]+)\"", printed)
    assert whole and fewer
    for told in (whole, fewer):
        with planted("claims_not_released"):
            assert command.main(["--seed", told[1], *shlex.split(told[2])]) == 1
        trace = capsys.readouterr().out
        assert f"seed {told[1]}, structures " in trace and "VIOLATED " in trace
    assert command.main(["--seed", fewer[1], *shlex.split(fewer[2])]) == 0, "without the bug it holds"


def test_seeds_that_were_not_played_are_a_failure(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for module in (command, seeds):
        monkeypatch.setattr(module, "prepare", lambda planted, logs=False: None)
    assert command.main(["--seeds", "3", "--jobs", "1", "--minutes", "0"]) == 1
    *_, late, last = capsys.readouterr().out.splitlines()
    assert late == "1 of 3 seeds: not all were played within 0 minutes" and last.endswith("failed 0")
    assert command.main(["--seeds", "1", "--jobs", "1", "--minutes", "0"]) == 0, "the time was over, and all were played"
    assert "not all" not in capsys.readouterr().out


def test_only_some_kinds_of_fault() -> None:
    for number in range(5):
        events = draw(number, ("disk full", "power loss")).events
        assert {event.kind for event in events} - {"stop", "start", "reset", "resolve"} <= {"disk full", "power loss"}
    assert draw(3, ()) == draw(3)


def test_every_seed_has_ten_faults_or_more() -> None:
    """Commands, and messages put at some moment, are none."""
    least = min(sum(event.kind in KINDS for event in draw(number).events) for number in range(3000))
    assert least == FAULTS_LEAST


def test_no_fault_is_left_out() -> None:
    """Who owns a channel is known when the time comes; it may be the host that a path of it was to lead to."""
    loop = SimLoop("paths")
    land = Landscape(loop, "0", ("admin",), lambda where, what: None, Channels())
    try:
        faults = Faults(land)
        for where, detail in (("owner of G.R", MEMBERS[0]), ("S", "S"), ("S", "X")):
            faults.do(Event(3.0, "path cut", where, 1.0, detail))
        assert land.counted == {"path cut": 3}
        assert {frozenset(pair) for pair in faults._cuts} >= {frozenset({MEMBERS[0], MEMBERS[1]}), frozenset({"S", "X"})}
    finally:
        land.close()
        loop.close()


def test_commands_that_are_refused_are_not_done() -> None:
    """A channel cannot be resolved before it is stopped."""
    asked = [Event(6.0, "resolve", "G.R", 0.0, "backout"), Event(8.0, "stop", "G.R", 0.0, "quiesce stopped")]
    result = run(draw(1), asked)
    assert result.violations == []
    assert (result.events["resolve"], result.events["stop"], result.done) == (1, 1, {"stop": 1})
    total = command.Total()
    total.add(result)
    assert "commands tried 2, done 1 (reset 0 of 0, resolve 0 of 1, start 0 of 0, stop 1 of 1); " in str(total)


def test_knots_take_the_place_of_single_faults() -> None:
    plans = [(base(number), draw(number)) for number in range(40)]
    tied = [(before, after) for before, after in plans if before.events != after.events]
    assert len(tied) > len(plans) / 2
    for before, after in tied:
        added = [event for event in after.events if event not in before.events]
        assert added and {event.kind for event in added} <= {*KINDS, PUT, "stop", "start"}
        faults, more = (sum(e.kind in KINDS for e in plan.events) for plan in (before, after))
        assert faults <= more <= faults + 3 * KNOTS_MAX, "as many, or what the knots need"
        assert all(0 < e.at < LOAD_S for e in after.events) and list(after.events) == sorted(after.events, key=lambda e: (e.at, str(e)))
    assert {plan.batch for _, plan in plans} == {0, 2} and {plan.idle_s for _, plan in plans} == {0.0, IDLE_S}
