"""Sender to receiver, end to end in memory: order, exactly once over takeovers, deletes, doorbells, ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from random import Random

import pytest

from qsg.manager import large
from qsg.manager.flight import Mark
from qsg.manager.queue_store import QueueStore
from qsg.manager.sending import Outcome, Sender
from qsg.pb import records_pb2 as pb
from qsg.rules import keys
from qsg.rules.batches import Piece
from qsg.rules.definitions import Channel, Queue
from qsg.rules.reasons import Reason
from qsg.rules.unit import Cell, Change, Committed, NewMessage, Unit
from qsg.store.contract import Delete, get_prefix
from qsg.store.memory import Fault, Faults, MemoryStore, RandomFaults
from support.channel_pair import STREAM, XMITQ, Rig, rig
from support.lagging import lag
from support.members import Member


@pytest.fixture
async def two() -> AsyncIterator[Rig]:
    async with rig() as made:
        yield made


async def test_messages_arrive_in_order_and_the_queue_is_empty_behind_them(two: Rig) -> None:
    texts = [f"m{i}" for i in range(300)]
    for start in range(0, 300, 50):
        await two.put(texts[start : start + 50], member=two.x if start % 100 else two.y)
    sender = await two.sender()
    running = two.start(sender)
    assert await two.until(300) == texts
    await two.settled()
    sender.stop(force=False)
    outcome = await running
    assert (outcome.kind, outcome.clean) == ("stopped", True)
    progress = pb.Progress.FromString(sender.grant.progress.value or b"")
    record = await two.record()
    assert progress.confirmed == record.confirmed
    assert (progress.sequence, progress.messages, progress.luwid) == (300, 300, record.luwid)
    assert (sender.counters.messages, sender.counters.sequence, sender.counters.partner) == (300, 300, "R")
    assert pb.SenderFence.FromString(sender.grant.fence.value or b"").bound_before
    assert two.seen.started == [("X.TO.R", "QSG", "local")]


async def test_a_put_on_an_idle_channel_leaves_at_once_whoever_put_it(two: Rig) -> None:
    sender = await two.sender()
    two.start(sender)
    await sender.bound.wait()
    await asyncio.sleep(0.1)
    for number, member in enumerate((two.x, two.y, two.x), start=1):
        await two.put([f"{number}"], member=member)
        assert len(await two.until(number, timeout_s=0.5)) == number
    await two.settled()


async def test_lanes_read_from_a_lagging_state_keep_the_order(two: Rig) -> None:
    """C2b, P3: whatever a near read misses, all lanes are shown as they stood at one revision, and nothing behind is passed over."""
    store = two.x.structures["app1"].store
    assert isinstance(store, MemoryStore)
    shown = lag(store, lambda: two.x.world.random.randrange(4))
    two.start(await two.sender())
    texts = [f"m{i}" for i in range(120)]
    for number, text in enumerate(texts):
        await two.put([text], member=two.y if number % 3 else two.x)
    assert await two.until(120) == texts
    await two.settled()
    assert len(set(shown)) > 10


async def test_higher_priorities_go_first_and_each_keeps_its_order(two: Rig) -> None:
    await two.put(["a", "b"], priority=1)
    await two.put(["p", "q"], priority=7)
    await two.put(["c"], priority=1)
    two.start(await two.sender())
    await two.until(5)
    await two.settled()
    messages = await two.messages("TARGET")
    assert [m.payload for m in messages if m.priority == 1] == [b"a", b"b", b"c"]
    assert [m.payload for m in messages if m.priority == 7] == [b"p", b"q"]
    record = await two.record()
    assert sorted(record.confirmed) == [1, 7]


async def test_a_deep_queue_of_large_segments_drains(two: Rig) -> None:
    texts = [f"m{i}" for i in range(2000)]
    for start in range(0, 2000, 200):
        await two.put(texts[start : start + 200], size=1024)
    two.start(await two.sender())
    assert await two.until(2000, timeout_s=20) == texts
    await two.settled()


async def test_small_batches_cut_segments_and_confirm_parts_of_them() -> None:
    async with rig(batch_messages=3, batch_window=2) as two:
        texts = [f"m{i}" for i in range(40)]
        await two.put(texts[:20])
        await two.put(texts[20:], size=2000)
        two.start(await two.sender())
        assert await two.until(40) == texts
        await two.settled()
        assert (await two.record()).batches >= 14


async def test_expired_messages_are_not_sent_but_settled(two: Rig) -> None:
    now = two.x.world.wall_ms()
    await two.put(["old"], expires=now - 1)
    await two.put(["new"], expires=now + 100_000)
    await two.put(["old2", "old3"], expires=now - 5)
    two.start(await two.sender())
    assert await two.until(1) == ["new"]
    await two.settled()


@pytest.mark.parametrize("bodies", [0, 3000])
async def test_what_applications_consumed_before_is_not_sent(two: Rig, bodies: int) -> None:
    await two.put(list("abcd"), size=bodies)
    structure = two.x.structures["app1"]
    _, (headers,) = await structure.read(get_prefix(keys.headers(XMITQ)))
    key = keys.consumption(XMITQ, *keys.split_segment_key(XMITQ, headers.kvs[0].key))
    record = pb.Consumption(gone=bytes([0b0101])).SerializeToString()
    await structure.commit(Unit(changes=[Change(Cell(key), lambda _: record)]))
    two.start(await two.sender())
    assert await two.until(2) == ["b", "d"]
    async with asyncio.timeout(2):
        while True:
            left = await two.left()
            if not left["h"]:
                break
            await asyncio.sleep(0.01)
    assert (left["b"], left["c"], left["depth"]) == (0, 0, 2), "this test did not count the two as got"


async def test_takeover_after_the_first_died_between_commit_and_delete(two: Rig) -> None:
    """R has committed and X has not deleted: Y deletes what R's record covers and goes on behind it."""
    texts = [f"m{i}" for i in range(60)]
    await two.put(texts[:30])
    sender = await two.sender()
    sender._commit_settled = never  # type: ignore[method-assign,assignment]
    first = two.start(sender)
    await two.until(30)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    assert (await two.left())["depth"] == 30
    await two.put(texts[30:], member=two.y)
    two.start(await two.sender(two.y))
    assert await two.until(60) == texts
    await two.settled()


