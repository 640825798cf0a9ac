"""`qsg demo` as a command: its verdict, its exit codes and its JSON, and that nothing of it remains."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from rich.console import Console
from typer.testing import CliRunner

from qsg.cli import demo as command
from qsg.cli.main import build
from qsg.process.children import bound_to_parent
from qsg.process.demo import Demo, Result, Takeover, from_logs
from qsg.process.ledger import Counts, Ledger, payload
from support.group import eventually
from support.processes import is_alive

MESSAGES = 600
FIELDS = (
    "sent acknowledged received ok lost duplicated unexpected out_of_order returned takeovers max_gap_ms worst_wait_ms "
    "wait_p50_ms wait_p99_ms rate_per_s duplicates_suppressed fenced_writes dead_letters clean error"
)
TAKEOVER = "cause channel from to detect_ms claim_ms resume_ms gap_ms worst_wait_ms"


@pytest.mark.processes
@pytest.mark.timeout(400)
@pytest.mark.parametrize(("kill", "kills", "direction"), [("initiator", 2, "out"), ("queue-manager", 2, "both")])
async def test_a_small_demo(kill: str, kills: int, direction: str, tmp_path: Path) -> None:
    options = ["--messages", MESSAGES, "--rate", 200, "--size", 100, "--kill", kill, "--kills", kills, "--direction", direction]
    process = await start(*options, "--json", "--keep", tmp_path / "kept")
    out, told = await process.communicate()

    assert process.returncode == 0, told.decode()
    result = json.loads(out.decode().splitlines()[-1])
    check(result, MESSAGES * (2 if direction == "both" else 1))
    assert len(result["takeovers"]) == kills
    for number, takeover in enumerate(result["takeovers"]):
        inbound = direction == "both" and number % 2 == 1
        assert list(takeover) == TAKEOVER.split()
        assert (takeover["cause"], takeover["channel"]) == (kill, "R.TO.QSG" if inbound else "QSG.TO.R")
        assert {takeover["from"], takeover["to"]} <= set("XYZ")
        if takeover["from"] != takeover["to"]:  # of what went back to its owner no parts are told
            assert 0 <= takeover["detect_ms"] < 60_000
        if inbound or takeover["from"] == takeover["to"]:
            assert takeover["claim_ms"] is takeover["resume_ms"] is None
        else:
            assert 0 <= takeover["claim_ms"] <= takeover["resume_ms"]
            assert takeover["resume_ms"] > 0
        assert takeover["worst_wait_ms"] >= 0  # 0: on a slow machine all that was allowed had come before the kill
    assert "EXACTLY ONCE" in told.decode()
    assert (tmp_path / "kept" / "log" / "X.log").exists()


def check(result: dict[str, Any], total: int) -> None:
    assert list(result) == FIELDS.split()
    assert [result[n] for n in ("sent", "acknowledged", "received", "ok")] == [total] * 4
    assert not any(result[n] for n in ("lost", "duplicated", "unexpected", "out_of_order", "dead_letters", "error"))
    assert result["clean"] is True
    assert 0 <= result["max_gap_ms"] <= 120_000
    assert 0 < result["wait_p50_ms"] <= result["wait_p99_ms"] <= result["worst_wait_ms"]
    assert 0 < result["rate_per_s"]


async def start(*options: object) -> asyncio.subprocess.Process:
    argv = [sys.executable, "-m", "qsg.cli.main", "demo", *map(str, options)]
    return await asyncio.create_subprocess_exec(*bound_to_parent(argv), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE)


@pytest.mark.processes
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
async def test_nothing_remains_of_a_demo_that_is_ended(number: signal.Signals, tmp_path: Path) -> None:
    process = await start("--keep", tmp_path / "kept", "--messages", 100_000)
    children: list[psutil.Process] = []

    def started() -> bool:
        children[:] = psutil.Process(process.pid).children(recursive=True)
        return len(children) == 9  # the store, and two for each of X, Y, Z and R

    await eventually(started, what="all have started")
    process.send_signal(number)
    told, _ = await process.communicate()
    assert process.returncode == {signal.SIGINT: 130, signal.SIGKILL: -signal.SIGKILL}[number]
    assert ("all processes have ended" in told.decode()) == (number == signal.SIGINT)
    await eventually(lambda: not any(is_alive(child) for child in children), what="all have ended")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--kill", "everyone"], "one of initiator, queue-manager"),
        (["--direction", "up"], "out, in or both"),
        (["--store", "paper"], "embedded, etcd or etcd://"),
        (["--store", "etcd://127.0.0.1:1", "--kill", "store"], "use --store etcd"),
        (["--messages", "0"], "--messages"),
        (["--rate", "fast"], "--rate"),
        (["--size", "21"], "greater than or equal to 22"),
        (["--size", "104857601"], "less than or equal to 104857600"),
        (["--keep", os.path.dirname(__file__)], "not an empty folder"),
        (["--nonsense"], "No such option"),
    ],
)
def test_wrong_usage(options: list[str], told: str) -> None:
    result = CliRunner(env={"COLUMNS": "300"}).invoke(build(["demo"]), ["demo", *options])
    assert (result.exit_code, result.stdout) == (2, "")
    assert told in result.stderr


@pytest.fixture
def outcome(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[Result]]:
    """The result with which the demo ends, instead of one that real processes give."""
    results: list[Result] = []

    async def run_demo(*_: object) -> Result:
        return results[0]

    monkeypatch.setattr(command, "run_demo", run_demo)
    monkeypatch.setattr(tempfile, "mkdtemp", lambda prefix: str(tmp_path / prefix))
    yield results


def ledger(*arrivals: int, interrupted_at: float = 0.0) -> Ledger:
    """Of one producer that sent 1 to 3, with all acknowledged."""
    made = Ledger(1)
    made.interrupted(interrupted_at)
    made.sent(0, 3)
    made.acknowledged(0, 3)
    for number in arrivals:
        made.arrived(payload(0, number, 0.0, 100), 1.0)
    return made


@pytest.mark.parametrize(
    ("arrivals", "error", "dead_letters", "told"),
    [
        ((1, 3), "", 0, "BROKEN: 1 lost"),
        ((1, 2, 2, 3), "", 0, "BROKEN: 1 twice"),
        ((2, 1, 3), "", 0, "BROKEN: 1 out of order"),
        ((1, 2, 3, 4), "", 0, "BROKEN: 1 unexpected"),
        ((1, 2, 3), "", 2, "BROKEN: 2 on dead-letter queues"),
        ((1, 2, 3), "waited [30] s", 0, "BROKEN: waited [30] s"),
    ],
)
def test_a_broken_ledger_fails(
    outcome: list[Result], arrivals: tuple[int, ...], error: str, dead_letters: int, told: str, tmp_path: Path
) -> None:
    outcome.append(Result(ledger(*arrivals).counts(), error=error, dead_letters=dead_letters))
    result = CliRunner().invoke(build(["demo"]), ["demo", "--json"])
    assert result.exit_code == 1
    assert json.loads(result.stdout.splitlines()[-1])["clean"] is False
    assert told in result.stderr
    assert "data and logs: " in result.stderr
    assert (tmp_path / "qsg-demo-").exists()


def test_a_clean_ledger_passes_and_leaves_nothing(outcome: list[Result], tmp_path: Path) -> None:
    outcome.append(Result(ledger(1, 2, 3).counts()))
    result = CliRunner().invoke(build(["demo"]), ["demo"])
    assert result.exit_code == 0
    assert "EXACTLY ONCE: 3 acknowledged, none lost, none twice, all in order" in result.stdout
    assert "out of order 0 (returned 0)" in result.stdout
    assert not (tmp_path / "qsg-demo-").exists()


def test_what_came_back_from_a_getter_is_told_and_passes(outcome: list[Result]) -> None:
    outcome.append(Result(ledger(2, 1, 3, interrupted_at=0.5).counts()))
    result = CliRunner().invoke(build(["demo"]), ["demo", "--json"])
    found = json.loads(result.stdout.splitlines()[-1])
    assert (result.exit_code, found["clean"], found["returned"], found["out_of_order"]) == (0, True, 1, 0)
    assert "none twice, in order but for 1 given back by a getter whose session ended" in result.stderr
    assert "out of order 0 (returned 1)" in result.stderr
    assert "all in order" not in result.stderr


def test_the_table_of_takeovers_fits() -> None:
    takeover = Takeover("queue-manager", "R.TO.QSG", "X", "Y", 0.0, 0.0, 1.0, 12.3, 45.6, 1234.5, 12345.6, 12345.6)
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(command.takeover_table(Result(Counts(), [takeover])))
    text = console.export_text()
    assert "…" not in text
    assert "queue-manager  R.TO.QSG" in text
    assert "1234  12346" in text
    assert len(text.splitlines()) <= 6


def test_what_was_not_told_of_a_takeover_is_no_number() -> None:
    """Nothing is not 0 ms: an outage of the store has no parts."""
    takeover = Takeover("store", "QSG.TO.R", "store", "", 0.0, gap_ms=7.0)
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(command.takeover_table(Result(Counts(), [takeover])))
    assert console.export_text().split()[-8:] == ["store", "QSG.TO.R", "store", "-", "-", "-", "7", "0"]
    assert [takeover.public()[name] for name in ("detect_ms", "claim_ms", "resume_ms")] == [None] * 3


def test_refused_writes_are_counted_and_not_who_noticed() -> None:
    """A member is fenced also when only a watch told it: that is no write."""
    lines = [
        {"event": "fenced", "member": "X", "cause": "our member key is gone"},
        {"event": "writes refused", "member": "X", "units": 3},
        {"event": "writes refused", "channel": "QSG.TO.R", "units": 1},
        {"event": "resynchronised", "covered": 5},
        {"event": "told", "what": "writes refused"},
    ]
    assert from_logs([*map(json.dumps, lines), 'Traceback: "writes refused"']) == (5, 4)


@pytest.mark.parametrize(
    ("told", "is_told"),
    [
        ({"from": "Z", "to": "X", "at_ms": 1040, "resume_ms": 30}, True),
        ({"from": "Z", "to": "X", "at_ms": 1040, "resume_ms": 0}, False),  # not yet resumed
        ({"from": "Y", "to": "X", "at_ms": 3600, "resume_ms": 1482}, True),  # by way of Y: the partner did not answer X in time at first
        ({"from": "Y", "to": "X", "at_ms": 900, "resume_ms": 30}, False),  # of an earlier fault
        ({}, False),
    ],
)
def test_a_takeover_in_several_steps_is_told_by_its_last(told: dict[str, Any], is_told: bool) -> None:
    takeover = Takeover("member", "QSG.TO.R", "Z", "X", at=1.0, wall_ms=1000.0)
    assert Demo._note_parts(takeover, {"takeover": told | {"claim_ms": 5.0}}) is is_told
    assert takeover.resume_ms == (told["resume_ms"] if is_told else None)


@pytest.mark.parametrize(
    ("kill", "told", "detect_ms"),
    [
        ("member", {"from": "Z", "to": "X", "at_ms": 1040}, 40.0),
        ("drain", {"from": "Z", "to": "X", "at_ms": 1040}, 0.0),
        ("member", {"from": "Y", "to": "Z", "at_ms": 900}, None),  # of an earlier fault: it is at X again
        ("member", {}, None),
    ],
)
def test_an_inbound_takeover_is_told_by_its_own_entry(kill: str, told: dict[str, Any], detect_ms: float | None) -> None:
    """The adoption that the entry tells has a time and no parts, and the demo does not wait for what will not be told."""
    takeover = Takeover(kill, "R.TO.QSG", "Z", "X", at=1.0, wall_ms=1000.0, detect_ms=7.0)
    parts = {"detect_ms": 0.0, "claim_ms": 0.0, "resume_ms": 0.0}
    assert Demo._note_parts(takeover, {"takeover": told | parts} if told else {})
    assert (takeover.detect_ms, takeover.claim_ms, takeover.resume_ms) == (detect_ms, None, None)
