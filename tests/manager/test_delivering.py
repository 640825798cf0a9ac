"""What a receiver puts where, without a session: large messages staged anew, queues that changed, message retry."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from qsg.manager.delivering import Deliverer
from qsg.manager.large import StageCleaner
from qsg.manager.placing import release
from qsg.pb import records_pb2 as pb
from qsg.pb.channel_pb2 import Part, WireSegment
from qsg.rules import keys
from qsg.rules.definitions import Channel, Queue, Settings
from qsg.rules.reasons import Reason, Refusal
from qsg.rules.receiver import Arrival
from qsg.rules.unit import Committed, CompareFailed, Unit
from qsg.store.contract import get_prefix
from qsg.store.faults import Fault, Faults
from support.members import Group, Member, group, shared
from support.simulated import simulated

MIB = 1 << 20
PAYLOAD = bytes(range(256)) * (3 * MIB // 256)
BODY = pb.Message(message_id=b"L" * 24, payload=PAYLOAD).SerializeToString()
CHUNKS = -(-len(BODY) // MIB)


@asynccontextmanager
async def receiving() -> AsyncIterator[tuple[Group, Member]]:
    async with group() as g:
        x = await g.member("X")
        for queue in (shared("A"), shared("DLQ")):
            await x.queues.define(queue)
        await x.catalog.define_settings(Settings(dead_letter_queue="DLQ"))
        yield g, x


def deliverer_of(x: Member, **channel: int) -> Deliverer:
    definition = Channel.model_validate({"name": "TO.X", "type": "receiver", "message_retry_count": 0, **channel})
    return Deliverer(
        x.queues.placer,
        x.structures["app1"],
        definition,
        x.world,
        ours=list,
        initiator=0,
        ahead_bytes_max=4 * MIB,
        paused=lambda paused: None,
    )


async def parts(deliverer: Deliverer) -> None:
    for i in range(CHUNKS):
        data = BODY[i * MIB : (i + 1) * MIB]
        await deliverer.part(Part(stage=b"s", index=i, chunks=CHUNKS, data=data, destination=pb.Destination(queue="A")))


def large_arrival() -> Arrival:
    entry = pb.Entry(message_id=b"L" * 24, stage=b"s", chunks=CHUNKS, size=len(BODY), payload_size=len(PAYLOAD))
    return Arrival(WireSegment(), pb.SegmentHeader(destinations=[pb.Destination(queue="A")], entries=[entry]))


def small(count: int, queue: str = "A", queue_manager: str = "") -> Arrival:
    body = pb.Message(message_id=b"S" * 24, payload=b"small").SerializeToString()
    entries = [pb.Entry(message_id=b"S" * 24, size=len(body), offset=i * len(body), payload_size=5) for i in range(count)]
    destinations, size = [pb.Destination(queue=queue, queue_manager=queue_manager)], count * len(body)
    return Arrival(WireSegment(bodies=body * count), pb.SegmentHeader(destinations=destinations, entries=entries, bodies_size=size))


async def deliver(x: Member, deliverer: Deliverer, *arrivals: Arrival) -> None:
    unit = Unit("batch")
    placements = await deliverer.fill(unit, arrivals)
    await x.structures["app1"].commit(unit)
    release(placements, committed=True)
    deliverer.published(arrivals)


async def remains(x: Member, queue: str) -> int:
    """Keys of stages and chunks."""
    _, results = await x.structures["app1"].read(get_prefix(keys.stages(queue)), get_prefix(keys.queue(queue) + b"x/"))
    return sum(len(r.kvs) for r in results)


def full_once(x: Member, monkeypatch: pytest.MonkeyPatch, queue: str, turn: int) -> None:
    """The store is full when chunks for `queue` are written for the `turn`th time."""
    structure = x.structures["app1"]
    commit, turns = structure.commit, 0

    async def refusing(unit: Unit, **where: str) -> Committed:
        nonlocal turns
        turns += any(op.key.startswith(keys.queue(queue) + b"x/") for op in unit.ops)
        if unit.label == "stage" and turns == turn:
            turns += 1
            raise Refusal(Reason.STORAGE_NOT_AVAILABLE, "the structure is full")
        return await commit(unit, **where)  # type: ignore[arg-type]

    monkeypatch.setattr(structure, "commit", refusing)


@pytest.mark.parametrize("turn", [1, 3])
@pytest.mark.parametrize("staged", [True, False], ids=["staged", "in memory"])
async def test_a_message_staged_anew_in_a_full_store_is_whole_when_it_is_tried_again(
    staged: bool, turn: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with receiving() as (_, x):
        deliverer = deliverer_of(x)
        if staged:
            await parts(deliverer)
        await x.queues.define(shared("A", put_enabled=False))
        if not staged:
            await parts(deliverer)
        full_once(x, monkeypatch, "DLQ", turn)
        with pytest.raises(Refusal) as refusal:
            await deliver(x, deliverer, large_arrival())
        assert refusal.value.reason is Reason.STORAGE_NOT_AVAILABLE

        await deliver(x, deliverer, large_arrival())

        await StageCleaner(x.catalog).clean()
        assert await x.get("DLQ") == [PAYLOAD]
        assert await remains(x, "A") == await remains(x, "DLQ") == 0


async def test_a_stage_that_lacks_a_part_is_not_published(monkeypatch: pytest.MonkeyPatch) -> None:
    async with receiving() as (_, x):
        deliverer = deliverer_of(x)
        full_once(x, monkeypatch, "A", CHUNKS)
        with pytest.raises(Refusal) as refusal:
            await parts(deliverer)
        assert refusal.value.reason is Reason.STORAGE_NOT_AVAILABLE
        with pytest.raises(Refusal) as refusal:
            await deliver(x, deliverer, large_arrival())
        assert refusal.value.reason is Reason.LARGE_MESSAGE_INCOMPLETE


@pytest.mark.parametrize("queue", ["A", "DLQ"])
async def test_large_messages_for_a_queue_that_another_member_purged_come_in_with_the_next_session(queue: str) -> None:
    async with receiving() as (g, x):
        y = await g.member("Y")
        if queue == "DLQ":
            await x.queues.define(shared("A", put_enabled=False))
        await x.put(queue, b"it is open")
        await y.queues.purge(queue)
        before = deliverer_of(x)
        with pytest.raises(CompareFailed):
            await parts(before)
            await deliver(x, before, large_arrival())
        before.forget()

        after = deliverer_of(x)
        await parts(after)
        await deliver(x, after, large_arrival())

        assert await x.get(queue) == [PAYLOAD]


async def test_a_queue_that_was_changed_elsewhere_is_looked_at_again_behind_any_number_of_others() -> None:
    async with receiving() as (g, x):
        y = await g.member("Y")
        await x.queues.define(shared("ONWARD", usage="transmission"))
        await x.put("A", b"it is open")
        await y.queues.purge("A")
        deliverer, batch = deliverer_of(x), [small(1), small(300, "FAR", "ONWARD")]
        with pytest.raises(CompareFailed):
            await deliver(x, deliverer, *batch)
        deliverer.forget()
        await deliver(x, deliverer, *batch)
        assert await x.get("A") == [b"small"]


@simulated
async def test_a_part_for_a_queue_that_a_committed_batch_has_filled_waits_for_room() -> None:
    async with receiving() as (_, x):
        await x.queues.define(shared("A", max_depth=2))
        deliverer = deliverer_of(x, message_retry_count=3, message_retry_ms=100)
        await deliver(x, deliverer, small(2))

        async def make_room() -> None:
            await asyncio.sleep(0.25)
            assert await x.get("A", 2) == [b"small"] * 2

        await asyncio.gather(parts(deliverer), make_room())
        await deliver(x, deliverer, large_arrival())
        assert await x.get("A") == [PAYLOAD]


@pytest.mark.parametrize("alias", ["large", "too big"])
async def test_messages_for_a_queue_by_two_names_keep_their_order(alias: str) -> None:
    """Those by the first name go one by one, for one of them is large, or a dead letter; those by the second went ahead of them."""
    async with receiving() as (_, x):
        await x.queues.define(shared("A", max_message_bytes=4 * MIB if alias == "large" else 5))
        await x.queues.define(Queue(name="ALIAS", type="alias", target="A"))
        deliverer = deliverer_of(x)
        await parts(deliverer)
        first, second = small(1, "ALIAS"), small(1)
        arrival = Arrival(first.wire, pb.SegmentHeader())
        arrival.header.CopyFrom(first.header)
        arrival.header.entries.extend([large_arrival().header.entries[0], second.header.entries[0]])
        arrival.header.entries[2].offset, arrival.header.entries[2].message_id = first.header.bodies_size, b"T" * 24
        arrival.header.entries[2].destination = 1
        arrival.header.destinations.extend(second.header.destinations)
        last = pb.Message(message_id=b"T" * 24, payload=b"later").SerializeToString()
        arrival.wire.bodies += last
        arrival.header.bodies_size += len(last)

        await deliver(x, deliverer, arrival)

        assert await x.get("A", 3) == ([b"small", PAYLOAD, b"later"] if alias == "large" else [b"small", b"later"])


@simulated
async def test_a_message_for_a_queue_that_is_just_being_purged_waits_for_it() -> None:
    """Between its state's removal and the new one there may be seconds; what arrived then was a dead letter, ahead of what came next."""
    async with receiving() as (g, x):
        y = await g.member("Y")
        deliverer = deliverer_of(x, message_retry_count=3, message_retry_ms=100)
        await x.put("A", b"old")
        establish = y.queues.store._establish

        async def late(*arguments: Any, **how: Any) -> None:
            await asyncio.sleep(0.25)
            await establish(*arguments, **how)

        y.queues.store._establish = late  # type: ignore[method-assign]
        purging = asyncio.create_task(y.queues.purge("A"))
        await asyncio.sleep(0.1)
        with pytest.raises(CompareFailed):
            await deliver(x, deliverer, small(1))
        deliverer.forget()

        await deliver(x, deliverer, small(1))

        await purging
        assert await x.get("A", 2) == [b"small"]


