"""Units of work on queues A and B of a structure: what tests of them share."""

from __future__ import annotations

import asyncio
from random import Random
from typing import Any

import pytest

from qsg.manager.getting import GetSpec
from qsg.manager.queues import PutRequest
from qsg.manager.units import UnitOfWork
from qsg.pb import records_pb2 as pb
from qsg.rules import keys
from qsg.rules.reasons import Reason, Refusal
from qsg.rules.unit import Committed, Unit
from qsg.store.contract import get_prefix
from qsg.store.faults import Fault, Faults
from support.members import Group, Member, shared

CLAIMS = pytest.mark.parametrize("sole", [False, True], ids=["claims in the store", "claims in memory"])


class Far(Faults):
    """A store about a millisecond away."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)

    def request(self, kind: str) -> Fault:
        return Fault(self.random.uniform(0.0004, 0.0006), self.random.uniform(0.0004, 0.0006))


async def members(g: Group, *names: str, sole: bool = False, **attributes: object) -> list[Member]:
    g.sole = sole
    made = [await g.member(name) for name in names]
    await made[0].queues.define(shared("A", **attributes))
    await made[0].queues.define(shared("B"))
    await asyncio.sleep(0.01)
    return made


async def put(member: Member, unit: UnitOfWork, queue: str, *payloads: bytes) -> None:
    await member.queues.put([PutRequest(queue, pb.Message(payload=p)) for p in payloads], unit=unit)


async def get(member: Member, unit: UnitOfWork, queue: str, count: int = 1) -> list[tuple[bytes, int]]:
    got = await member.queues.get(GetSpec(queue, messages_max=count), unit=unit)
    return [(g.message.payload, g.backouts) for g in got]


async def refused(call: object, reason: Reason) -> Refusal:
    with pytest.raises(Refusal) as refusal:
        await call  # type: ignore[misc]
    assert refusal.value.reason is reason
    return refusal.value


def outrun(slower: Member, faster: Member, label: str, times: int) -> None:
    """Just before each of the `slower` member's next units with this label the `faster` one takes a message of the same segment from A."""
    structure = slower.structures["app1"]
    commit, left = structure.commit, times

    async def late(unit: Unit, **how: Any) -> Committed:
        nonlocal left
        if unit.label.startswith(label) and left:
            left -= 1
            await faster.get("A")
        return await commit(unit, **how)

    structure.commit = late  # type: ignore[method-assign]


async def outrun_unit(g: Group, label: str) -> tuple[Member, UnitOfWork]:
    """(the faster member, a unit of the other, which holds the first of the 22 messages of one segment)"""
    x, y = await members(g, "X", "Y")
    await x.put("A", *(b"%d" % i for i in range(22)))
    unit = x.queues.begin()
    assert await get(x, unit, "A") == [(b"0", 0)]
    outrun(x, y, label, 20)
    return y, unit


async def empty(member: Member, queue: str) -> bool:
    with pytest.raises(Refusal) as refusal:
        await member.get(queue)
    assert refusal.value.reason is Reason.NO_MSG_AVAILABLE
    return await left_over(member, queue) == [] and await empty_now(member, queue)


async def left_over(member: Member, queue: str = "A") -> list[bytes]:
    """Keys of a queue that is empty, beyond its state and totals."""
    _, (found,) = await member.structures["app1"].read(get_prefix(keys.queue(queue), keys_only=True))
    return [kv.key for kv in found.kvs if kv.key != keys.queue_state(queue) and not kv.key.startswith(keys.totals(queue))]


async def empty_now(member: Member, queue: str) -> bool:
    return (await member.queues.depth(queue)).messages == 0
