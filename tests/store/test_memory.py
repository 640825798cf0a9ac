"""What is particular to the store in memory: its faults, its clock, its quota; that a run is repeatable."""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from qsg.store.contract import (
    Compacted,
    Delete,
    Get,
    LeaseNotFound,
    Limits,
    NoSpace,
    NotApplied,
    Put,
    StoreError,
    TooLarge,
    Unavailable,
    absent,
    unchanged,
)
from qsg.store.faults import Fault, Faults, RandomFaults
from qsg.store.memory import MemoryServer, MemoryStore
from support import virtual_time
from support.simulated import simulated


class Script(Faults):
    """The given faults, one for each transaction, then none."""

    def __init__(self, *faults: Fault) -> None:
        self.faults = list(faults)

    def request(self, kind: str) -> Fault:
        return self.faults.pop(0) if self.faults and kind == "txn" else Fault()


@pytest.fixture
def server() -> MemoryServer:
    return MemoryServer(random=Random(1))


async def value(store: MemoryStore, key: bytes = b"k") -> bytes | None:
    kv = (await store.get(Get(key))).first
    return None if kv is None else kv.value


@pytest.mark.parametrize(
    ("fault", "error", "applied"),
    [
        (Fault(refused=True), NotApplied, False),
        (Fault(lost=True), Unavailable, False),
        (Fault(reply_lost=True), Unavailable, True),
        (Fault(reply_delay_s=0.2), Unavailable, True),
    ],
)
@simulated
async def test_faults(server: MemoryServer, fault: Fault, error: type[StoreError], applied: bool) -> None:
    store = server.client(Script(fault))
    with pytest.raises(error):
        await store.txn([], [Put(b"k", b"1")], timeout_s=0.02)
    assert await value(store) == (b"1" if applied else None)


@pytest.mark.parametrize("fault", [Fault(late_s=0.1), Fault(delay_s=0.1)])
@simulated
async def test_a_late_commit(server: MemoryServer, fault: Fault) -> None:
    """The caller knows nothing, reads that it is not there, and then it is: evaluated against the state it meets."""
    store = server.client(Script(fault, fault))
    for key, conflicting in ((b"k", False), (b"other", True)):
        with pytest.raises(Unavailable):
            await store.txn([absent(key)], [Put(key, b"late")], [Put(b"else", key)], timeout_s=0.01)
        assert await value(store, key) is None
        if conflicting:
            await store.txn([], [Put(key, b"in time")])
        await asyncio.sleep(0.15)
    assert [await value(store, key) for key in (b"k", b"other", b"else")] == [b"late", b"in time", b"other"]


@simulated
async def test_a_cancelled_caller_does_not_take_its_request_back(server: MemoryServer) -> None:
    store = server.client(Script(Fault(delay_s=0.02)))
    task = asyncio.create_task(store.txn([], [Put(b"k", b"1")]))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0.04)
    assert await value(store) == b"1"


@simulated
async def test_a_cut_client_loses_what_it_sends_and_others_go_on(server: MemoryServer) -> None:
    cut, other = server.client(), server.client()
    watch = cut.watch(b"k", b"", 2)
    cut.cut()
    with pytest.raises(Unavailable):
        await cut.txn([], [Put(b"k", b"lost")], timeout_s=0.01)
    await other.txn([], [Put(b"k", b"1")])
    waiting = asyncio.ensure_future(anext(watch))
    await asyncio.sleep(0.02)
    assert not waiting.done()
    cut.heal()
    batch = await waiting
    assert [e.kv.value for e in batch.events] == [b"1"]
    assert await value(cut) == b"1"


@simulated
async def test_a_cut_on_the_way_back_leaves_the_outcome_unknown(server: MemoryServer) -> None:
    store = server.client(Script(Fault(reply_delay_s=0.02)))
    task = asyncio.create_task(store.txn([], [Put(b"k", b"1")], timeout_s=0.1))
    await asyncio.sleep(0.01)
    store.cut()
    with pytest.raises(Unavailable):
        await task
    store.heal()
    assert await value(store) == b"1"


@simulated
async def test_a_paused_path_holds_and_then_applies(server: MemoryServer) -> None:
    store = server.client()
    store.pause()
    with pytest.raises(Unavailable):
        await store.txn([], [Put(b"k", b"held")], timeout_s=0.01)
    assert await value(server.client()) is None
    patient = asyncio.create_task(store.txn([], [Put(b"j", b"")], timeout_s=5))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    store.resume()
    await patient
    assert await value(server.client()) == b"held"


@simulated
async def test_watch_resumes_behind_what_was_delivered_and_is_told_of_compaction(server: MemoryServer) -> None:
    store, other = server.client(), server.client()
    watch = store.watch(b"a", b"b", 2)
    await other.txn([], [Put(b"a1", b"")])
    assert [e.kv.key for e in (await anext(watch)).events] == [b"a1"]
    store.cut_watches()
    progress = await anext(watch)
    assert (progress.revision, progress.events) == (2, ())
    store.cut()
    revision = 0
    for i in range(3):
        revision = (await other.txn([], [Put(b"a%d" % i, b"")])).revision
    await other.compact(revision)
    store.heal()
    with pytest.raises(Compacted):
        await anext(watch)


@simulated
async def test_leases_run_by_loop_time_and_a_new_leader_renews_them(server: MemoryServer) -> None:
    store = server.client()
    lease = await store.grant(1)
    await store.txn([], [Put(b"k", b"1", lease)])
    await asyncio.sleep(0.7)
    server.leader_change()
    await asyncio.sleep(0.7)
    assert await value(store) == b"1"
    watch = store.watch(b"k", b"", server.state.revision + 1)
    batch = await asyncio.wait_for(anext(watch), 5)
    assert [e.deleted for e in batch.events] == [True]
    with pytest.raises(LeaseNotFound):
        await store.keep_alive(lease)


