"""Interleavings between applications that get messages, and between them and a channel on the same queue."""

from __future__ import annotations

import asyncio

import pytest

from qsg.manager.getting import GetSpec
from qsg.pb import records_pb2 as pb
from qsg.rules import keys
from qsg.rules.ownership import take
from qsg.rules.reasons import Reason, Refusal
from qsg.rules.unit import Change, Unit
from qsg.store.contract import Limits, Put, get_prefix
from support.channel_pair import XMITQ, rig
from support.group_lists import TRIGGER, refused, taken
from support.group_model import Model, Walk
from support.members import Group, Member, group, shared
from support.simulated import simulated


async def two(g: Group, **attributes: object) -> tuple[Member, Member]:
    """Members X and Y that share queue A."""
    x, y = await g.member("X"), await g.member("Y")
    await x.queues.define(shared("A", **attributes))
    await asyncio.sleep(0.01)
    return x, y


async def is_refused(call: object, reason: Reason) -> None:
    with pytest.raises(Refusal) as refusal:
        await call  # type: ignore[misc]
    assert refusal.value.reason is reason


def claimed(model: Model, member: str) -> None:
    """An application of a member has the first message of XQ in a unit of work."""
    key = keys.consumption("XQ", 0, keys.suffix("X.0", 1, 1))
    claim = pb.Claim(member=member, incarnation=model.me[member].incarnations["app"], entries=[0])
    model.apply("app", [Put(key, pb.Consumption(claims=[claim]).SerializeToString())])


def test_h8_a_channel_does_not_pass_a_message_that_an_application_has_claimed() -> None:
    """An application claims message 5 of a transmission queue; the channel sends 6 to 20; the application backs out. Wrong: 5 is below the
    watermark and deleted unsent. Prevented: no lock while a living unit of work has a claim; a dead one's does not count."""
    model = Model("X", "Y")
    model.put()
    claimed(model, "Y")

    refused(Reason.OBJECT_IN_USE, model, "X", take(model.me["X"], model.place, TRIGGER, model.draw))
    model.kill("Y")
    assert taken(model, "X").epoch == 1


def test_h8_a_claim_that_comes_between_read_and_lock_is_seen() -> None:
    """As before, and the claim is made after the channel has read that there is none. Prevented: the lock's transaction compares that
    nothing under the prefix of the records has changed since."""
    model = Model("X", "Y")
    model.put()
    walk = Walk(model, model.me["X"], take(model.me["X"], model.place, TRIGGER, model.draw))
    walk.step()
    claimed(model, "Y")
    while not walk.done:
        walk.step()

    assert isinstance(walk.error, Refusal) and walk.error.reason is Reason.CHANGED_MEANWHILE
    assert model.entry() is None and model.lock() is None


@simulated
async def test_h8_what_is_backed_out_can_be_got_and_sent_again() -> None:
    """The application backs out. Wrong: its claims stay, so that neither applications nor a channel ever get the messages. Prevented: a
    backout gives every claim back, and leaves the record, for those who compare its prefix (P11)."""
    async with group() as g:
        x, y = await two(g)
        await x.put("A", b"1", b"2")
        unit = x.queues.begin()
        await x.queues.get(GetSpec("A", messages_max=2), unit=unit)
        waiting = asyncio.create_task(y.get("A", 2, wait_ms=3_000))
        await asyncio.sleep(0.05)
        _, (before,) = await x.structures["app1"].read(get_prefix(keys.consumptions("A")))

        await unit.backout()

        assert len(before.kvs) == 1 and await waiting == [b"1", b"2"]


@simulated
async def test_h8_claims_of_a_dead_member_are_void() -> None:
    """The member dies with its units of work. Wrong: nobody gets what it had claimed. Prevented: a claim names the incarnation, and is
    dropped in a transaction that compares that it is gone."""
    async with group() as g:
        x, y = await two(g)
        await x.put("A", b"1", b"2")
        await x.queues.get(GetSpec("A", messages_max=2), unit=x.queues.begin())
        await is_refused(y.get("A"), Reason.NO_MSG_AVAILABLE)
        await x.crash()

        assert await y.get("A", 2, wait_ms=3_000) == [b"1", b"2"]


