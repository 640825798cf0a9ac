"""Reads: ranges, limits, one revision for several reads, history, compaction."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from qsg.store.contract import Compacted, Delete, Get, KeyValue, Put, StoreError, Unavailable, absent, get_prefix
from store.conformance_txn import put, read
from support.stores import PATIENT_S, Harness


class ReadConformance:
    async def test_ranges(self, harness: Harness) -> None:
        store = harness.store
        await store.txn([], [Put(key, key) for key in (b"a", b"b", b"b/1", b"b/2", b"b0", b"c")])

        async def keys(get: Get) -> list[bytes]:
            return [kv.key for kv in (await store.get(get)).kvs]

        assert await keys(Get(b"b")) == [b"b"]
        assert await keys(Get(b"b", b"c")) == [b"b", b"b/1", b"b/2", b"b0"]
        assert await keys(get_prefix(b"b/")) == [b"b/1", b"b/2"]
        assert await keys(Get(b"b0", b"\0")) == [b"b0", b"c"]
        assert await keys(Get(b"c", b"b")) == []
        assert await keys(Get(b"x", b"y")) == []

    async def test_limit_more_count_and_options(self, harness: Harness) -> None:
        store = harness.store
        revisions = [await put(store, b"k/%d" % i, b"v%d" % i) for i in range(5)]
        last = revisions[-1]
        page = await store.get(get_prefix(b"k/", limit=2))
        assert ([kv.key for kv in page.kvs], page.count, page.more, page.revision) == ([b"k/0", b"k/1"], 5, True, last)
        whole = await store.get(get_prefix(b"k/", limit=5))
        assert (len(whole.kvs), whole.count, whole.more) == (5, 5, False)
        keys = await store.get(get_prefix(b"k/", limit=1, keys_only=True))
        assert keys.kvs == (KeyValue(b"k/0", b"", revisions[0], revisions[0]),)
        counted = await store.get(Get(b"k/", b"k0", count_only=True))
        assert (counted.kvs, counted.count, counted.more) == ((), 5, False)
        later = await store.get(Get(b"k/", b"k0", mod_after=revisions[2]))
        assert ([kv.key for kv in later.kvs], later.count, later.more) == ([b"k/3", b"k/4"], 5, False)
        first = await store.get(Get(b"k/", b"k0", mod_after=revisions[1], limit=2))
        assert ([kv.key for kv in first.kvs], first.more) == ([b"k/2", b"k/3"], True)
        assert (await store.get(Get(b"none"))).first is None

    async def test_the_largest_limit_is_none(self, harness: Harness) -> None:
        await put(harness.store, b"k/1")
        every = get_prefix(b"k/", limit=(1 << 63) - 1)
        result = await harness.store.txn([absent(b"none")], [every], timeout_s=PATIENT_S)
        for page in (await harness.store.get(every), result.got(0)):
            assert ([kv.key for kv in page.kvs], page.more) == ([b"k/1"], False)

    async def test_several_reads_of_a_transaction_see_one_revision(self, harness: Harness) -> None:
        store = harness.store
        await store.txn([], [Put(b"a/1", b""), Put(b"b/1", b"")])
        result = await store.txn([], [get_prefix(b"a/"), get_prefix(b"b/"), Get(b"c"), Get(b"a/", b"c", count_only=True)])
        assert [[kv.key for kv in result.got(i).kvs] for i in range(4)] == [[b"a/1"], [b"b/1"], [], []]
        assert result.got(3).count == 2
        assert {result.got(i).revision for i in range(4)} == {result.revision}

    async def test_reads_at_a_revision_see_that_state(self, harness: Harness) -> None:
        store = harness.store
        first = await put(store, b"a", b"1")
        second = await put(store, b"b", b"1")
        third = await put(store, b"a", b"2")
        await store.txn([], [Delete(b"b")])
        last = await put(store, b"b", b"again")

        async def state(revision: int) -> list[tuple[bytes, bytes]]:
            return [(kv.key, kv.value) for kv in (await store.get(Get(b"a", b"c", revision=revision))).kvs]

        assert await state(first) == [(b"a", b"1")]
        assert await state(second) == [(b"a", b"1"), (b"b", b"1")]
        assert await state(third) == [(b"a", b"2"), (b"b", b"1")]
        assert await state(third + 1) == [(b"a", b"2")]
        assert await state(last) == await state(0) == [(b"a", b"2"), (b"b", b"again")]
        old = await store.get(Get(b"b", revision=second))
        assert old.kvs == (KeyValue(b"b", b"1", second, second),)
        assert old.revision == last  # the store's, not the one read at
        several = await store.txn([], [Get(b"a", revision=first), Get(b"b", revision=first), Get(b"b", revision=second)])
        assert [len(several.got(i).kvs) for i in range(3)] == [1, 0, 1]

    async def test_near_reads_show_one_whole_state_and_come_to_the_newest(self, harness: Harness) -> None:
        store = harness.store
        near = [Get(b"a", near=True), Get(b"b", near=True), get_prefix(b"c/")]
        near[2] = replace(near[2], near=True)
        for number in range(1, 20):
            written = await store.txn([], [Put(b"a", b"%d" % number), Put(b"b", b"%d" % number), Put(b"c/%d" % number, b"")])
            async with asyncio.timeout(PATIENT_S):
                while True:
                    result = await store.txn([], near)
                    a, b, c = (result.got(i) for i in range(3))
                    if result.revision >= written.revision:
                        break
                    assert not a.first or a.first.mod_revision <= result.revision
            assert (a.first and a.first.value, b.first and b.first.value, len(c.kvs)) == (b"%d" % number, b"%d" % number, number)

    async def test_paging_at_a_revision_while_others_write(self, harness: Harness) -> None:
        store = harness.store
        await store.txn([], [Put(b"k/%03d" % i, b"old") for i in range(100)])
        key, revision, more = b"k/", 0, True
        got: list[KeyValue] = []
        while more:
            page = await store.get(Get(key, b"k0", limit=30, revision=revision))
            revision = revision or page.revision
            got += page.kvs
            key, more = page.kvs[-1].key + b"\0", page.more
            await harness.second.txn([], [Put(b"k/%03d" % i, b"new") for i in range(50, 100)] + [Delete(b"k/000", b"k/010")])
            await put(harness.second, b"k/%03dx" % len(got))
        assert [(kv.key, kv.value) for kv in got] == [(b"k/%03d" % i, b"old") for i in range(100)]

    async def test_a_future_revision_is_an_error(self, harness: Harness) -> None:
        revision = await put(harness.store, b"k")
        with pytest.raises(StoreError) as e:
            await harness.store.get(Get(b"k", revision=revision + 1000))
        assert not isinstance(e.value, Unavailable | Compacted)

    async def test_compaction_forgets_what_is_older(self, harness: Harness) -> None:
        store = harness.store
        first = await put(store, b"a", b"1")
        await put(store, b"gone")
        await store.txn([], [Delete(b"gone")])
        second = await put(store, b"a", b"2")
        last = await put(store, b"b", b"1")
        await store.compact(second)
        for revision in (first, second - 1):
            with pytest.raises(Compacted):
                await store.get(Get(b"a", revision=revision))
            with pytest.raises(Compacted):
                await store.txn([], [Get(b"a", revision=revision)])
        assert [kv.value for kv in (await store.get(Get(b"\0", b"\0", revision=second))).kvs] == [b"2"]
        assert [kv.value for kv in (await store.get(Get(b"\0", b"\0", revision=last))).kvs] == [b"2", b"1"]
        with pytest.raises(Compacted):
            await store.compact(second)
        with pytest.raises(StoreError):
            await store.compact(last + 1000)
        kv = await read(store, b"a")
        assert kv is not None and (kv.create_revision, kv.mod_revision, kv.version) == (first, second, 2)

    async def test_writes_refused_by_a_read_in_their_transaction_are_not_applied(self, harness: Harness) -> None:
        store = harness.store
        await put(store, b"a")
        revision = await put(store, b"a")
        await store.compact(revision)
        with pytest.raises(Compacted):
            await store.txn([], [Put(b"b", b""), Get(b"a", revision=revision - 1)])
        assert await read(store, b"b") is None

    async def test_thousands_of_keys(self, harness: Harness) -> None:
        store = harness.store
        for start in range(0, 3000, 100):
            await store.txn([], [Put(b"k/%05d" % i, b"%d" % i) for i in range(start, start + 100)], timeout_s=PATIENT_S)
        got = await store.get(get_prefix(b"k/"))
        assert [kv.key for kv in got.kvs] == [b"k/%05d" % i for i in range(3000)]
        await store.txn([], [Delete(b"k/00500", b"k/02500")], timeout_s=PATIENT_S)
        got = await store.get(get_prefix(b"k/", limit=1000, keys_only=True))
        assert (got.count, len(got.kvs), got.more) == (1000, 1000, False)

    async def test_status(self, harness: Harness) -> None:
        store = harness.store
        before = await store.status()
        for i in range(20):
            await put(store, b"k", bytes(50_000) + b"%d" % i)
        after = await store.status()
        assert after.revision == before.revision + 20
        async with asyncio.timeout(PATIENT_S):  # a store may count a moment later
            while (await store.status()).bytes_in_use <= 500_000:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
