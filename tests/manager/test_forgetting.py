"""Records of producers go when their lifetime is over, and not before: the count is back where it was after thousands of connects."""

from __future__ import annotations

import asyncio

import pytest

from qsg.manager.forgetting import GRACE_MS, PAGE_KEYS, ProducerCleaner
from qsg.manager.producers import ProducerNumber
from qsg.manager.queues import PutRequest
from qsg.pb import records_pb2 as pb
from qsg.rules import keys
from qsg.rules.reasons import Reason, Refusal
from qsg.rules.unit import CompareFailed
from qsg.store.contract import Delete, Get, Op, Put, get_prefix
from support.members import Group, Member, group, shared

LIFETIME_MS = 60_000


def names(g: Group, structure: str = "app1") -> list[str]:
    found = g.server(structure).get(get_prefix(keys.PRODUCERS)).kvs
    return [keys.unname(kv.key[len(keys.PRODUCERS) :]) for kv in found]


def cleaner_of(member: Member) -> ProducerCleaner:
    return ProducerCleaner(member.structures, member.name, member.world)


async def opened(member: Member, *producers: str) -> None:
    for producer in producers:
        await member.queues.open_producer(producer, structure="app1", lifetime_ms=LIFETIME_MS)


async def test_records_whose_lifetime_is_over_go_and_others_stay() -> None:
    async with group() as g:
        x = await g.member("X")
        await opened(x, "old")
        cleaner = cleaner_of(x)
        for wait_ms in (LIFETIME_MS, GRACE_MS - 1):
            g.wall.ms += wait_ms
            assert await cleaner.clean() == 0, "a clock that is wrong by less takes nothing away"
        await opened(x, "new")
        g.wall.ms += 2

        assert await cleaner.clean() == 1
        assert names(g) == ["new"]


async def test_thousands_of_connects_leave_nothing() -> None:
    async with group() as g:
        x = await g.member("X")
        value = pb.ProducerRecord(epoch=1, last=1, expires_at_ms=g.wall.ms).SerializeToString()
        many = 2 * PAGE_KEYS + 7
        for start in range(0, many, 100):
            ops: list[Op] = [Put(keys.producer(f"app.{n:06d}.u1"), value) for n in range(start, min(start + 100, many))]
            g.server("app1").txn([], ops, [])
        await opened(x, "app.000500.u2")
        g.wall.ms += GRACE_MS + 1

        assert await cleaner_of(x).clean() == many
        assert names(g) == ["app.000500.u2"]


async def test_one_member_does_it_and_the_private_store_is_its_own() -> None:
    async with group() as g:
        x, y = await g.member("X"), await g.member("Y")
        await opened(y, "P")
        await y.queues.open_producer("Q", structure="private", lifetime_ms=LIFETIME_MS)
        g.wall.ms += LIFETIME_MS + GRACE_MS + 1

        assert await cleaner_of(y).clean() == 1, "only its own: X comes first in the others"
        assert names(g) == ["P"] and names(g, "private Y") == []
        assert await cleaner_of(x).clean() == 1
        assert names(g) == []


async def test_a_producer_that_comes_back_meanwhile_keeps_its_record(monkeypatch: pytest.MonkeyPatch) -> None:
    async with group() as g:
        x = await g.member("X")
        await opened(x, "P", "Q")
        g.wall.ms += LIFETIME_MS + GRACE_MS + 1
        commit = x.structures["app1"].commit

        async def overtaken(*arguments: object, **options: object) -> object:
            monkeypatch.undo()
            await opened(x, "P")
            return await commit(*arguments, **options)  # type: ignore[arg-type]

        monkeypatch.setattr(x.structures["app1"], "commit", overtaken)
        assert await cleaner_of(x).clean() == 0
        assert names(g) == ["P", "Q"]
        assert await cleaner_of(x).clean() == 1, "the next round"
        assert names(g) == ["P"]


async def test_numbers_of_a_forgotten_producer_are_refused_and_it_begins_anew() -> None:
    """Nothing of before the record was removed can be applied behind it: not a repetition, not a late put."""
    async with group() as g:
        x, y = await g.member("X"), await g.member("Y")
        await x.queues.define(shared("A"))
        await asyncio.sleep(0.01)
        first = await x.queues.open_producer("P", structure="app1", lifetime_ms=LIFETIME_MS)

        async def put(member: Member, epoch: int, number: int) -> None:
            request = PutRequest("A", pb.Message(payload=b"%d" % number))
            await member.queues.put([request], producer=ProducerNumber("P", "app1", epoch, number))

        await put(x, first.epoch, 1)
        g.wall.ms += 8 * 24 * 3600 * 1000 + GRACE_MS
        assert await cleaner_of(x).clean() == 1
        for member, number in ((x, 2), (y, 1), (y, 2)):
            with pytest.raises((Refusal, CompareFailed)) as refused:
                await put(member, first.epoch, number)
            assert not isinstance(refused.value, Refusal) or refused.value.reason is Reason.PRODUCER_GAP

        again = await y.queues.open_producer("P", structure="app1", lifetime_ms=LIFETIME_MS)
        assert (again.last, again.epoch > first.epoch) == (0, True)
        await put(y, again.epoch, 1)
        assert await y.get("A", 5) == [b"1", b"1"], "the second is another message under a number that begins anew"


async def test_a_record_that_cannot_be_read_is_left_and_holds_nothing_up() -> None:
    async with group() as g:
        x = await g.member("X")
        await opened(x, "P")
        g.server("app1").txn([], [Put(keys.producer("BAD"), b"\xff\xff\xff")], [])
        g.wall.ms += LIFETIME_MS + GRACE_MS + 1

        assert await cleaner_of(x).clean() == 1
        assert names(g) == ["BAD"]
        g.server("app1").txn([], [Delete(keys.producer("BAD"))], [])
        assert g.server("app1").get(Get(keys.producer("BAD"))).first is None
