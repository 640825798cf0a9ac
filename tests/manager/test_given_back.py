"""What another member had claimed and gives back is found, wherever it lies and whoever asks."""

from __future__ import annotations

import asyncio

import pytest

from qsg.manager.getting import GetSpec
from support.members import group
from support.simulated import simulated
from support.units import members


@simulated
async def test_what_another_member_gives_back_behind_the_window_is_found_by_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qsg.manager.window.HEADERS_BYTES", 2_000)
    async with group() as g:
        x, y = await members(g, "X", "Y")
        for i in range(100):
            await x.put("A", b"%d" % i)
        red = b"r" * 24
        await x.put("A", b"red", correlation_id=red)
        unit = y.queues.begin()
        await y.queues.get(GetSpec("A", correlation_id=red), unit=unit)
        waiting = asyncio.create_task(x.get("A", correlation_id=red, wait_ms=5_000))
        await asyncio.sleep(0.5)
        await unit.backout()
        assert await waiting == [b"red"]
        assert asyncio.get_running_loop().time() < 2.0


@simulated
async def test_what_is_given_back_of_a_segment_that_a_unit_here_holds_too_is_found_in_a_full_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qsg.manager.window.SEGMENTS_MAX", 4)
    async with group() as g:
        x, y = await members(g, "X", "Y")
        await x.put("A", b"mine", b"other")
        for _ in range(8):
            await x.put("A", b"more")
        unit, other = x.queues.begin(), y.queues.begin()
        await x.queues.get(GetSpec("A"), unit=unit)
        await y.queues.get(GetSpec("A"), unit=other)
        await y.queues.get(GetSpec("A", messages_max=100), unit=y.queues.begin())
        waiting = asyncio.create_task(x.get("A", wait_ms=5_000))
        await asyncio.sleep(0.5)
        await other.backout()
        assert await waiting == [b"other"]
        assert asyncio.get_running_loop().time() < 2.0
