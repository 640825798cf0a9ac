"""A structure over every store there is: the same member code, the same outcomes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random

import pytest

from qsg.manager.membership import join
from qsg.pb import records_pb2 as pb
from qsg.rules import keys
from qsg.rules.unit import Cell, Change, CompareFailed, Fenced, NewMessage, Unit
from qsg.rules.world import World
from qsg.store.contract import Delete, Get, Put, absent, created_at, get_prefix, nothing_changed_after
from support.stores import STORES, Harness

pytestmark = pytest.mark.real_time


def world(seed: int) -> World:
    return World(lambda: 0, Random(seed))


def message(number: int, size: int) -> NewMessage:
    name = b"%024d" % number
    return NewMessage(
        "Q", 0, pb.Entry(message_id=name, payload_size=size), pb.Message(message_id=name, payload=b"x" * size).SerializeToString()
    )


@pytest.fixture(params=list(STORES))
async def harness(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Harness]:
    async with STORES[request.param](tmp_path) as harness:
        yield harness


async def test_two_members_put_while_answers_are_lost(harness: Harness) -> None:
    x = await join(harness.store, "app", pb.MemberRecord(member="X", process="x"), world(1))
    y = await join(harness.second, "app", pb.MemberRecord(member="Y", process="y"), world(2))
    told: dict[int, int] = {}
    failed: set[int] = set()

    async def produce(producer: int) -> None:
        structure = (x, y)[producer % 2]
        count = Cell(b"count/%d" % producer)
        for n in range(15):
            number = producer * 100 + n
            unit = Unit(changes=[Change(count, lambda old: b"%d" % (int(old or b"0") + 1))], puts=[message(number, 3000 * (n % 3))])
            if n % 4 == 3:
                unit.compares.append(absent(count.key))
            try:
                told[number] = (await structure.commit(unit, affinity=str(producer))).revision
            except CompareFailed:
                failed.add(number)

    async def disturb() -> None:
        for _ in range(3):
            await asyncio.sleep(0.02)
            if harness.lose_replies is not None:
                harness.lose_replies(True)
            await asyncio.sleep(0.02)
            if harness.lose_replies is not None:
                harness.lose_replies(False)

    await asyncio.gather(disturb(), *(produce(p) for p in range(4)))
    _, (headers, totals, counts) = await y.read(get_prefix(keys.headers("Q")), get_prefix(keys.totals("Q")), get_prefix(b"count/"))
    found = {int(e.message_id): kv.create_revision for kv in headers.kvs for e in pb.SegmentHeader.FromString(kv.value).entries}
    assert found == told
    assert len(failed) == 12 and failed.isdisjoint(found)
    assert sum(pb.Totals.FromString(kv.value).put for kv in totals.kvs) == len(found) == 48
    assert [kv.value for kv in counts.kvs] == [b"12"] * 4
    await x.leave()
    await y.leave()


async def test_a_member_is_fenced_by_another(harness: Harness) -> None:
    x = await join(harness.store, "app", pb.MemberRecord(member="X", process="x"), world(1))
    y = await join(harness.second, "app", pb.MemberRecord(member="Y", process="y"), world(2))
    victim = keys.member("X")
    await y.commit(Unit(compares=[created_at(victim, x.incarnation)], ops=[Delete(victim)]))
    with pytest.raises(Fenced):
        await x.commit(Unit(ops=[Put(b"k", b"")]))
    async with asyncio.timeout(5):
        await x.fenced.wait()
    assert (await y.cell(b"k")).value is None
    await x.close()
    again = await join(harness.store, "app", pb.MemberRecord(member="X", process="x"), world(3))
    await again.commit(Unit(ops=[Put(b"k", b"")]))
    await again.leave()
    await y.leave()


async def test_prefix_compares_are_blamed_by_what_the_store_reads(harness: Harness) -> None:
    x = await join(harness.store, "app", pb.MemberRecord(member="X", process="x"), world(1))
    revision = (await x.commit(Unit(ops=[Put(b"c/1", b""), Put(b"d/1", b"")]))).revision
    await x.commit(Unit(ops=[Put(b"c/2", b"")]))
    stale = x.commit(Unit(compares=[nothing_changed_after(b"c/", revision)], ops=[Put(b"a", b"")]), slot=0)
    fresh = x.commit(Unit(compares=[nothing_changed_after(b"d/", revision)], ops=[Put(b"b", b"")]), slot=0)
    results = await asyncio.gather(stale, fresh, return_exceptions=True)
    assert isinstance(results[0], CompareFailed) and results[0].keys == (b"c/",)
    assert not isinstance(results[1], BaseException)
    _, (a, b) = await x.read(Get(b"a"), Get(b"b"))
    assert a.first is None and b.first is not None
    await x.leave()