@simulated
async def test_n1_an_application_gets_nothing_that_a_channel_may_have_sent() -> None:
    """X sends 1, R commits, X loses the lock before it deleted; an application gets 1. Wrong: duplicate. Prevented: while the fence is
    open, locked or not, no get, claim or purge of that queue."""
    async with rig() as r:
        await r.x.queues.define(shared(XMITQ, usage="transmission"))
        await asyncio.sleep(0.05)
        await r.put(["1"])
        sender = await r.sender()
        sender._commit_settled = _never  # type: ignore[method-assign,assignment]
        running = r.start(sender)
        await r.until(1)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        structure = r.x.structures["app1"]
        await structure.refresh(sender.grant.lock)
        lost = Unit("unlock", changes=[Change(sender.grant.lock, lambda _: None)])
        await structure.commit(lost)

        await is_refused(r.y.get(XMITQ), Reason.OBJECT_IN_USE)
        await is_refused(r.y.queues.get(GetSpec(XMITQ), unit=r.y.queues.begin()), Reason.OBJECT_IN_USE)
        await is_refused(r.y.queues.purge(XMITQ), Reason.OBJECT_IN_USE)
        assert (await r.left())["depth"] == 1


async def _never(*arguments: object) -> None:
    await asyncio.Event().wait()


@simulated
async def test_p5_a_get_in_flight_fails_when_a_channel_locks() -> None:
    """An application's get is in flight; a channel locks, sends 1, R commits; the get commits. Wrong: duplicate. Prevented: each get
    compares the fence as it was read, which every lock raises."""
    async with group() as g:
        x, y = await two(g, usage="transmission")
        remote = {"type": "remote", "remote_queue": "Q", "remote_queue_manager": "RR", "transmission_queue": "A"}
        await x.queues.define(shared("R", **{**remote, "structure": "private"}))
        await x.put("R", b"1")
        structure = x.structures["app1"]
        commit = structure.commit

        async def locked_first(unit: Unit, **options: object) -> object:
            if unit.label.startswith("get"):
                structure.commit = commit  # type: ignore[method-assign]
                fence = pb.SenderFence(epoch=1, open=True)
                await y.structures["app1"].commit(Unit(ops=[Put(keys.sender_fence("A"), fence.SerializeToString())]))
            return await commit(unit, **options)  # type: ignore[arg-type]

        structure.commit = locked_first  # type: ignore[method-assign,assignment]
        await is_refused(x.get("A"), Reason.OBJECT_IN_USE)
        assert (await x.queues.depth("A")).messages == 1


@simulated
async def test_h10_many_gets_of_one_message_each_fit_one_unit_of_work_or_are_refused_at_once() -> None:
    """40 gets of one-message segments in one unit of work. Wrong: more operations than a transaction takes, so that it can never commit.
    Prevented: the cost is counted as the unit grows, and the call that would exceed it is refused while the rest can still commit."""
    async with group() as g:
        g.server("app1").limits = Limits(operations=64, compares=64)
        x, y = await two(g)
        for i in range(40):
            await y.put("A", b"%d" % i)
        unit = x.queues.begin()
        got = 0
        with pytest.raises(Refusal) as refusal:
            for _ in range(40):
                got += len(await x.queues.get(GetSpec("A"), unit=unit))
        assert refusal.value.reason is Reason.SYNCPOINT_LIMIT_REACHED and got

        await unit.commit()
        assert (await x.queues.depth("A")).messages == 40 - got


@simulated
async def test_m2a_a_slow_getter_claims_only_what_it_asked_for() -> None:
    """X prefetches 256 messages for one slow getter while Z's getters idle. Wrong: starvation. Prevented: claims go as far as waiting
    getters have asked."""
    async with group() as g:
        x, y = await two(g)
        await x.put("A", *(b"%d" % i for i in range(10)))
        unit = x.queues.begin()
        await x.queues.get(GetSpec("A"), unit=unit)

        assert await y.get("A", 10) == [b"%d" % i for i in range(1, 10)]
        await unit.commit()