async def never(*arguments: object) -> None:
    await asyncio.Event().wait()


async def test_takeover_when_the_confirmation_was_lost_in_the_middle_of_a_segment() -> None:
    async with rig(batch_messages=7, batch_window=1, silence_ms=600) as two:
        texts = [f"m{i}" for i in range(50)]
        await two.put(texts)
        sender = await two.sender()
        sender._confirmed = lambda confirm: None  # type: ignore[method-assign]
        outcome = await two.start(sender)
        assert (outcome.kind, outcome.reason, sender.counters.in_doubt) == ("failed", Reason.PARTNER_SILENT, True)
        assert len(await two.arrived()) == 7
        two.start(await two.sender(two.y))
        assert await two.until(50) == texts
        await two.settled()


async def test_every_cut_of_the_stream_is_survived_exactly_once() -> None:
    """The path is reset again and again while messages flow; instances follow each other on both members."""
    async with rig(batch_messages=5) as two:
        texts = [f"m{i}" for i in range(400)]
        for start in range(0, 400, 40):
            await two.put(texts[start : start + 40])
        rounds = 0
        while len(await two.arrived()) < 400:
            member = two.x if rounds % 2 else two.y
            running = two.start(await two.sender(member))
            await asyncio.sleep(0.002 * (1 + rounds % 7))
            outcome = await cut(two, member, running)
            assert outcome.kind == "failed"
            rounds += 1
            assert rounds < 400
        assert await two.arrived() == texts
        final = two.start(await two.sender())
        await two.settled()
        final.cancel()
        assert rounds > 2


async def test_an_instance_under_the_same_lock_counts_nothing_that_the_one_before_has_deleted(two: Rig) -> None:
    """The first ends while its delete is on the way to the store; the second binds before it has arrived there."""
    store = two.x.stores["app1"]
    await two.put([f"m{i}" for i in range(30)])
    first = await two.sender()
    settle = first._commit_settled
    out = asyncio.Event()

    async def settle_slowly(pieces: list[Piece], marks: list[Mark]) -> Committed:
        store.faults = Slow()
        out.set()
        return await settle(pieces, marks)

    first._commit_settled = settle_slowly  # type: ignore[method-assign]
    running = two.start(first)
    await out.wait()
    await asyncio.sleep(0.02)
    await cut(two, two.x, running)
    store.faults = Faults()
    two.start(Sender(replace(first.grant, instance=2), two.xp.link))
    await two.put(["last"])
    assert len(await two.until(31)) == 31
    await two.settled()


