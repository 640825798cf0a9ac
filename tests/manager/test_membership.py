"""Membership: incarnations, leases, fencing, and what a restored store looks like."""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from qsg.manager.compaction import Housekeeper
from qsg.manager.membership import check_restored, confirm_restored, join, register
from qsg.manager.structure import Structure
from qsg.pb import records_pb2 as pb
from qsg.rules import keys
from qsg.rules.reasons import Reason, Refusal
from qsg.rules.unit import Fenced, Unit
from qsg.rules.world import World
from qsg.store.contract import Compacted, Delete, Get, Put, created_at
from qsg.store.faults import Fault, Faults, RandomFaults
from qsg.store.memory import MemoryServer, MemoryStore
from support.virtual_time import run


def world(seed: int = 3) -> World:
    return World(lambda: 0, Random(seed))


def record(process: str = "p1", member: str = "X") -> pb.MemberRecord:
    return pb.MemberRecord(member=member, process=process)


async def joined(
    server: MemoryServer, process: str = "p1", store: MemoryStore | None = None, member: str = "X", seed: int = 3
) -> Structure:
    return await join(store or server.client(), "admin", record(process, member), world(seed), compact=False)


class Nth(Faults):
    """One fault, for the n-th transaction."""

    def __init__(self, n: int, fault: Fault) -> None:
        self.n, self.fault = n, fault

    def request(self, kind: str) -> Fault:
        if kind != "txn":
            return Fault()
        self.n -= 1
        return self.fault if self.n == 0 else Fault()


@pytest.mark.parametrize("fault", [Fault(reply_lost=True), Fault(lost=True), Fault(late_s=0.3), Fault(late_s=3.0), Fault(refused=True)])
@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_joining_over_an_old_key_survives_any_one_fault(fault: Fault, n: int) -> None:
    async def main() -> None:
        server = MemoryServer()
        server.txn([], [Put(keys.member("X"), record("old").SerializeToString())], [])
        structure = await joined(server, store=server.client(Nth(n, fault)))
        await asyncio.sleep(4)
        assert not structure.fenced.is_set()
        await structure.commit(Unit(ops=[Put(b"k", b"")]))
        key = server.get(Get(keys.member("X"))).first
        assert key is not None and key.create_revision == structure.incarnation
        await structure.leave()
        assert server.get(Get(keys.member("X"))).first is None

    run(main())


def test_a_late_copy_of_a_creation_makes_no_second_incarnation() -> None:
    async def main() -> None:
        server = MemoryServer()
        structure = await joined(server, store=server.client(Nth(2, Fault(late_s=3.0))))
        await structure.leave()
        await asyncio.sleep(5)
        assert server.get(Get(keys.member("X"))).first is None

    run(main())


def test_no_attempt_of_an_earlier_incarnation_comes_late() -> None:
    """Interleaving P9: its last commit is under way while the name is started again."""

    async def main() -> None:
        server = MemoryServer()
        store = server.client()
        first = await joined(server, store=store)
        store.pause()
        sent = asyncio.create_task(first.commit(Unit(ops=[Put(b"late", b"")])))
        await asyncio.sleep(0.1)
        second = await joined(server, "p2")
        await second.commit(Unit(ops=[Put(b"k", b"")]), slot=0)
        store.resume()
        with pytest.raises(Fenced):
            await sent
        await asyncio.sleep(2)
        assert server.get(Get(b"late")).first is None
        await first.close()
        await second.leave()

    run(main())


def test_a_deleted_member_key_is_noticed_though_the_lease_lives() -> None:
    """Interleaving N14: an idle victim."""

    async def main() -> None:
        server = MemoryServer()
        structure = await joined(server)
        await asyncio.sleep(1)
        assert not structure.fenced.is_set()
        server.txn([created_at(keys.member("X"), structure.incarnation)], [Delete(keys.member("X"))], [])
        await asyncio.wait_for(structure.fenced.wait(), 0.1)
        assert asyncio.get_running_loop().time() < structure.membership.valid_until
        await structure.close()

    run(main())


def test_a_member_cut_off_beyond_its_lease_is_fenced_when_it_is_back() -> None:
    async def main() -> None:
        server = MemoryServer()
        store = server.client()
        structure = await joined(server, store=store)
        valid = structure.membership.valid_until
        await asyncio.sleep(4)
        assert structure.membership.valid_until > valid
        store.cut()
        await asyncio.sleep(7)
        assert asyncio.get_running_loop().time() > structure.membership.valid_until
        assert not structure.fenced.is_set() and not structure.reachable
        store.heal()
        await asyncio.wait_for(structure.fenced.wait(), 2)
        await structure.close()

    run(main())


def test_a_short_loss_of_the_store_costs_nothing() -> None:
    async def main() -> None:
        server = MemoryServer()
        store = server.client()
        structure = await joined(server, store=store)
        for _ in range(3):
            store.cut()
            await asyncio.sleep(2)
            store.heal()
            await asyncio.sleep(2)
        assert not structure.fenced.is_set()
        await structure.leave()

    run(main())


