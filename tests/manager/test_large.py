"""Large messages: staged, published at once, removed with the message; stages of the dead are cleaned, published bodies never."""

from __future__ import annotations

import asyncio

import pytest

from qsg.endings import ended
from qsg.manager import large
from qsg.manager.delivering import Deliverer
from qsg.manager.large import StageCleaner
from qsg.manager.placing import entry_of
from qsg.manager.producers import ProducerNumber
from qsg.manager.queues import PutRequest
from qsg.manager.structure import Structure
from qsg.pb import records_pb2 as pb
from qsg.pb.channel_pb2 import Part
from qsg.rules import keys
from qsg.rules.definitions import Channel
from qsg.rules.reasons import Reason, Refusal
from qsg.rules.unit import CompareFailed, Fenced, NewMessage, Unit
from qsg.store.contract import Delete, Unavailable, get_prefix
from support.group import eventually
from support.members import Group, Member, group, shared
from support.simulated import simulated

MIB = 1 << 20
BODY = bytes(range(256)) * (3 * MIB // 256) + b"end"


async def members(g: Group, *names: str) -> list[Member]:
    made = [await g.member(name) for name in names]
    await made[0].queues.define(shared("A"))
    await asyncio.sleep(0.01)
    return made


async def remains(member: Member) -> list[bytes]:
    _, (found,) = await member.structures["app1"].read(get_prefix(keys.queue("A"), keys_only=True))
    return [kv.key for kv in found.kvs if kv.key != keys.queue_state("A") and not kv.key.startswith(keys.totals("A"))]


@pytest.mark.parametrize("size", [256 * 1024, 256 * 1024 + 1, MIB, 3 * MIB + 5])
async def test_put_and_get(size: int) -> None:
    async with group() as g:
        x, y = await members(g, "X", "Y")
        body = BODY[:size]
        await x.put("A", b"before", body, b"after")
        assert (await x.queues.depth("A")).bytes == len(body) + 11

        assert await y.get("A") == [b"before"]
        assert await y.get("A", 2) == [body, b"after"]
        assert await remains(x) == []


async def test_large_message_comes_alone_when_it_exceeds_what_was_asked() -> None:
    async with group() as g:
        (x,) = await members(g, "X")
        await x.put("A", b"1", BODY, b"3")
        assert await x.get("A", 3, bytes_max=1_000) == [b"1"]
        assert await x.get("A", 3, bytes_max=1_000) == [BODY]
        assert await x.get("A", 3, bytes_max=1_000) == [b"3"]


async def test_expired_large_message_takes_its_chunks_along() -> None:
    async with group() as g:
        (x,) = await members(g, "X")
        await x.put("A", BODY, expires_at_ms=g.wall.ms + 10)
        g.wall.ms += 20
        with pytest.raises(Refusal):
            await x.get("A")
        assert await remains(x) == []


async def test_refused_put_leaves_no_stage_behind() -> None:
    async with group() as g:
        (x,) = await members(g, "X")
        opened = await x.queues.open_producer("P", "A")
        number = ProducerNumber("P", "app1", opened.epoch, 5)
        with pytest.raises(Refusal) as refusal:
            await x.queues.put([PutRequest("A", pb.Message(payload=BODY))], producer=number)
        assert refusal.value.reason is Reason.PRODUCER_GAP
        assert await remains(x) == []


@pytest.mark.parametrize("problem", [Unavailable("app1 does not answer"), asyncio.CancelledError()], ids=["store", "cancelled"])
async def test_put_that_ends_between_staging_and_commit_leaves_the_stage_to_the_cleaner(
    problem: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with group() as g:
        (x,) = await members(g, "X")
        opened = await x.queues.open_producer("P", "A")
        number = ProducerNumber("P", "app1", opened.epoch, 1)

        async def failing(*_: object) -> None:
            raise problem

        with monkeypatch.context() as patched:
            patched.setattr(x.structures["app1"], "refresh", failing)
            with pytest.raises(type(problem)):
                await x.queues.put([PutRequest("A", pb.Message(payload=BODY))], producer=number)
        assert await remains(x)

        await StageCleaner(x.catalog).clean()
        assert await remains(x) == []


async def test_cancelled_put_leaves_no_stage_behind() -> None:
    async with group() as g:
        (x,) = await members(g, "X")
        putting = asyncio.create_task(x.put("A", BODY))
        for _ in range(1_000):
            if await remains(x):
                break
            await asyncio.sleep(0)
        putting.cancel()
        (outcome,) = await asyncio.gather(putting, return_exceptions=True)
        if isinstance(outcome, asyncio.CancelledError) and (await x.queues.depth("A")).messages == 0:
            assert await remains(x) == []
        else:
            assert await x.get("A") == [BODY]


async def test_stages_of_the_dead_are_cleaned_and_those_of_the_living_are_not() -> None:
    async with group() as g:
        x, y = await members(g, "X", "Y")
        for member in (x, y):
            opened = await member.queues.open_for_get("A")
            await large.stage_message(opened, member.world, BODY)
        cleaner = StageCleaner(y.catalog)
        assert await cleaner.clean() == 0

        await x.crash()

        assert await cleaner.clean() == 1
        assert len([k for k in await remains(y) if k.startswith(keys.stages("A"))]) == 1
        assert len([k for k in await remains(y) if b"/x/" in k]) == 13


async def test_what_could_not_be_removed_at_once_is_removed_later() -> None:
    """Simulation seed 1136: a session ended while its store was out of reach; its member lived on, and so did what was staged."""
    async with group() as g:
        (x,) = await members(g, "X")
        opened = await x.queues.open_for_get("A")
        stages = [await large.stage_message(opened, x.world, BODY) for _ in range(2)]
        x.stores["app1"].pause()
        discarding = asyncio.create_task(large.discard(opened.structure, *stages))
        await asyncio.sleep(0.1)
        discarding.cancel()
        await asyncio.gather(discarding, return_exceptions=True)
        x.stores["app1"].resume()
        assert len([k for k in await remains(x) if b"/x/" in k]) >= 13

        await StageCleaner(x.catalog).clean()

        assert await remains(x) == [] and not opened.structure.abandoned


async def test_a_stage_that_was_begun_when_its_session_ended_is_removed_later() -> None:
    """Simulation seed 10169 (with other retries): the marker's write came through when nobody had time to wait for it any more."""
    async with group() as g:
        (x,) = await members(g, "X")
        structure, channel = x.structures["app1"], Channel(name="TO.X", type="receiver")
        deliverer = Deliverer(
            x.queues.placer, structure, channel, x.world, ours=list, initiator=0, ahead_bytes_max=4 * MIB, paused=lambda paused: None
        )
        part = Part(stage=b"s", index=0, chunks=2, data=BODY[:MIB], destination=pb.Destination(queue="A"))
        await x.put("A", b"it is open")
        assert await x.get("A") == [b"it is open"]
        x.stores["app1"].pause()
        receiving = asyncio.create_task(deliverer.part(part))
        await eventually(lambda: x.in_flight("app1"))
        await ended(receiving)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await deliverer.discard()
        x.stores["app1"].resume()
        await eventually(lambda: structure.abandoned)
        assert [key for key in await remains(x) if key.startswith(keys.stages("A"))]

        await StageCleaner(x.catalog).clean()

        assert await remains(x) == [] and not structure.abandoned


async def test_what_could_not_be_removed_is_removed_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulation seed 25751: a full disk was mended, and 24 s later parts of its time were still there."""
    monkeypatch.setattr(large, "OWN_EVERY_S", 0.02)
    async with group() as g:
        (x,) = await members(g, "X")
        cleaning = asyncio.create_task(StageCleaner(x.catalog, every_s=600.0).run())
        await asyncio.sleep(0.05)
        opened = await x.queues.open_for_get("A")
        large.leave(opened.structure, await large.stage_message(opened, x.world, BODY))
        await eventually(lambda: not opened.structure.abandoned)
        assert await remains(x) == []
        await ended(cleaning)


async def test_published_message_of_a_dead_member_stays() -> None:
    """Interleaving N8: X publishes, acknowledges and dies; a cleaner must not take its body for staged."""
    async with group() as g:
        x, y = await members(g, "X", "Y")
        await x.put("A", BODY)
        await x.crash()
        assert await StageCleaner(y.catalog).clean() == 0
        assert await y.get("A") == [BODY]


async def test_member_that_was_declared_dead_cannot_publish_what_was_cleaned() -> None:
    """Interleaving C5: X stages, is paused and declared dead, a peer removes the chunks, X wakes."""
    async with group() as g:
        x, y = await members(g, "X", "Y")
        opened = await x.queues.open_for_get("A")
        message = pb.Message(message_id=bytes(24), payload=BODY)
        body = message.SerializeToString()
        stage = await large.stage_message(opened, x.world, body)
        x.stores["app1"].pause()
        await y.stores["app1"].txn([], [Delete(keys.member("X"))])
        assert await StageCleaner(y.catalog).clean() == 1
        entry = entry_of(message, len(body))
        unit = Unit(compares=[opened.same()], puts=[NewMessage("A", 0, entry, b"")])
        stage.publish(unit, entry)
        late = asyncio.create_task(x.structures["app1"].commit(unit))
        await asyncio.sleep(0.01)
        x.stores["app1"].resume()

        with pytest.raises((Fenced, CompareFailed)):
            await late
        assert await remains(y) == []


async def test_queue_deleted_while_staging() -> None:
    async with group() as g:
        x, y = await members(g, "X", "Y")
        opened = await x.queues.open_for_get("A")
        stage = await large.begin(opened, x.world)
        await y.queues.delete("A", purge=True)
        with pytest.raises(CompareFailed):
            await large.add(opened.structure, stage, BODY)
        await large.discard(opened.structure, stage)
        await y.queues.define(shared("A"))
        assert await remains(y) == []


async def test_incomplete_body_is_told() -> None:
    async with group() as g:
        (x,) = await members(g, "X")
        entry = pb.Entry(stage=b"nothing", chunks=3, size=700_000)
        with pytest.raises(Refusal) as refusal:
            await large.read(x.structures["app1"], "A", entry)
        assert refusal.value.reason is Reason.LARGE_MESSAGE_INCOMPLETE


@simulated
async def test_who_loses_large_messages_to_a_faster_member_is_told_of_no_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    async with group() as g:
        x, y = await members(g, "X", "Y")
        for i in range(14):
            await y.put("A", BODY[i:MIB])
        read, left = large.read, 12

        async def late(structure: Structure, queue: str, entry: pb.Entry) -> bytes:
            nonlocal left
            if structure is x.structures["app1"] and left:
                left -= 1
                await y.get("A")
            return await read(structure, queue, entry)

        monkeypatch.setattr(large, "read", late)
        (got,) = await x.get("A", wait_ms=5_000)
        assert len(got) > MIB - 14 and left > 0, "it goes on behind what it loses"


async def test_a_large_message_without_a_chunk_is_told_as_damage() -> None:
    async with group() as g:
        (x,) = await members(g, "X")
        await x.put("A", BODY)
        chunk = next(key for key in await remains(x) if b"/x/" in key)
        await x.stores["app1"].txn([], [Delete(chunk)])
        with pytest.raises(Refusal) as refusal:
            await x.get("A", wait_ms=5_000)
        assert refusal.value.reason is Reason.LARGE_MESSAGE_INCOMPLETE
        assert (await x.queues.depth("A")).messages == 1
