"""The etcd store while etcd suffers: leader killed, member frozen, connections cut, history gone, space gone.

What must hold every time: a watch delivers exactly what was committed, and a write is never applied twice or told wrongly.
"""

from __future__ import annotations

import asyncio
import functools
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from qsg.process.etcd import EtcdCluster, EtcdOptions
from qsg.process.proxy import Proxy
from qsg.store.contract import (
    Compacted,
    Delete,
    Event,
    Get,
    NoSpace,
    NotApplied,
    Put,
    Unavailable,
    WatchBatch,
    get_prefix,
    prefix_end,
    unchanged,
)
from qsg.store.etcd import EtcdStore, watches
from support import etcd as support
from support.etcd import etcd_one, etcd_one_session, etcd_three, etcd_three_session, opened
from support.stores import PATIENT_S

pytestmark = pytest.mark.etcd
__all__ = ["etcd_one", "etcd_one_session", "etcd_three", "etcd_three_session"]

PREFIX = b"w/"


@dataclass
class Writer:
    """Writes 0, 1, 2, ... to one key under a guard, settling every unknown outcome by repeating the same transaction."""

    store: EtcdStore
    name: int
    written: list[int] = field(default_factory=list)
    """Revisions, one for each number."""
    doubts: int = 0

    async def run(self, stop: asyncio.Event) -> None:
        guard = 0
        key = PREFIX + b"%d" % self.name
        while not stop.is_set():
            value = b"%d" % len(self.written)
            guard = await self._write(key, value, guard)
            self.written.append(guard)

    async def _write(self, key: bytes, value: bytes, guard: int) -> int:
        while True:
            try:
                result = await self.store.txn([unchanged(key, guard)], [Put(key, value)], [Get(key)])
            except Unavailable:
                self.doubts += 1
                continue
            except NotApplied:
                continue
            if result.succeeded:
                return result.revision
            kv = result.got(0).first
            assert kv is not None and kv.value == value, "somebody else wrote, or a write was lost"
            return kv.mod_revision


async def collect(store: EtcdStore, prefix: bytes, from_revision: int, until_revision: int, into: list[Event]) -> None:
    """All events from one revision up to another (the last one excluded is a mark's)."""
    reached = from_revision - 1
    async with aclosing(store.watch(prefix, prefix_end(prefix), from_revision)) as watch:
        async for batch in watch:
            assert batch.revision > reached
            assert all(reached < event.kv.mod_revision <= batch.revision for event in batch.events)
            reached = batch.revision
            into.extend(batch.events)
            if reached >= until_revision:
                return


@asynccontextmanager
async def proxied(cluster: EtcdCluster, count: int = 1) -> AsyncIterator[tuple[EtcdStore, list[Proxy]]]:
    """A store that reaches a one-member cluster over `count` endpoints, each a proxy."""
    proxies = [await Proxy.start("127.0.0.1:0", cluster.endpoints) for _ in range(count)]
    try:
        async with opened([proxy.address for proxy in proxies]) as store:
            yield store, proxies
    finally:
        for proxy in proxies:
            await proxy.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENT_S):
        while not condition():  # noqa: ASYNC110 - predicates over several tasks
            await asyncio.sleep(0.02)


async def some(watch: AsyncIterator[WatchBatch]) -> tuple[Event, ...]:
    """The next events; where it is quiet, a watch says in between how far the store has come."""
    async with asyncio.timeout(PATIENT_S):
        while not (batch := await anext(watch)).events:
            pass
    return batch.events


def all_wrote(writers: list[Writer], before: list[int]) -> bool:
    return all(len(writer.written) >= n + 3 for writer, n in zip(writers, before, strict=True))