class Slow(Faults):
    def request(self, kind: str) -> Fault:
        return Fault(delay_s=0.3) if kind == "txn" else Fault()


async def test_the_older_instance_is_fenced_at_both_ends(two: Rig) -> None:
    await two.put(["1"])
    old = await two.sender()
    running = two.start(old)
    await two.until(1)
    await two.settled()
    new = await two.sender(two.y)
    two.start(new)
    await new.bound.wait()
    outcome = await asyncio.wait_for(running, 3)
    assert outcome.kind in ("failed", "fenced")
    await two.put(["2"], member=two.y)
    assert await two.until(2) == ["1", "2"]
    await two.settled()
    again = await two.start(old_again := Sender(old.grant, two.xp.link))
    assert (again.kind, again.reason, again.epoch_seen, again.instance_seen) == ("failed", Reason.EPOCH_TOO_LOW, 2, 1)
    assert old_again.counters.messages == 0


async def test_a_sender_whose_lock_was_taken_ends_fenced_and_deletes_nothing(two: Rig) -> None:
    sender = await two.sender()
    running = two.start(sender)
    await sender.bound.wait()
    await two.grant(two.y)
    await two.put(["1"])
    outcome = await asyncio.wait_for(running, 3)
    assert (outcome.kind, outcome.clean) == ("fenced", False)
    assert (await two.left())["depth"] == 1
    two.start(await two.sender(two.y))
    await two.settled()
    assert await two.arrived() == ["1"]


async def test_nobody_there_is_a_failure_with_its_reason(two: Rig) -> None:
    two.network.kill("R")
    outcome = await two.start(await two.sender())
    assert (outcome.kind, outcome.reason) == ("failed", Reason.HOST_UNREACHABLE)


async def test_a_partner_without_its_record_stops_the_channel_until_reset(two: Rig) -> None:
    await two.put(["1"])
    sender = await two.sender()
    running = two.start(sender)
    await two.until(1)
    await two.settled()
    sender.stop(force=False)
    await running
    private = two.r.structures["private"]
    await private.commit(Unit(ops=[Delete(keys.receiver_fence(STREAM)), Delete(keys.receiver_progress(STREAM))]))
    outcome = await two.start(await two.sender())
    assert (outcome.kind, outcome.reason) == ("failed", Reason.NO_RECORD)
    grant = await two.grant(two.x)
    progress = pb.Progress.FromString(grant.progress.value or b"")
    progress.reset_to = 1
    value = progress.SerializeToString()
    await grant.structure.commit(Unit(changes=[Change(grant.progress, lambda _: value)]))
    await two.put(["2"])
    again = Sender(grant, two.xp.link)
    two.start(again)
    assert await two.until(2) == ["1", "2"]
    await two.settled()
    assert pb.Progress.FromString(grant.progress.value or b"").reset_to == 0
    assert again.counters.sequence == 1


async def test_a_partner_whose_record_is_behind_stops_the_channel(two: Rig) -> None:
    await two.put(["1"])
    sender = await two.sender()
    running = two.start(sender)
    await two.until(1)
    await two.settled()
    early = await two.record()
    await two.put(["2"])
    await two.until(2)
    await two.settled()
    sender.stop(force=False)
    await running
    private = two.r.structures["private"]
    cell = await private.cell(keys.receiver_progress(STREAM))
    await private.commit(Unit(changes=[Change(cell, lambda _: early.SerializeToString())]))
    outcome = await two.start(await two.sender())
    assert (outcome.kind, outcome.reason) == ("failed", Reason.SEQUENCE_ERROR)


async def test_an_idle_channel_ends_after_its_disconnect_interval() -> None:
    async with rig(disconnect_interval_s=0.2) as two:
        await two.put(["1"])
        running = two.start(await two.sender())
        outcome = await asyncio.wait_for(running, 3)
        assert (outcome.kind, outcome.clean) == ("idle", True)
        assert await two.arrived() == ["1"]
        assert not any((await two.left()).values())


async def test_the_batch_interval_gathers_messages() -> None:
    async with rig(batch_interval_ms=500) as two:
        sender = await two.sender()
        two.start(sender)
        await sender.bound.wait()
        for number in range(5):
            await two.put([f"{number}"])
        assert await two.until(5) == list("01234")
        await two.settled()
        assert sender.counters.batches == 1


