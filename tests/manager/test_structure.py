"""A structure as a member sees it: joining, committing, reading, being fenced."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from random import Random

import pytest

from qsg.manager.membership import join
from qsg.manager.structure import Structure
from qsg.pb import records_pb2 as pb
from qsg.rules import keys
from qsg.rules.reasons import Reason, Refusal
from qsg.rules.unit import Change, CompareFailed, Fenced, NewMessage, Taken, Unit
from qsg.rules.world import World
from qsg.store.contract import Delete, Get, Put, Unavailable, absent, created_at, get_prefix, unchanged
from qsg.store.faults import Fault, Faults
from qsg.store.memory import MemoryServer, MemoryStore
from support.lagging import lag
from support.virtual_time import run


def world() -> World:
    return World(lambda: 1_700_000_000_000, Random(5))


def record(member: str = "X", process: str = "p1") -> pb.MemberRecord:
    return pb.MemberRecord(member=member, process=process)


def message(queue: str = "Q", size: int = 10, priority: int = 0) -> NewMessage:
    stored = pb.Message(message_id=b"m" * 24, payload=b"x" * size).SerializeToString()
    return NewMessage(queue, priority, pb.Entry(message_id=b"m" * 24, payload_size=size), stored)


def append(text: bytes) -> object:
    return lambda old: (old or b"") + text


@pytest.fixture
async def server() -> AsyncIterator[MemoryServer]:
    server = MemoryServer(random=Random(1))
    yield server
    server.close()


@pytest.fixture
async def x(server: MemoryServer) -> AsyncIterator[Structure]:
    structure = await join(server.client(), "admin", record(), world())
    yield structure
    await structure.close()


async def test_an_incarnation_is_the_create_revision_of_the_member_key(x: Structure) -> None:
    _, (member,) = await x.read(Get(keys.member("X")))
    assert member.first is not None
    assert member.first.create_revision == x.incarnation
    assert member.first.lease != 0


async def test_a_put_publishes_a_segment_and_counts_it(x: Structure) -> None:
    committed = await x.commit(Unit(puts=[message(size=10), message(size=20)]), slot=0)
    revision, (headers, totals) = await x.read(get_prefix(keys.headers("Q")), Get(keys.lane_totals("Q", "X.0")))
    assert revision >= committed.revision
    assert headers.first is not None and totals.first is not None
    header = pb.SegmentHeader.FromString(headers.first.value)
    sums = pb.Totals.FromString(totals.first.value)
    assert [e.payload_size for e in header.entries] == [10, 20]
    assert (sums.put, sums.put_bytes, sums.got) == (2, 30, 0)
    assert keys.header("Q", 0, sums.last[0]) == headers.first.key


async def test_a_joining_member_displaces_an_earlier_incarnation_of_its_name(server: MemoryServer, x: Structure) -> None:
    again = await join(server.client(), "admin", record(process="p2"), world())
    try:
        assert again.incarnation > x.incarnation
        await asyncio.wait_for(x.fenced.wait(), 2)
        with pytest.raises(Fenced):
            await x.commit(Unit(ops=[Put(b"k", b"v")]))
        await again.commit(Unit(ops=[Put(b"k", b"v")]))
    finally:
        await again.close()


async def test_a_fenced_member_writes_nothing_before_it_notices(server: MemoryServer, x: Structure) -> None:
    server.txn([created_at(keys.member("X"), x.incarnation)], [Delete(keys.member("X"))], [])
    with pytest.raises(Fenced):
        await x.commit(Unit(ops=[Put(b"k", b"v")]))
    assert server.get(Get(b"k")).first is None
    assert x.fenced.is_set()


async def test_blame_is_not_shared(x: Structure) -> None:
    """Interleaving N19: one stale compare fails its own unit, and not all those that share the transaction."""
    await x.commit(Unit(ops=[Put(b"a", b"1")]))
    good = asyncio.create_task(x.commit(Unit(ops=[Put(b"good", b"1")]), slot=0))
    bad = asyncio.create_task(x.commit(Unit(compares=[absent(b"a")], ops=[Put(b"bad", b"1")]), slot=0))
    after = asyncio.create_task(x.commit(Unit(ops=[Put(b"after", b"1")]), slot=0))
    with pytest.raises(CompareFailed) as failed:
        await bad
    assert failed.value.keys == (b"a",)
    assert (await good).revision == (await after).revision
    _, results = await x.read(Get(b"good"), Get(b"bad"), Get(b"after"))
    assert [r.first is not None for r in results] == [True, False, True]


async def test_changes_of_one_cell_are_merged_and_the_cell_is_kept_up_to_date(x: Structure) -> None:
    cell = await x.cell(b"c")
    tasks = [asyncio.create_task(x.commit(Unit(changes=[Change(cell, append(t))]), slot=0)) for t in (b"1", b"2", b"3")]  # type: ignore[arg-type]
    revisions = {(await t).revision for t in tasks}
    assert len(revisions) == 1
    assert (cell.value, cell.mod_revision) == (b"123", revisions.pop())
    await x.commit(Unit(changes=[Change(cell, append(b"4"))]))  # type: ignore[arg-type]
    assert cell.value == b"1234" and cell.create_revision < cell.mod_revision


async def test_a_cell_that_somebody_else_changed_fails_once_and_is_then_as_read(server: MemoryServer, x: Structure) -> None:
    cell = await x.cell(b"c")
    server.txn([], [Put(b"c", b"other")], [])
    with pytest.raises(CompareFailed):
        await x.commit(Unit(changes=[Change(cell, append(b"+"))]))  # type: ignore[arg-type]
    assert cell.value == b"other"
    await x.commit(Unit(changes=[Change(cell, append(b"+"))]))  # type: ignore[arg-type]
    assert cell.value == b"other+"


async def test_commits_wait_while_the_store_is_out_of_reach(server: MemoryServer, x: Structure) -> None:
    store = x.store
    assert isinstance(store, MemoryStore)
    store.cut()
    task = asyncio.create_task(x.commit(Unit(ops=[Put(b"k", b"v")])))
    while x.reachable:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    assert not task.done()
    store.heal()
    await task
    assert x.reachable
    assert server.get(Get(b"k")).first is not None


async def test_reads_beyond_the_limit_of_a_transaction_show_one_revision(x: Structure) -> None:
    """Interleaving C2b: one watermark for all lanes, so they are read at one revision, however many there are."""
    for i in range(3):
        await x.commit(Unit(ops=[Put(b"k%03d" % j, b"%d" % i) for j in range(100 * i, 100 * i + 100)]))
    revision, results = await x.read(*(Get(b"k%03d" % j) for j in range(300)))
    assert revision > 0
    assert [r.first.value for r in results if r.first] == [b"0"] * 100 + [b"1"] * 100 + [b"2"] * 100


async def test_a_near_read_that_lags_behind_what_is_known_is_read_anew(server: MemoryServer, x: Structure) -> None:
    assert isinstance(x.store, MemoryStore)
    lags = 0
    shown = lag(x.store, lambda: lags)
    committed = await x.commit(Unit(ops=[Put(b"k", b"1")]))
    revision, (found,) = await x.read_near(0, Get(b"k"))
    assert (revision, shown) == (committed.revision, [committed.revision])
    assert found.first is not None
    lags = 1
    revision, (found,) = await x.read_near(0, Get(b"k"))
    assert (revision, shown[1:]) == (committed.revision, [committed.revision - 1]), "less than this member has seen will not do"
    assert found.first is not None
    other = server.client()
    await other.txn([], [Put(b"k", b"2")])
    revision, (found,) = await x.read_near(committed.revision, Get(b"k"))
    assert (revision, found.first and found.first.value) == (committed.revision, b"1"), "what nobody told of may be missing"
    revision, (found,) = await x.read_near(committed.revision + 1, Get(b"k"))
    assert (revision, found.first and found.first.value) == (committed.revision + 1, b"2"), "what a doorbell told of may not"


async def test_a_restored_store_is_not_used(server: MemoryServer) -> None:
    """Interleaving C6: a member that has seen revision 50 does not join a store that lies before it."""
    with pytest.raises(Refusal) as refused:
        await join(server.client(), "admin", record(), world(), highest=50)
    assert refused.value.reason is Reason.STRUCTURE_RESTORED


async def test_leaving_deletes_the_member_key(server: MemoryServer) -> None:
    structure = await join(server.client(), "admin", record("Y"), world())
    await structure.leave()
    assert server.get(Get(keys.member("Y"))).first is None


async def test_unchanged_is_compared_with_what_earlier_units_write(x: Structure) -> None:
    """Two units of one transaction are as if one came after the other: the second fails when the first breaks its compare."""
    first = asyncio.create_task(x.commit(Unit(ops=[Put(b"a", b"1")]), slot=0))
    second = asyncio.create_task(x.commit(Unit(compares=[unchanged(b"a", 0)], ops=[Put(b"b", b"1")]), slot=0))
    await first
    with pytest.raises(CompareFailed):
        await second


def test_a_store_that_fills_up_refuses_puts_drains_and_takes_them_again() -> None:
    """Interleaving N18: what counts is what is in use."""

    async def main() -> None:
        server = MemoryServer(quota=400_000)
        structure = await join(server.client(), "admin", record(), world())
        put = 0
        with pytest.raises(Refusal) as refused:
            while True:
                await structure.commit(Unit(puts=[message(size=10_000)]))
                put += 1
                await asyncio.sleep(0.3)
        assert refused.value.reason is Reason.STORAGE_NOT_AVAILABLE
        assert put > 15 and server.status().bytes_in_use < 400_000
        assert structure.filled is not None and structure.filled.bytes_in_use > 0.5 * structure.filled.bytes_quota, "as the metrics tell"
        for prefix in (keys.headers("Q"), keys.bodies("Q")):
            for kv in server.get(get_prefix(prefix, keys_only=True)).kvs:
                await structure.commit(Unit(ops=[Delete(kv.key)], taken=[Taken("Q", 1, 10_000)]))
        await asyncio.sleep(10)
        await structure.commit(Unit(puts=[message(size=10_000)]))
        await structure.leave()

    run(main())


def test_a_store_slower_than_the_deadline_of_an_attempt_is_waited_for() -> None:
    class Slow(Faults):
        def request(self, kind: str) -> Fault:
            return Fault(delay_s=0.3, reply_delay_s=0.3) if kind == "txn" else Fault()

    async def main() -> None:
        server = MemoryServer()
        structure = await join(server.client(Slow()), "admin", record(), world())
        for i in range(5):
            async with asyncio.timeout(10):
                await structure.commit(Unit(puts=[message()], ops=[Put(b"k", b"%d" % i)]))
        totals = pb.Totals.FromString(server.get(get_prefix(keys.totals("Q"))).kvs[0].value)
        assert totals.put == 5
        await structure.leave()

    run(main())


def test_a_read_fails_when_the_store_stays_out_of_reach() -> None:
    async def main() -> None:
        server = MemoryServer()
        store = server.client()
        structure = await join(store, "admin", record(), world())
        store.cut()
        with pytest.raises(Unavailable):
            await structure.read(Get(b"k"))
        assert not structure.reachable
        await structure.close()

    run(main())