async def test_watch_equals_store_while_leaders_are_killed(etcd_three: EtcdCluster) -> None:
    async with opened(etcd_three.endpoints) as store, opened(etcd_three.endpoints) as watcher:
        start = (await store.status()).revision + 1
        stop = asyncio.Event()
        writers = [Writer(store, i) for i in range(4)]
        tasks = [asyncio.create_task(writer.run(stop)) for writer in writers]
        events: list[Event] = []
        watching = asyncio.create_task(collect(watcher, PREFIX, start, 1 << 62, events))
        for _ in range(2):
            await asyncio.sleep(0.3)
            leader = await etcd_three.leader()
            before = [len(writer.written) for writer in writers]
            etcd_three.kill(leader)
            await until(functools.partial(all_wrote, writers, before))
            await etcd_three.restart(leader)
        stop.set()
        await asyncio.gather(*tasks)
        expected = sorted((revision, b"%d" % n) for writer in writers for n, revision in enumerate(writer.written))
        await until(lambda: len(events) >= len(expected))
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        assert [(event.kv.mod_revision, event.kv.value) for event in events] == expected
        final = await store.get(get_prefix(PREFIX))
        assert [kv.version for kv in final.kvs] == [len(writer.written) for writer in writers]


async def test_connections_cut_again_and_again_during_catch_up_leave_no_gap(etcd_one: EtcdCluster) -> None:
    """More revisions than etcd sends at once, so headers run ahead; the connection is cut behind each of the first batches."""
    async with opened(etcd_one.endpoints, timeout_s=PATIENT_S) as direct, proxied(etcd_one, 2) as (store, proxies):
        start = (await direct.status()).revision + 1

        async def write(name: int) -> None:
            for i in range(200):
                await direct.txn([], [Put(PREFIX + b"%d" % name, b"%d" % i)], timeout_s=PATIENT_S)

        await asyncio.gather(*(write(name) for name in range(16)))
        end = (await direct.status()).revision
        events: list[Event] = []
        cuts = 0
        reached = start - 1
        async with asyncio.timeout(PATIENT_S), aclosing(store.watch(PREFIX, prefix_end(PREFIX), start)) as watch:
            while reached < end:
                batch = await anext(watch)
                assert batch.revision > reached
                assert all(reached < event.kv.mod_revision <= batch.revision for event in batch.events)
                reached = batch.revision
                events.extend(batch.events)
                if cuts < 6:
                    cuts += 1
                    for proxy in proxies:
                        proxy.reset()
        assert [event.kv.mod_revision for event in events] == list(range(start, end + 1))


async def test_large_catch_up_comes_in_fragments_and_survives_cuts(etcd_one: EtcdCluster) -> None:
    chance = random.Random(7)
    async with opened(etcd_one.endpoints, timeout_s=PATIENT_S) as direct, proxied(etcd_one, 2) as (store, proxies):
        start = (await direct.status()).revision + 1
        for i in range(300):
            await direct.txn([], [Put(PREFIX + b"%03d.%d" % (i, j), bytes([j]) * 8000) for j in range(5)], timeout_s=PATIENT_S)
        end = (await direct.status()).revision
        events: list[Event] = []
        watching = asyncio.create_task(collect(store, PREFIX, start, end, events))
        cuts = 0
        while not watching.done():
            # All of it comes as one response, so longer and longer: it must once come through, also where the machine is slow.
            await asyncio.sleep(chance.uniform(0.002, 0.03) * 1.2**cuts)
            for proxy in proxies:
                proxy.reset()
            cuts += 1
        await watching
        assert cuts > 2
        assert [event.kv.key for event in events] == [PREFIX + b"%03d.%d" % (i, j) for i in range(300) for j in range(5)]
        assert all(event.kv.value == bytes([int(event.kv.key[-1:])]) * 8000 for event in events)


async def test_a_frozen_leader_is_left_for_the_others(etcd_three: EtcdCluster) -> None:
    async with opened(etcd_three.endpoints, timeout_s=2.0) as store:  # what a slow machine is late for is not doubted
        start = (await store.status()).revision + 1
        watch = store.watch(PREFIX, prefix_end(PREFIX), start)
        async with aclosing(watch):
            first = asyncio.create_task(some(watch))
            await Writer(store, 1)._write(PREFIX + b"1", b"", 0)
            assert len(await first) == 1
            leader = await etcd_three.leader()
            etcd_three.freeze(leader)
            try:
                writer = Writer(store, 2)
                stop = asyncio.Event()
                writing = asyncio.create_task(writer.run(stop))
                await until(lambda: len(writer.written) >= 20)
                stop.set()
                await writing
                got: list[bytes] = []
                while len(got) < len(writer.written):
                    got += [event.kv.value for event in await some(watch)]
                assert got == [b"%d" % i for i in range(len(writer.written))]
                assert writer.doubts < 10  # not one for each of its turns
            finally:
                etcd_three.wake(leader)


