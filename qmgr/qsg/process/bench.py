"""Benchmarks that need a whole group: how fast a channel drains a backlog, and what a member holds in memory meanwhile."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

import structlog

import qsg
from qsg.process import usage
from qsg.process.ledger import payload
from qsg.process.local import OUT_CHANNEL, LocalGroup, there, wait_until

log = structlog.get_logger()

FILLERS = 4
FILL_BURST = 512


@dataclass(slots=True)
class Drained:
    messages: int
    seconds: float
    cpu_s: float
    rss_mib: float
    """Highest of any member's queue manager."""

    def fields(self) -> dict[str, Any]:
        return {
            "rate_per_s": round(self.messages / self.seconds, 1),
            "seconds": round(self.seconds, 3),
            "cpu_us_per_message": round(1e6 * self.cpu_s / self.messages, 1),
            "rss_mib": round(self.rss_mib, 1),
        }


async def fill(addresses: str, queue: str, messages: int, size: int) -> None:
    """Puts `messages` messages of `size` bytes."""
    left = messages

    async def one(index: int) -> None:
        nonlocal left
        async with qsg.connect(addresses, application=f"filler {index}", connect_s=60) as queue_manager:
            while left > 0:
                count = min(FILL_BURST, left)
                left -= count
                await queue_manager.put_many(queue, [payload(index, n, 0.0, size) for n in range(count)])

    await asyncio.gather(*(one(i) for i in range(FILLERS)))


async def drain(group: LocalGroup, messages: int, size: int) -> Drained:
    """Fills the transmission queue while the channel is stopped, starts it, and waits until all has been committed at R."""
    async with (
        qsg.connect(group.group_addresses, application="bench", connect_s=60) as inside,
        qsg.connect(group.remote_address, application="bench", connect_s=60) as outside,
    ):
        await stop_channel(inside)
        await fill(group.group_addresses, "TO.R", messages, size)
        before, began = usage.cpu_s(group.pids()), time.monotonic()
        await inside.command("start", channel=OUT_CHANNEL)

        async def arrived() -> bool:
            return int((await outside.inquire_queue("FROM.QSG"))["depth"]) >= messages

        await wait_until(arrived, 600, "the backlog to arrive")
        seconds = time.monotonic() - began
        cpu = usage.cpu_s(group.pids()) - before
        peak = max(usage.rss_mib(pid, peak=True) for pid in group.member_pids())
        return Drained(messages, seconds, cpu, peak)


async def whole(group: LocalGroup, queue_manager: qsg.QueueManager) -> bool:
    """Every member is there with its initiator."""
    try:
        return there(await queue_manager.inquire("group")) >= set(group.members)
    except qsg.QsgError:
        return False


async def stop_channel(queue_manager: qsg.QueueManager) -> None:
    """Stops the channel to R, wherever it runs, and waits until it is."""
    await wait_until(lambda: _stopped(queue_manager), 60, "the channel to stop")


async def _stopped(queue_manager: qsg.QueueManager) -> bool:
    try:
        await queue_manager.command("stop", channel=OUT_CHANNEL)
        answer = await queue_manager.inquire("status", OUT_CHANNEL)
    except qsg.QsgError as error:
        log.info("not stopped yet", reason=error.reason.name)
        return False
    return any(row["channel"] == OUT_CHANNEL and row["status"] == "STOPPED" for row in answer["channels"])
