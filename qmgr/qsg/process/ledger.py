"""Counts what was sent and what arrived: the seven counts, order per producer, gaps and waits.

Each payload carries (producer, number, time sent, checksum), so that a message is recognised whatever road it took. Times are
seconds of one machine's monotonic clock. The ledger never guesses: a message is *lost* only when its put was acknowledged and it had
not arrived when the run was drained, *duplicated* when a committed get returned it again.
"""

from __future__ import annotations

import struct
import zlib
from bisect import bisect_left
from dataclasses import dataclass, field

_HEAD = struct.Struct(">4sHIdI")  # magic, producer, number, time sent, checksum of what follows
_MAGIC = b"qsg1"
PAYLOAD_BYTES_MIN = _HEAD.size


def payload(producer: int, number: int, sent_at: float, size: int) -> bytes:
    filler = b"%d.%d." % (producer, number)
    rest = (filler * ((max(0, size - _HEAD.size) // len(filler)) + 1))[: max(0, size - _HEAD.size)]
    return _HEAD.pack(_MAGIC, producer, number, sent_at, zlib.crc32(rest)) + rest


@dataclass(slots=True)
class Producer:
    sent: int = 0
    acknowledged: int = 0
    """Numbers 1..acknowledged were acknowledged (puts of one producer are acknowledged in order)."""
    arrived: dict[int, int] = field(default_factory=dict)
    """number -> times committed"""
    last_number: int = 0
    out_of_order: int = 0
    returned: int = 0


@dataclass(slots=True)
class Counts:
    sent: int = 0
    acknowledged: int = 0
    received: int = 0
    ok: int = 0
    lost: int = 0
    duplicated: int = 0
    unexpected: int = 0
    out_of_order: int = 0
    returned: int = 0
    """Got behind later ones because a getter lost the unit of work that had got them: no fault of the way they came."""

    @property
    def clean(self) -> bool:
        return not (self.lost or self.duplicated or self.unexpected or self.out_of_order)

    def plus(self, other: Counts) -> Counts:
        return Counts(*(getattr(self, f) + getattr(other, f) for f in self.__slots__))


class Ledger:
    """One direction of traffic."""

    def __init__(self, producers: int) -> None:
        self.producers = [Producer() for _ in range(producers)]
        self.unexpected = 0
        self.received = 0
        self.arrivals: list[float] = []
        """Times of first arrivals, ascending."""
        self.sent_times: list[float] = []
        """When those messages were sent."""
        self.interrupted_at = 0.0
        self.interruptions = 0
        self.waits: list[tuple[float, float]] = []
        """(time sent, seconds from put to first arrival)"""

    def sent(self, producer: int, count: int) -> int:
        """Registers the next `count` numbers of a producer; returns the first."""
        first = self.producers[producer].sent + 1
        self.producers[producer].sent += count
        return first

    def acknowledged(self, producer: int, number: int) -> None:
        self.producers[producer].acknowledged = max(self.producers[producer].acknowledged, number)

    def interrupted(self, at: float) -> None:
        """A getter lost its unit of work: what it had got comes back to the queue, and may be got behind what was put after it.

        Of messages put before that, order says nothing about the way they came.
        """
        self.interrupted_at = max(self.interrupted_at, at)
        self.interruptions += 1

    def arrived(self, body: bytes, at: float) -> None:
        """A message whose get was committed, seen first at `at`."""
        self.received += 1
        parsed = self._parse(body)
        if parsed is None:
            self.unexpected += 1
            return
        producer, number, sent_at = parsed
        record = self.producers[producer]
        times = record.arrived.get(number, 0)
        record.arrived[number] = times + 1
        if times:
            return
        if number < record.last_number:
            if sent_at < self.interrupted_at:
                record.returned += 1
            else:
                record.out_of_order += 1
        record.last_number = max(record.last_number, number)
        self.arrivals.append(at)
        self.sent_times.append(sent_at)
        self.waits.append((sent_at, at - sent_at))

    def _parse(self, body: bytes) -> tuple[int, int, float] | None:
        if len(body) < _HEAD.size:
            return None
        magic, producer, number, sent_at, checksum = _HEAD.unpack_from(body)
        if magic != _MAGIC or producer >= len(self.producers) or zlib.crc32(body[_HEAD.size :]) != checksum:
            return None
        if not 1 <= number <= self.producers[producer].sent:
            return None
        return producer, number, sent_at

    @property
    def outstanding(self) -> int:
        """Acknowledged and not yet arrived."""
        return sum(p.acknowledged - sum(1 for n in p.arrived if n <= p.acknowledged) for p in self.producers)

    @property
    def recovered(self) -> int:
        """Arrived though their put was never acknowledged."""
        return sum(1 for p in self.producers for n in p.arrived if n > p.acknowledged)

    @property
    def sent_total(self) -> int:
        return sum(p.sent for p in self.producers)

    @property
    def acknowledged_total(self) -> int:
        return sum(p.acknowledged for p in self.producers)

    def counts(self) -> Counts:
        ps = self.producers
        return Counts(
            sent=self.sent_total,
            acknowledged=self.acknowledged_total,
            received=self.received,
            ok=sum(len(p.arrived) for p in ps),
            lost=sum(1 for p in ps for n in range(1, p.acknowledged + 1) if n not in p.arrived),
            duplicated=sum(times - 1 for p in ps for times in p.arrived.values()),
            unexpected=self.unexpected,
            out_of_order=sum(p.out_of_order for p in ps),
            returned=sum(p.returned for p in ps),
        )

    def gap_s(self, since: float, until: float) -> float:
        """Longest silence among arrivals that overlaps [since, until], not counting time in which nothing had been sent."""
        times = self.arrivals
        longest = 0.0
        for i in range(max(1, bisect_left(times, since)), len(times)):
            if times[i - 1] > until:
                break
            longest = max(longest, times[i] - max(times[i - 1], self.sent_times[i]))
        return longest

    def worst_wait_s(self, since: float = 0.0, until: float = float("inf")) -> float:
        """Longest wait, from put to arrival, of a message that arrived in [since, until]."""
        return max((wait for sent_at, wait in self.waits if since <= sent_at + wait <= until), default=0.0)
