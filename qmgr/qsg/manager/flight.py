"""What a sender has under way: batches sent and not confirmed, and what is confirmed and waits to be deleted.

Owns no decision about when; `next_to_settle` says how much one unit deletes. Invariant: what waits is in position order, and the mark
of a batch stands behind its pieces, so the progress record never runs ahead of the deletes that it is written with.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from qsg.bell import Bell
from qsg.pb import records_pb2
from qsg.rules.batches import Built, Piece
from qsg.rules.records import read_record

SETTLE_COST = 60
"""Operations of one deleting unit, about."""


@dataclass
class Mark:
    """Behind the pieces of a confirmed batch: what the progress record says once they are deleted."""

    built: Built


@dataclass
class Flight:
    """What is under way to the partner, and what waits to be deleted."""

    sent: deque[Built] = field(default_factory=deque)
    settle: deque[Piece | Mark] = field(default_factory=deque)
    unsettled: int = 0
    """Confirmed batches in `settle`."""
    settling: bool = False
    """A deleting unit is under way."""
    announcing: bool = False
    """Parts of a large message are being sent."""

    def next_to_settle(self) -> tuple[list[Piece], list[Mark]]:
        """As many pieces as one unit deletes, from the left."""
        pieces: list[Piece] = []
        marks: list[Mark] = []
        cost = 0
        lanes: set[tuple[int, bytes]] = set()
        while self.settle:
            head = self.settle[0]
            if isinstance(head, Mark):
                marks.append(head)
            else:
                lane = head.segment.priority, head.segment.suffix.rsplit(b"/", 1)[0]
                large = len(head.large)
                cost += (0 if lane in lanes else 3) + (0 if head.whole else 1) + large
                if pieces and cost > SETTLE_COST:
                    break
                if large > SETTLE_COST:
                    head, self.settle[0] = head.cut(SETTLE_COST)
                    return [head], marks
                lanes.add(lane)
                pieces.append(head)
            self.settle.popleft()
        return pieces, marks


def progress_bound(before: records_pb2.Progress, record: records_pb2.Progress) -> records_pb2.Progress:
    """The progress record `before`, with what the partner's record says at a bind."""
    after = records_pb2.Progress()
    after.CopyFrom(before)
    if before.reset_to:
        # What the partner no longer has of what it once confirmed is accepted as lost: it stops no later bind.
        after.ClearField("confirmed")
        after.ClearField("reset_to")
    after.sequence, after.luwid = record.sequence, record.luwid
    for priority, position in record.confirmed.items():
        after.confirmed[priority].CopyFrom(position)
    return after


def progress_after(before: bytes | None, marks: Sequence[Mark]) -> records_pb2.Progress:
    """The progress record `before`, with these batches confirmed and deleted."""
    after = read_record(records_pb2.Progress, before or b"")
    for mark in marks:
        built = mark.built
        for priority, position in built.positions.items():
            after.confirmed[priority].CopyFrom(position.record())
        after.messages += built.messages
        after.bytes += built.bytes
        after.batches += 1
    last = marks[-1].built
    after.sequence, after.luwid = last.last_sequence, last.batch.luwid
    return after


async def within(bell: Bell, timeout_s: float | None) -> None:
    """Until the bell is rung, or the time is over."""
    await bell.wait(None if timeout_s is None else asyncio.get_running_loop().time() + timeout_s)
