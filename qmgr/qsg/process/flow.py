"""Traffic with a count: numbered messages put at one queue manager and got at another, until it is told to end; then the seven counts.

For people who want to see that a channel moves everything exactly once while they do something to it, and for the tests that do so on a
cluster. A pause is a silence among arrivals while something was on its way; times of pauses are wall-clock times of this machine.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from qsg.process.ledger import Ledger
from qsg.process.workload import Direction, Pace, consume, produce
from qsg.rules.world import World

REPORT_S = 1.0
LOOK_S = 0.05
PAUSES_MAX = 100
"""As many are told, the longest: one line of a container's log has room for 16 KiB."""


@dataclass(frozen=True, slots=True)
class Plan:
    put_addresses: str
    put_queue: str
    get_addresses: str
    get_queue: str
    rate_per_s: float = 100.0
    messages: int = 1_000_000_000
    size: int = 1024
    producers: int = 2
    pause_s: float = 0.1
    """Silences longer than this are told."""
    drain_s: float = 120.0
    """How long the last messages may take."""


async def run(plan: Plan, world: World, stop: asyncio.Event, tell: Callable[[dict[str, Any]], None] = lambda line: None) -> dict[str, Any]:
    """Puts until `stop` or until all are put, then waits for what is on its way. `tell` is called every second."""
    ledger = Ledger(plan.producers)
    pace = Pace(plan.rate_per_s, plan.messages, plan.messages)
    way = Direction("flow", plan.put_addresses, plan.put_queue, plan.get_addresses, plan.get_queue, plan.size, pace, ledger)
    loop = asyncio.get_running_loop()
    name = f"flow-{world.id().hex()[:12]}"
    producers = [loop.create_task(produce(way, i, f"{name}-{i}")) for i in range(plan.producers)]
    consumer = loop.create_task(consume(way, 0))
    telling = loop.create_task(_tell(ledger, tell))
    try:
        await _until(stop, producers, consumer)
        pace.total = 0
        drained = await _drained(ledger, producers, consumer, plan.drain_s)
    finally:
        for task in (*producers, consumer, telling):
            task.cancel()
        await asyncio.gather(*producers, consumer, telling, return_exceptions=True)
    counts = ledger.counts()
    found = pauses(ledger, plan.pause_s, world.wall_ms() / 1000 - time.monotonic())
    return {
        **asdict(counts),
        "drained": drained,
        "clean": counts.clean and drained,
        "max_gap_ms": max((p["ms"] for p in found), default=0.0),
        "worst_wait_ms": round(1000 * ledger.worst_wait_s(), 1),
        **percentiles(ledger),
        "pauses": found,
    }


def percentiles(ledger: Ledger) -> dict[str, float]:
    """From put to arrival."""
    waits = sorted(wait for _, wait in ledger.waits)
    return {f"wait_p{p}_ms": round(1000 * waits[len(waits) * p // 100], 1) if waits else 0.0 for p in (50, 99)}


def pauses(ledger: Ledger, at_least_s: float, offset_s: float) -> list[dict[str, float]]:
    """The longest silences, in order: when each ended (seconds of the wall clock), and how long it was."""
    found = []
    for i in range(1, len(ledger.arrivals)):
        gap = ledger.arrivals[i] - max(ledger.arrivals[i - 1], ledger.sent_times[i])
        if gap >= at_least_s:
            found.append({"until": round(ledger.arrivals[i] + offset_s, 3), "ms": round(1000 * gap, 1)})
    longest = sorted(found, key=lambda pause: -pause["ms"])[:PAUSES_MAX]
    return sorted(longest, key=lambda pause: pause["until"])


async def _until(stop: asyncio.Event, producers: list[asyncio.Task[None]], consumer: asyncio.Task[None]) -> None:
    """Told to end, or all is put. What ends a producer or the consumer early is raised."""

    async def told() -> None:
        await stop.wait()

    async def all_put() -> None:
        await asyncio.gather(*producers)

    stopping, putting = asyncio.ensure_future(told()), asyncio.ensure_future(all_put())
    done, _ = await asyncio.wait({stopping, putting, consumer}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    for task in done:
        task.result()


async def _drained(ledger: Ledger, producers: list[asyncio.Task[None]], consumer: asyncio.Task[None], limit_s: float) -> bool:
    try:
        async with asyncio.timeout(limit_s):
            await asyncio.gather(*producers)
            while ledger.outstanding:
                if consumer.done():
                    consumer.result()
                await asyncio.sleep(LOOK_S)
    except TimeoutError:
        return False
    await asyncio.sleep(REPORT_S)  # what would come a second time
    return True


async def _tell(ledger: Ledger, tell: Callable[[dict[str, Any]], None]) -> None:
    while True:
        await asyncio.sleep(REPORT_S)
        tell({"acknowledged": ledger.acknowledged_total, "arrived": len(ledger.arrivals)})
