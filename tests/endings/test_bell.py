"""A wait ends with the ring, or at its time, and leaves nothing behind."""

from __future__ import annotations

import asyncio

import pytest

from qsg.bell import Bell, Once
from support.virtual_time import run


def now() -> float:
    return asyncio.get_running_loop().time()


def test_a_wait_ends_with_the_ring_or_at_its_time() -> None:
    async def main() -> None:
        bell = Bell()
        assert not await bell.wait(now() + 2)
        assert now() == pytest.approx(2)
        asyncio.get_running_loop().call_later(1, bell.set)
        assert await bell.wait(now() + 2)
        assert now() == pytest.approx(3)
        assert await bell.wait(now()), "it is rung until it is cleared"
        bell.clear()
        assert not bell.is_set()
        assert not await bell.wait(now()), "its time is up already"

    run(main())


def test_a_ring_wakes_all_who_wait_also_when_it_is_cleared_at_once() -> None:
    async def main() -> None:
        bell = Bell()
        waiting = [asyncio.create_task(bell.wait(until)) for until in (None, 1.0, 5.0)]
        await asyncio.sleep(0.5)
        bell.set()
        bell.clear()
        assert await asyncio.gather(*waiting) == [True] * 3
        assert now() == pytest.approx(0.5)

    run(main())


def test_a_cancelled_wait_takes_nothing_from_the_others() -> None:
    async def main() -> None:
        bell = Bell()
        given_up = asyncio.create_task(bell.wait(9.0))
        other = asyncio.create_task(bell.wait())
        await asyncio.sleep(0)
        given_up.cancel()
        with pytest.raises(asyncio.CancelledError):
            await given_up
        bell.set()
        assert await other

    run(main())


def test_who_listens_is_called_once_then_or_at_once() -> None:
    called: list[str] = []
    once = Once()
    once.listen(lambda: called.append("then"))
    assert not once.is_set() and not called
    once.set()
    once.set()
    assert once.is_set() and called == ["then"]
    once.listen(lambda: called.append("at once"))
    assert called == ["then", "at once"]
