"""Interleavings around a put: what became of a transaction of which nothing was heard, and the numbers of a producer."""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from qsg.manager.committer import Committer
from qsg.manager.producers import ProducerNumber
from qsg.manager.queues import PutRequest
from qsg.pb import records_pb2 as pb
from qsg.rules import keys
from qsg.rules.reasons import Reason, Refusal
from qsg.rules.slots import Guard, Kind, Slot
from qsg.rules.unit import CompareFailed, NewMessage, Unit
from qsg.rules.world import World
from qsg.store.contract import Delete, Get, Put, absent, get_prefix
from qsg.store.faults import Fault, Faults
from qsg.store.memory import MemoryServer
from support.members import Member, group, shared
from support.simulated import simulated
from support.slots import Scripted, depth, stored


def committer(server: MemoryServer, faults: Faults) -> Committer:
    """One slot of member X."""
    incarnation = server.txn([], [Put(keys.member("X"), b"")], []).revision
    made = Committer(server.client(faults), "X", incarnation, [Guard()], World(lambda: 0, Random(7)))
    made.start()
    return made


def message(number: int) -> NewMessage:
    body = pb.Message(payload=b"%d" % number).SerializeToString()
    return NewMessage("Q", 0, pb.Entry(message_id=b"%d" % number, size=len(body), payload_size=1), body)


async def refused(call: object, reason: Reason) -> None:
    with pytest.raises(Refusal) as refusal:
        await call  # type: ignore[misc]
    assert refusal.value.reason is reason


async def numbered(member: Member, epoch: int, first: int, *payloads: bytes) -> None:
    number = ProducerNumber("P", "app1", epoch, first, len(payloads))
    await member.queues.put([PutRequest("A", pb.Message(payload=p)) for p in payloads], producer=number)


@simulated
async def test_c1_a_commit_that_comes_late_is_not_told_refused_and_not_repeated_beside_itself() -> None:
    """A commit attempt times out, a read shows "not applied", the put is refused, the proposal commits late, the application repeats it.
    Wrong: duplicate, and totals wrong ever after. Prevented: the identical transaction is repeated under the slot's guard."""
    server = MemoryServer()
    made = committer(server, Scripted([Fault(late_s=1.0), Fault(reply_lost=True)]))

    await made.commit(Unit(puts=[message(1)]))
    await asyncio.sleep(3)

    assert (stored(server), depth(server), made.counters.commits) == ([1], 1, 1)
    await made.close()


@simulated
async def test_c1_nothing_is_acknowledged_while_the_store_has_not_answered() -> None:
    """The store takes the put and its answer is not there yet, or never comes. Wrong: acknowledged, then lost with the member. Prevented:
    the caller waits until the outcome is certain."""
    server = MemoryServer()
    store = server.client()
    incarnation = server.txn([], [Put(keys.member("X"), b"")], []).revision
    made = Committer(store, "X", incarnation, [Guard()], World(lambda: 0, Random(7)))
    made.start()
    store.cut()
    put = asyncio.create_task(made.commit(Unit(puts=[message(1)])))

    await asyncio.sleep(5)
    assert not put.done() and stored(server) == []
    store.heal()
    await put
    assert stored(server) == [1]
    await made.close()


@simulated
async def test_c2a_two_transactions_of_one_lane_are_never_out_together() -> None:
    """With two in flight in one lane, counter 8 commits at revision 100 and counter 7 at 101: a reader behind 8 never sees 7. Wrong: loss.
    Prevented: a lane is a slot, which sends the next transaction when the outcome of the last is certain."""
    server = MemoryServer()
    out: list[int] = []
    faults = Scripted([Fault(delay_s=0.3), Fault(late_s=0.6)], before=lambda n: out.append(len(stored(server))))
    made = committer(server, faults)

    first = asyncio.create_task(made.commit(Unit(puts=[message(7)])))
    await asyncio.sleep(0.05)
    second = asyncio.create_task(made.commit(Unit(puts=[message(8)])))
    await asyncio.gather(first, second)

    headers = server.get(get_prefix(keys.headers("Q"))).kvs
    assert [kv.create_revision for kv in headers] == sorted(kv.create_revision for kv in headers)
    assert stored(server) == [7, 8] and out[:2] == [0, 1]
    await made.close()


def test_n6_the_id_of_the_attempt_tells_a_transaction_from_a_void_advance() -> None:
    """The transaction 6 to 7 is unknown, the void advance 6 to 7 is unknown too; the guard reads 7. Wrong: which of the two was it?
    Prevented: the guard holds the random id of its attempt, a void advance an empty one."""

    def unknown_twice() -> Slot:
        slot = Slot(Guard(6, b"before", 60))
        slot.begin(b"ours")
        slot.unavailable()
        assert slot.failed(Guard(6, b"before", 60), True).kind is Kind.VOID
        slot.unavailable()
        return slot

    assert unknown_twice().failed(Guard(7, b"ours", 61), True).kind is Kind.APPLIED
    assert unknown_twice().failed(Guard(7, b"", 61), True).kind is Kind.REFUSED


