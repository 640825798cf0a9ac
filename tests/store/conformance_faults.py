"""Connections that break, answers that are lost, a store that dies and comes back."""

from __future__ import annotations

import asyncio

import pytest

from qsg.store.contract import Get, Put, Unavailable, unchanged
from store.conformance_txn import put, read
from store.conformance_watch import Watching, plain
from support.stores import PATIENT_S, Harness

LOST_S = 2.0
"""Of a transaction whose answer is lost: what it asks for must have reached the store before that."""


class ConnectionConformance:
    """For stores whose `Harness` can cut connections and lose replies."""

    async def test_cut_connections_lose_and_repeat_nothing(self, harness: Harness) -> None:
        assert harness.cut_connections is not None
        before = (await harness.second.status()).revision
        async with Watching(harness.store, b"a/", before + 1) as watching:
            for i in range(120):
                await put(harness.second, b"a/%d" % (i % 7), b"%d" % i)
                await put(harness.second, b"b/%d" % (i % 7), b"%d" % i)
                if i % 30 == 10:
                    await watching.at_least(len(watching.events) + 1)
                    harness.cut_connections()
                    await asyncio.sleep(0.02)
            collected = plain(await watching.until(120))
            assert [value for _, value, _ in collected] == [b"%d" % i for i in range(120)]

    async def test_an_answer_that_is_lost_is_unknown_and_the_write_there(self, harness: Harness) -> None:
        assert harness.lose_replies is not None
        await put(harness.store, b"k", b"0")
        harness.lose_replies(True)
        with pytest.raises(Unavailable):
            await harness.store.txn([], [Put(b"k", b"1")], timeout_s=LOST_S)
        kv = await read(harness.second, b"k")
        assert kv is not None and (kv.value, kv.version) == (b"1", 2)  # applied, and not repeated
        harness.lose_replies(False)
        kv = await read(harness.store, b"k")
        assert kv is not None and (kv.value, kv.version) == (b"1", 2)
        assert (await harness.store.txn([unchanged(b"k", kv.mod_revision)], [Put(b"k", b"2")], timeout_s=PATIENT_S)).succeeded


class RestartConformance:
    """For stores whose `Harness` can restart them."""

    async def test_everything_survives_a_restart(self, harness: Harness) -> None:
        assert harness.restart is not None
        store = harness.store
        lease = await store.grant(60)
        await put(store, b"k", b"1")
        await put(store, b"leased", b"", lease)
        revision = await put(store, b"k", b"2")
        before = await store.get(Get(b"\0", b"\0"))
        await harness.restart()
        after = await store.get(Get(b"\0", b"\0"))
        assert (after.kvs, after.revision) == (before.kvs, revision)
        old = await store.get(Get(b"k", revision=revision - 1))
        assert [kv.value for kv in old.kvs] == [b"1"]
        assert await store.keep_alive(lease) > 0
        assert await put(store, b"k", b"3") == revision + 1

    async def test_a_watch_goes_on_behind_a_restart(self, harness: Harness) -> None:
        """With the same iterator, or, where the store ended it, from the next revision on."""
        assert harness.restart is not None
        before = await put(harness.store, b"a/0")
        async with Watching(harness.store, b"a/", before + 1) as watching:
            await put(harness.store, b"a/1")
            await watching.until(1)
            if harness.ends_watches:
                await harness.restart()
                async with Watching(harness.store, b"a/", watching.reached + 1) as resumed:
                    last = await put(harness.store, b"a/2")
                    assert plain(await resumed.until(1)) == [(b"a/2", b"v", last)]
                return
            await harness.restart()
            await harness.store.get(Get(b"a/1"))
            await put(harness.store, b"a/2")
            assert [e.kv.key for e in await watching.until(2)] == [b"a/1", b"a/2"]