@simulated
async def test_a_lease_goes_on_running_while_its_client_is_cut_off(server: MemoryServer) -> None:
    store = server.client()
    lease = await store.grant(1)
    await store.txn([], [Put(b"k", b"1", lease)])
    store.cut()
    await asyncio.sleep(1.05)
    assert await value(server.client()) is None


@simulated
async def test_a_full_store_refuses_puts_and_drains() -> None:
    server = MemoryServer(random=Random(1), quota=10_000)
    store = server.client()
    stored = 0
    with pytest.raises(NoSpace):
        while True:
            await store.txn([], [Put(b"k%d" % stored, bytes(1000))])
            stored += 1
    assert 5 < stored < 10
    with pytest.raises(NoSpace):
        await store.txn([], [Delete(b"k0"), Put(b"x", bytes(1000))])
    assert await value(store, b"k0") is not None  # nothing of it was applied
    await store.txn([], [Delete(b"k0", b"k5")])
    await store.compact((await store.status()).revision)
    status = await store.status()
    assert status.bytes_in_use < status.bytes_quota == 10_000
    await store.txn([], [Put(b"x", bytes(1000))])
    server.close()


@simulated
async def test_compaction_frees_every_byte(server: MemoryServer) -> None:
    store = server.client()
    random = Random(4)
    for i in range(500):
        key = b"%d" % random.randrange(30)
        await store.txn([], [Put(key, bytes(random.randrange(100)))] if random.random() < 0.7 else [Delete(key)])
        if i % 50 == 0:
            await store.compact(server.state.revision)
    await store.txn([], [Delete(b"\0", b"\0")])
    await store.compact(server.state.revision)
    assert (await store.status()).bytes_in_use == 0


@simulated
async def test_limits_are_the_servers() -> None:
    server = MemoryServer(limits=Limits(operations=2, compares=1, bytes=20))
    store = server.client()
    await store.txn([absent(b"a")], [Put(b"a", b"1"), Get(b"b")])
    with pytest.raises(TooLarge):
        await store.txn([absent(b"a")] * 2, [])
    with pytest.raises(TooLarge):
        await store.txn([], [Get(b"a")] * 3)
    await store.txn([], [Put(b"a", bytes(19))])
    with pytest.raises(TooLarge):
        await store.txn([], [Put(b"a", bytes(20))])


async def history(seed: int) -> list[str]:
    """A small history under random faults: what each client saw, and when."""
    random = Random(seed)
    server = MemoryServer(random=random)
    loop = asyncio.get_running_loop()
    seen: list[str] = []

    async def work(n: int, store: MemoryStore) -> None:
        lease = await server.client().grant(3)
        for i in range(40):
            try:
                ops = [Put(b"n", b"%d/%d" % (n, i), lease)]
                result = await store.txn([unchanged(b"n", server.state.revision)] if i % 2 else [], ops)
                seen.append(f"{loop.time():.6f} {n} {i} {result.succeeded} {result.revision}")
            except StoreError as e:
                seen.append(f"{loop.time():.6f} {n} {i} {type(e).__name__}")

    async def watch(store: MemoryStore) -> None:
        async for batch in store.watch(b"n", b"", 2):
            seen.append(f"{loop.time():.6f} {batch}")  # noqa: PERF401

    stores = [server.client(RandomFaults(random, 0.05, refused=0.1, lost=0.1, reply_lost=0.1, late=0.1)) for _ in range(4)]
    watching = asyncio.create_task(watch(stores.pop()))
    await asyncio.gather(*(work(n, store) for n, store in enumerate(stores)))
    await asyncio.sleep(10)
    watching.cancel()
    server.close()
    return seen


def test_the_same_seed_gives_the_same_history() -> None:
    """In virtual time, to the microsecond: answers, faults, late commits, expiries, deliveries."""
    seen = virtual_time.run(history(1))
    assert seen == virtual_time.run(history(1))
    assert seen != virtual_time.run(history(2))
    for what in ("NotApplied", "Unavailable", "True", "False", "deleted=True"):
        assert any(what in line for line in seen), what


@simulated
async def test_a_restored_store_is_what_it_was_at_a_higher_revision(server: MemoryServer) -> None:
    store = server.client()
    lease = await store.grant(5)
    await store.txn([], [Put(b"k", b"1", lease)])
    before = (await store.status()).revision
    snapshot = server.snapshot()
    watch = store.watch(b"k", b"", before + 1)
    await store.txn([], [Put(b"k", b"2", lease)])
    await anext(watch)
    server.restore(snapshot)
    assert await value(store) == b"1"
    assert (await store.status()).revision == before + 1_000_000_000
    with pytest.raises(Compacted):
        await anext(watch)
    with pytest.raises(Compacted):
        await store.get(Get(b"k", revision=before))
    assert (await store.txn([], [Put(b"j", b"")])).revision == before + 1_000_000_001
    await asyncio.sleep(4)
    assert await store.keep_alive(lease) == 5  # a restored lease has its full time
    server.restore(snapshot, bump_revision=0)
    assert (await store.get(Get(b"k", revision=before))).revision == before


@simulated
async def test_a_closed_handle_says_so(server: MemoryServer) -> None:
    store = server.client()
    watch = store.watch(b"a", b"b", 2)
    waiting = asyncio.ensure_future(anext(watch))
    await asyncio.sleep(0)
    await store.close()
    with pytest.raises(StoreError):
        await waiting
    with pytest.raises(StoreError):
        await store.txn([], [])
