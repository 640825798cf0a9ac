"""The incarnations of a queue manager's process: what ends them, and with which exit status."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from qsg.process.queue_manager import Doors, incarnations
from qsg.store.memory import MemoryServer
from support.stores import PATIENT_S


class Manager:
    """Never done with one of its calls."""

    def __init__(self, hangs_in: str) -> None:
        self.fenced = asyncio.Event()
        self.hangs_in = hangs_in
        self.reached = asyncio.Event()

    async def start(self) -> None:
        await self._call("start")

    async def stop(self, drain: bool) -> None:
        await self._call("stop")

    async def _call(self, name: str) -> None:
        if name == self.hangs_in:
            self.reached.set()
            await asyncio.Event().wait()


@pytest.mark.parametrize("hangs_in", ["start", "stop"])
async def test_a_private_store_that_fails_ends_the_process_also_while_it_starts_or_stops(hangs_in: str) -> None:
    """Nothing that such a store is asked for comes to an end by itself."""
    doors, failed, manager = Doors(asyncio.Event()), asyncio.Event(), Manager(hangs_in)
    running = asyncio.ensure_future(incarnations(lambda again: cast(Any, manager), MemoryServer().client(), doors, failed))
    if hangs_in == "stop":
        while not doors.served:  # noqa: ASYNC110 - a plain flag
            await asyncio.sleep(0)
        doors.stop.set()
    await asyncio.wait_for(manager.reached.wait(), PATIENT_S)
    failed.set()
    assert await asyncio.wait_for(running, 5.0) == 1
