"""The work queue: a key is never worked on twice at once, never lost, and one that fails comes back later and later."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable

from qsg_operator.cache import Key
from qsg_operator.queue import ASKED_S, GAP_S, WorkQueue
from support.simulated import simulated

A, B = ("Kind", "shop", "a"), ("Kind", "shop", "b")


@contextlib.asynccontextmanager
async def running(work: Callable[[Key], Awaitable[None]], workers: int = 3) -> AsyncIterator[WorkQueue]:
    queue = WorkQueue(work)
    task = asyncio.get_running_loop().create_task(queue.run(workers))
    try:
        yield queue
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@simulated
async def test_many_askings_are_one_piece_of_work() -> None:
    done: Counter[Key] = Counter()

    async def work(key: Key) -> None:
        done[key] += 1

    async with running(work) as queue:
        for _ in range(10):
            queue.add(A)
            queue.add(B)
        await asyncio.sleep(10)
    assert done == {A: 1, B: 1} and len(queue) == 0


@simulated
async def test_what_comes_while_it_is_worked_on_is_worked_on_once_more() -> None:
    at_once, most, done = 0, 0, 0

    async def work(key: Key) -> None:
        nonlocal at_once, most, done
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(2)
        at_once -= 1
        done += 1

    async with running(work) as queue:
        queue.add(A)
        await asyncio.sleep(1)
        queue.add(A)
        queue.add(A)
        await asyncio.sleep(10)
    assert (most, done) == (1, 2)


@simulated
async def test_a_busy_key_does_not_hold_up_others() -> None:
    done: list[Key] = []

    async def work(key: Key) -> None:
        if key == A:
            await asyncio.sleep(100)
        done.append(key)

    async with running(work, 2) as queue:
        queue.add(A)
        await asyncio.sleep(0.1)
        queue.add(A)
        queue.add(B)
        await asyncio.sleep(1)
        assert done == [B]


@simulated
async def test_a_key_that_is_asked_for_all_the_time_has_a_gap() -> None:
    times: list[float] = []

    async def work(key: Key) -> None:
        times.append(asyncio.get_running_loop().time())

    async with running(work) as queue:
        for _ in range(100):
            queue.add(A)
            await asyncio.sleep(0.05)
    assert len(times) > 5
    assert all(later - earlier >= GAP_S for earlier, later in itertools.pairwise(times))


@simulated
async def test_a_failure_comes_back_later_and_later_until_it_succeeds() -> None:
    times: list[float] = []

    async def work(key: Key) -> None:
        times.append(asyncio.get_running_loop().time())
        if len(times) < 5:
            raise ValueError("not yet")

    async with running(work) as queue:
        queue.add(A)
        await asyncio.sleep(60)
        assert len(times) == 5
        pauses = [round(later - earlier) for earlier, later in itertools.pairwise(times)]
        assert pauses == [1, 2, 4, 8]
        queue.add(A)
        await asyncio.sleep(1)
        assert len(times) == 6, "after a success there is no pause"


@simulated
async def test_what_is_asked_for_does_not_wait_for_the_pause_of_what_fails_in_it() -> None:
    """A child that cannot be applied holds up neither budgets nor statuses."""
    times: list[float] = []

    async def work(key: Key) -> None:
        times.append(asyncio.get_running_loop().time())
        raise ValueError("never")

    async with running(work) as queue:
        queue.add(A)
        await asyncio.sleep(200)
        asked, before = asyncio.get_running_loop().time(), len(times)
        for _ in range(300):
            queue.add(A)
            await asyncio.sleep(0.1)
        assert times[before] - asked <= ASKED_S
        assert all(later - earlier >= ASKED_S for earlier, later in itertools.pairwise(times[before:])), "nor does it come all the time"


@simulated
async def test_a_delay_is_kept_and_a_sooner_asking_wins() -> None:
    times: list[float] = []

    async def work(key: Key) -> None:
        times.append(asyncio.get_running_loop().time())

    async with running(work) as queue:
        began = asyncio.get_running_loop().time()
        queue.add(A, 30)
        queue.add(A, 5)
        await asyncio.sleep(60)
    assert [round(t - began) for t in times] == [5]
