"""Claims in memory, where nobody else has the store: a get in a unit of work writes nothing, and keeps what it has got to itself."""

from __future__ import annotations

import asyncio

import pytest

from qsg.endings import ended
from qsg.manager.assigning import Request
from qsg.manager.claims import Claims
from qsg.manager.getting import GetSpec, GetterLoop, GotMessage
from qsg.manager.queues import PutRequest
from qsg.manager.units import UnitOfWork
from qsg.pb import records_pb2 as pb
from qsg.rules import keys
from qsg.rules.definitions import Queue
from qsg.rules.reasons import Reason, Refusal
from qsg.store.contract import get_prefix
from support.members import Group, Member, group


async def alone(g: Group, **attributes: object) -> Member:
    """A member with queue A in its private store."""
    x = await g.member("X", group="")
    await x.queues.define(Queue.model_validate({"name": "A", **attributes}))
    return x


def claims_of(x: Member) -> Claims:
    claims = x.structures["private"].claims
    assert claims is not None
    return claims


async def put(x: Member, *payloads: bytes) -> None:
    await x.queues.put([PutRequest("A", pb.Message(payload=p)) for p in payloads])


async def holding(g: Group) -> tuple[Member, UnitOfWork]:
    """A member with a unit of work that has got the only message."""
    x = await alone(g)
    await put(x, b"1")
    unit = x.queues.begin()
    await x.queues.get(GetSpec("A"), unit=unit)
    return x, unit


async def test_a_get_in_a_unit_writes_nothing_and_its_commit_once() -> None:
    async with group() as g:
        x = await alone(g)
        await put(x, b"1", b"2")
        structure, unit = x.structures["private"], x.queues.begin()
        before = structure.counters.commits
        got = await x.queues.get(GetSpec("A", messages_max=2), unit=unit)
        assert [m.message.payload for m in got] == [b"1", b"2"]
        _, (records,) = await structure.read(get_prefix(keys.consumptions("A")))
        assert (structure.counters.commits, records.kvs, len(claims_of(x))) == (before, (), 1)

        await unit.commit()
        assert (structure.counters.commits, len(claims_of(x)), (await x.queues.depth("A")).messages) == (before + 1, 0, 0)


async def test_nobody_else_is_offered_what_a_unit_has_got() -> None:
    async with group() as g:
        x = await alone(g)
        await put(x, b"1", b"2", b"3")
        one, two = x.queues.begin(), x.queues.begin()
        assert [m.message.payload for m in await x.queues.get(GetSpec("A"), unit=one)] == [b"1"]
        assert [m.message.payload for m in await x.queues.get(GetSpec("A"), unit=two)] == [b"2"]
        assert [m.message.payload for m in await x.queues.get(GetSpec("A", messages_max=9))] == [b"3"]
        with pytest.raises(Refusal) as refusal:
            await x.queues.get(GetSpec("A"))
        assert refusal.value.reason is Reason.NO_MSG_AVAILABLE

        await two.backout()
        (again,) = await x.queues.get(GetSpec("A"))
        assert (again.message.payload, again.backouts) == (b"2", 1)
        await one.commit()
        assert (len(claims_of(x)), (await x.queues.depth("A")).messages) == (0, 0)


async def test_a_get_that_is_given_up_claims_nothing_for_a_unit_that_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    async with group() as g:
        x = await alone(g)
        await put(x, b"1")
        unit, read, go = x.queues.begin(), asyncio.Event(), asyncio.Event()
        messages = GetterLoop._messages

        async def slowly(loop: GetterLoop, request: Request) -> list[GotMessage]:
            read.set()
            await go.wait()
            return await messages(loop, request)

        monkeypatch.setattr(GetterLoop, "_messages", slowly)
        getting = asyncio.create_task(x.queues.get(GetSpec("A"), unit=unit))
        await read.wait()
        await ended(getting)
        await unit.backout()
        go.set()
        (again,) = await x.queues.get(GetSpec("A", wait_ms=1000))
        assert (again.message.payload, unit.empty, len(claims_of(x))) == (b"1", True, 0)


async def test_what_a_dead_incarnation_had_got_is_free() -> None:
    async with group() as g:
        x, _ = await holding(g)
        await x.crash()
        again = await g.member("X", group="")
        assert [m.message.payload for m in await again.queues.get(GetSpec("A"))] == [b"1"]


async def test_a_purged_queue_leaves_no_claim_and_nothing_to_commit() -> None:
    async with group() as g:
        x, unit = await holding(g)
        await x.queues.purge("A")
        with pytest.raises(Refusal) as refusal:
            await unit.commit()
        assert refusal.value.reason is Reason.Q_DELETED
        await unit.backout()
        assert len(claims_of(x)) == 0


async def test_a_transmission_queue_shows_its_claims_to_who_takes_the_channel() -> None:
    """H8: the channel would send past them."""
    async with group() as g:
        x = await alone(g, usage="transmission")
        await x.queues.define(Queue(name="R", type="remote", remote_queue="Q", remote_queue_manager="RR", transmission_queue="A"))
        await x.queues.put([PutRequest("R", pb.Message(payload=b"1"))])
        unit = x.queues.begin()
        await x.queues.get(GetSpec("A"), unit=unit)
        _, (records,) = await x.structures["private"].read(get_prefix(keys.consumptions("A")))
        (kv,) = records.kvs
        assert len(pb.Consumption.FromString(kv.value).claims) == 1 and len(claims_of(x)) == 0
