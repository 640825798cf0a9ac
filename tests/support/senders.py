"""What tests do to senders of `support.channel_pair`: they die at a certain point, their path is cut, messages come meanwhile."""

from __future__ import annotations

import asyncio
from typing import Any

from qsg.manager import large
from qsg.manager.queue_store import Opened, QueueStore
from qsg.manager.sending import Outcome
from qsg.pb import records_pb2 as pb
from qsg.rules.definitions import Queue
from qsg.rules.unit import Committed, NewMessage, Unit
from support.channel_pair import XMITQ, Rig
from support.members import Member


async def never(*arguments: object) -> None:
    await asyncio.Event().wait()


def held(two: Rig, label: str) -> asyncio.Event:
    """R's commits with this label wait until the event is set."""
    private, go = two.r.structures["private"], asyncio.Event()
    commit = private.commit

    async def wait(unit: Unit, **how: Any) -> Committed:
        if unit.label == label:
            await go.wait()
        return await commit(unit, **how)

    private.commit = wait  # type: ignore[method-assign]
    return go


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


async def died_before_its_delete(two: Rig, arrived: int) -> None:
    """A sender of X dies when R has committed `arrived` messages; none of them is deleted."""
    sender = await two.sender()
    sender._commit_settled = never  # type: ignore[method-assign,assignment]
    running = two.start(sender)
    await two.until(arrived)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def sent_and_stopped(two: Rig, *texts: str) -> list[pb.Progress]:
    """Puts these one by one, each sent and deleted before the next, and stops; R's record behind each."""
    sender = await two.sender()
    running = two.start(sender)
    records: list[pb.Progress] = []
    for text in texts:
        await two.put([text])
        await two.until(len(records) + 1)
        await two.settled()
        records.append(await two.record())
    sender.stop(force=False)
    await running
    return records


async def opened(two: Rig) -> Opened:
    """X's way to its transmission queue, defined anew: nothing may lie on it yet."""
    queues = QueueStore(two.x.catalog, two.x.world)
    definition = Queue(name=XMITQ, structure="app1", usage="transmission")
    await queues.define(definition)
    return await queues.open(definition)


async def put_large(two: Rig, to: Opened, payload: bytes, *destinations: tuple[str, str]) -> None:
    """The same payload, staged, for each of these (queue, queue manager), behind the queue's name."""
    for queue, queue_manager in destinations:
        message = pb.Message(message_id=b"L" * 24, payload=queue.encode() + payload)
        body = message.SerializeToString()
        stage = await large.stage_message(to, two.x.world, body)
        entry = pb.Entry(message_id=message.message_id, size=len(body), payload_size=len(message.payload))
        unit = Unit(puts=[NewMessage(XMITQ, 0, entry, b"", (queue, queue_manager))])
        stage.publish(unit, entry)
        await to.structure.commit(unit, slot=0)
