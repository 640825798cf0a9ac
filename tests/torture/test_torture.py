"""Torture as a command, for a moment; and what it judges by: histories, leftovers, its report."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from qsg.pb import records_pb2 as pb
from qsg.process.children import bound_to_parent
from qsg.process.ledger import Counts, Ledger, payload
from qsg.process.local import REMOTE
from qsg.rules import keys, status
from qsg.store.contract import Event, KeyValue
from torture import __main__ as command
from torture.audit import Audit, Seen
from torture.faults import KINDS, POINT_KINDS
from torture.history import Change, History, Takeover
from torture.leftovers import count, leftovers, unused
from torture.report import Measured, Report
from torture.run import Torture


async def torture(folder: Path, *arguments: str) -> tuple[int | None, dict[str, Any], str]:
    """Exit status, the JSON of the last line, what people are told."""
    argv = [sys.executable, "-m", "torture", "--json", "--keep", str(folder / "kept"), *arguments]
    process = await asyncio.create_subprocess_exec(
        *bound_to_parent(argv), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, cwd=Path(__file__).parents[1]
    )
    out, told = await process.communicate()
    return process.returncode, json.loads(out.decode().splitlines()[-1]), told.decode()


@pytest.mark.processes
@pytest.mark.etcd
@pytest.mark.timeout(600)
async def test_a_moment_of_torture(tmp_path: Path) -> None:
    kinds = [
        "kill queue manager",
        "cut from everything",
        "kill at receiver.after_commit_before_confirm",
        "pause at put.after_commit_before_answer",
    ]
    status, found, told = await torture(tmp_path, "--minutes", "0.25", "--seed", "5", *(w for kind in kinds for w in ("--only", kind)))
    assert status == 0, told
    assert found["clean"] is True
    assert found["attempt"] == found["acknowledged"] == found["ok"] + found["lost"] > 500
    assert not any(found[n] for n in ("lost", "duplicated", "unexpected", "out_of_order", "missing", "problems"))
    assert set(found["faults"]) == set(kinds)
    assert {row["kind"] for row in found["gaps"]} == {*kinds[:2], "all"}
    assert found["changes"] > 10 and found["reads"] > 50
    assert "CLEAN seed 5" in told.splitlines()[-1]


@pytest.mark.processes
@pytest.mark.etcd
@pytest.mark.timeout(600)
async def test_with_a_bug_planted_it_fails_and_says_how_to_draw_the_same_faults_again(tmp_path: Path) -> None:
    """The fault is one that the bug cannot survive: what was stored and not confirmed is certainly sent again, and taken again."""
    kind = "kill at receiver.after_commit_before_confirm"
    bug = ("--only", kind, "--planted", "positions_not_checked")
    status, found, told = await torture(tmp_path, "--minutes", "0.2", "--seed", "3", *bug)
    assert status == 1 and found["clean"] is False, told
    assert found["duplicated"] > 0, told
    problems = [re.fullmatch(rf"seed 3, phase \d+, storm of {re.escape(kind)}: (.+)", text) for text in found["problems"]]
    assert problems and all(problems), "each says where it was found"
    assert any(re.match(r"(out|in): Counts\(.*duplicated=[1-9]", problem[1]) for problem in problems if problem), told
    again = f"make torture MINUTES=0.2 ARGS=\"--seed 3 --only '{kind}' --planted positions_not_checked\""
    assert found["again"] == again and f"the same faults again: {again}" in told
    assert told.splitlines()[-1].startswith("BROKEN seed 3")


def test_the_same_seed_draws_the_same_faults(tmp_path: Path) -> None:
    def drawn(seed: int) -> tuple[list[str], list[str], list[float]]:
        run = Torture(tmp_path, minutes=3.0, seed=seed)
        return list(run._alone), list(run._points), [run.random.random() for _ in range(5)]

    assert drawn(3) == drawn(3) != drawn(4)
    assert set(drawn(3)[0]) == KINDS.keys() and set(drawn(3)[1]) == POINT_KINDS.keys()


def test_a_kind_that_does_not_exist_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["--only", "kill everybody"])
    assert "kill everybody" in capsys.readouterr().err


def test_every_place_is_killed_and_paused() -> None:
    assert len(POINT_KINDS) == 2 * len({point for point, _ in POINT_KINDS.values()})
    assert not KINDS.keys() & POINT_KINDS.keys()


# Reads of the registers of ownership


def audited(*changes: tuple[int, float, bool], reads: list[tuple[float, float, int, int]]) -> list[str]:
    """Changes of a lock: (revision, when seen, deleted); reads: (start, end, revision shown, revision of the store)."""
    lock = keys.lock(REMOTE)
    made = [Change(Event(KeyValue(lock, b"", 1, revision, 1, 0), deleted=deleted), at=at) for revision, at, deleted in changes]
    audit = Audit([], [Seen(lock, start, end, mod, revision) for start, end, mod, revision in reads])
    return audit.problems(made)


TAKEN_GIVEN_TAKEN = ((5, 1.0, False), (8, 2.0, True), (9, 3.0, False))


def test_reads_that_go_with_the_history() -> None:
    reads = [(0.0, 0.2, 0, 3), (0.3, 0.9, 5, 6), (1.1, 1.5, 5, 7), (1.2, 1.9, 0, 8), (1.9, 2.5, 9, 9), (2.0, 2.6, 0, 8), (3.0, 3.1, 9, 9)]
    assert audited(*TAKEN_GIVEN_TAKEN, reads=reads) == []


@pytest.mark.parametrize(
    "stale",
    [
        [(1.5, 1.6, 0, 4)],  # free, though it was seen taken before
        [(2.5, 2.6, 5, 7)],  # taken, though it was seen given up
        [(1.1, 1.2, 9, 9), (1.3, 1.4, 5, 7)],  # what one has read, the next has not
    ],
)
def test_a_stale_read_is_told(stale: list[tuple[float, float, int, int]]) -> None:
    (problem,) = audited(*TAKEN_GIVEN_TAKEN, reads=stale)
    assert "not linearizable" in problem


def test_an_hour_is_judged_at_once() -> None:
    """Searched for an order, it was not within half an hour."""
    changes = [(2 * n, float(n), False) for n in range(1, 20_001)]
    reads = [(n - 0.5, n + 0.4, 2 * n, 2 * n) for n in range(1, 20_001)]
    assert audited(*changes, reads=reads) == []
    (problem,) = audited(*changes, reads=[*reads, (15_000.5, 15_000.6, 29_998, 29_999)])
    assert "revision 30000 was seen by 15000.000" in problem
    (problem,) = audited(*changes, reads=[(1.0, 2.0, 7, 8)])
    assert "revision 7 was read" in problem


# Histories


def entry(state: status.State, *, epoch: int = 1, resume_ms: float = 0.0) -> bytes:
    made = pb.ChannelStatus(channel="C", owner="X", state=state, epoch=epoch)
    if resume_ms:
        made.takeover.CopyFrom(pb.Takeover(to="X", cause="test", detect_ms=1, claim_ms=2, resume_ms=resume_ms))
    return made.SerializeToString()


def history(*values: bytes | None, key: bytes = b"", broken: tuple[int, ...] = ()) -> History:
    made = History([])
    for revision, value in enumerate(values, start=1):
        kv = KeyValue(key or keys.status_out("C"), value or b"", 1, revision, 1, 0)
        made.add(Change(Event(kv, deleted=value is None), broken=revision in broken))
    return made


def test_a_legal_history_has_no_problems() -> None:
    made = history(
        entry(pb.STARTING), entry(pb.RUNNING), entry(pb.RECOVERING), entry(pb.STARTING, epoch=2), entry(pb.RUNNING, epoch=2), None
    )
    assert made.problems() == []


def test_an_illegal_transition_is_found() -> None:
    (problem,) = history(entry(pb.STARTING), entry(pb.STOPPED)).problems()
    assert "revision 2" in problem and "STARTING -> STOPPED" in problem


def test_of_what_a_compaction_took_away_nothing_is_said() -> None:
    assert history(entry(pb.STARTING), entry(pb.STOPPED), broken=(2,)).problems() == []


def test_an_epoch_that_goes_back_is_found() -> None:
    fence = [pb.SenderFence(stream=b"s", epoch=epoch).SerializeToString() for epoch in (2, 1)]
    assert len(history(*fence, key=keys.sender_fence("R")).problems()) == 1


def test_each_takeover_is_noted_once() -> None:
    made = history(entry(pb.STARTING), entry(pb.RUNNING, resume_ms=5), entry(pb.RUNNING, resume_ms=5), entry(pb.RUNNING, resume_ms=6))
    assert [t.resume_ms for t in made.takeovers] == [5, 6]


# Leftovers


def test_what_is_left_over() -> None:
    before = Counter({"m": 3, "p": 4})
    present = [b"m/X", b"m/Y", b"m/Z", b"p/a", b"q/R/d", b"q/R/l", b"q/R/n/X.0", b"q/R/n/Y.0"]
    assert leftovers(before, count(present), lanes=6) == []
    assert leftovers(before, count([*present, b"q/R/h/0/x"]), lanes=6) == ["1 of q/R/h, 0 expected"]
    assert leftovers(before, count([*present, *(b"p/%d" % n for n in range(5))]), lanes=6) == ["6 of p, 4 expected"]
    assert leftovers(before, count([*present, *(b"p/%d" % n for n in range(5))]), lanes=6, interruptions=2) == []
    assert leftovers(before, count(present), lanes=1) == ["2 of q/R/n, 1 expected"]


def test_what_has_not_been_used_yet() -> None:
    """Counted before a channel has run, all that it writes would be left over."""
    used = [b"m/X", b"t/C", b"ti/C/R", b"s/R", b"sp/R", b"r/R", b"rp/R", b"q/R/l", b"p/a"]
    assert unused(count(used)) == []
    assert unused(count(used[:3])) == ["q/R/l", "r", "rp", "s", "sp"]


# The count, and the report


def test_what_comes_back_from_a_lost_unit_is_not_out_of_order() -> None:
    ledger = Ledger(1)
    ledger.sent(0, 4)
    for number, sent_at in ((2, 1.0), (1, 1.0)):
        ledger.interrupted(2.0)
        ledger.arrived(payload(0, number, sent_at, 100), 3.0)
    assert (ledger.counts().out_of_order, ledger.counts().returned) == (0, 1)
    for number, sent_at in ((4, 5.0), (3, 5.0)):
        ledger.arrived(payload(0, number, sent_at, 100), 6.0)
    assert (ledger.counts().out_of_order, ledger.counts().returned) == (1, 1), "what was put after the loss must come in order"
    assert ledger.recovered == 4


def test_a_report() -> None:
    takeover = Takeover("C", "X", "Y", "test", 1.0, 20.0, 300.0)
    measured = [Measured("kill member", gap, (takeover,)) for gap in (100.0, 200.0, 400.0)]
    report = Report(7, 3.0, Counts(sent=5, acknowledged=5, received=5, ok=5, returned=2), faults={"kill member": 3}, measured=measured)
    assert report.clean
    assert report.line().startswith("CLEAN seed 7: attempt 5, acknowledged 5, ok 5, lost 0")
    found = json.loads(report.json())
    assert found["gaps"][0]["gap_p50_ms"] == 200.0 and found["gaps"][0]["gap_max_ms"] == 400.0
    assert found["gaps"][0]["claim_max_ms"] == 20.0
    assert found["returned"] == 2 and "out of order 0 (returned 2)" in report.line()
    assert "20/20" in report.table()
    report.counts.lost = 1
    assert not report.clean and report.line().startswith("BROKEN")
    report.counts.lost = 0
    report.problems.append("seed 7, phase 2, kill member: not within 40 s")
    assert not report.clean