class _Late(Faults):
    def watch_delay_s(self) -> float:
        return 0.5


class _Away(Faults):
    def request(self, kind: str) -> Fault:
        return Fault(refused=True)


@pytest.mark.parametrize("queue_manager", ["", "ELSEWHERE"])
@simulated
async def test_a_message_for_what_another_member_has_just_defined_finds_it(queue_manager: str) -> None:
    """Whoever defined it may be told of it at once, and send: what arrived here before the definition was a dead letter."""
    async with receiving() as (g, x):
        y = await g.member("Y")
        y.stores["admin"].faults = _Late()
        await x.queues.define(shared("NEW"))
        await x.queues.define(Queue(name="ELSEWHERE", type="remote", remote_queue_manager="G"))
        assert y.catalog.queue("NEW") is None

        await deliver(y, deliverer_of(y), small(1, "NEW", queue_manager))
        await y.put("NEW", b"put")

        assert await x.get("NEW", 2) == [b"small", b"put"]


@simulated
async def test_a_name_that_nobody_has_defined_is_unknown_also_while_the_definitions_are_out_of_reach() -> None:
    async with receiving() as (_, x):
        x.stores["admin"].faults = _Away()
        await deliver(x, deliverer_of(x), small(1, "NEW"))
        assert (await x.get("DLQ"))[0] == b"small"
