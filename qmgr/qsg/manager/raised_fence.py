"""How a sender that has nothing to write learns that its channel is another's: it watches its own fence."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from qsg.manager.grants import Grant
from qsg.manager.prefetch import SeenTaken
from qsg.pb import records_pb2
from qsg.rules.records import read_record
from qsg.store.contract import Event


async def until_raised(grant: Grant, expected: Callable[[], bool]) -> None:
    """Raises `SeenTaken` once the fence is not this grant's any more; while `expected()` that is no surprise."""
    raised = asyncio.Event()

    def changed(events: list[Event]) -> None:
        for event in events:
            if event.kv.key == grant.fence.key and not expected() and (event.deleted or not _is_of(grant, event.kv.value)):
                raised.set()

    follower = grant.structure.follow(grant.fence.key)
    follower.add_listener(changed)
    try:
        follower.start()
        await raised.wait()
    finally:
        await follower.close()
    raise SeenTaken((grant.fence.key,))


def _is_of(grant: Grant, fence: bytes) -> bool:
    record = read_record(records_pb2.SenderFence, fence)
    return record.epoch == grant.epoch and record.stream == grant.stream
