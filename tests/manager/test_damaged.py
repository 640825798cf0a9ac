"""Damaged values in a store: whoever needs one is told, nobody hangs, and everybody else goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from qsg.manager.browsing import BrowseSpec
from qsg.manager.getting import GetSpec
from qsg.manager.table import StatusTable
from qsg.pb import records_pb2 as pb
from qsg.rules import keys, status
from qsg.rules.reasons import Reason, Refusal
from qsg.store.contract import Delete, Get, Op, Put, prefix_end
from support.members import Group, Member, group, shared


@pytest.fixture
async def made() -> AsyncIterator[Group]:
    async with group() as found:
        yield found


@pytest.fixture
async def x(made: Group) -> Member:
    member = await made.member("X")
    for name in "AB":
        await member.queues.define(shared(name))
    return member


async def damage(member: Member, *ops: Op, structure: str = "app1") -> None:
    await member.stores[structure].txn([], ops)


async def keys_under(member: Member, prefix: bytes) -> list[bytes]:
    return [kv.key for kv in (await member.stores["app1"].get(Get(prefix, prefix_end(prefix)))).kvs]


async def test_a_segment_without_its_bodies_is_told_and_does_not_hang(x: Member) -> None:
    await x.put("A", bytes(50_000))
    await damage(x, *(Delete(key) for key in await keys_under(x, keys.bodies("A"))))
    async with asyncio.timeout(5):
        for call in (x.get("A"), x.queues.browse(BrowseSpec("A"))):
            with pytest.raises(Refusal) as told:
                await call
            assert told.value.reason is Reason.RECORD_DAMAGED


async def test_a_header_that_cannot_be_read_is_told_again_and_again_and_is_not_skipped(x: Member) -> None:
    await x.put("A", b"1")
    await x.put("A", b"2")
    first = (await keys_under(x, keys.headers("A")))[0]
    await damage(x, Put(first, b"\xff\xff"))
    for _ in range(3):
        with pytest.raises(Refusal) as told:
            await x.get("A")
        assert told.value.reason is Reason.RECORD_DAMAGED and first.decode() in told.value.detail
    await x.put("B", b"other")
    assert await x.get("B") == [b"other"]


async def test_a_record_of_claims_that_cannot_be_read_stops_nobody_who_tells_of_a_dead_member(x: Member) -> None:
    await x.put("A", b"1", b"2")
    await x.put("B", b"1", b"2")
    for name in "AB":
        await x.queues.get(GetSpec(name), unit=x.queues.begin())
    (record,) = [key for key in await keys_under(x, keys.queue("A")) if key.startswith(keys.queue("A") + b"c/")]
    await damage(x, Put(record, b"\xff\xff"))
    with pytest.raises(Refusal) as told:
        await x.get("A", 9)
    assert told.value.reason is Reason.RECORD_DAMAGED
    x.queues.member_gone("Y", 1, "silent", 0.0)
    with pytest.raises(Refusal) as told:
        await x.get("A")
    assert told.value.reason is Reason.RECORD_DAMAGED


async def test_totals_that_cannot_be_read_refuse_their_queue_and_fence_nobody(x: Member) -> None:
    await x.put("A", b"1")
    (totals,) = await keys_under(x, keys.totals("A"))
    await damage(x, Put(totals, b"\xff\xff"))
    for _ in range(3):
        with pytest.raises(Refusal):
            await x.put("A", b"2")
    await x.put("B", b"other")
    assert await x.get("B") == [b"other"]
    assert not x.structures["app1"].fenced.is_set()


async def test_a_queues_state_that_cannot_be_read(made: Group, x: Member) -> None:
    await damage(x, Put(keys.queue_state("A"), pb.QueueState(id=b"id", definition="{").SerializeToString()))
    y = await made.member("Y")
    with pytest.raises(Refusal) as told:
        await y.put("A", b"1")
    assert told.value.reason is Reason.RECORD_DAMAGED
    await y.put("B", b"1")


async def test_a_member_key_that_cannot_be_read_is_displaced(made: Group, x: Member) -> None:
    await damage(x, Put(keys.member("X"), b"\xff\xff"), Put(keys.guard("X", 0), b"\xff\xff"))
    again = await made.member("X")
    await again.put("A", b"1")
    assert await again.get("A") == [b"1"]


async def test_an_entry_of_the_status_table_that_cannot_be_read_hides_no_other(x: Member) -> None:
    table = StatusTable(x.structures["admin"])
    told: list[str] = []
    table.on_change.append(lambda channel, entry, revision: told.append(channel))
    await table.start()
    good = status.image(pb.ChannelStatus(channel="GOOD", state=pb.RUNNING, owner="X"))
    await damage(x, Put(keys.status_out("BAD"), b"\xff"), Put(keys.status_out("GOOD"), good), structure="admin")
    async with asyncio.timeout(5):
        while not told:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert told == ["GOOD"]
    assert [entry.channel for entry in table.outbound()] == ["GOOD"] and table.entry("BAD") is None
    with pytest.raises(Refusal):
        await table.read("BAD")
    await table.close()