async def test_a_silent_endpoint_is_noticed_by_a_watch_alone(etcd_one: EtcdCluster) -> None:
    """Nobody calls anything: only the unanswered questions for progress tell."""
    async with opened(etcd_one.endpoints, timeout_s=PATIENT_S) as direct, proxied(etcd_one, 2) as (store, proxies):
        start = (await direct.status()).revision + 1
        async with aclosing(store.watch(PREFIX, prefix_end(PREFIX), start)) as watch:
            await direct.txn([], [Put(PREFIX + b"1", b"")])
            assert len(await some(watch)) == 1
            used = next(proxy for proxy in proxies if proxy.connections and proxy.accepted)
            used.cut()
            await direct.txn([], [Put(PREFIX + b"2", b"")])
            assert [event.kv.key for event in await some(watch)] == [PREFIX + b"2"]


async def test_a_connection_that_a_single_endpoint_lost_silently_is_replaced(etcd_one: EtcdCluster) -> None:
    """As when a node behind a service address vanishes: the address works again, the old connection never will."""
    async with proxied(etcd_one) as (store, [proxy]):
        await store.txn([], [Put(b"k", b"1")], timeout_s=PATIENT_S)
        proxy.targets[:] = ["127.0.0.1:1", *etcd_one.endpoints]
        for target in etcd_one.endpoints:
            proxy._harm[target] = proxy._harm_of(target)
        link = next(iter(proxy._links))
        link.client.suffer(cut=True, delay_s=0)
        link.server.suffer(cut=True, delay_s=0)
        connections = proxy.accepted
        doubts = 0  # before there is another connection; with that one the machine may be late
        async with asyncio.timeout(PATIENT_S):
            while True:
                replaced = proxy.accepted > connections
                try:
                    await store.txn([], [Put(b"k", b"2")])
                    break
                except (Unavailable, NotApplied):
                    doubts += not replaced
        assert 1 <= doubts <= 4


async def test_an_interrupted_watch_whose_history_is_gone_is_told(etcd_one: EtcdCluster) -> None:
    async with opened(etcd_one.endpoints, timeout_s=PATIENT_S) as direct, proxied(etcd_one) as (store, [proxy]):
        start = (await direct.status()).revision + 1
        async with aclosing(store.watch(PREFIX, prefix_end(PREFIX), start)) as watch:
            await direct.txn([], [Put(PREFIX + b"1", b"")])
            assert len(await some(watch)) == 1
            proxy.cut()
            proxy.reset()
            for i in range(5):
                last = (await direct.txn([], [Put(PREFIX + b"1", b"%d" % i)])).revision
            await direct.compact(last)
            proxy.heal()
            with pytest.raises(Compacted) as told:
                await some(watch)
            assert told.value.revision == last


LEASE_S = 5
"""So long the machine may stand still between two renewals."""


async def held(store: EtcdStore, key: bytes, lease: int) -> None:
    """Put under a lease, through changes of leader."""
    async with asyncio.timeout(PATIENT_S):
        while True:
            try:
                await store.txn([], [Put(key, b"", lease)])
                return
            except (Unavailable, NotApplied):
                continue


async def test_a_lease_lives_through_a_change_of_leader(etcd_three: EtcdCluster) -> None:
    async with opened(etcd_three.endpoints) as store:
        lease = await store.grant(LEASE_S)
        await held(store, b"m", lease)
        stop = asyncio.Event()
        answers: list[float] = []

        async def keep() -> None:
            while not stop.is_set():
                answers.append(await store.keep_alive(lease))
                await asyncio.sleep(0.3)

        keeping = asyncio.create_task(keep())
        await asyncio.sleep(0.5)
        leader = await etcd_three.leader()
        etcd_three.kill(leader)
        killed, before = time.monotonic(), len(answers)
        await until(lambda: time.monotonic() > killed + LEASE_S + 1 and len(answers) > before + 5)
        stop.set()
        await keeping
        assert all(0 < answer <= LEASE_S for answer in answers)
        kv = (await store.get(Get(b"m"))).first
        assert kv is not None and kv.lease == lease


