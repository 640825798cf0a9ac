"""Going back to a snapshot: what a restored store is, whichever store it is.

Its contents are the snapshot's, its history is none, and no revision that anybody can have seen is given to anything else: it goes on
`JUMP` further on, which is how members notice (`check_restored`). Stores differ in leases alone (`Harness.keeps_leases`).
"""

from __future__ import annotations

import asyncio

import pytest

from qsg.manager.membership import RESTORED_JUMP, check_restored
from qsg.rules.reasons import Reason, Refusal
from qsg.store.contract import Compacted, Delete, Get, LeaseNotFound, Put, Store, StoreError, prefix_end, unchanged
from store.conformance_txn import put, read
from store.conformance_watch import Watching, plain
from support.stores import PATIENT_S, Harness

JUMP = 1_000_000_000


class RestoreConformance:
    """For stores whose `Harness` can go back to a snapshot."""

    async def test_a_restored_store_is_what_it_was_at_a_revision_that_nobody_has_seen(self, harness: Harness) -> None:
        assert harness.save is not None
        store = harness.store
        await put(store, b"k", b"1")
        await put(store, b"gone", b"x")
        await put(store, b"k", b"2")
        saved = (await store.txn([], [Put(b"j", b""), Delete(b"gone")])).revision
        snapshot = await store.get(Get(b"\0", b"\0"))
        await harness.save()
        later = await put(store, b"k", b"3")
        await store.txn([], [Delete(b"j"), Put(b"new", b"")])
        highest = await put(store, b"new", b"4")

        await _restored(harness)

        found = await store.get(Get(b"\0", b"\0"))
        assert found.kvs == snapshot.kvs and [kv.key for kv in found.kvs] == [b"j", b"k"]
        revision = (await store.status()).revision
        assert revision == found.revision == saved + JUMP > highest
        assert JUMP > RESTORED_JUMP
        with pytest.raises(Refusal) as refusal:
            check_restored(highest, revision)
        assert refusal.value.reason is Reason.STRUCTURE_RESTORED

        assert not (await store.txn([unchanged(b"k", later)], [Put(b"k", b"stale")], timeout_s=PATIENT_S)).succeeded
        kept = await read(store, b"k")
        assert kept is not None and (kept.value, kept.version) == (b"2", 2)
        result = await store.txn([unchanged(b"k", kept.mod_revision)], [Put(b"k", b"5")], timeout_s=PATIENT_S)
        assert (result.succeeded, result.revision) == (True, revision + 1)

    async def test_what_was_before_is_compacted_and_old_watches_are_told(self, harness: Harness) -> None:
        assert harness.save is not None
        store = harness.store
        first = await put(store, b"a/1", b"1")
        before = await put(store, b"a/1", b"2")
        await harness.save()
        async with Watching(store, b"a/", first) as old, Watching(harness.second, b"a/", before + 1) as other:
            after = await put(store, b"a/2")
            await old.until(3)
            await other.until(1)
            await _restored(harness)
            for watching in (old, other):
                with pytest.raises(StoreError) as told:
                    await watching.at_least(len(watching.events) + 1)
                assert isinstance(told.value, Compacted) or harness.ends_watches

        revision = (await store.status()).revision
        for past in (first, before, after):
            with pytest.raises(Compacted):
                await store.get(Get(b"a/1", revision=past))
            await _refused(store, past)
        async with Watching(store, b"a/", revision + 1) as watching:
            last = await put(harness.second, b"a/3", b"new")
            assert plain(await watching.until(1)) == [(b"a/3", b"new", last)]

    async def test_leases_come_back_with_their_keys_or_not_at_all(self, harness: Harness) -> None:
        assert harness.save is not None
        store = harness.store
        lease = await store.grant(60)
        await put(store, b"m/1", b"", lease)
        await put(store, b"free")
        await harness.save()
        late = await store.grant(60)
        await put(store, b"m/2", b"", late)

        await _restored(harness)

        there = [b"m/1"] if harness.keeps_leases else []
        assert [kv.key for kv in (await store.get(Get(b"\0", b"\0"))).kvs] == [b"free", *there]
        for unknown in [late] if harness.keeps_leases else [lease, late]:
            with pytest.raises(LeaseNotFound):
                await store.keep_alive(unknown)
            with pytest.raises(LeaseNotFound):
                await store.txn([], [Put(b"m/3", b"", unknown)], timeout_s=PATIENT_S)
        if harness.keeps_leases:
            assert await store.keep_alive(lease) > 0
            await store.revoke(lease)
            assert await read(store, b"m/1") is None
        fresh = await store.grant(60)
        await put(store, b"m/1", b"anew", fresh)
        await store.revoke(fresh)
        assert [kv.key for kv in (await store.get(Get(b"\0", b"\0"))).kvs] == [b"free"]


async def _restored(harness: Harness) -> None:
    assert harness.restore is not None
    await harness.restore()


async def _refused(store: Store, past: int) -> None:
    batches = store.watch(b"a/", prefix_end(b"a/"), past)
    with pytest.raises(Compacted):
        async with asyncio.timeout(PATIENT_S):
            await anext(batches)
