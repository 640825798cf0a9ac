"""Batches of a sender: which messages go into the next one, when it ends, and which positions it settles.

Owns: cutting segments into a `Batch`. A whole segment passes through as it is; one that is partly settled, consumed or expired is cut.
Invariant: the pieces of successive batches cover each priority's positions without a gap and in order, so "all batches up to n are
confirmed" settles a prefix. Messages that expired or were consumed before are not sent, their positions are settled all the same.
Does not guarantee: order between priorities (each is an order of its own).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from qsg.pb import channel_pb2, records_pb2
from qsg.rules import keys, segments
from qsg.rules.lanes import Position, SegmentAt
from qsg.rules.negotiate import advance
from qsg.store.contract import Delete, Op, Put

MESSAGE_OVERHEAD = 64
"""Counted per message towards the bytes of a batch, beside its body."""
PIECES_MAX = 1024
"""A batch ends at so many pieces of segments, unless it may have more messages: what has expired counts as neither messages nor bytes."""


def bits(bitmap: bytes) -> int:
    """A `Consumption.gone` bitmap (little-endian bits) as a number: bit i = entry i is gone."""
    return int.from_bytes(bitmap, "little")


def below(count: int) -> int:
    """Bits of the entries 0 .. count - 1."""
    return (1 << count) - 1


@dataclass(slots=True)
class Loaded:
    """A segment ready to be sent from entry `first` on. `bodies`: those of the `b/` key, empty when they lie in the header."""

    segment: SegmentAt
    bodies: bytes
    first: int = 0
    gone: int = 0
    """Entries consumed before (bits)."""
    recorded: bool = False
    """It has a consumption record, though perhaps nothing is gone: something was backed out."""

    @property
    def entries(self) -> int:
        return len(self.segment.header.entries)

    def wants_bodies(self, now_ms: int) -> bool:
        """Something of it is still to be sent."""
        header = self.segment.header
        if not self.gone and not header.earliest_expiry_ms:
            return self.first < len(header.entries)
        return any(_sendable(e, now_ms) and not self.gone >> i & 1 for i, e in enumerate(header.entries) if i >= self.first)


@dataclass(frozen=True, slots=True)
class Piece:
    """Entries `first` .. `last` of a segment are settled by a batch. `gone` = entries consumed before the channel came (bits)."""

    segment: SegmentAt
    first: int
    last: int
    gone: int = 0
    recorded: bool = False
    """There is a consumption record, to be deleted with it."""

    @property
    def whole(self) -> bool:
        """Nothing of the segment is left behind it."""
        return self.last == len(self.segment.header.entries) - 1

    @property
    def large(self) -> list[int]:
        """Entries whose chunks are deleted with it, by an operation each."""
        entries = self.segment.header.entries[self.first : self.last + 1]
        return [i for i, entry in enumerate(entries, self.first) if entry.stage]

    def cut(self, large: int) -> tuple[Piece, Piece]:
        """(a piece with so many large messages, the rest); it has more of them."""
        start = self.large[large]
        return replace(self, last=start - 1), replace(self, first=start)


@dataclass(slots=True)
class Built:
    """A batch and what a confirmation of it settles."""

    batch: channel_pb2.Batch
    pieces: list[Piece]
    messages: int
    bytes: int
    last_sequence: int
    positions: dict[int, Position]
    staged: list[tuple[records_pb2.Entry, int, records_pb2.Destination]]
    """Large messages to announce before the batch: (entry, priority, destination)."""


def _sendable(entry: records_pb2.Entry, now_ms: int) -> bool:
    return not entry.expires_at_ms or entry.expires_at_ms > now_ms


@dataclass(slots=True)
class BatchBuilder:
    """Collects one batch. `messages_max` and `bytes_max` as negotiated."""

    messages_max: int
    bytes_max: int
    messages: int = 0
    bytes: int = 0
    payload_bytes: int = 0
    pieces: list[Piece] = field(default_factory=list)
    wires: list[channel_pb2.WireSegment] = field(default_factory=list)
    staged: list[tuple[records_pb2.Entry, int, records_pb2.Destination]] = field(default_factory=list)
    full: bool = False

    def add(self, loaded: Loaded, now_ms: int) -> Loaded | None:
        """Adds what fits, at least one message to an empty batch; answers the rest (then the batch is full)."""
        header = loaded.segment.header
        expiring = 0 < header.earliest_expiry_ms <= now_ms
        if not loaded.first and not loaded.gone and not expiring:
            size = header.bodies_size + sum(e.size for e in header.entries if e.stage) + MESSAGE_OVERHEAD * len(header.entries)
            if self.messages + len(header.entries) <= self.messages_max and self.bytes + size <= self.bytes_max:
                self._append(loaded, range(len(header.entries)), len(header.entries) - 1)
                return None
            if self.pieces and size <= self.bytes_max and len(header.entries) <= self.messages_max:
                self.full = True
                return loaded
        return self._cut(loaded, now_ms)

    def finish(self, number: int, luwid: str, sequence: int, wrap: int) -> Built:
        """The batch, when `sequence` was the last number sent before it."""
        batch = channel_pb2.Batch(
            number=number, luwid=luwid, first_sequence=advance(sequence, 1, wrap), messages=self.messages, segments=self.wires
        )
        positions = {p.segment.priority: p.segment.position(p.last) for p in self.pieces}
        return Built(batch, self.pieces, self.messages, self.payload_bytes, advance(sequence, self.messages, wrap), positions, self.staged)

    def _cut(self, loaded: Loaded, now_ms: int) -> Loaded | None:
        """Takes entries from `first` on while they fit; what is gone or expired takes no room."""
        entries = loaded.segment.header.entries
        keep: list[int] = []
        messages, size = self.messages, self.bytes
        index = loaded.first
        while index < len(entries):
            entry = entries[index]
            if _sendable(entry, now_ms) and not loaded.gone >> index & 1:
                more = entry.size + MESSAGE_OVERHEAD
                if messages and (messages >= self.messages_max or size + more > self.bytes_max):
                    break
                keep.append(index)
                messages, size = messages + 1, size + more
            index += 1
        if index > loaded.first:
            self._append(loaded, keep, index - 1)
        if index == len(entries):
            return None
        self.full = True
        return replace(loaded, first=index)

    def _append(self, loaded: Loaded, keep: Sequence[int], last: int) -> None:
        segment = loaded.segment
        header, bodies = segments.cut(segment.header, loaded.bodies, keep)
        consecutive = not keep or keep[-1] - keep[0] == len(keep) - 1
        self.wires.append(
            channel_pb2.WireSegment(
                priority=segment.priority,
                create_revision=segment.create_revision,
                suffix=segment.suffix,
                first_index=keep[0] if keep else last,
                header=header.SerializeToString(),
                bodies=bodies,
                indexes=() if consecutive else keep,
                last_index=last,
            )
        )
        self.pieces.append(Piece(segment, loaded.first, last, loaded.gone, loaded.recorded))
        self.messages += len(keep)
        for entry in header.entries:
            self.bytes += entry.size + MESSAGE_OVERHEAD
            self.payload_bytes += entry.payload_size
            if entry.stage:
                self.staged.append((entry, segment.priority, _destination(header, entry)))
        pieces_max = max(self.messages_max, PIECES_MAX)
        self.full = self.messages >= self.messages_max or self.bytes >= self.bytes_max or len(self.pieces) >= pieces_max


def _destination(header: records_pb2.SegmentHeader, entry: records_pb2.Entry) -> records_pb2.Destination:
    return header.destinations[entry.destination] if entry.destination < len(header.destinations) else records_pb2.Destination()


def ends(builder: BatchBuilder, *, queue_empty: bool, waited_ms: float, interval_ms: int, stopping: bool) -> bool:
    """Whether the batch is to be sent now: full, or queue empty and interval passed (BATCHSZ, BATCHLIM, BATCHINT)."""
    if not builder.pieces:
        return False
    return builder.full or stopping or (queue_empty and waited_ms >= interval_ms)


@dataclass(slots=True)
class Settlement:
    """What deleting settled pieces takes: operations on the transmission queue, and what the totals lose."""

    ops: list[Op]
    messages: int
    bytes: int


def settle(queue: str, pieces: Iterable[Piece]) -> Settlement:
    """Operations that delete what `pieces` (in order) settle: a range per lane for whole segments, a `c/` record for a partial one.

    A segment settled in several pieces is deleted with its last one; each takes its own chunks along: a stop, or an application that gets
    the rest, looks no more at what is gone. No range covers a key that is written.
    """
    whole: dict[tuple[int, bytes], list[SegmentAt]] = {}
    consumed: dict[tuple[int, bytes], bool] = {}
    partial: dict[tuple[int, bytes], Piece] = {}
    out = Settlement([], 0, 0)
    for piece in pieces:
        segment = piece.segment
        place = segment.priority, segment.suffix
        _count(piece, out)
        out.ops += [_range(keys.chunks(queue, segment.header.entries[i].stage)) for i in piece.large]
        partial.pop(place, None)
        if not piece.whole:
            partial[place] = piece
            continue
        lane = segment.priority, segment.suffix.rsplit(b"/", 1)[0]
        whole.setdefault(lane, []).append(segment)
        consumed[lane] = consumed.get(lane, False) or piece.first > 0 or piece.gone > 0 or piece.recorded
    for lane, ones in whole.items():
        first, last = ones[0], ones[-1]
        kinds = [keys.header]
        if any(segments.needs_bodies(s.header) for s in ones):
            kinds.append(keys.body)
        if consumed[lane]:
            kinds.append(keys.consumption)
        for kind in kinds:
            start = kind(queue, lane[0], first.suffix)
            end = kind(queue, lane[0], last.suffix) + b"\0"
            out.ops.append(Delete(start) if first is last else Delete(start, end))
    for (priority, suffix), piece in partial.items():
        gone = piece.gone | below(piece.last + 1)
        size = (len(piece.segment.header.entries) + 7) // 8
        record = records_pb2.Consumption(gone=gone.to_bytes(size, "little"))
        out.ops.append(Put(keys.consumption(queue, priority, suffix), record.SerializeToString()))
    return out


def _range(prefix: bytes) -> Delete:
    return Delete(prefix, prefix[:-1] + bytes([prefix[-1] + 1]))


def _count(piece: Piece, out: Settlement) -> None:
    entries = piece.segment.header.entries
    if piece.whole and not piece.first and not piece.gone:
        out.messages += len(entries)
        out.bytes += sum(e.payload_size for e in entries)
        return
    for index in range(piece.first, piece.last + 1):
        if not piece.gone >> index & 1:
            out.messages += 1
            out.bytes += entries[index].payload_size


def covered(loaded: Loaded, position: Position | None) -> tuple[Piece | None, Loaded | None]:
    """Splits a segment at the partner's record: (the piece that it covers, what is still to be sent)."""
    if position is None or loaded.segment.place > (position.create_revision, position.suffix):
        return None, loaded
    end = loaded.entries - 1
    last = end if loaded.segment.place < (position.create_revision, position.suffix) else min(position.index, end)
    if last < loaded.first:
        return None, loaded
    piece = Piece(loaded.segment, loaded.first, last, loaded.gone, loaded.recorded)
    return piece, (None if last == end else replace(loaded, first=last + 1))
