"""Endpoints of two etcd clusters under one structure: at most one of the clusters is used, whoever asks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from qsg.store.contract import Get, NotApplied, Put, Unavailable
from qsg.store.etcd import EtcdStore
from qsg.store.etcd import pool as pool_module
from qsg.store.etcd.clusters import Clusters
from support.etcd import opened, running
from support.fake_etcd import FakeEtcd, serving
from support.group import eventually

PUT = [Put(b"k", b"v")]
LONG_S = 60.0
"""No test waits for this."""
OURS, OTHER = 0xA, 0xB


def of(*clusters: int) -> list[FakeEtcd]:
    """Members 1, 2, ... of these clusters; the first of each leads it, and the second cluster is in a higher term."""
    members = []
    for number, cluster in enumerate(clusters):
        member = FakeEtcd(number + 1)
        member.cluster, member.leader = cluster, clusters.index(cluster) + 1
        member.term = 9 if cluster == OTHER else 2
        members.append(member)
    return members


@asynccontextmanager
async def client(*members: FakeEtcd) -> AsyncIterator[EtcdStore]:
    async with serving(*members) as addresses, opened(addresses, timeout_s=LONG_S) as store, asyncio.timeout(LONG_S / 2):
        yield store


def test_the_cluster_of_more_than_half_of_the_endpoints_is_used() -> None:
    clusters = Clusters("abcde")
    assert clusters.heard("a", 0) and not clusters.divided and not clusters.foreign("a"), "a server that does not say is as before"
    assert clusters.heard("a", OURS) and clusters.heard("b", OURS)
    assert not clusters.heard("c", OTHER) and clusters.divided, "who asked others first would use the other one"
    assert not clusters.heard("a", OURS)
    assert clusters.heard("d", OURS) and not clusters.divided
    assert [clusters.foreign(e) for e in "abcde"] == [False, False, True, False, False]
    assert not clusters.heard("c", OTHER) and not clusters.complete
    assert not clusters.heard("c", OURS), "what it answered before may have been of the other one, as this stream's"
    assert clusters.heard("c", OURS) and clusters.heard("e", OURS) and clusters.complete


def test_a_store_that_was_exchanged_as_a_whole_is_used_again() -> None:
    clusters = Clusters("abc")
    for endpoint in "abc":
        assert clusters.heard(endpoint, OURS)
    assert not clusters.heard("a", OTHER) and clusters.used == OURS
    assert not clusters.heard("b", OTHER) and clusters.used == OTHER
    assert clusters.heard("a", OTHER) and clusters.foreign("c")


async def test_a_stranger_that_leads_in_a_higher_term_is_asked_for_nothing() -> None:
    stranger, *ours = of(OTHER, OURS, OURS)
    with capture_logs() as lines:
        async with client(stranger, *ours) as store:
            for _ in range(5):
                await store.txn([], PUT)
                await store.keep_alive(1)
    assert (stranger.taken, stranger.renewing) == (0, 0)
    assert sum(member.taken for member in ours) == 5
    assert any(line["log_level"] == "error" and "clusters" in line for line in lines)


async def test_of_two_clusters_with_as_many_endpoints_none_is_used_until_they_agree() -> None:
    one, other = of(OURS, OTHER)
    async with client(one, other) as store:
        with pytest.raises(NotApplied, match="several etcd clusters"):
            await store.txn([], PUT, timeout_s=1.0)
        assert (one.taken, other.taken) == (0, 0)
        other.cluster, other.term, other.leader = OURS, 2, 1
        assert (await store.txn([], PUT)).succeeded


async def test_members_that_ask_in_another_order_use_the_same_cluster() -> None:
    for members in (of(OURS, OTHER, OURS), of(OTHER, OURS, OURS), of(OURS, OURS, OTHER)):
        async with client(*members) as store:
            await store.txn([], PUT)
        assert [member.taken for member in members if member.cluster == OTHER] == [0]


async def test_an_endpoint_that_turns_out_to_be_of_another_cluster_is_left_with_its_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when a member of etcd is made again without its volume. What it says of leases and watches is not taken either."""
    monkeypatch.setattr(pool_module, "_STRANGERS_S", 0.05)
    turned, *others = of(OURS, OURS, OURS)
    async with client(turned, *others) as store, aclosing(store.watch(b"a", b"b", 1)) as watch:
        reading = asyncio.ensure_future(anext(watch))
        await store.txn([], PUT)
        await store.keep_alive(1)
        await eventually(lambda: (turned.watching, turned.renewing) == (1, 1), LONG_S)
        turned.cluster, turned.term = OTHER, 9
        others[0].leader = others[1].leader = 2
        with pytest.raises(Unavailable, match="another etcd cluster"):
            await store.txn([], PUT)
        taken = turned.taken
        for _ in range(5):
            assert (await store.txn([], PUT)).succeeded
            await store.keep_alive(1)
        await eventually(lambda: (turned.watching, turned.renewing) == (0, 0), LONG_S)
        assert turned.taken == taken
        turned.cluster, turned.term, turned.leader = OURS, 2, 2
        await eventually(lambda: not store._pool._clusters.foreign(turned_endpoint(store)), LONG_S)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)


def turned_endpoint(store: EtcdStore) -> Any:
    return store._pool.endpoints[0]


async def test_a_watch_alone_notices_it() -> None:
    turned, *others = of(OURS, OURS, OURS)
    async with client(turned, *others) as store, aclosing(store.watch(b"a", b"b", 1)) as watch:
        reading = asyncio.ensure_future(anext(watch))
        await eventually(lambda: turned.watching == 1, LONG_S)
        turned.cluster, turned.leader = OTHER, 0
        await eventually(lambda: turned.watching == 0 and sum(each.watching for each in others) == 1, LONG_S)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)


async def test_a_lease_that_another_cluster_does_not_know_is_renewed_at_ours() -> None:
    turned, *others = of(OURS, OURS, OURS)
    async with client(turned, *others) as store:
        assert await store.keep_alive(1) == 5
        turned.cluster, turned.leader, turned.ttl_s = OTHER, 0, 0
        assert await store.keep_alive(1) == 5
        assert sum(each.renewing for each in others) == 1


async def test_real_clusters(tmp_path: Path) -> None:
    async with running(tmp_path / "one") as one, running(tmp_path / "other") as other:
        ours, others = one.endpoints[0], other.endpoints[0]
        async with opened([others]) as store:
            await store.txn([], [Put(b"k", b"other")])
        async with opened([others, ours]) as store:
            with pytest.raises(NotApplied, match="several etcd clusters"):
                await store.txn([], PUT)
        async with opened([others, ours, ours.replace("127.0.0.1", "localhost")], timeout_s=LONG_S) as store:
            assert (await store.get(Get(b"k"))).first is None
            await store.txn([], PUT)
            assert [batch.events[0].kv.value async for batch in first_of(store)] == [b"v"]


async def first_of(store: EtcdStore) -> AsyncIterator[Any]:
    async with aclosing(store.watch(b"k", b"l", 1)) as watch:
        yield await anext(watch)