async def test_force_stops_at_once_and_quiesce_waits_for_what_is_in_flight(two: Rig) -> None:
    await two.put(["1"])
    sender = await two.sender()
    running = two.start(sender)
    await sender.bound.wait()
    two.network.cut("X", "R")
    await two.put(["2"])
    sender.stop(force=False)
    await asyncio.sleep(0.05)
    sender.stop(force=True)
    outcome = await asyncio.wait_for(running, 1)
    assert (outcome.kind, outcome.reason) == ("stopped", Reason.STOPPED_BY_COMMAND)


async def test_large_messages_are_staged_and_arrive_whole(two: Rig) -> None:
    queues = QueueStore(two.x.catalog, two.x.world)
    definition = Queue(name=XMITQ, structure="app1", usage="transmission")
    await queues.define(definition)
    opened = await queues.open(definition)
    await two.put(["before"])
    for queue in ("TARGET", "NOWHERE", "FAR"):
        message = pb.Message(message_id=b"L" * 24, payload=queue.encode() + bytes(1_500_000))
        body = message.SerializeToString()
        stage = await large.stage_message(opened, two.x.world, body)
        entry = pb.Entry(message_id=message.message_id, size=len(body), payload_size=len(message.payload))
        unit = Unit(puts=[NewMessage(XMITQ, 0, entry, b"", (queue, "ONWARD" if queue == "FAR" else "R"))])
        stage.publish(unit, entry)
        await opened.structure.commit(unit, slot=0)
    await two.put(["after"])
    two.start(await two.sender())
    await two.until(3)
    await two.until(1, "DLQ")
    await two.until(1, "ONWARD")
    await two.settled()
    sizes = {queue: [len(m.payload) for m in await two.messages(queue)] for queue in ("TARGET", "DLQ", "ONWARD")}
    assert sizes == {"TARGET": [6, 1_500_006, 5], "DLQ": [1_500_007], "ONWARD": [1_500_003]}
    assert (await two.messages("DLQ"))[0].dead_letter.reason == Reason.UNKNOWN_OBJECT_NAME
    assert (await two.messages("ONWARD"))[0].hops == 1
    _, stages = await two.r.structures["private"].read(*(get_prefix(keys.stages(q)) for q in ("TARGET", "DLQ", "ONWARD")))
    assert not any(s.kvs for s in stages)


async def test_a_sender_needs_a_receiver_of_its_name(two: Rig) -> None:
    two.channel = Channel.model_validate({**two.channel.model_dump(), "name": "UNKNOWN"})
    outcome = await two.start(await two.sender())
    assert (outcome.kind, outcome.reason) == ("failed", Reason.UNKNOWN_CHANNEL_NAME)


async def test_an_idle_instance_notices_that_its_fence_was_raised(two: Rig) -> None:
    sender = await two.sender()
    running = two.start(sender)
    await sender.bound.wait()
    await two.grant(two.y)
    outcome = await asyncio.wait_for(running, 1)
    assert (outcome.kind, outcome.reason) == ("fenced", Reason.CHANGED_MEANWHILE)
    assert pb.SenderFence.FromString(sender.grant.fence.value or b"").epoch == two.epoch


