"""Benchmarks that need a whole group: how fast a channel drains a backlog, and what a member holds in memory meanwhile."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import structlog

import qsg
from qsg.process import usage
from qsg.process.ledger import payload
from qsg.process.local import OUT_CHANNEL, LocalGroup, there, wait_until
from qsg.process.workload import burst

log = structlog.get_logger()

FILLERS = 4
FILL_BURST = 512

Told = Callable[[str, int], None]
"""What is being done ("fill", "drain"), and with how many messages it is done."""


def unheard(what: str, done: int) -> None:
    """Nobody looks on."""


@dataclass(slots=True)
class Drained:
    messages: int
    seconds: float
    arrived_s: tuple[float, float]
    """From the channel's start until half of the messages had arrived, and 99 of 100."""
    cpu_s: float
    rss_mib: float
    """Highest of any member's queue manager."""

    def fields(self) -> dict[str, Any]:
        return {
            "rate_per_s": round(self.messages / self.seconds, 1),
            "p50_ms": round(1000 * self.arrived_s[0], 3),
            "p99_ms": round(1000 * self.arrived_s[1], 3),
            "seconds": round(self.seconds, 3),
            "cpu_us_per_message": round(1e6 * self.cpu_s / self.messages, 1),
            "rss_mib": round(self.rss_mib, 1),
        }


async def fill(addresses: str, queue: str, messages: int, size: int, told: Told = unheard) -> None:
    """Puts `messages` messages of `size` bytes."""
    left, done, most = messages, 0, burst(size, FILL_BURST)

    async def one(index: int) -> None:
        nonlocal left, done
        async with qsg.connect(addresses, application=f"filler {index}", connect_s=60) as queue_manager:
            while left > 0:
                count = min(most, left)
                left -= count
                await queue_manager.put_many(queue, [payload(index, n, 0.0, size) for n in range(count)])
                done += count
                told("fill", done)

    await asyncio.gather(*(one(i) for i in range(FILLERS)))


def reached_s(samples: Sequence[tuple[float, int]], count: float) -> float:
    """When so many had arrived, by samples of (time, how many had): between two samples as if they had come evenly."""
    began, before = 0.0, 0
    for at, arrived in samples:
        if arrived >= count > before:
            return began + (at - began) * (count - before) / (arrived - before)
        began, before = at, arrived
    raise ValueError(f"{count} had not arrived in {samples[-1:]}")


async def drain(group: LocalGroup, messages: int, size: int, told: Told = unheard) -> Drained:
    """Fills the transmission queue while the channel is stopped, starts it, and waits until all has been committed at R."""
    async with (
        qsg.connect(group.group_addresses, application="bench", connect_s=60) as inside,
        qsg.connect(group.remote_address, application="bench", connect_s=60) as outside,
    ):
        await stop_channel(inside)
        await fill(group.group_addresses, "TO.R", messages, size, told)
        before, began = usage.cpu_s(group.pids()), time.monotonic()
        await inside.command("start", channel=OUT_CHANNEL)

        samples: list[tuple[float, int]] = []

        async def arrived() -> bool:
            depth = int((await outside.inquire_queue("FROM.QSG"))["depth"])
            samples.append((time.monotonic() - began, depth))
            told("drain", depth)
            return depth >= messages

        await wait_until(arrived, 600, "the backlog to arrive")
        seconds = samples[-1][0]
        cpu = usage.cpu_s(group.pids()) - before
        peak = max(usage.rss_mib(pid, peak=True) for pid in group.member_pids())
        return Drained(messages, seconds, (reached_s(samples, 0.5 * messages), reached_s(samples, 0.99 * messages)), cpu, peak)


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
