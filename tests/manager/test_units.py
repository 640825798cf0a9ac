"""Units of work: all or nothing, backed-out messages return with their count, limits are told in time."""

from __future__ import annotations

import asyncio

import pytest

from qsg.manager.getting import GetSpec
from qsg.manager.producers import ProducerNumber
from qsg.rules.definitions import Queue
from qsg.rules.reasons import Reason, Refusal
from support.members import group, shared
from support.simulated import simulated
from support.units import CLAIMS, empty, empty_now, get, members, outrun_unit, put


@CLAIMS
async def test_commit_is_all_at_once(sole: bool) -> None:
    async with group() as g:
        (x,) = await members(g, "X", sole=sole)
        await x.put("A", b"1", b"2", b"3")
        unit = x.queues.begin()
        assert await get(x, unit, "A", 2) == [(b"1", 0), (b"2", 0)]
        await put(x, unit, "B", b"one", b"two")
        assert await empty_now(x, "B")

        before = x.structures["app1"].counters.commits
        await unit.commit()

        assert x.structures["app1"].counters.commits == before + 1
        assert await x.get("B", 5) == [b"one", b"two"]
        assert await x.get("A", 5) == [b"3"]
        assert await empty(x, "A")
        assert unit.empty


async def test_backout_returns_messages_in_place_with_their_count() -> None:
    async with group() as g:
        x, y = await members(g, "X", "Y")
        await x.put("A", b"1", b"2", b"3")
        for count in range(3):
            unit = x.queues.begin()
            assert await get(x, unit, "A", 2) == [(b"1", count), (b"2", count)]
            await put(x, unit, "B", b"never")
            await unit.backout()

        got = await y.queues.get(GetSpec("A", messages_max=5))
        assert [(m.message.payload, m.backouts) for m in got] == [(b"1", 3), (b"2", 3), (b"3", 0)]
        assert await empty(x, "A")
        assert await empty(x, "B")


@pytest.mark.parametrize("waiter", [0, 1])
async def test_backout_wakes_those_who_wait(waiter: int) -> None:
    async with group() as g:
        both = await members(g, "X", "Y")
        await both[0].put("A", b"1")
        unit = both[0].queues.begin()
        await get(both[0], unit, "A")
        waiting = asyncio.create_task(both[waiter].get("A", wait_ms=5_000))
        await asyncio.sleep(0.05)
        started = asyncio.get_running_loop().time()

        await unit.backout()

        assert await waiting == [b"1"]
        assert asyncio.get_running_loop().time() - started < 0.5


@CLAIMS
async def test_call_that_would_exceed_a_transaction_is_refused(sole: bool) -> None:
    """Interleaving H10: gets of one-message segments in one unit of work."""
    async with group() as g:
        (x,) = await members(g, "X", sole=sole)
        for i in range(80):
            await x.put("A", b"%d" % i)
        unit, got = x.queues.begin(), 0
        with pytest.raises(Refusal) as refusal:
            while got < 80:
                got += len(await get(x, unit, "A"))
        assert refusal.value.reason is Reason.SYNCPOINT_LIMIT_REACHED
        assert got >= 30

        await unit.commit()
        assert (await x.queues.depth("A")).messages == 80 - got

        body = bytes(200_000)
        with pytest.raises(Refusal) as refusal:
            for _ in range(20):
                await put(x, unit, "B", body)
        assert refusal.value.reason is Reason.SYNCPOINT_LIMIT_REACHED
        await unit.commit()
        assert 5 <= (await x.queues.depth("B")).messages < 10


@CLAIMS
async def test_many_gets_of_one_segment_fit_one_unit(sole: bool) -> None:
    """Interleaving H10: many gets of one segment cost one change of its record."""
    async with group() as g:
        (x,) = await members(g, "X", sole=sole)
        await x.put("A", *(b"%d" % i for i in range(200)))
        unit = x.queues.begin()
        for i in range(200):
            assert await get(x, unit, "A") == [(b"%d" % i, 0)]
        await unit.commit()
        assert await empty(x, "A")


