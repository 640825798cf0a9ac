"""Endings run to their end, and a cancellation that came meanwhile is raised behind them."""

from __future__ import annotations

import asyncio

import pytest

from qsg.endings import ended, to_the_end
from qsg.manager.table import StatusTable
from qsg.store.contract import Unavailable
from support.cancelling import ticks
from support.simulated import simulated
from support.whole import DLQ, Host, definitions, queue, universe


async def _steps(done: list[int], count: int = 5) -> str:
    for number in range(count):
        await asyncio.sleep(0)
        done.append(number)
    return "done"


@pytest.mark.parametrize("between", range(1, 8))
async def test_work_runs_to_its_end_whenever_the_caller_is_cancelled(between: int) -> None:
    done: list[int] = []
    caller = asyncio.ensure_future(to_the_end(_steps(done)))
    await ticks(between)
    for _ in range(3):
        caller.cancel()
        await ticks(1)
    await asyncio.wait([caller])
    assert done == [0, 1, 2, 3, 4]
    assert caller.cancelled() or caller.result() == "done"


async def test_work_that_fails_tells_its_caller() -> None:
    async def failing() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await to_the_end(failing())


@pytest.mark.parametrize("between", range(6))
async def test_tasks_that_take_their_time_have_ended_when_it_returns(between: int) -> None:
    done: list[int] = []

    async def slow() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await _steps(done)

    tasks = [asyncio.ensure_future(slow()) for _ in range(2)]
    await ticks(1)
    caller = asyncio.ensure_future(ended(*tasks))
    await ticks(1 + between)
    caller.cancel()
    await asyncio.wait([caller])
    assert len(done) == 10
    assert all(task.cancelled() for task in tasks)
    assert caller.cancelled() or between > 4


async def test_how_the_tasks_end_is_not_told() -> None:
    async def failing() -> None:
        raise ValueError("no")

    task = asyncio.ensure_future(failing())
    await ticks(1)
    await ended(task)
    assert isinstance(task.exception(), ValueError)
    await ended()


@simulated
async def test_a_start_that_is_cut_off_leaves_no_task_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """A queue manager that is told to end while it starts: what follows the status table ends with it."""
    plain, begun = StatusTable.start, asyncio.Event()

    async def hangs(table: StatusTable) -> None:
        await plain(table)
        begun.set()
        await asyncio.Event().wait()

    async with universe() as made:
        await made.host("X", "G", queue(DLQ, structure="admin"))
        before = asyncio.all_tasks()
        monkeypatch.setattr(StatusTable, "start", hangs)
        starting = asyncio.create_task(Host(made, "Y", "G", definitions()).start())
        await begun.wait()
        assert any(task.get_name().startswith("follow") for task in asyncio.all_tasks() - before)
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        await asyncio.sleep(1)
        assert [task.get_name() for task in asyncio.all_tasks() - before] == []


@simulated
async def test_a_start_that_fails_leaves_no_task_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulation seed 25240: the store did not answer for so long that the lease was lost; the watch over the private store stayed."""
    async with universe() as made:
        await made.host("X", "G", queue(DLQ, structure="admin"))
        before, host = asyncio.all_tasks(), Host(made, "Y", "G", definitions())

        async def fails(table: StatusTable) -> None:
            host.manager.structures["admin"].membership.fence("our lease has expired")
            await host.manager.fenced.wait()
            raise Unavailable("admin does not answer")

        monkeypatch.setattr(StatusTable, "start", fails)
        with pytest.raises(Unavailable):
            await host.start()
        await asyncio.sleep(10)
        assert [task.get_name() for task in asyncio.all_tasks() - before] == []
