"""Segments: an index of messages (header) and their stored bodies, built, read, cut and redirected.

A segment is written once and never changed in the store; what is here makes new values out of old ones. Invariant: entry i's stored
message is `bodies[offset : offset + size]`, unless `stage` is set (then it lies in chunk keys, with size as given and offset 0).
Entries are shared with the segment they came from where nothing of them changes, bodies are copied at most once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from qsg.pb import records_pb2 as pb

BODIES_MAX = 256 * 1024
"""Bytes of bodies in a segment, unless a single message is larger."""
ENTRIES_MAX = 1024
INLINE_MAX = 4096
"""Bodies up to this lie in the header's value."""


def iterate(header: pb.SegmentHeader, bodies: bytes | memoryview = b"") -> Iterator[tuple[int, pb.Entry, memoryview]]:
    """(index, entry, stored Message) of each entry, in order; an empty body for a staged one. `bodies` only when not in the header."""
    view = memoryview(header.bodies or bodies)
    for index, entry in enumerate(header.entries):
        yield index, entry, view[0:0] if entry.stage else view[entry.offset : entry.offset + entry.size]


def body_at(header: pb.SegmentHeader, index: int, bodies: bytes | memoryview = b"") -> bytes:
    """The stored Message of one entry, empty when staged."""
    entry = header.entries[index]
    return b"" if entry.stage else bytes(memoryview(header.bodies or bodies)[entry.offset : entry.offset + entry.size])


def needs_bodies(header: pb.SegmentHeader) -> bool:
    """Whether the bodies lie in a key of their own."""
    return header.bodies_size > 0 and not header.bodies


def payload_bytes(header: pb.SegmentHeader, indexes: Iterable[int] | None = None) -> int:
    """Payload bytes of all entries, or of some, as the totals count them."""
    if indexes is None:
        return sum(e.payload_size for e in header.entries)
    return sum(header.entries[i].payload_size for i in indexes)


def stored_bytes(header: pb.SegmentHeader, index: int) -> int:
    """Bytes that an entry adds to the bodies of its segment."""
    entry = header.entries[index]
    return 0 if entry.stage else entry.size


def detach(header: pb.SegmentHeader, bodies: bytes = b"") -> tuple[pb.SegmentHeader, bytes]:
    """(header without bodies, bodies), wherever the bodies lie."""
    if not header.bodies:
        return header, bodies
    inline = header.bodies
    bare = pb.SegmentHeader(entries=header.entries, destinations=header.destinations)
    bare.earliest_expiry_ms, bare.bodies_size = header.earliest_expiry_ms, len(inline)
    return bare, inline


def attach(header: pb.SegmentHeader, bodies: bytes) -> tuple[bytes, bytes]:
    """Values for the header's and the bodies' key, from a header without bodies; the second is empty when all is in the first."""
    if not bodies or len(bodies) > INLINE_MAX:
        return header.SerializeToString(), bodies
    # The fields of concatenated messages merge, so the bodies need no copy of the index.
    return header.SerializeToString() + pb.SegmentHeader(bodies=bodies).SerializeToString(), b""


def earliest(entries: Iterable[pb.Entry]) -> int:
    """The first expiry among entries, 0 = none expires."""
    return min((e.expires_at_ms for e in entries if e.expires_at_ms), default=0)


def cut(header: pb.SegmentHeader, bodies: bytes, keep: Sequence[int]) -> tuple[pb.SegmentHeader, bytes]:
    """(header without bodies, bodies) of the entries `keep` (ascending indexes), with offsets and destinations rewritten."""
    header, bodies = detach(header, bodies)
    if len(keep) == len(header.entries):
        return header, bodies
    result = pb.SegmentHeader()
    destinations: dict[int, int] = {}
    runs: list[list[int]] = []
    size = 0
    for index in keep:
        entry = result.entries.add()
        entry.CopyFrom(header.entries[index])
        if header.destinations:
            entry.destination = destinations.setdefault(entry.destination, len(destinations))
        if entry.stage:
            continue
        if runs and runs[-1][1] == entry.offset:
            runs[-1][1] += entry.size
        else:
            runs.append([entry.offset, entry.offset + entry.size])
        entry.offset = size
        size += entry.size
    result.destinations.extend(header.destinations[d] for d in destinations)
    result.earliest_expiry_ms, result.bodies_size = earliest(result.entries), size
    view = memoryview(bodies)
    return result, b"".join([view[start:end] for start, end in runs])


def set_destination(header: pb.SegmentHeader, destination: tuple[str, str] | None) -> pb.SegmentHeader:
    """A copy of `header` in which every message goes to one (queue, queue manager); None: no destinations, as on a target queue."""
    result = pb.SegmentHeader()
    result.CopyFrom(header)
    for entry in result.entries:
        entry.destination = 0
    del result.destinations[:]
    if destination is not None:
        result.destinations.add(queue=destination[0], queue_manager=destination[1])
    return result


class Builder:
    """A segment that grows message by message, all with a destination or all without."""

    __slots__ = ("_destinations", "bodies", "entries", "expiry", "size")

    def __init__(self) -> None:
        self.entries: list[pb.Entry] = []
        self.bodies: list[bytes] = []
        self.size = 0
        self.expiry = 0
        self._destinations: dict[tuple[str, str], int] = {}

    def add(self, entry: pb.Entry, body: bytes, destination: tuple[str, str] | None) -> None:
        """Appends; sets the entry's offset, size (unless staged) and destination."""
        if entry.stage:
            entry.offset = 0
        else:
            entry.offset, entry.size = self.size, len(body)
            self.bodies.append(body)
            self.size += len(body)
        entry.destination = 0 if destination is None else self._destinations.setdefault(destination, len(self._destinations))
        if entry.expires_at_ms and not 0 < self.expiry <= entry.expires_at_ms:
            self.expiry = entry.expires_at_ms
        self.entries.append(entry)

    def values(self) -> tuple[bytes, bytes]:
        """Values of the header's and the bodies' key; the second is empty when there is none."""
        header = pb.SegmentHeader(entries=self.entries, earliest_expiry_ms=self.expiry, bodies_size=self.size)
        for queue, queue_manager in self._destinations:
            header.destinations.add(queue=queue, queue_manager=queue_manager)
        if self.size <= INLINE_MAX:
            header.bodies = b"".join(self.bodies)
            return header.SerializeToString(), b""
        return header.SerializeToString(), b"".join(self.bodies)