def test_a_private_store_has_no_lease() -> None:
    async def main() -> None:
        server = MemoryServer()
        structure = await join(server.client(), "private", record(), world(), lease=False)
        key = server.get(Get(keys.member("X"))).first
        assert key is not None and key.lease == 0
        await asyncio.sleep(60)
        assert not structure.fenced.is_set()
        await structure.leave()

    run(main())


@pytest.mark.parametrize(("highest", "revision", "restored"), [(0, 5, False), (100, 100, False), (100, 99, True), (100, 100 + 10**8, True)])
def test_what_counts_as_restored(highest: int, revision: int, restored: bool) -> None:
    if not restored:
        check_restored(highest, revision)
        return
    with pytest.raises(Refusal) as refused:
        check_restored(highest, revision)
    assert refused.value.reason is Reason.STRUCTURE_RESTORED


@pytest.mark.parametrize("jump", [10**9, -1])
def test_a_store_that_is_restored_under_a_running_member_fences_it(jump: int) -> None:
    """Interleavings C6 and P16: the member key came back with the snapshot, so nothing else would tell."""

    async def main() -> None:
        server = MemoryServer()
        structure = await joined(server)
        await structure.commit(Unit(ops=[Put(b"k", b"")]))
        server.state.revision += jump
        await asyncio.wait_for(structure.fenced.wait(), 3)
        assert structure.membership.restored
        await structure.close()

    run(main())


def test_a_confirmed_restore_lets_members_join_anew_and_nothing_of_before_write() -> None:
    """Interleaving P16: a paused process of before the restore does not find its own key, and writes nothing."""

    async def main() -> None:
        server = MemoryServer()
        store = server.client()
        before = await joined(server, store=store)
        store.pause()
        sent = asyncio.create_task(before.commit(Unit(ops=[Put(b"k", b"")])))
        server.state.revision += 10**9
        highest = await confirm_restored(server.client())
        after = await join(server.client(), "admin", record("p2"), world(), highest=highest)
        store.resume()
        with pytest.raises(Fenced):
            await sent
        assert server.get(Get(b"k")).first is None
        await before.close()
        await after.leave()

    run(main())


def test_the_highest_revision_is_told_and_goes_up_only() -> None:
    async def main() -> None:
        server = MemoryServer()
        told: list[int] = []
        structure = await join(server.client(), "admin", record(), world(), on_revision=told.append)
        for i in range(3):
            await structure.commit(Unit(ops=[Put(b"k", b"%d" % i)]))
        assert told == sorted(set(told)) and told[-1] == structure.revision == server.state.revision
        await structure.leave()

    run(main())


@pytest.mark.parametrize("seed", range(20))
def test_of_two_processes_that_take_one_name_one_remains(seed: int) -> None:
    async def main() -> None:
        server = MemoryServer(random=Random(seed))
        structures = []

        async def start(process: str, seed: int) -> None:
            faults = RandomFaults(Random(seed), delay_s=0.05, refused=0.1, lost=0.1, reply_lost=0.1, late=0.1, late_s=1.0)
            await asyncio.sleep(Random(seed).uniform(0, 0.5))
            structures.append(await joined(server, process, server.client(faults), seed=seed))

        await asyncio.gather(*(start(f"p{i}", 100 * seed + i) for i in range(3)))
        await asyncio.sleep(4)
        key = server.get(Get(keys.member("X"))).first
        assert key is not None
        living = [s for s in structures if not s.fenced.is_set()]
        assert [s.incarnation for s in living] == [key.create_revision]
        for s in structures:
            await s.close()

    run(main())


def test_registering_waits_for_a_store_that_is_out_of_reach() -> None:
    async def main() -> None:
        server = MemoryServer()
        store = server.client()
        store.cut()
        task = asyncio.create_task(register(store, record(), world(), slots=2, lease=True))
        await asyncio.sleep(10)
        assert not task.done()
        store.heal()
        registration = await task
        assert registration.incarnation == server.state.revision

    run(main())


def test_the_first_living_member_by_name_compacts_and_keeps_some_history() -> None:
    async def main() -> None:
        server = MemoryServer()
        x, y = await joined(server), await joined(server, member="Y")
        at: dict[float, int] = {}
        keepers = [Housekeeper(s.store, s.member) for s in (x, y)]
        tasks = [asyncio.create_task(k.run()) for k in keepers]
        for i in range(40):
            await x.commit(Unit(ops=[Put(b"k", b"%d" % i)]))
            at[asyncio.get_running_loop().time()] = server.state.revision
            await asyncio.sleep(0.5)
        now = asyncio.get_running_loop().time()
        assert keepers[1].compacted == 0 < keepers[0].compacted
        kept = min(r for t, r in at.items() if t >= now - 5)
        await x.store.get(Get(b"k", revision=kept))
        with pytest.raises(Compacted):
            await x.store.get(Get(b"k", revision=next(iter(at.values()))))
        await x.leave()
        await asyncio.sleep(10)
        assert keepers[1].compacted > keepers[0].compacted
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await y.leave()

    run(main())