async def test_a_full_store_refuses_puts_and_lets_go_of_what_is_deleted(tmp_path: Path) -> None:
    options = EtcdOptions(fsync=False, quota_bytes=4 << 20)
    async with support.running(tmp_path / "etcd", options=options) as cluster, opened(cluster.endpoints) as store:
        written = 0
        with pytest.raises(NoSpace):
            for i in range(2000):  # etcd counts what it has written back, ten times a second
                await store.txn([], [Put(PREFIX + b"%04d" % i, bytes(64 * 1024))], timeout_s=PATIENT_S)
                written += 1
        assert written > 10
        status = await store.status()
        assert status.bytes_quota == 4 << 20
        await store.txn([], [Delete(PREFIX, prefix_end(PREFIX))], timeout_s=PATIENT_S)
        assert (await store.get(get_prefix(PREFIX))).count == 0


async def test_nobody_there_is_not_applied_and_reads_become_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qsg.store.etcd.store._READ_TOTAL_S", 1.0)
    async with opened(["127.0.0.1:1", "127.0.0.1:2"]) as store:
        with pytest.raises(NotApplied):
            await store.txn([], [Put(b"k", b"")])
        with pytest.raises(Unavailable):
            await store.get(Get(b"k"))


async def test_many_slow_and_closed_watches_leave_nothing_behind(etcd_one: EtcdCluster) -> None:
    async with opened(etcd_one.endpoints, timeout_s=PATIENT_S) as store:
        start = (await store.status()).revision + 1
        watches = [store.watch(PREFIX, prefix_end(PREFIX), start) for _ in range(50)]
        firsts = [asyncio.create_task(some(watch)) for watch in watches]
        await asyncio.sleep(0.1)
        for i in range(20):
            await store.txn([], [Put(PREFIX, b"%d" % i)])
        assert all(events[0].kv.value == b"0" for events in await asyncio.gather(*firsts))
        for watch in watches:
            await watch.aclose()
        assert not store._watches._watches and not store._watches._by_id
        await until(lambda: store._watches._stream is None)


async def test_closing_the_store_ends_its_watches(etcd_one: EtcdCluster) -> None:
    async with opened(etcd_one.endpoints, timeout_s=PATIENT_S) as store:
        watch = store.watch(PREFIX, prefix_end(PREFIX), 0)
        first = asyncio.create_task(anext(watch))
        await asyncio.sleep(0.1)
        await store.close()
        with pytest.raises(Unavailable):
            await first
        with pytest.raises(NotApplied):
            await store.txn([], [Put(b"k", b"")])


async def test_a_consumer_that_does_not_take_its_events_gets_all_of_them_later(
    etcd_one: EtcdCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its place on the stream is given up meanwhile; its neighbour on the same stream is not held up."""
    monkeypatch.setattr(watches, "_PENDING_EVENTS_MAX", 50)
    async with opened(etcd_one.endpoints, timeout_s=PATIENT_S) as store, opened(etcd_one.endpoints, timeout_s=PATIENT_S) as writer:
        start = (await store.status()).revision + 1
        async with aclosing(store.watch(PREFIX, prefix_end(PREFIX), start)) as slow:
            await writer.txn([], [Put(PREFIX, b"0")])
            taken = list(await some(slow))
            neighbour: list[Event] = []
            end = start + 400
            watching = asyncio.create_task(collect(store, PREFIX, start, end, neighbour))
            await asyncio.gather(*(writer.txn([], [Put(PREFIX + b"%d" % i, b"")], timeout_s=PATIENT_S) for i in range(400)))
            await watching
            lazy = next(watch for watch in store._watches._watches if watch.pending)
            assert lazy.id == 0
            assert len(lazy.pending) < 400
            async with asyncio.timeout(PATIENT_S):
                while len(taken) < 401:
                    taken += (await anext(slow)).events
            assert [event.kv.mod_revision for event in taken] == list(range(start, end + 1)) == [e.kv.mod_revision for e in neighbour]