async def test_a_clean_stop_waits_until_all_that_the_partner_has_is_deleted(two: Rig) -> None:
    """What R has of a low priority lies behind much of a higher one; once *open* is cleared an application could get it again."""
    await two.put(["low"], priority=1)
    sender = await two.sender()
    sender._commit_settled = never  # type: ignore[method-assign,assignment]
    first = two.start(sender)
    await two.until(1)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    for start in range(0, 6000, 200):
        await two.put([f"h{i}" for i in range(start, start + 200)], priority=9, size=2000)
    await two.put(["low2"], priority=1)
    again = await two.sender()
    again.stop(force=False)
    outcome = await two.start(again)
    assert (outcome.kind, outcome.clean) == ("stopped", True)
    _, (headers,) = await two.x.structures["app1"].read(get_prefix(keys.headers(XMITQ) + b"1/"))
    assert len(headers.kvs) == 1
    final = two.start(await two.sender())
    assert len(await two.until(6002, timeout_s=20)) == 6002
    await two.settled(timeout_s=10)
    messages = await two.messages("TARGET")
    assert [m.payload for m in messages if m.priority == 1] == [b"low", b"low2"]
    final.cancel()


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_exactly_once_when_stores_lose_delay_and_repeat(two: Rig, seed: int) -> None:
    """Both stores lose requests and answers and apply some late, while instances are cut off again and again."""
    chance = Random(seed)
    for member, name in ((two.x, "app1"), (two.y, "app1"), (two.r, "private")):
        store = member.structures[name].store
        assert isinstance(store, MemoryStore)
        store.faults = RandomFaults(chance, delay_s=0.002, lost=0.01, reply_lost=0.02, late=0.01, late_s=0.6)
    texts = [f"m{i}" for i in range(300)]
    putting = asyncio.create_task(put_slowly(two, texts))
    rounds = 0
    async with asyncio.timeout(50):
        while len(await two.arrived()) < 300:
            member = two.y if rounds % 2 else two.x
            running = two.start(await two.sender(member))
            await asyncio.sleep(chance.uniform(0.05, 0.4))
            if chance.random() < 0.5:
                two.network.reset(member.name, "R")
                running.cancel()
                await asyncio.wait([running])
            else:
                await cut(two, member, running)
            rounds += 1
    await putting
    assert await two.arrived() == texts
    two.start(await two.sender())
    await two.settled(timeout_s=15)


async def cut(two: Rig, member: Member, running: asyncio.Task[Outcome]) -> Outcome:
    """Resets the path until the instance has ended; it may not have been connected yet."""
    while not running.done():
        two.network.reset(member.name, "R")
        await asyncio.wait([running], timeout=0.05)
    return running.result()


async def put_slowly(two: Rig, texts: list[str]) -> None:
    for start in range(0, len(texts), 10):
        await two.put(texts[start : start + 10])
        await asyncio.sleep(0.02)


async def test_p10_a_stop_is_not_starved_by_confirmations(two: Rig) -> None:
    """The fence is not what each batch rewrites: one compare-and-swap of it is enough, however busy the channel is."""
    running = two.start(await two.sender())
    putting = asyncio.create_task(put_slowly(two, [f"m{i}" for i in range(200)]))
    await two.until(50, timeout_s=20)
    await two.grant(two.y)
    outcome = await asyncio.wait_for(running, 5)
    assert outcome.kind == "fenced"
    await putting


async def test_n16_a_large_message_may_take_longer_than_the_silence_allowed() -> None:
    async with rig(silence_ms=600) as two:
        queues = QueueStore(two.x.catalog, two.x.world)
        definition = Queue(name=XMITQ, structure="app1", usage="transmission")
        await queues.define(definition)
        opened = await queues.open(definition)
        body = pb.Message(message_id=b"L" * 24, payload=bytes(6_000_000)).SerializeToString()
        stage = await large.stage_message(opened, two.x.world, body)
        entry = pb.Entry(message_id=b"L" * 24, size=len(body), payload_size=6_000_000)
        unit = Unit(puts=[NewMessage(XMITQ, 0, entry, b"", ("TARGET", "R"))])
        stage.publish(unit, entry)
        await opened.structure.commit(unit, slot=0)
        store = two.r.structures["private"].store
        assert isinstance(store, MemoryStore)
        store.faults = RandomFaults(Random(1), delay_s=0.15)
        sender = await two.sender()
        running = two.start(sender)
        await two.until(1, timeout_s=20)
        await two.settled(timeout_s=10)
        assert not running.done()
        assert len((await two.messages("TARGET"))[0].payload) == 6_000_000


async def test_p12_a_renamed_sender_finds_the_record_of_its_stream(two: Rig) -> None:
    await two.put(["1"])
    sender = await two.sender()
    sender._commit_settled = never  # type: ignore[method-assign,assignment]
    first = two.start(sender)
    await two.until(1)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    receiver = two.r.catalog.channel("X.TO.R")
    assert receiver is not None
    await two.r.catalog.define_channel(receiver.model_copy(update={"name": "RENAMED"}))
    await two.r.catalog.delete_channel("X.TO.R")
    two.channel = two.channel.model_copy(update={"name": "RENAMED"})
    await two.put(["2"])
    two.start(await two.sender())
    assert await two.until(2) == ["1", "2"]
    await two.settled()