@CLAIMS
async def test_one_structure_a_unit(sole: bool) -> None:
    async with group() as g:
        (x,) = await members(g, "X", sole=sole)
        await x.queues.define(Queue(name="MINE"))
        unit = x.queues.begin()
        await put(x, unit, "A", b"1")
        for call in (put(x, unit, "MINE", b"2"), get(x, unit, "MINE")):
            with pytest.raises(Refusal, match="a unit has one structure") as refusal:
                await call
            assert refusal.value.reason is Reason.OPTIONS_ERROR
        await unit.commit()
        assert await x.get("A") == [b"1"]


async def test_two_units_share_a_segment() -> None:
    """Each commits or backs out its own; who comes last removes the segment."""
    async with group() as g:
        x, y = await members(g, "X", "Y")
        await x.put("A", *(b"%d" % i for i in range(4)))
        units = [x.queues.begin(), x.queues.begin(), y.queues.begin()]
        for unit, member in zip(units, (x, x, y), strict=True):
            await get(member, unit, "A")
        await asyncio.gather(units[0].commit(), units[1].backout(), units[2].commit())

        assert await x.get("A", 9) == [b"1", b"3"]
        assert await empty(x, "A")


@simulated
async def test_a_commit_goes_on_against_a_faster_member() -> None:
    async with group() as g:
        y, unit = await outrun_unit(g, "commit")
        await unit.commit()
        assert await y.get("A", 9) == [b"21"]
        assert await empty(y, "A")


@CLAIMS
async def test_two_units_that_end_a_segment_together(sole: bool) -> None:
    async with group() as g:
        (x,) = await members(g, "X", sole=sole)
        for _ in range(5):
            await x.put("A", *(b"%d" % i for i in range(6)))
            units = [x.queues.begin() for _ in range(3)]
            for unit in units:
                await get(x, unit, "A", 2)
            await asyncio.gather(*(unit.commit() for unit in units))
            assert await empty(x, "A")


@CLAIMS
async def test_altered_queue_does_not_fail_a_unit_and_a_deleted_one_does(sole: bool) -> None:
    async with group() as g:
        (x,) = await members(g, "X", sole=sole)
        await x.put("A", b"1", b"2")
        unit = x.queues.begin()
        await get(x, unit, "A")
        await put(x, unit, "B", b"b")
        await x.queues.define(shared("A", description="altered"))
        await x.queues.define(shared("B", description="altered"))
        await unit.commit()
        assert await x.get("B") == [b"b"]

        await get(x, unit, "A")
        await x.queues.purge("A")
        with pytest.raises(Refusal) as refusal:
            await unit.commit()
        assert refusal.value.reason in (Reason.Q_DELETED, Reason.BACKED_OUT)
        await unit.backout()
        assert await empty(x, "A")


async def test_commit_with_a_producer_number_is_applied_once() -> None:
    """The patent's Figure 5: the answer to a commit is lost, the unit is done again under the same number."""
    async with group() as g:
        x, y = await members(g, "X", "Y")
        await x.put("A", b"1", b"2")
        opened = await x.queues.open_producer("P", "B")
        unit = x.queues.begin()
        await get(x, unit, "A")
        await put(x, unit, "B", b"done")
        await unit.commit(number(opened.epoch, 1))

        opened = await y.queues.open_producer("P", structure="app1")
        assert opened.last == 1
        again = y.queues.begin()
        assert await get(y, again, "A") == [(b"2", 0)]
        await put(y, again, "B", b"done")
        await again.commit(number(opened.epoch, 1))

        assert await x.get("B", 9) == [b"done"]
        assert await get(x, x.queues.begin(), "A") == [(b"2", 0)]


def number(epoch: int, first: int) -> ProducerNumber:
    return ProducerNumber("P", "app1", epoch, first)


@CLAIMS
async def test_large_message_in_a_unit(sole: bool) -> None:
    async with group() as g:
        (x,) = await members(g, "X", sole=sole)
        large = bytes(range(256)) * 3_000
        unit = x.queues.begin()
        await put(x, unit, "B", b"small", large)
        assert await empty_now(x, "B")
        await unit.commit()
        assert [p for p, _ in await get(x, unit, "B", 2)] == [b"small", large]
        await unit.backout()
        assert [p for p, _ in await get(x, unit, "B", 2)] == [b"small", large]
        await unit.commit()
        assert await empty(x, "B")

        await put(x, unit, "B", large)
        await unit.backout()
        assert await empty(x, "B")
