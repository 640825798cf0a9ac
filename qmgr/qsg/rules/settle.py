"""Settling what is in doubt: deleting from a transmission queue what the partner's record covers, and closing the queue's fence.

Owns: the list of steps behind a stop's bind and behind `resolve`. Invariant: nothing beyond the record is deleted (N2), and the fence is
closed only in the last transaction, behind the last delete (P7); every transaction compares the fence. Cut off anywhere, the fence is
still open, and the next bind or settlement goes on: deleting is idempotent.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from qsg.pb import records_pb2 as pb
from qsg.rules import keys
from qsg.rules.records import read_record
from qsg.rules.steps import Commit, Read, Sight, Steps, look, record, swap
from qsg.rules.unit import Cell, Taken, Unit
from qsg.store.contract import Delete, Get, KeyValue, created_at, get_prefix, prefix_end, unchanged

PAGE = 32
"""Segments read at once."""
SEGMENT_OPS = 3
"""A segment costs up to so many operations, and two compares; each large message of it one operation more."""
UNIT_OPS = 72
"""Of one unit, of 128."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment, and whether all or the first `covered` entries of it are covered."""

    priority: int
    suffix: bytes
    create_revision: int
    header: pb.SegmentHeader
    covered: int

    @property
    def whole(self) -> bool:
        return self.covered >= len(self.header.entries)


def settle(structure: str, queue: str, fence: Cell, progress: Cell, known: pb.Progress) -> Steps[int]:
    """Deletes what `known` covers, writes it as progress and closes `fence`; answers how many messages were deleted.

    Raises `CompareFailed` when the fence was raised meanwhile: somebody else goes on.
    """
    deleted = 0
    for priority in sorted(known.confirmed):
        deleted += yield from _delete_covered(structure, queue, fence, priority, known.confirmed[priority])
    closed = read_record(pb.SenderFence, fence.value or b"", fence.key)
    closed.open = False
    unit = Unit("settle", changes=[swap(fence, record(closed)), swap(progress, record(merged(progress.value, known)))])
    yield Commit(structure, unit)
    return deleted


def merged(before: bytes | None, known: pb.Progress) -> pb.Progress:
    """Our progress behind the partner's record: its positions and numbers; our own totals, and a reset that is still to be sent."""
    after = read_record(pb.Progress, before or b"")
    after.luwid = known.luwid
    after.sequence = known.sequence
    for priority, position in known.confirmed.items():
        after.confirmed[priority].CopyFrom(position)
    return after


def _delete_covered(structure: str, queue: str, fence: Cell, priority: int, position: pb.Position) -> Steps[int]:
    lanes = yield from look(structure, get_prefix(keys.totals(queue)))
    deleted = 0
    for kv in sorted(lanes.under(keys.totals(queue)), key=lambda kv: kv.key):
        lane = keys.unname(kv.key[len(keys.totals(queue)) :])
        prefix = keys.lane_headers(queue, priority, lane)
        start = prefix
        while start:
            page, start = yield from _page(structure, queue, priority, start, prefix_end(prefix), position)
            for segments in _units(page):
                deleted += yield from _delete(structure, queue, fence, segments)
    return deleted


def _page(structure: str, queue: str, priority: int, start: bytes, end: bytes, position: pb.Position) -> Steps[tuple[list[Segment], bytes]]:
    """Covered segments of one lane from `start` on, and where to go on (empty: the rest lies beyond the position)."""
    _, (result,) = yield Read(structure, (Get(start, end, limit=PAGE),))
    segments: list[Segment] = []
    for kv in result.kvs:
        segment = _covered(queue, priority, kv, position)
        if segment is None:
            return segments, b""
        segments.append(segment)
    return segments, result.kvs[-1].key + b"\0" if result.more else b""


def _covered(queue: str, priority: int, kv: KeyValue, position: pb.Position) -> Segment | None:
    _, suffix = keys.split_segment_key(queue, kv.key)
    here, there = (kv.create_revision, bytes(suffix)), (position.create_revision, position.suffix)
    if here > there:
        return None
    header = read_record(pb.SegmentHeader, kv.value, kv.key)
    return Segment(priority, suffix, kv.create_revision, header, position.index + 1 if here == there else len(header.entries))


def _units(page: list[Segment]) -> Iterator[list[Segment]]:
    """What one transaction takes at a time: of a segment of very many large messages a part, which fills its unit."""
    segments: list[Segment] = []
    left = UNIT_OPS
    for segment in page:
        large = [i for i, entry in enumerate(segment.header.entries[: segment.covered]) if entry.stage]
        room = UNIT_OPS - SEGMENT_OPS
        for start in range(0, max(1, len(large)), room):
            part = replace(segment, covered=large[start + room]) if len(large) > start + room else segment
            cost = SEGMENT_OPS + min(room, len(large) - start)
            if cost > left:
                yield segments
                segments, left = [], UNIT_OPS
            segments.append(part)
            left -= cost
    if segments:
        yield segments


def _delete(structure: str, queue: str, fence: Cell, segments: list[Segment]) -> Steps[int]:
    """One unit; a covered part of a segment is written into its consumption record (N12)."""
    sight = yield from look(structure, *(Get(keys.consumption(queue, s.priority, s.suffix)) for s in segments))
    unit = Unit("delete what the partner has", compares=[unchanged(fence.key, fence.mod_revision)])
    messages = size = 0
    for segment in segments:
        taken = list(_take(queue, segment, sight, unit))
        messages += len(taken)
        size += sum(entry.payload_size for entry in taken)
    if not unit.ops and not unit.changes:
        return 0
    unit.taken.append(Taken(queue, messages, size))
    yield Commit(structure, unit)
    return messages


def _take(queue: str, segment: Segment, sight: Sight, unit: Unit) -> Iterator[pb.Entry]:
    """Adds to `unit` what deletes the covered part of `segment`; yields the entries that were still there."""
    consumption = sight.cell(keys.consumption(queue, segment.priority, segment.suffix))
    consumed = read_record(pb.Consumption, consumption.value or b"", consumption.key)
    gone = int.from_bytes(consumed.gone, "little") & ((1 << len(segment.header.entries)) - 1)
    entries = [(i, e) for i, e in enumerate(segment.header.entries[: segment.covered]) if not gone >> i & 1]
    header = keys.header(queue, segment.priority, segment.suffix)
    if segment.whole:
        unit.compares += [created_at(header, segment.create_revision), unchanged(consumption.key, consumption.mod_revision)]
        unit.ops += [Delete(header), Delete(keys.body(queue, segment.priority, segment.suffix))]
        if consumption.mod_revision:
            unit.ops.append(Delete(consumption.key))
    elif entries:
        for i, _ in entries:
            gone |= 1 << i
        consumed.gone = gone.to_bytes((len(segment.header.entries) + 7) // 8, "little")
        unit.compares.append(created_at(header, segment.create_revision))
        unit.changes.append(swap(consumption, record(consumed)))
    for _, entry in entries:
        if entry.stage:
            chunks = keys.chunks(queue, entry.stage)
            unit.ops.append(Delete(chunks, prefix_end(chunks)))
        yield entry
