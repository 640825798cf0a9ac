"""The committer against stores that lose, delay and refuse: what callers are told is so."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from random import Random

import pytest
from structlog.testing import capture_logs

from qsg.manager.committer import Committer
from qsg.pb import records_pb2 as pb
from qsg.rules import keys
from qsg.rules.reasons import Reason, Refusal
from qsg.rules.slots import Guard
from qsg.rules.unit import Cell, Change, CompareFailed, Fenced, NewMessage, OutcomeUnknown, Taken, Unit
from qsg.rules.world import World
from qsg.store.contract import Delete, Get, Limits, NoSpace, Op, Put, StoreError, TooLarge, absent, get_prefix
from qsg.store.faults import Fault, RandomFaults
from qsg.store.memory import MemoryServer, MemoryStore
from support.slots import Picky, Scripted, depth, stored
from support.virtual_time import run


def world(seed: int = 7) -> World:
    return World(lambda: 0, Random(seed))


def message(number: int, queue: str = "Q", size: int = 8) -> NewMessage:
    name = b"%024d" % number
    return NewMessage(
        queue, 0, pb.Entry(message_id=name, payload_size=size), pb.Message(message_id=name, payload=b"x" * size).SerializeToString()
    )


def committer(server: MemoryServer, store: MemoryStore, slots: int = 2, seed: int = 7) -> Committer:
    incarnation = server.txn([], [Put(keys.member("X"), b"")], []).revision
    c = Committer(store, "X", incarnation, [Guard() for _ in range(slots)], world(seed))
    c.start()
    return c


LOST = Fault(lost=True)
REPLY_LOST = Fault(reply_lost=True)


def test_an_attempt_whose_answer_is_lost_is_repeated_and_recognised() -> None:
    async def main() -> None:
        server = MemoryServer()
        c = committer(server, server.client(Scripted([REPLY_LOST, REPLY_LOST])), 1)
        committed = await c.commit(Unit(puts=[message(1)]))
        assert stored(server) == [1]
        header = server.get(get_prefix(keys.headers("Q"))).first
        assert header is not None and header.create_revision == committed.revision
        assert c.counters.repeats == 2
        await c.commit(Unit(puts=[message(2)]))
        assert (stored(server), depth(server)) == ([1, 2], 2)
        await c.close()

    run(main())


def test_a_failed_part_of_an_attempt_sent_twice_is_told_only_after_a_void_advance() -> None:
    """Interleaving P1: the first copy is late, the second fails, the compare flips back, and the first arrives."""

    async def main() -> None:
        server = MemoryServer()
        server.txn([], [Put(b"flip", b"")], [])
        late = Fault(late_s=0.5)

        def script(n: int) -> None:
            if n == 3:  # the void advance is on its way
                server.txn([], [Delete(b"flip")], [])

        c = committer(server, server.client(Scripted([late], before=script)), 1)
        with pytest.raises(CompareFailed):
            await c.commit(Unit(compares=[absent(b"flip")], ops=[Put(b"wrong", b"")]))
        assert c.counters.voids == 1
        await asyncio.sleep(2)
        assert server.get(Get(b"wrong")).first is None
        await c.close()

    run(main())


def test_a_late_copy_that_wins_against_the_void_advance_is_told_committed() -> None:
    async def main() -> None:
        server = MemoryServer()
        server.txn([], [Put(b"flip", b"")], [])

        def script(n: int) -> None:
            if n == 3:
                server.txn([], [Delete(b"flip")], [])

        faults = Scripted([Fault(late_s=0.1), Fault(), Fault(delay_s=0.3)], before=script)
        c = committer(server, server.client(faults), 1)
        await c.commit(Unit(compares=[absent(b"flip")], ops=[Put(b"right", b"")]))
        assert server.get(Get(b"right")).first is not None
        await c.close()

    run(main())


def test_a_member_that_is_gone_learns_what_became_of_what_was_out() -> None:
    async def main() -> None:
        server = MemoryServer()

        def script(n: int) -> None:
            if n == 2:
                server.txn([], [Delete(keys.member("X"))], [])

        c = committer(server, server.client(Scripted([REPLY_LOST], before=script)), 1)
        await c.commit(Unit(ops=[Put(b"applied", b"")]))
        with pytest.raises(Fenced):
            await c.commit(Unit(ops=[Put(b"not", b"")]))
        with pytest.raises(Fenced):
            await c.commit(Unit(ops=[Put(b"never sent", b"")]))
        assert server.get(Get(b"applied")).first is not None
        await c.close()

    run(main())


def test_what_is_refused_because_the_member_is_gone_is_counted() -> None:
    """In the transaction that finds out, behind it, and later; told once, when the incarnation is closed."""

    async def main() -> None:
        server = MemoryServer()
        c = committer(server, server.client(Scripted([Fault(delay_s=0.1)])), 1)
        server.txn([], [Delete(keys.member("X"))], [])
        sent = [asyncio.create_task(c.commit(Unit(ops=[Put(name, b"")]))) for name in (b"1", b"2")]
        await asyncio.sleep(0.05)
        waiting = asyncio.create_task(c.commit(Unit(ops=[Put(b"3", b"")])))
        outcomes = await asyncio.gather(*sent, waiting, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [Fenced] * 3
        with pytest.raises(Fenced):
            await c.commit(Unit(ops=[Put(b"4", b"")]))
        with capture_logs() as logs:
            await c.close()
        assert [line["units"] for line in logs if line["event"] == "writes refused"] == [4]

    run(main())


def test_a_member_that_stays_has_nothing_refused_to_tell() -> None:
    async def main() -> None:
        server = MemoryServer()
        c = committer(server, server.client(), 1)
        await c.commit(Unit(ops=[Put(b"1", b"")]))
        with pytest.raises(CompareFailed):
            await c.commit(Unit(compares=[absent(b"1")], ops=[Put(b"2", b"")]))
        with capture_logs() as logs:
            await c.close()
        assert logs == []

    run(main())


def test_closing_while_an_attempt_is_out_answers_unknown() -> None:
    async def main() -> None:
        server = MemoryServer()
        store = server.client()
        c = committer(server, store, 1)
        store.cut()
        sent = asyncio.create_task(c.commit(Unit(ops=[Put(b"sent", b"")])))
        await asyncio.sleep(0.1)
        waiting = asyncio.create_task(c.commit(Unit(ops=[Put(b"waiting", b"")])))
        await asyncio.sleep(0.1)
        await c.close(0.5)
        with pytest.raises(OutcomeUnknown):
            await sent
        with pytest.raises(Refusal) as refused:
            await waiting
        assert refused.value.reason is Reason.Q_MGR_STOPPING

    run(main())


def test_what_arrives_during_a_commit_shares_the_next_and_keeps_its_order() -> None:
    async def main() -> None:
        server = MemoryServer()
        c = committer(server, server.client(Scripted([Fault(delay_s=0.05)])), 1)
        tasks = []
        for i in range(20):
            tasks.append(asyncio.create_task(c.commit(Unit(puts=[message(i)]), affinity="producer")))
            await asyncio.sleep(0.001)
        await asyncio.gather(*tasks)
        assert stored(server) == list(range(20))
        assert c.counters.commits == 2
        assert depth(server) == 20
        await c.close()

    run(main())


def test_order_is_kept_when_some_of_a_transaction_fail() -> None:
    async def main() -> None:
        server = MemoryServer()
        server.txn([], [Put(b"there", b"")], [])
        c = committer(server, server.client(), 1)
        units = [Unit(compares=[absent(b"there")] if i % 3 == 0 else [], puts=[message(i)]) for i in range(9)]
        results = await asyncio.gather(*(c.commit(u) for u in units), return_exceptions=True)
        assert [isinstance(r, CompareFailed) for r in results] == [i % 3 == 0 for i in range(9)]
        assert stored(server) == [i for i in range(9) if i % 3]
        await c.close()

    run(main())


def test_a_refusal_in_apply_leaves_no_trace_and_what_rests_on_an_uncommitted_value_is_told_after_it() -> None:
    async def main() -> None:
        server = MemoryServer()
        store = server.client(Scripted([Fault(delay_s=0.2)]))
        c = committer(server, store, 1)
        cell = Cell(b"count")

        def advance(to: int) -> Callable[[bytes | None], bytes | None]:
            def apply(old: bytes | None) -> bytes:
                if int(old or b"0") != to - 1:
                    raise Refusal(Reason.PRODUCER_GAP)
                return b"%d" % to

            return apply

        units = [Unit(changes=[Change(cell, advance(n))], puts=[message(i)]) for i, n in enumerate((1, 1, 2, 7, 3))]
        tasks = [asyncio.create_task(c.commit(u)) for u in units]
        await asyncio.sleep(0.1)
        assert not any(t.done() for t in tasks)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [isinstance(r, Refusal) for r in results] == [False, True, False, True, False]
        assert (cell.value, stored(server)) == (b"3", [0, 2, 4])
        await c.close()

    run(main())


def test_the_totals_of_a_queue_that_was_made_anew_begin_at_nothing() -> None:
    async def main() -> None:
        server = MemoryServer()
        c = committer(server, server.client(), 1)
        await c.commit(Unit(puts=[message(1), message(2)]))
        prefix = get_prefix(keys.queue("Q"))
        server.txn([], [Delete(prefix.key, prefix.end)], [])
        await c.commit(Unit(puts=[message(3)]))
        assert (stored(server), depth(server)) == ([3], 1)
        await c.close()

    run(main())


def test_a_later_incarnation_goes_on_from_the_totals_of_its_lane() -> None:
    async def main() -> None:
        server = MemoryServer()
        first = committer(server, server.client(), 1)
        await first.commit(Unit(puts=[message(1), message(2)]))
        await first.close()
        incarnation = server.txn([], [Delete(keys.member("X"))], []).revision
        incarnation = server.txn([], [Put(keys.member("X"), b"")], []).revision
        guard = server.get(Get(keys.guard("X", 0))).first
        assert guard is not None
        second = Committer(server.client(), "X", incarnation, [Guard(1, b"", guard.mod_revision)], world(8))
        second.start()
        await second.commit(Unit(puts=[message(3)], taken=[Taken("Q", 1, 8)]))
        assert (stored(server), depth(server)) == ([1, 2, 3], 2)
        await second.close()

    run(main())


def test_a_caller_that_goes_away_does_not_disturb_the_others() -> None:
    async def main() -> None:
        server = MemoryServer()
        c = committer(server, server.client(Scripted([Fault(delay_s=0.1)])), 1)
        tasks = [asyncio.create_task(c.commit(Unit(puts=[message(i)]))) for i in range(2)]
        await asyncio.sleep(0.01)
        tasks += [asyncio.create_task(c.commit(Unit(puts=[message(i)]))) for i in range(2, 5)]
        await asyncio.sleep(0.01)
        tasks[0].cancel()  # out: settles all the same
        tasks[2].cancel()  # not sent yet: never is
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [isinstance(r, asyncio.CancelledError) for r in results] == [True, False, True, False, False]
        assert stored(server) == [0, 1, 3, 4]
        await c.close()

    run(main())


def test_a_full_store_refuses_puts_and_lets_messages_be_taken() -> None:
    async def main() -> None:
        server = MemoryServer()
        store = Picky(server)
        c = committer(server, store, 1)
        await c.commit(Unit(puts=[message(1)]))
        header = server.get(get_prefix(keys.headers("Q"))).kvs[0].key
        store.refuse = lambda ops: (
            NoSpace("full") if any(op.key.startswith(keys.headers("Q")) and isinstance(op, Put) for op in ops) else None
        )
        put = asyncio.create_task(c.commit(Unit(puts=[message(2)])))
        take = asyncio.create_task(c.commit(Unit(ops=[Delete(header)], taken=[Taken("Q", 1, 8)])))
        with pytest.raises(Refusal) as refused:
            await put
        assert refused.value.reason is Reason.STORAGE_NOT_AVAILABLE
        await take
        assert (stored(server), depth(server)) == ([], 0)
        with pytest.raises(Refusal):
            await c.commit(Unit(puts=[message(3)]))
        store.refuse = lambda ops: None
        await asyncio.sleep(2)
        await c.commit(Unit(puts=[message(4)]))
        assert stored(server) == [4]
        await c.close()

    run(main())


def test_a_look_at_a_full_store_that_is_refused_is_repeated() -> None:
    async def main() -> None:
        store = Picky(MemoryServer())
        errors = [NoSpace("full"), StoreError("no"), NoSpace("full")]
        store.refuse = lambda ops: errors.pop(0) if errors else None
        c = committer(store.server, store, 1)
        with pytest.raises(Refusal) as refused:
            await c.commit(Unit(puts=[message(1)]))
        assert (refused.value.reason, c.is_fenced, errors) == (Reason.STORAGE_NOT_AVAILABLE, False, [])
        await c.close()

    run(main())


@pytest.mark.parametrize("fault", [Fault(full=True), Fault(full=True, reply_delay_s=0.05)])
def test_what_a_full_store_has_applied_all_the_same_is_told_as_committed(fault: Fault) -> None:
    """etcd applies the transaction that fills its quota and answers *no space*. Told as refused, its messages would be put again."""

    async def main() -> None:
        server = MemoryServer()
        c = committer(server, server.client(Scripted([fault])), 1)
        committed = await c.commit(Unit(puts=[message(1)]))
        header = server.get(get_prefix(keys.headers("Q"))).first
        assert header is not None and header.create_revision == committed.revision
        assert c.refuses_growth()
        with pytest.raises(Refusal) as refused:
            await c.commit(Unit(puts=[message(2)]))
        assert refused.value.reason is Reason.STORAGE_NOT_AVAILABLE
        await asyncio.sleep(2)
        await c.commit(Unit(puts=[message(3)]))
        assert (stored(server), depth(server)) == ([1, 3], 2)
        await c.close()

    run(main())


def test_what_is_written_between_two_looks_at_the_quota_counts() -> None:
    """A store that is filled to its very quota takes no write any more, and so cannot be drained."""

    async def main() -> None:
        server = MemoryServer()
        c = committer(server, server.client(), 1)
        c.has_room(60_000)
        await c.commit(Unit(puts=[message(1_000, size=2_000)]))
        assert not c.look.is_set()
        taken = 1
        with pytest.raises(Refusal) as refused:
            while True:
                await c.commit(Unit(puts=[message(taken, size=2_000)]))
                taken += 1
        assert refused.value.reason is Reason.STORAGE_NOT_AVAILABLE
        assert 20 <= taken <= 30
        assert c.look.is_set(), "others write too: it is time to look again"
        header = server.get(get_prefix(keys.headers("Q"))).kvs[0].key
        await c.commit(Unit(ops=[Delete(header)], taken=[Taken("Q", 1, 2_000)]))
        c.has_room(100, slack=10_000)
        for n in range(3):
            await c.commit(Unit(puts=[message(2_000 + n, size=2_000)]))
        c.has_room(-100, slack=10_000)
        with pytest.raises(Refusal):
            await c.commit(Unit(puts=[message(3_000)]))
        c.has_room(60_000)
        await c.commit(Unit(puts=[message(99)]))
        c.has_room(None)
        await asyncio.gather(*(c.commit(Unit(puts=[message(n)])) for n in range(100, 120)))
        await c.close()

    run(main())


def test_a_full_store_that_lost_an_answer_before_is_asked_until_it_is_certain() -> None:
    async def main() -> None:
        server = MemoryServer()
        c = committer(server, server.client(Scripted([LOST, Fault(full=True), LOST, Fault()])), 1)
        await c.commit(Unit(puts=[message(1)]))
        assert (stored(server), depth(server)) == ([1], 1)
        await c.close()

    run(main())


def test_a_store_that_takes_less_than_it_said_is_learnt() -> None:
    async def main() -> None:
        server = MemoryServer()
        store = Picky(server)
        store.refuse = lambda ops: TooLarge("no") if len(ops) > 20 else None
        c = committer(server, store, 1)
        units = [Unit(ops=[Put(b"%d/%d" % (i, j), b"") for j in range(5)]) for i in range(20)]
        await asyncio.gather(*(c.commit(u) for u in units))
        assert len(server.get(Get(b"0", b":")).kvs) == 100
        assert c.limits.operations < 40
        with pytest.raises(Refusal) as refused:
            await c.commit(Unit(ops=[Put(b"x%d" % j, b"") for j in range(30)]))
        assert refused.value.reason is Reason.SYNCPOINT_LIMIT_REACHED
        await c.close()

    run(main())


def test_of_a_store_that_learns_which_limit_it_was_the_others_stay() -> None:
    async def main() -> None:
        store = Picky(MemoryServer())

        def refuse(ops: Sequence[Op]) -> TooLarge | None:
            if sum(len(op.value) for op in ops if isinstance(op, Put)) > 40_000:
                store.limits = Limits(bytes=40_000)
                return TooLarge("bytes")
            return None

        store.refuse = refuse
        c = committer(store.server, store, 1)
        await asyncio.gather(*(c.commit(Unit(ops=[Put(b"k/%d" % i, b"x" * 10_000)])) for i in range(10)))
        assert c.limits == Limits(bytes=40_000)
        await c.close()

    run(main())


def test_a_unit_that_is_not_right_fails_alone() -> None:
    async def main() -> None:
        server = MemoryServer()
        c = committer(server, server.client(), 1)
        cell = Cell(b"k")
        wrong = Unit(changes=[Change(cell, lambda _: b"1")], ops=[Put(b"k", b"2")])
        results = await asyncio.gather(
            c.commit(Unit(puts=[message(1)])), c.commit(wrong), c.commit(Unit(puts=[message(2)])), return_exceptions=True
        )
        assert isinstance(results[1], ValueError)
        assert stored(server) == [1, 2]
        await c.close()

    run(main())


@pytest.mark.parametrize("seed", range(30))
def test_whatever_the_store_does_callers_are_told_what_is_so(seed: int) -> None:
    """Producers with numbered puts, a flipping key that half of them compare, and lost, late and refused copies (invariants 1, 2, 11)."""

    async def main() -> None:
        random = Random(seed)
        server = MemoryServer(random=Random(seed), limits=Limits(operations=40))
        faults = RandomFaults(Random(seed + 1), delay_s=0.05, refused=0.05, lost=0.1, reply_lost=0.1, late=0.15, late_s=1.5)
        c = committer(server, server.client(faults), 2, seed)
        shared = Cell(b"shared")
        committed: dict[int, set[int]] = {}
        failed: set[int] = set()

        async def produce(producer: int) -> None:
            for n in range(25):
                number = producer * 1000 + n
                changes = [Change(shared, lambda old: b"%d" % (int(old or b"0") + 1))] if random.random() < 0.3 else []
                compares = [absent(b"flip")] if random.random() < 0.4 else []
                try:
                    done = await c.commit(Unit(compares=compares, changes=changes, puts=[message(number)]), affinity=f"p{producer}")
                except CompareFailed:
                    failed.add(number)
                else:
                    committed.setdefault(done.revision, set()).add(number)

        async def flip() -> None:
            while True:
                server.txn([], [Put(b"flip", b"")], [])
                await asyncio.sleep(random.uniform(0, 0.3))
                server.txn([], [Delete(b"flip")], [])
                await asyncio.sleep(random.uniform(0, 0.6))

        flipping = asyncio.create_task(flip())
        await asyncio.gather(*(produce(p) for p in range(6)))
        flipping.cancel()
        await asyncio.sleep(10)
        await c.close()
        found = stored(server)
        everyone = set().union(*committed.values())
        assert sorted(found) == sorted(everyone)
        assert failed.isdisjoint(everyone) and failed
        assert depth(server) == len(found)
        for p in range(6):
            mine = [n for n in found if n // 1000 == p]
            assert mine == sorted(mine)
        for kv in server.get(get_prefix(keys.headers("Q"))).kvs:
            assert {int(e.message_id) for e in pb.SegmentHeader.FromString(kv.value).entries} <= committed[kv.create_revision]

    run(main())
