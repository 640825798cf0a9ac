"""A receiver whose batches wait for room: what failed before them holds none."""

from __future__ import annotations

import asyncio

from qsg.manager.getting import GetSpec
from qsg.rules.definitions import Queue
from support.channel_pair import Rig
from support.channel_script import connect


async def test_a_batch_does_not_wait_for_room_that_a_failed_one_before_it_holds(two: Rig) -> None:
    """The first fails because its queue was altered, and is built anew only once the second, which waits for room, is handed in."""
    channel = two.r.catalog.channel("X.TO.R")
    assert channel is not None
    await two.r.catalog.define_channel(channel.model_copy(update={"message_retry_count": 500}))
    await two.placer.queues.define(Queue(name="TARGET", max_depth=2))
    await two.placer.put("TARGET", "")  # it is open
    other = type(two.placer.queues)(two.r.catalog, two.r.world)
    # The definition, of which the receiver would hear, is still to come.
    altered = Queue(name="TARGET", max_depth=2, description="altered behind the receiver's back")
    await other._make(two.r.structures["private"], altered, replace=True)
    script = await connect(two)
    await script.send(script.batch(script.segment(["a", "b"])))
    await script.send(script.batch(script.segment(["c"])))
    got: list[bytes] = []
    async with asyncio.timeout(5):
        while len(got) < 3:
            got += [g.message.payload for g in await two.r.queues.get(GetSpec("TARGET", wait_ms=5_000))]
    assert got == [b"a", b"b", b"c"]
    assert two.r.structures["private"].counters.failed >= 1
    assert await two.messages("DLQ") == []
