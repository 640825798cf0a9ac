"""The demo's applications: producers that put numbered messages at a rate, and consumers that get them in units of work.

A producer has a name, so its puts are idempotent: it repeats a put whose outcome it does not know, on whichever member answers, and the
message is put once. A consumer gets and commits in units; a unit that was backed out is got again.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

import structlog

import qsg
from qsg.process.ledger import PAYLOAD_BYTES_MIN, Ledger, payload

log = structlog.get_logger()

BURST_MAX = 256
BURST_BYTES = 16 << 20
"""Of large messages fewer are put at once: none of them is made before it is its turn."""
CONNECT_S = 60.0
LOOK_S = 0.002
"""The shortest pause of a producer that has nothing to put."""


@dataclass(slots=True)
class Pace:
    """Rate and budget shared by the producers of one direction: number n is due at start + n / rate, and only up to `allowed`."""

    rate_per_s: float
    total: int
    allowed: int
    _started_at: float = 0.0
    _issued: int = 0

    def due(self, now: float) -> int:
        if self._issued >= min(self.allowed, self.total):
            self._started_at = 0.0
            return 0
        if not self._started_at:  # a pause in the traffic starts the clock anew
            self._started_at = now - (self._issued + 1) / self.rate_per_s
        due = int((now - self._started_at) * self.rate_per_s + 1e-6) - self._issued
        return max(0, min(due, min(self.allowed, self.total) - self._issued))

    def wait_s(self, now: float) -> float:
        """How long nothing is due, or until it is worth to look again."""
        if not self._started_at:
            return LOOK_S
        return max(LOOK_S, self._started_at + (self._issued + 1) / self.rate_per_s - now)

    def take(self, count: int) -> None:
        self._issued += count

    @property
    def exhausted(self) -> bool:
        return self._issued >= self.total


def burst(size: int, most: int) -> int:
    """How many messages of `size` bytes are put at once, at least one."""
    return max(1, min(most, BURST_BYTES // max(1, size)))


@dataclass(slots=True)
class Direction:
    """One way of traffic: where it is put, where it is got, and what came of it."""

    name: str
    put_addresses: str
    put_queue: str
    get_addresses: str
    get_queue: str
    size: int
    pace: Pace
    ledger: Ledger


async def produce(direction: Direction, index: int, producer: str) -> None:
    """Puts until the direction's total is reached."""
    size = max(direction.size, PAYLOAD_BYTES_MIN)
    most = burst(size, BURST_MAX)
    async with qsg.connect(
        direction.put_addresses, application=f"producer {index}", producer=producer, connect_s=CONNECT_S
    ) as queue_manager:
        while not direction.pace.exhausted:
            count = min(direction.pace.due(time.monotonic()), most)
            if not count:
                await asyncio.sleep(min(0.1, direction.pace.wait_s(time.monotonic())))
                continue
            direction.pace.take(count)
            first = direction.ledger.sent(index, count)
            now = time.monotonic()
            bodies = [payload(index, first + i, now, size) for i in range(count)]
            await _put(queue_manager, direction, bodies)
            direction.ledger.acknowledged(index, first + count - 1)


async def _put(queue_manager: qsg.QueueManager, direction: Direction, bodies: list[bytes]) -> None:
    while bodies:
        try:
            await queue_manager.put_many(direction.put_queue, bodies)
        except qsg.QsgError as error:
            if error.reason not in _AGAIN:
                raise
            bodies = bodies[len(error.done) :]
            log.info("put refused, again", direction=direction.name, reason=error.reason.name, detail=str(error))
            await asyncio.sleep(0.02)
        else:
            return


_AGAIN = frozenset(
    {
        qsg.Reason.STORAGE_NOT_AVAILABLE,
        qsg.Reason.Q_FULL,
        qsg.Reason.STRUCTURE_NOT_AVAILABLE,
        qsg.Reason.Q_MGR_NOT_AVAILABLE,
        qsg.Reason.Q_MGR_QUIESCING,
        qsg.Reason.HOST_NOT_AVAILABLE,
        qsg.Reason.CONNECTION_BROKEN,
    }
)


async def consume(direction: Direction, index: int) -> None:
    """Gets and commits until cancelled."""
    seen: dict[bytes, float] = {}
    async with qsg.connect(direction.get_addresses, application=f"consumer {index}", connect_s=CONNECT_S) as queue_manager:
        while True:
            try:
                async with queue_manager.unit() as unit:
                    messages = await unit.get_many(direction.get_queue, 512, wait_ms=1000)
                    now = time.monotonic()
                    for message in messages:
                        seen.setdefault(message.message_id, now)
            except qsg.NoMessageAvailable:
                continue
            except qsg.QsgError as error:
                log.info("unit backed out, again", direction=direction.name, reason=error.reason.name, detail=str(error))
                direction.ledger.interrupted(time.monotonic())
                await asyncio.sleep(0.01)
                continue
            for message in messages:
                direction.ledger.arrived(message.payload, seen.pop(message.message_id, now))