@simulated
async def test_p1_a_failed_part_of_an_attempt_sent_twice_is_told_only_behind_the_guard() -> None:
    """A group commit is sent twice; the second copy fails on one part's compare and that part is told *refused*; the compare becomes true
    again, and the first copy commits. Wrong: refused, but committed. Prevented: blame is told only after the guard has advanced."""
    server = MemoryServer()
    server.txn([], [Put(b"flip", b"")], [])

    def flip_back(n: int) -> None:
        if n == 3:
            server.txn([], [Delete(b"flip")], [])

    made = committer(server, Scripted([Fault(late_s=0.5)], before=flip_back))
    told: list[str] = []
    try:
        await made.commit(Unit(compares=[absent(b"flip")], ops=[Put(b"k", b"")]))
        told.append("committed")
    except CompareFailed:
        told.append("refused")
    server.txn([], [Delete(b"flip")], [])
    await asyncio.sleep(2)

    there = server.get(Get(b"k")).first is not None
    assert told == (["committed"] if there else ["refused"])
    await made.close()


@simulated
async def test_n3_a_refusal_refuses_everything_behind_it() -> None:
    """A pipelining producer: 3 is refused (full), 4 commits, the connection drops, 3 is repeated: "last is 4, already applied". Wrong:
    loss. Prevented: each commit demands last = n - 1."""
    async with group() as g:
        x = await g.member("X")
        await x.queues.define(shared("A", max_depth=2))
        opened = await x.queues.open_producer("P", "A")
        await numbered(x, opened.epoch, 1, b"1", b"2")
        await refused(numbered(x, opened.epoch, 3, b"3"), Reason.Q_FULL)
        await x.get("A")

        await refused(numbered(x, opened.epoch, 4, b"4"), Reason.PRODUCER_GAP)
        await numbered(x, opened.epoch, 3, b"3")
        assert await x.get("A", 9) == [b"2", b"3"]


@simulated
async def test_h9_a_late_put_of_an_earlier_connection_is_not_taken_beside_its_repetition() -> None:
    """X's late commit of number 2 arrives after Y accepted number 2 again. Wrong: duplicate. Prevented: who connects raises the producer's
    epoch, and each commit compares the whole record."""
    async with group() as g:
        x, y = await g.member("X"), await g.member("Y")
        await x.queues.define(shared("A"))
        await asyncio.sleep(0.01)
        first = await x.queues.open_producer("P", "A")
        await numbered(x, first.epoch, 1, b"1")
        x.stores["app1"].pause()
        late = asyncio.create_task(numbered(x, first.epoch, 2, b"late"))
        await asyncio.sleep(0.05)
        assert x.in_flight("app1")
        second = await y.queues.open_producer("P", structure="app1")
        assert second.last == 1
        await numbered(y, second.epoch, 2, b"2")
        x.stores["app1"].resume()

        await refused(late, Reason.PRODUCER_FENCED)
        assert await y.get("A", 9) == [b"1", b"2"]


@simulated
async def test_p2_a_refusal_by_the_new_member_holds_against_the_old_ones_late_put() -> None:
    """X's late put 2; the producer connects to Y (epoch raised); Y refuses 2 (full); X's 2 commits. Wrong: refused, but committed; and a
    raise that is no compare-and-swap rolls *last* back. Prevented: the whole record is compared by its revision."""
    async with group() as g:
        x, y = await g.member("X"), await g.member("Y")
        await x.queues.define(shared("A", max_depth=60))
        await asyncio.sleep(0.01)
        first = await x.queues.open_producer("P", "A")
        await numbered(x, first.epoch, 1, b"1")
        await x.get("A")
        x.stores["app1"].pause()
        late = asyncio.create_task(numbered(x, first.epoch, 2, b"late"))
        await asyncio.sleep(0.05)
        assert x.in_flight("app1")
        others = [b"%d" % i for i in range(60)]
        await y.put("A", *others)
        second = await y.queues.open_producer("P", structure="app1")
        await refused(numbered(y, second.epoch, 2, b"2"), Reason.Q_FULL)
        x.stores["app1"].resume()

        with pytest.raises(Refusal):
            await late
        assert await y.get("A", 99) == others
        assert (await y.queues.open_producer("P", structure="app1")).last == 1


@simulated
async def test_p2_raising_the_epoch_keeps_last_though_a_put_comes_between() -> None:
    """The put of 1 commits between the read and the write of whoever raises the epoch. Wrong: *last* is rolled back and 1 put again.
    Prevented: raising is a compare-and-swap that keeps what it finds."""
    async with group() as g:
        x, y = await g.member("X"), await g.member("Y")
        await x.queues.define(shared("A"))
        await asyncio.sleep(0.01)
        first = await x.queues.open_producer("P", "A")
        y.stores["app1"].faults = Scripted([Fault(), Fault(delay_s=0.2)])  # the read at once, the write later
        raising = asyncio.create_task(y.queues.open_producer("P", structure="app1"))
        await asyncio.sleep(0.1)
        await numbered(x, first.epoch, 1, b"1")

        second = await raising
        assert second.last == 1
        await numbered(y, second.epoch, 1, b"1")
        assert await y.get("A", 9) == [b"1"]


@simulated
async def test_p8_a_late_put_to_a_queue_that_was_deleted_and_made_again_is_refused() -> None:
    """A queue is deleted and made again; a late put is acknowledged into the old or the new one. Wrong: loss. Prevented: every put
    compares the queue's state, which has a random id."""
    async with group() as g:
        x, y = await g.member("X"), await g.member("Y")
        await x.queues.define(shared("A"))
        await asyncio.sleep(0.01)
        await x.put("A", b"1")
        await x.get("A")
        x.stores["app1"].pause()
        late = asyncio.create_task(x.put("A", b"late"))
        await asyncio.sleep(0.05)
        assert x.in_flight("app1")
        await y.queues.delete("A")
        await y.queues.define(shared("A"))
        x.stores["app1"].resume()

        await refused(late, Reason.Q_DELETED)
        assert (await y.queues.depth("A")).messages == 0
