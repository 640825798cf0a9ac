"""The supervisor: starts, restarts, hurts and stops its children, and never leaves one behind."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import psutil
import pytest
from structlog.testing import capture_logs

from qsg.process.supervise import Supervisor
from support.group import READY_S

SLEEPER = [sys.executable, "-S", "-c", "import time; print('up', flush=True); time.sleep(600)"]
STUBBORN = [
    sys.executable,
    "-S",
    "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)",
]


@pytest.fixture
async def supervisor(tmp_path: Path) -> AsyncIterator[Supervisor]:
    supervisor = Supervisor(tmp_path / "log")
    yield supervisor
    await supervisor.stop(0.5)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(READY_S):
        while not condition():  # noqa: ASYNC110 - a predicate on other processes
            await asyncio.sleep(0.02)


def ups(tmp_path: Path, name: str) -> int:
    return (tmp_path / "log" / f"{name}.log").read_text().count("up")


async def test_a_killed_child_starts_again_and_its_output_is_kept(supervisor: Supervisor, tmp_path: Path) -> None:
    child = await supervisor.start("x", SLEEPER)
    await until(lambda: ups(tmp_path, "x") == 1)
    assert supervisor.kill("x")
    await until(lambda: ups(tmp_path, "x") == 2)
    assert (child.starts, child.exit_code, child.running) == (2, -signal.SIGKILL, True)


async def test_a_child_that_keeps_failing_is_started_ever_more_slowly(supervisor: Supervisor) -> None:
    with capture_logs() as lines:
        child = await supervisor.start("x", [sys.executable, "-S", "-c", "raise SystemExit(3)"])
        began = asyncio.get_running_loop().time()
        await until(lambda: child.starts >= 3)
        took_s = asyncio.get_running_loop().time() - began
    assert child.exit_code == 3
    assert [line["delay_s"] for line in lines][:2] == [0.3, 0.6]
    assert took_s >= 0.9


async def test_a_child_that_cannot_be_started_now_is_tried_again(supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    child = await supervisor.start("x", SLEEPER)
    honest, tries = child._spawn, iter((False, True))

    def spawn() -> None:
        if not next(tries, True):
            raise BlockingIOError("too many processes")
        honest()

    monkeypatch.setattr(child, "_spawn", spawn)
    supervisor.kill("x")
    await until(lambda: child.starts == 2)
    assert child.running


async def test_without_restart_its_exit_code_is_told(supervisor: Supervisor) -> None:
    child = await supervisor.start("once", [sys.executable, "-S", "-c", "raise SystemExit(7)"], restart=False)
    assert await child.wait() == 7
    assert not supervisor.kill("once")


async def test_pause_and_resume(supervisor: Supervisor, tmp_path: Path) -> None:
    child = await supervisor.start("x", SLEEPER)
    await until(lambda: ups(tmp_path, "x") == 1)
    assert child.process is not None
    process = psutil.Process(child.process.pid)
    supervisor.pause("x")
    await until(lambda: process.status() == psutil.STATUS_STOPPED)
    supervisor.resume("x")
    await until(lambda: process.status() != psutil.STATUS_STOPPED)
    assert child.starts == 1


async def test_stop_is_in_reverse_order_and_ends_also_the_stubborn_and_the_frozen(tmp_path: Path) -> None:
    supervisor = Supervisor(tmp_path / "log")
    ended: list[str] = []
    waits = []
    for name, argv in (("first", SLEEPER), ("stubborn", STUBBORN), ("frozen", SLEEPER)):
        child = await supervisor.start(name, argv)
        waits.append(asyncio.create_task(_note_end(child.wait(), name, ended)))
    await until(lambda: all(ups(tmp_path, name) for name in supervisor.names))
    supervisor.pause("frozen")
    await supervisor.stop(4.0)
    await asyncio.gather(*waits)
    assert ended == ["frozen", "stubborn", "first"]
    assert supervisor.child("stubborn").exit_code == -signal.SIGKILL
    assert supervisor.child("frozen").exit_code == -signal.SIGTERM
    assert not any(supervisor.child(name).running for name in supervisor.names)


async def _note_end(waiting: object, name: str, ended: list[str]) -> None:
    await waiting  # type: ignore[misc]
    ended.append(name)


async def test_a_stopped_child_can_be_started_again_under_its_name(supervisor: Supervisor, tmp_path: Path) -> None:
    first = await supervisor.start("x", SLEEPER)
    await until(lambda: ups(tmp_path, "x") == 1)
    await supervisor.stop_child("x")
    assert not first.running
    second = await supervisor.start("x", SLEEPER)
    await until(lambda: ups(tmp_path, "x") == 2)
    assert second.running


async def test_stopped_between_two_starts_it_stays_so_and_its_last_end_is_told(supervisor: Supervisor) -> None:
    child = await supervisor.start("x", [sys.executable, "-S", "-c", "raise SystemExit(3)"])
    waiting = asyncio.create_task(child.wait())
    await until(lambda: not child.running)
    await supervisor.stop_child("x")
    assert (await waiting, child.starts, child.running) == (3, 1, False)


FORKLESS = """
import os, sys
from pathlib import Path

import uvloop

from qsg.process.supervise import Supervisor

async def main():
    supervisor = Supervisor(Path(sys.argv[1]))
    child = await supervisor.start("once", [sys.executable, "-S", "-c", "raise SystemExit(7)"], restart=False)
    print(await child.wait(), "forks:", forks)

forks = []
os.register_at_fork(before=lambda: forks.append("before"), after_in_child=lambda: forks.append("in the child"))
uvloop.run(main())
"""


def test_a_child_is_started_without_a_fork_that_runs_our_code_in_it(tmp_path: Path) -> None:
    """uvloop's own way to start one did; in a process with gRPC its child waited now and then for threads that were not there, and the
    parent for the child: `qsg demo` hung while it started a killed queue manager again."""
    done = subprocess.run([sys.executable, "-c", FORKLESS, str(tmp_path)], capture_output=True, text=True, timeout=READY_S, check=True)
    assert done.stdout == "7 forks: []\n"


PARENT = """
import asyncio, sys
from pathlib import Path
from qsg.process.supervise import Supervisor

async def main():
    supervisor = Supervisor(Path(sys.argv[1]))
    child = await supervisor.start("x", [sys.executable, "-S", "-c", "import time; time.sleep(600)"])
    print(child.process.pid, flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


def test_children_die_with_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        os.kill(pid, 0)
        parent.kill()
    end = time.monotonic() + READY_S
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < end, "the child lives on"
        time.sleep(0.02)
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
