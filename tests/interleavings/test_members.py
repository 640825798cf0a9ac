"""Interleavings around who is a member: verdicts, incarnations, split networks, names taken twice."""

from __future__ import annotations

import asyncio
import random

import pytest

from qsg.manager.membership import join
from qsg.manager.structure import Structure
from qsg.pb import records_pb2 as pb
from qsg.rules import keys, verdict
from qsg.rules.ownership import execution
from qsg.rules.steps import Commit
from qsg.rules.unit import CompareFailed, Fenced, Unit
from qsg.rules.world import World
from qsg.store.contract import Delete, Get, Put
from qsg.store.memory import MemoryServer, MemoryStore
from support.channel_group import Town, sending, texts, town
from support.group_model import Model
from support.simulated import simulated


def judged(me: str, registered: dict[str, int], silent: set[str], heard: dict[str, set[str]]) -> list[str]:
    """Whom `me` finds dead: `silent` to itself, `heard` = what each peer that we hear says is silent to it."""
    links = {n: verdict.Link(i, 5_000 if n in silent else 10) for n, i in registered.items() if n != me}
    reports = {p: [verdict.Report(v, registered[v], 5_000, False, 10) for v in vs] for p, vs in heard.items()}
    return [v.member for v in verdict.judge(me, registered, links, reports)]


@simulated
async def test_h3_two_members_that_do_not_hear_each_other_do_not_kill_each_other() -> None:
    """Only the link X-Y is cut in a group of two; each declares the other dead, joins again, and again. Wrong: livelock. Prevented: silence
    counts only when a majority of the registered members says so; otherwise the lease decides, and both reach the store."""
    async with town("X", "Y") as t:
        await t.put(texts(0, 1), t.stations["X"])
        await t.until_arrived(texts(0, 1))
        before = (await t.until(pb.RUNNING)).epoch
        t.network.cut("X-qm", "Y-qm")
        await asyncio.sleep(6.0)

        assert (await t.until(pb.RUNNING)).epoch == before
        assert sorted(t.prefix("admin", keys.MEMBERS)) == [b"m/X", b"m/Y"]


@simulated
async def test_h3_a_clock_that_is_set_accuses_nobody() -> None:
    """The wall clocks of all members are set ahead by an hour. Wrong: everybody seems to have been silent, and the members kill each other.
    Prevented: silences and leases are measured by clocks that cannot be set."""
    async with town("X", "Y", "Z") as t:
        await t.put(texts(0, 1), t.stations["X"])
        await t.until_arrived(texts(0, 1))
        before = t.servers["admin"].state.revision
        incarnations = _incarnations(t)
        t.wall_ms += 3_600_000
        await asyncio.sleep(3.0)

        assert _incarnations(t) == incarnations and t.servers["admin"].state.revision < before + 20


def _incarnations(t: Town) -> dict[bytes, int]:
    found = (t.servers["admin"].get(Get(key)).first for key in t.prefix("admin", keys.MEMBERS))
    return {kv.key: kv.create_revision for kv in found if kv is not None}


def test_h3b_a_verdict_names_the_incarnation_and_leaves_its_successor_alone() -> None:
    """A verdict by name hits the new incarnation of a member that restarted meanwhile. Wrong: needless kill, loop. Prevented: a verdict is
    made only against an incarnation that the accuser's link had reached, and carried out comparing it."""
    registered = {"X": 9, "Y": 5}
    links = {"X": verdict.Link(4, 0, refused=True)}
    assert verdict.judge("Y", registered, links, {}) == []

    model = Model("X", "Y")
    dead = model.me["X"].incarnations["app"]
    model.join("X")
    with pytest.raises(CompareFailed):
        model.execute(model.me["Y"], Commit("app", execution("X", dead)))
    assert model.lives("app", "X", model.me["X"].incarnations["app"])


def test_n15_two_halves_of_four_do_not_accuse_each_other() -> None:
    """Four members, links cut into two pairs, store reachable: each pair accuses the other. Wrong: livelock. Prevented: more than half of
    the registered members must say so."""
    four = {"A": 1, "B": 2, "C": 3, "D": 4}
    assert judged("A", four, {"C", "D"}, {"B": {"C", "D"}}) == []
    assert judged("A", four, {"D"}, {"B": {"D"}, "C": {"D"}}) == ["D"]


@simulated
async def test_h7_an_owner_that_loses_the_queues_structure_alone_gives_the_channel_away() -> None:
    """X loses one structure but keeps admin and peers. Wrong: entry RUNNING, nothing moves, nobody recovers it. Prevented: X ends the
    channel, has its key deleted there, and asks a member that reaches the structure."""
    async with town("X", "Y", apart=True) as t:
        first, (other, *_) = await sending(t)
        t.stations[first].stores["app1"].cut()
        await t.put(texts(2, 4), other)

        await t.until_arrived(texts(0, 4), timeout_s=5.0)
        assert (await t.until(pb.RUNNING, owner=other.name)).epoch == 2


