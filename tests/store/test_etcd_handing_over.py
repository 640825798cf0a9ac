"""A leader of etcd that ends or hands over: nothing waits for a deadline, and nothing holds the hand-over up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from qsg.store.contract import Put, Unavailable
from qsg.store.etcd import EtcdStore
from support.etcd import opened
from support.fake_etcd import FakeEtcd, serving
from support.group import eventually

PUT = [Put(b"k", b"v")]
LONG_S = 60.0
"""No test waits for this."""


@asynccontextmanager
async def led() -> AsyncIterator[tuple[FakeEtcd, FakeEtcd, EtcdStore]]:
    """A leader, its follower, and a client that has used the leader and knows it."""
    leader, follower = FakeEtcd(1), FakeEtcd(2)
    follower.leader = 1
    async with serving(leader, follower) as addresses, opened(addresses, timeout_s=LONG_S) as store, asyncio.timeout(LONG_S / 2):
        await store.txn([], PUT)
        await eventually(lambda: store._pool._leader is not None, LONG_S)
        yield leader, follower, store


async def test_what_was_sent_before_the_leader_changed_is_in_doubt_without_waiting_for_its_deadline() -> None:
    """A follower forwards a write to a leader that is about to be none: it is dropped, and nobody says so."""
    follower = FakeEtcd(1)
    follower.leader = 2
    async with serving(follower) as addresses, opened([*addresses, "127.0.0.1:1"], timeout_s=LONG_S) as store, asyncio.timeout(LONG_S / 2):
        await store.txn([], PUT)
        follower.drops = True
        dropped = asyncio.ensure_future(store.txn([], PUT, timeout_s=LONG_S))
        await eventually(lambda: follower.taken == 2, LONG_S)
        follower.term, follower.leader = 2, 1
        with pytest.raises(Unavailable):
            await dropped
        follower.drops = False
        assert (await store.txn([], PUT)).succeeded


async def test_a_write_that_is_slow_while_nobody_else_leads_is_left_alone() -> None:
    leader = FakeEtcd(1)
    async with serving(leader) as addresses, opened([*addresses, "127.0.0.1:1"], timeout_s=LONG_S) as store:
        await store.txn([], PUT)
        leader.drops = True
        slow = asyncio.ensure_future(store.txn([], PUT, timeout_s=LONG_S))
        await asyncio.sleep(0.4)
        assert not slow.done()
        slow.cancel()
        await asyncio.gather(slow, return_exceptions=True)


async def test_a_leader_that_sends_its_clients_away_leads_on_and_followers_are_used_at_once() -> None:
    async with led() as (leader, follower, store):
        leader.refuses, leader.leader = True, 0  # as its clients see it: it does not answer any more
        with pytest.raises(Unavailable):
            await store.txn([], PUT)
        assert (await store.txn([], PUT)).succeeded
        assert follower.taken == 1


async def test_a_leader_that_tells_its_status_and_nothing_else_is_left() -> None:
    """As behind a path that drops long packets: every write missed its deadline there, since the answer to who leads made up for it."""
    async with led() as (leader, follower, store):
        leader.drops = True
        with pytest.raises(Unavailable):
            await store.txn([], PUT, timeout_s=0.5)
        asked = leader.told
        await eventually(lambda: leader.told > asked, LONG_S)
        assert (await store.txn([], PUT)).succeeded
        assert follower.taken == 1


async def test_leases_leave_an_endpoint_together_with_everything_else() -> None:
    """A leader hands over when its last stream has ended; a renewal is due only every other second."""
    async with led() as (leader, _, store):
        await store.keep_alive(7)
        assert leader.renewing == 1
        leader.refuses = True
        with pytest.raises(Unavailable):
            await store.txn([], PUT)
        await eventually(lambda: leader.renewing == 0, LONG_S)
        assert await store.keep_alive(7) == 5
