"""Many large messages at once: each that is taken costs its transaction an operation of its own."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from qsg.manager.queues import PutRequest
from qsg.pb import records_pb2 as pb
from qsg.rules.reasons import Reason, Refusal
from support.members import Member, group
from support.units import CLAIMS, get, left_over, members, refused

BODY = bytes(300)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qsg.manager.large.BODIES_MAX", 200)


async def put(member: Member, segments: int, each: int, **fields: int) -> None:
    """Some units of work, each of which makes one segment."""
    for _ in range(segments):
        unit = member.queues.begin()
        for _ in range(each):
            await member.queues.put([PutRequest("A", pb.Message(payload=BODY, **fields))], unit=unit)  # type: ignore[arg-type]
        await unit.commit()


@CLAIMS
async def test_many_that_have_expired_are_removed(sole: bool) -> None:
    async with group() as g:
        (x,) = await members(g, "X", sole=sole)
        await put(x, 5, 50, expires_at_ms=g.wall.ms + 100)
        await x.put("A", b"ever")
        g.wall.ms += 200
        assert await x.get("A", 9) == [b"ever"]
        for _ in range(20):
            await refused(x.get("A"), Reason.NO_MSG_AVAILABLE)
        assert (await x.queues.depth("A")).messages == 0
        assert await left_over(x) == []


@CLAIMS
async def test_many_are_got_at_once(sole: bool) -> None:
    async with group() as g:
        (x,) = await members(g, "X", sole=sole)
        await put(x, 5, 50)
        got = await asyncio.gather(*(x.get("A", 50) for _ in range(5)))
        more = [await x.get("A", 50) for _ in range(20) if (await x.queues.depth("A")).messages]
        assert sum(map(len, [*got, *more])) == 250


@CLAIMS
async def test_a_unit_that_gets_many_can_be_committed(sole: bool) -> None:
    async with group() as g:
        (x,) = await members(g, "X", sole=sole)
        await put(x, 6, 50)
        left = 300
        while left:
            unit, got = x.queues.begin(), 0
            with suppress(Refusal):  # there is no more room in it, or no message
                while True:
                    got += len(await get(x, unit, "A", 7))
            assert got
            await unit.commit()
            left -= got
        assert await left_over(x) == []
