"""Watches and leases."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from qsg.store.contract import Compacted, Delete, Event, Get, LeaseNotFound, Put, Store, WatchBatch, absent, prefix_end
from store.conformance_txn import put, read
from support.stores import PATIENT_S, Harness


class Watching:
    """Collects what a watch delivers, checking the contract's order on the way."""

    def __init__(self, store: Store, prefix: bytes, from_revision: int) -> None:
        self._batches: AsyncIterator[WatchBatch] = store.watch(prefix or b"\0", prefix_end(prefix), from_revision)
        self.reached = from_revision - 1
        self.events: list[Event] = []

    async def __aenter__(self) -> Watching:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._batches.aclose()  # type: ignore[attr-defined]

    async def until(self, count: int) -> list[Event]:
        """All events, once there are `count`; there must not be more."""
        await self.at_least(count)
        assert len(self.events) == count
        return self.events

    async def at_least(self, count: int) -> None:
        async with asyncio.timeout(PATIENT_S):
            while len(self.events) < count:
                batch = await anext(self._batches)
                revisions = [e.kv.mod_revision for e in batch.events]
                assert revisions == sorted(revisions)
                assert all(self.reached < r <= batch.revision for r in revisions), (self.reached, batch)
                self.reached = max(self.reached, batch.revision)
                self.events += batch.events


def plain(events: list[Event]) -> list[tuple[bytes, bytes | None, int]]:
    return [(e.kv.key, None if e.deleted else e.kv.value, e.kv.mod_revision) for e in events]


class WatchConformance:
    async def test_from_now_on(self, harness: Harness) -> None:
        store = harness.store
        before = await put(store, b"a/old")
        async with Watching(store, b"a/", before + 1) as watching:
            await put(store, b"b/other")
            first = await put(harness.second, b"a/1", b"x")
            second = await put(store, b"a/1", b"y")
            deleted = (await store.txn([], [Delete(b"a/1")])).revision
            assert plain(await watching.until(3)) == [(b"a/1", b"x", first), (b"a/1", b"y", second), (b"a/1", None, deleted)]
            assert [(e.kv.create_revision, e.kv.version) for e in watching.events[:2]] == [(first, 1), (first, 2)]

    async def test_from_the_past(self, harness: Harness) -> None:
        store = harness.store
        first = await put(store, b"a/1", b"x")
        await put(store, b"a/2", b"x")
        third = await put(store, b"a/1", b"y")
        deleted = (await store.txn([], [Delete(b"a/2")])).revision
        async with Watching(store, b"a/", first + 1) as watching:
            assert plain(await watching.until(3)) == [(b"a/2", b"x", first + 1), (b"a/1", b"y", third), (b"a/2", None, deleted)]
            last = await put(store, b"a/3", b"z")
            assert plain(await watching.until(4))[3] == (b"a/3", b"z", last)

    async def test_a_future_revision_waits_for_it(self, harness: Harness) -> None:
        store = harness.store
        revision = await put(store, b"a/1")
        async with Watching(store, b"a/", revision + 3) as watching:
            for i in range(4):
                await put(store, b"a/%d" % i)
            assert plain(await watching.until(2)) == [(b"a/2", b"v", revision + 3), (b"a/3", b"v", revision + 4)]

    async def test_one_key_only(self, harness: Harness) -> None:
        store = harness.store
        revision = await put(store, b"k")
        batches = store.watch(b"k", b"", revision)
        await put(store, b"k/1")
        await put(store, b"j")
        last = await put(store, b"k", b"2")
        events: list[Event] = []
        async with asyncio.timeout(PATIENT_S):
            while len(events) < 2:
                events += (await anext(batches)).events
        assert plain(events) == [(b"k", b"v", revision), (b"k", b"2", last)]
        await batches.aclose()  # type: ignore[attr-defined]

    async def test_events_of_one_revision_come_together(self, harness: Harness) -> None:
        store = harness.store
        before = await put(store, b"a/gone")
        batches = store.watch(b"a/", b"a0", before + 1)
        result = await store.txn([], [Delete(b"a/gone"), *(Put(b"a/%02d" % i, b"x") for i in range(50))])
        async with asyncio.timeout(PATIENT_S):
            batch = await anext(batches)
            while not batch.events:
                batch = await anext(batches)
        assert {e.kv.mod_revision for e in batch.events} == {result.revision}
        assert sorted(e.kv.key for e in batch.events) == [*(b"a/%02d" % i for i in range(50)), b"a/gone"]
        await batches.aclose()  # type: ignore[attr-defined]

    async def test_many_events_through_many_watches(self, harness: Harness) -> None:
        store = harness.store
        before = (await store.status()).revision

        async def write(name: bytes) -> None:
            for i in range(50):
                await put(store, b"a/" + name, b"%d" % i)

        async with Watching(store, b"a/", before + 1) as one, Watching(harness.second, b"", before + 1) as two:
            await asyncio.gather(*(write(b"%d" % i) for i in range(4)))
            assert plain(await one.until(200)) == plain(await two.until(200))
            assert [e.kv.mod_revision for e in one.events] == list(range(before + 1, before + 201))

    async def test_a_compacted_past_is_told(self, harness: Harness) -> None:
        store = harness.store
        first = await put(store, b"a/1")
        for _ in range(5):
            last = await put(store, b"a/1")
        await store.compact(last)
        batches = store.watch(b"a/", b"a0", first)
        with pytest.raises(Compacted):
            async with asyncio.timeout(PATIENT_S):
                await anext(batches)
        async with Watching(store, b"a/", last + 1) as watching:
            later = await put(store, b"a/2")
            assert plain(await watching.until(1)) == [(b"a/2", b"v", later)]

    async def test_compaction_does_not_disturb_a_watch_that_keeps_up(self, harness: Harness) -> None:
        store = harness.store
        before = (await store.status()).revision
        async with Watching(store, b"a/", before + 1) as watching:
            for i in range(10):
                revision = await put(store, b"a/1", b"%d" % i)
                await watching.until(i + 1)
                await store.compact(revision)
            assert [e.kv.value for e in watching.events] == [b"%d" % i for i in range(10)]


