"""What another member had claimed and gives back is found, wherever it lies and whoever asks."""

from __future__ import annotations

import asyncio

import pytest

from qsg.manager.getting import GetSpec
from qsg.manager.window import Window
from qsg.rules.reasons import Reason
from qsg.store.contract import Get, GetResult
from support.members import Member, group
from support.simulated import simulated
from support.units import members, refused


async def put_singly(member: Member, count: int) -> None:
    """Each a segment of its own."""
    for i in range(count):
        await member.put("A", b"%d" % i)


@simulated
async def test_what_another_member_gives_back_behind_the_window_is_found_by_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qsg.manager.window.HEADERS_BYTES", 2_000)
    async with group() as g:
        x, y = await members(g, "X", "Y")
        await put_singly(x, 100)
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
async def test_what_is_given_back_of_a_segment_that_a_unit_here_holds_too_is_found_in_a_full_window(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
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


@pytest.mark.parametrize("wait_ms", [0, 10])
@simulated
async def test_who_does_not_wait_finds_what_was_given_back_before_it_asked(wait_ms: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waited, so no watch told of it. Looking costs one read where something is claimed, and nothing where nothing is."""
    reads, read = 0, Window.read

    async def counted(window: Window, *, ahead: bool) -> None:
        nonlocal reads
        reads += window.structure.member == "X"
        await read(window, ahead=ahead)

    monkeypatch.setattr(Window, "read", counted)
    monkeypatch.setattr("qsg.manager.getting.GetterLoop._heard", lambda loop, events: None)
    async with group() as g:
        x, y = await members(g, "X", "Y")

        async def asked() -> int:
            """Reads until it is told that there is nothing."""
            nonlocal reads
            await asyncio.sleep(0.1)
            reads = 0
            await refused(x.get("A", wait_ms=wait_ms), Reason.NO_MSG_AVAILABLE)
            return reads

        await asked()
        nothing = await asked()
        await x.put("A", b"1")
        unit = y.queues.begin()
        await y.queues.get(GetSpec("A"), unit=unit)
        await asked()
        assert await asked() == nothing + 1
        await unit.backout()
        assert await x.get("A", wait_ms=wait_ms) == [b"1"]
        assert await asked() == nothing and asyncio.get_running_loop().time() < 1.0


@simulated
async def test_what_is_given_back_while_the_window_is_read_fails_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was left out makes the window begin again at the head of the queue: the read that is out was planned for the one before."""
    monkeypatch.setattr("qsg.manager.window.SEGMENTS_MAX", 4)
    async with group() as g:
        x, y = await members(g, "X", "Y")
        await put_singly(x, 10)
        unit = y.queues.begin()
        for _ in range(8):
            await y.queues.get(GetSpec("A"), unit=unit)
        structure, left = x.structures["app1"], 1
        opened, read = await x.queues.open_for_get("A"), structure.read

        async def meanwhile(*gets: Get) -> tuple[int, list[GetResult]]:
            nonlocal left
            found = await read(*gets)
            loop = x.queues._loops["app1", "A"]
            if loop.window.dropped and loop.window.reader._planned and left:
                left -= 1
                await unit.backout()
                x.queues.ring(opened)
            return found

        structure.read = meanwhile  # type: ignore[method-assign]
        got = [(await x.get("A", wait_ms=5_000))[0] for _ in range(10)]
        assert sorted(got) == [b"%d" % i for i in range(10)] and not left
