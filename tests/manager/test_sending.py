"""Sender to receiver, end to end in memory: what is sent, in which order, batched how; large messages; what is left behind them."""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from qsg.pb import records_pb2 as pb
from qsg.rules import keys
from qsg.rules.reasons import Reason
from qsg.rules.unit import Cell, Change, Unit
from qsg.store.contract import get_prefix
from qsg.store.faults import RandomFaults
from qsg.store.memory import MemoryStore
from support.channel_pair import XMITQ, Rig, rig
from support.lagging import lag
from support.senders import held, opened, put_large


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


async def test_large_messages_are_staged_and_arrive_whole(two: Rig) -> None:
    to = await opened(two)
    await two.put(["before"])
    await put_large(two, to, bytes(1_500_000), ("TARGET", "R"), ("NOWHERE", "R"), ("FAR", "ONWARD"))
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


async def test_n16_a_large_message_may_take_longer_than_the_silence_allowed() -> None:
    async with rig(silence_ms=600) as two:
        await put_large(two, await opened(two), bytes(6_000_000), ("TARGET", "R"))
        store = two.r.structures["private"].store
        assert isinstance(store, MemoryStore)
        store.faults = RandomFaults(Random(1), delay_s=0.15)
        sender = await two.sender()
        running = two.start(sender)
        await two.until(1, timeout_s=20)
        await two.settled(timeout_s=10)
        assert not running.done()
        assert len((await two.messages("TARGET"))[0].payload) == 6_000_006


async def chunks(two: Rig, queue: str) -> int:
    _, (found,) = await two.r.structures["private"].read(get_prefix(keys.queue(queue) + b"x/", keys_only=True))
    return len(found.kvs)


async def test_a_batch_of_many_large_messages_arrives() -> None:
    """What is announced ahead of a batch may be as much as the batch, not only as the largest message."""
    async with rig(batch_bytes=16 << 20, max_message_bytes=3 << 20) as two:
        await put_large(two, await opened(two), bytes(2_900_000), *[("TARGET", "R")] * 4)
        sender = await two.sender()
        running = two.start(sender)
        await asyncio.wait([running, asyncio.ensure_future(two.settled())], return_when=asyncio.FIRST_COMPLETED)
        assert not running.done(), running.result()
        assert [len(m.payload) for m in await two.messages("TARGET")] == [2_900_006] * 4 and sender.counters.batches == 1


async def test_large_messages_whose_batches_wait_to_be_committed_do_not_count_against_the_next_ones() -> None:
    async with rig(max_message_bytes=4 << 20) as two:
        go = held(two, "batch")
        await put_large(two, await opened(two), bytes(4_000_000), *[("TARGET", "R")] * 3)
        sender = await two.sender()
        running = two.start(sender)
        async with asyncio.timeout(5):
            while await chunks(two, "TARGET") < 3 * 16 and not running.done():  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert not running.done(), running.result()
        go.set()
        assert len(await two.until(3)) == 3