class LeaseConformance:
    async def test_expiry_deletes_the_keys_in_one_revision_and_watchers_see_it(self, harness: Harness) -> None:
        store = harness.store
        lease = await store.grant(3)  # not over before all three are put
        await put(store, b"m/1", b"", lease)
        await put(store, b"m/2", b"", lease)
        free = await put(store, b"m/3", b"")
        async with Watching(harness.second, b"m/", free + 1) as watching:
            events = await watching.until(2)
        assert sorted((e.kv.key, e.deleted) for e in events) == [(b"m/1", True), (b"m/2", True)]
        assert len({e.kv.mod_revision for e in events}) == 1
        assert [kv.key for kv in (await store.get(Get(b"m/", b"m0"))).kvs] == [b"m/3"]
        with pytest.raises(LeaseNotFound):
            await store.keep_alive(lease)
        with pytest.raises(LeaseNotFound):
            await store.txn([], [Put(b"m/1", b"", lease)])

    async def test_keep_alive_keeps(self, harness: Harness) -> None:
        store = harness.store
        lease = await store.grant(4)  # so long may the machine stand still between two renewals
        await put(store, b"m/1", b"", lease)
        for _ in range(9):
            await asyncio.sleep(0.5)
            assert 0 < await store.keep_alive(lease) <= 4
        assert await read(store, b"m/1") is not None

    async def test_revoke_deletes_at_once(self, harness: Harness) -> None:
        store = harness.store
        lease = await store.grant(60)
        before = await put(store, b"m/1", b"", lease)
        await store.revoke(lease)
        assert await read(store, b"m/1") is None
        assert (await store.status()).revision == before + 1
        for call in (store.revoke, store.keep_alive):
            with pytest.raises(LeaseNotFound):
                await call(lease)

    async def test_a_key_belongs_to_the_lease_of_its_last_put(self, harness: Harness) -> None:
        store = harness.store
        old, new = await store.grant(60), await store.grant(60)
        for key in (b"moved", b"freed", b"kept"):
            await put(store, key, b"", old)
        await put(store, b"moved", b"", new)
        await put(store, b"freed", b"")
        await store.revoke(old)
        assert [kv.key for kv in (await store.get(Get(b"\0", b"\0"))).kvs] == [b"freed", b"moved"]
        await store.revoke(new)
        assert [kv.key for kv in (await store.get(Get(b"\0", b"\0"))).kvs] == [b"freed"]

    async def test_a_lease_outlives_its_deleted_key_and_can_hold_it_again(self, harness: Harness) -> None:
        store = harness.store
        lease = await store.grant(60)
        first = await put(store, b"m/1", b"", lease)
        await store.txn([], [Delete(b"m/1")])
        assert (await store.txn([absent(b"m/1")], [Put(b"m/1", b"", lease)])).succeeded
        kv = await read(store, b"m/1")
        assert kv is not None and kv.lease == lease and kv.create_revision > first
        await store.revoke(lease)
        assert await read(store, b"m/1") is None
