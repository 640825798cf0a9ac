"""Failpoints: the list is what the code and the documentation say, each place is reached, and what is armed happens, once."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import qsg
from qsg import failpoint
from qsg.failpoint import POINTS, VARIABLE, Action, FailpointError, Folder, arm, task_failpoint
from qsg.manager.commands import ChannelCommands
from qsg.manager.getting import GetSpec
from qsg.manager.queues import PutRequest
from qsg.pb import records_pb2 as pb
from qsg.store.contract import Put
from qsg.store.faults import Fault, Faults
from qsg.store.sqlite import SqliteStore
from support.group import eventually
from support.simulated import simulated
from support.stores import PATIENT_S
from support.whole import DLQ, Universe, numbered, queue, receiver, sender, universe, xmitq

SOURCES = sorted(Path(qsg.__file__).parent.rglob("*.py"))


@pytest.fixture(autouse=True)
def nothing_armed() -> Iterator[None]:
    yield
    failpoint.disarm()


def test_the_list_is_what_the_code_has() -> None:
    text = "\n".join(path.read_text() for path in SOURCES if path.name != "failpoint.py")
    called = set(re.findall(r'failpoint\(\s*"([^"]+)"', text))
    assert called <= set(POINTS)
    assert {name for name in POINTS if f'"{name}"' in text} == set(POINTS)


class Seen(Action):
    """Notes that the point was reached."""

    reached: set[str]

    def begin(self, name: str) -> float:
        self.reached.add(name)
        return 0.0


def watch_all() -> set[str]:
    seen = Seen("pause")
    seen.reached = set()
    for name in POINTS:
        arm(name, seen)
    return seen.reached


class OneAnswerLost(Faults):
    armed = False

    def request(self, kind: str) -> Fault:
        if kind == "txn" and self.armed:
            self.armed = False
            return Fault(reply_lost=True)
        return Fault()


async def a_group(made: Universe) -> None:
    """Traffic both ways, an application that gets, a lost answer of the store, a death, a return, a planned stop, and a stop by command."""
    objects = (
        xmitq("R", "admin"),
        queue("ANSWERS", structure="admin"),
        queue(DLQ, structure="admin"),
        sender("G.TO.R", "R", "R:1414", partner="R"),
        receiver("R.TO.G"),
    )
    for name in "XYZ":
        await made.host(name, "G", *objects)
    await made.host("R", "", queue("IN"), queue(DLQ), xmitq("G"), receiver("G.TO.R"), sender("R.TO.G", "G", "X:1415", "Y:1415", "Z:1415"))
    await made["X"].put("IN", *numbered(0, 5), queue_manager="R")
    await made["R"].put("ANSWERS", *numbered(0, 5), queue_manager="G")
    await made["R"].until("IN", numbered(0, 5))
    await made["X"].until("ANSWERS", numbered(0, 5))
    queues = made["X"].manager.queues
    await queues.get(GetSpec("ANSWERS"))
    unit = queues.begin()
    await queues.get(GetSpec("ANSWERS"), unit=unit)
    await queues.put([PutRequest("ANSWERS", pb.Message(payload=b"m0009"))], unit=unit)
    await unit.commit()
    lossy = OneAnswerLost()
    for store in made["X"].stores.values():
        store.faults = lossy
    lossy.armed = True
    await made["X"].put("ANSWERS", "m0010")
    owner = (await made.state("G.TO.R", pb.RUNNING)).owner
    await made[owner].kill()
    await made.again(owner)
    owner = (await made.state("G.TO.R", pb.RUNNING)).owner
    await made[owner].stop()
    owner = (await made.state("G.TO.R", pb.RUNNING)).owner
    await ChannelCommands(made[owner].manager.supervisor).command("stop", {"channel": "G.TO.R"})
    await made.state("G.TO.R", pb.STOPPED)


@simulated
async def test_each_place_in_a_group_is_reached() -> None:
    reached = watch_all()
    async with universe() as made:
        await a_group(made)
    assert {name for name in POINTS if not name.startswith("sqlite.")} - reached == set()


async def test_each_place_in_a_store_is_reached(tmp_path: Path) -> None:
    reached = watch_all()
    async with SqliteStore(tmp_path / "s.db") as store:
        await store.txn([], [Put(b"a", b"1")])
    assert reached == {name for name in POINTS if name.startswith("sqlite.")}


async def test_what_is_armed_happens() -> None:
    arm("put.after_commit_before_answer", Action.parse("raise"))
    with pytest.raises(FailpointError, match=r"put\.after_commit"):
        await task_failpoint("put.after_commit_before_answer")
    arm("sqlite.before_commit", Action.parse("pause 30"))
    began = time.monotonic()
    await task_failpoint("sqlite.before_commit")
    failpoint.failpoint("sqlite.before_commit")
    assert time.monotonic() - began >= 0.059
    failpoint.disarm("put.after_commit_before_answer")
    await task_failpoint("put.after_commit_before_answer")


@pytest.mark.parametrize("text", ["", "kil", "pause", "pause x", "pause -1", "kill 3"])
def test_what_is_no_action_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no action"):
        Action.parse(text)


def test_a_point_that_does_not_exist_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "sender.nowhere=kill")
    with pytest.raises(ValueError, match="no failpoint"):
        failpoint.arm_from_environment()


VICTIM = """
import sys, time
from qsg.failpoint import arm_from_environment, failpoint
arm_from_environment()
print("ready", flush=True)
while True:
    failpoint("sqlite.before_commit")
    time.sleep(0.01)
"""


def victim(armed: str) -> subprocess.Popen[str]:
    environment = {**os.environ, VARIABLE: armed}
    return subprocess.Popen([sys.executable, "-c", VICTIM], env=environment, stdout=subprocess.PIPE, text=True)


@pytest.mark.processes
def test_a_process_dies_where_its_environment_says() -> None:
    with victim("sqlite.before_commit=kill") as process:
        assert process.wait(PATIENT_S) == -signal.SIGKILL


@pytest.mark.processes
async def test_of_running_processes_that_are_armed_one_dies(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    victims = [victim(f"@{tmp_path}") for _ in range(2)]
    try:
        for v in victims:
            assert v.stdout is not None
            assert v.stdout.readline() == "ready\n"
        assert not folder.hit("sqlite.before_commit")
        folder.arm("sqlite.before_commit", "kill")
        await eventually(lambda: any(v.poll() is not None for v in victims), PATIENT_S, "one dies")
        assert folder.hit("sqlite.before_commit")
        await asyncio.sleep(0.3)
        assert sorted(v.poll() or 0 for v in victims) == [-signal.SIGKILL, 0], "one died, the other lives"
    finally:
        for v in victims:
            v.kill()
            v.wait()
            assert v.stdout is not None
            v.stdout.close()


async def test_what_was_disarmed_does_not_happen(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.arm("put.after_commit_before_answer", "raise")
    folder.look()
    folder.disarm("put.after_commit_before_answer")
    await task_failpoint("put.after_commit_before_answer")
    folder.look()
    folder.arm("put.after_commit_before_answer", "raise")
    folder.look()
    with pytest.raises(FailpointError):
        await task_failpoint("put.after_commit_before_answer")
    assert folder.hit("put.after_commit_before_answer")
    await task_failpoint("put.after_commit_before_answer")