@simulated
async def test_m5_a_new_leader_that_renews_every_lease_delays_no_takeover_that_a_link_can_tell() -> None:
    """etcd elects a leader at the moment a member dies: every lease is renewed. Wrong: the bound is exceeded. Prevented: a dead process is
    told by its link, not by its lease; only where the lease alone can tell does an election add to it."""
    async with town("X", "Y", "Z") as t:
        first, _ = await sending(t, 1)
        await t.kill(first)
        t.servers["admin"].leader_change()
        began = asyncio.get_running_loop().time()
        survivor = next(s for s in t.stations.values() if s.alive and s.name != "R")
        await t.put(texts(1, 2), survivor)

        await t.until_arrived(texts(0, 2))
        assert asyncio.get_running_loop().time() - began < 0.25


async def _joined(server: MemoryServer, process: str, store: MemoryStore | None = None) -> Structure:
    record = pb.MemberRecord(member="X", process=process)
    return await join(store or server.client(), "admin", record, World(lambda: 0, random.Random(3)), compact=False)


@simulated
async def test_n7_a_member_that_starts_again_is_a_new_incarnation() -> None:
    """A member restarts and puts its key over the living old one: same create revision. Wrong: nothing is fenced. Prevented: two
    transactions, delete comparing the old incarnation, then create comparing absent."""
    server = MemoryServer()
    old = await _joined(server, "p1")
    new = await _joined(server, "p2")

    assert new.incarnation != old.incarnation
    with pytest.raises(Fenced):
        await old.commit(Unit(ops=[Put(b"k", b"")]))
    await new.commit(Unit(ops=[Put(b"k", b"")]))
    for structure in (old, new):
        await structure.close()


@simulated
async def test_n11_a_paused_process_and_its_successor_on_one_private_store_are_not_two_writers() -> None:
    """An old paused R process and its successor share one private store. Wrong: two writers. Prevented: a member key in the private store
    too, without a lease, compared by everything."""
    server = MemoryServer()
    store = server.client()
    old = await _joined(server, "p1", store)
    store.pause()
    late = asyncio.create_task(old.commit(Unit(ops=[Put(b"k", b"old")])))
    await asyncio.sleep(0.05)
    new = await _joined(server, "p2")
    await new.commit(Unit(ops=[Put(b"k", b"new")]))
    store.resume()

    with pytest.raises(Fenced):
        await late
    kv = server.get(Get(b"k")).first
    assert kv is not None and kv.value == b"new"
    for structure in (old, new):
        await structure.close()


@simulated
async def test_p9_what_was_out_when_a_member_was_fenced_is_settled_before_it_joins_again() -> None:
    """A fenced member cannot commit a void; it joins again without settling its slots. Wrong: told refused, but committed. Prevented:
    joining advances the guard of every slot in the transaction that makes the key."""
    server = MemoryServer()
    store = server.client()
    first = await _joined(server, "p1", store)
    store.pause()
    sent = asyncio.create_task(first.commit(Unit(ops=[Put(b"late", b"")]), slot=0))
    await asyncio.sleep(0.05)
    server.txn([], [Delete(keys.member("X"))], [])
    guard = server.get(Get(keys.guard("X", 0))).first
    second = await _joined(server, "p1")
    after = server.get(Get(keys.guard("X", 0))).first
    assert guard is not None and after is not None and after.mod_revision > guard.mod_revision
    store.resume()

    with pytest.raises(Fenced):
        await sent
    assert server.get(Get(b"late")).first is None
    for structure in (first, second):
        await structure.close()


@simulated
async def test_n14_a_verdict_that_reached_one_structure_is_carried_into_the_others() -> None:
    """A verdict reaches one structure only; the victim's keep-alive goes on; an idle victim never notices. Wrong: entry and lock disagree
    for ever. Prevented: every member looks for keys that the admin structure does not have; a member watches its own keys."""
    async with town("X", "Y", apart=True) as t:
        victim = t.stations["X"].structures["admin"]
        assert b"m/X" in t.prefix("app1", keys.MEMBERS) and not victim.fenced.is_set()
        t.servers["admin"].txn([], [Delete(b"m/X")], [])
        await asyncio.wait_for(victim.fenced.wait(), 0.2)
        for store in t.stations["X"].stores.values():
            store.cut()
        async with asyncio.timeout(3):
            while b"m/X" in t.prefix("app1", keys.MEMBERS):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
