"""Decisions of a receiver: may this instance bind, is this batch the next one, what is the record after it.

Owns: the meaning of the two records of a stream, the fence `r/<stream>` and the progress `rp/<stream>` (patent: SYNCQ entry of the
receiving side). Invariants: (epoch, instance) only rises; a position at or below the record is never accepted; numbers and sequence
numbers of a session have no gap. Does not guarantee durability: the caller commits the record with the messages, comparing the fence.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from google.protobuf.message import DecodeError

from qsg.pb import channel_pb2, records_pb2
from qsg.rules import segments
from qsg.rules.definitions import NAME, Channel
from qsg.rules.lanes import Position
from qsg.rules.negotiate import advance, is_ahead
from qsg.rules.reasons import Reason, Refusal

RETRYABLE = frozenset({Reason.Q_FULL, Reason.PUT_INHIBITED, Reason.STORAGE_NOT_AVAILABLE, Reason.Q_DELETED})
"""Reasons for which a message is tried again before it is a dead letter (MQ: MRRTY, for Q_FULL, PUT_INHIBITED, PAGESET_FULL). Q_DELETED:
the queue is defined, and not there just now: it is being purged, or deleted."""
STREAM_BYTES_MAX = 64
LUWID_CHARS_MAX = 256
ID_BYTES_MAX = 24
ADOPTED = "adopted"
EPOCH_MAX = 2**62
"""Far beyond what is ever counted; above it a partner could leave no epoch to follow."""


UNIT_BYTES = 900_000
"""Bodies of one unit: what a batch holds beyond this is committed in successive prefixes."""
UNIT_SEGMENTS = 24


class BindRefused(Refusal):
    """A bind that is refused, with the epoch and instance that were seen (0 when not told)."""

    def __init__(self, reason: Reason, detail: str, epoch_seen: int = 0, instance_seen: int = 0) -> None:
        super().__init__(reason, detail)
        self.epoch_seen = epoch_seen
        self.instance_seen = instance_seen


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds the inbound session: member incarnation, initiator incarnation, and a random id of the session."""

    member: str
    incarnation: int
    initiator: int
    session: bytes
    now_ms: int = 0


@dataclass(frozen=True, slots=True)
class Accepted:
    """A bind that is accepted: the fence to write, the record to answer, and whether the record is written too (only by a reset).

    `lost`: this is answered instead, behind the raised fence. A stop may then go on: nothing of an old instance comes in any more.
    """

    fence: records_pb2.ReceiverFence
    record: records_pb2.Progress
    record_changed: bool
    lost: BindRefused | None = None


def check_names(request: channel_pb2.Bind, channel: Channel | None, our_name: str, identity: str) -> Channel:
    """The definition that serves this bind. Raises `Refusal` with the reason."""
    if channel is None:
        raise Refusal(Reason.UNKNOWN_CHANNEL_NAME, f"no channel {request.channel!r} here")
    if channel.type != "receiver":
        raise Refusal(Reason.CHANNEL_TYPE_ERROR, f"{channel.name} is not a receiver here")
    if request.receiver and request.receiver != our_name:
        raise Refusal(Reason.WRONG_PARTNER, f"this is {our_name}, not {request.receiver}")
    if not request.sender or (channel.partner and channel.partner != request.sender):
        raise Refusal(
            Reason.WRONG_PARTNER, f"{channel.name} serves {channel.partner or 'a named partner'}, not {request.sender or 'nobody'}"
        )
    if channel.allowed_identities and identity not in channel.allowed_identities:
        raise Refusal(Reason.NOT_AUTHORIZED, f"certificate name {identity!r} is not allowed on {channel.name}")
    if not re.fullmatch(NAME, request.sender):
        raise Refusal(Reason.WRONG_PARTNER, f"{request.sender[:64]!r} is not a name")
    if not request.stream or len(request.stream) > STREAM_BYTES_MAX:
        raise Refusal(Reason.PROTOCOL_ERROR, f"a bind needs a stream id of 1 to {STREAM_BYTES_MAX} bytes")
    if request.epoch > EPOCH_MAX or request.instance > EPOCH_MAX or max(request.sequence, request.reset_to) > channel.sequence_wrap:
        raise Refusal(Reason.PROTOCOL_ERROR, "a bind's epoch, instance or sequence number is beyond what is ever counted")
    return channel


def bind(
    request: channel_pb2.Bind, fence: records_pb2.ReceiverFence | None, progress: records_pb2.Progress | None, holder: Holder, wrap: int
) -> Accepted:
    """Decides a bind on the stream's records as read at one revision. Raises `BindRefused`.

    P14: (epoch, instance) must exceed what was seen, so that a delayed bind never displaces a newer one.
    """
    seen = (fence.epoch, fence.instance) if fence is not None else (0, 0)
    if (request.epoch, request.instance) <= seen:
        detail = f"epoch {request.epoch} instance {request.instance} is not above epoch {seen[0]} instance {seen[1]}"
        raise BindRefused(Reason.EPOCH_TOO_LOW, detail, *seen)
    if request.bound_before and fence is None and not request.reset_to:
        raise BindRefused(Reason.NO_RECORD, "the stream was bound before, but its record is gone: data may be lost; reset to go on")
    record, lost = records_pb2.Progress(), None
    if progress is not None:
        record.CopyFrom(progress)
    if request.reset_to:
        record.sequence = request.reset_to - 1
    elif is_ahead(request.sequence, record.sequence, wrap):
        detail = f"sequence number {request.sequence} was confirmed, the record here says {record.sequence}"
        lost = BindRefused(Reason.SEQUENCE_ERROR, detail, *seen)
        if not request.fence_only:
            raise lost
    raised = records_pb2.ReceiverFence(
        epoch=request.epoch,
        instance=request.instance,
        channel=request.channel,
        partner=request.sender,
        member=holder.member,
        incarnation=holder.incarnation,
        initiator=holder.initiator,
        session=holder.session,
    )
    _count_adoption(raised, fence, holder)
    return Accepted(raised, record, bool(request.reset_to), lost)


def _count_adoption(raised: records_pb2.ReceiverFence, before: records_pb2.ReceiverFence | None, holder: Holder) -> None:
    """The partner has come to another member than before: a takeover, counted where it outlives the entries of the status table."""
    if before is None:
        return
    raised.takeovers = before.takeovers
    if before.HasField("takeover"):
        raised.takeover.CopyFrom(before.takeover)
    if before.member not in ("", holder.member):
        raised.takeovers += 1
        raised.takeover.CopyFrom(records_pb2.Takeover(to=holder.member, cause=ADOPTED, at_ms=holder.now_ms))
        setattr(raised.takeover, "from", before.member)  # "from" is a word of Python


@dataclass(frozen=True, slots=True)
class Arrival:
    """One segment of an accepted batch, checked."""

    wire: channel_pb2.WireSegment
    header: records_pb2.SegmentHeader

    @property
    def position(self) -> Position:
        return Position(self.wire.create_revision, self.wire.suffix, self.wire.last_index)

    @property
    def payload_bytes(self) -> int:
        return sum(e.payload_size for e in self.header.entries)


@dataclass(slots=True)
class Course:
    """The run of batches of one session: numbers and positions as received, ahead of what is committed."""

    wrap: int
    messages_max: int
    message_bytes_max: int
    number: int = 0
    sequence: int = 0
    positions: dict[int, Position] = field(default_factory=dict)

    @classmethod
    def after(cls, record: records_pb2.Progress, parameters: channel_pb2.Parameters) -> Course:
        positions = {priority: Position.of(p) for priority, p in record.confirmed.items()}
        return cls(
            parameters.sequence_wrap, parameters.batch_messages, parameters.message_bytes_max, sequence=record.sequence, positions=positions
        )

    def accept(self, batch: channel_pb2.Batch) -> list[Arrival]:
        """The segments of exactly the next batch. Raises `Refusal` BATCH_OUT_OF_ORDER, PROTOCOL_ERROR, MSG_TOO_BIG_FOR_Q_MGR."""
        if batch.number != self.number + 1:
            raise Refusal(Reason.BATCH_OUT_OF_ORDER, f"batch {batch.number} came, {self.number + 1} is next")
        if batch.first_sequence != advance(self.sequence, 1, self.wrap):
            raise Refusal(Reason.BATCH_OUT_OF_ORDER, f"sequence number {batch.first_sequence} came after {self.sequence}")
        if batch.messages > self.messages_max or len(batch.luwid) > LUWID_CHARS_MAX:
            raise Refusal(Reason.PROTOCOL_ERROR, f"a batch of {batch.messages} messages, at most {self.messages_max} were agreed")
        positions = dict(self.positions)
        arrivals: list[Arrival] = []
        messages = 0
        for wire in batch.segments:
            arrival = self._arrival(wire)
            known = positions.get(wire.priority)
            if known is not None and Position(wire.create_revision, wire.suffix, wire.first_index) <= known:
                raise Refusal(Reason.BATCH_OUT_OF_ORDER, f"position {wire.create_revision}/{wire.first_index} is not above the record")
            positions[wire.priority] = arrival.position
            messages += len(arrival.header.entries)
            arrivals.append(arrival)
        if messages != batch.messages or messages > self.messages_max:
            raise Refusal(Reason.PROTOCOL_ERROR, f"batch of {messages} messages says {batch.messages}, at most {self.messages_max} agreed")
        self.number = batch.number
        self.sequence = advance(self.sequence, messages, self.wrap)
        self.positions = positions
        return arrivals

    def _arrival(self, wire: channel_pb2.WireSegment) -> Arrival:
        try:
            header = records_pb2.SegmentHeader.FromString(wire.header)
        except DecodeError as e:
            raise Refusal(Reason.PROTOCOL_ERROR, "a segment's header cannot be read") from e
        if len(header.entries) > self.messages_max or len(header.destinations) > len(header.entries):
            raise Refusal(Reason.PROTOCOL_ERROR, f"a segment of {len(header.entries)} messages, at most {self.messages_max} were agreed")
        _check_place(wire, len(header.entries))
        _check_entries(header, len(wire.bodies), self.message_bytes_max)
        return Arrival(wire, header)


def _check_place(wire: channel_pb2.WireSegment, count: int) -> None:
    """Raises `Refusal` when the segment's place in its queue, or its messages' places in the segment, make no sense."""
    if wire.priority > 9 or wire.last_index < wire.first_index or not wire.suffix or len(wire.suffix) > 256:
        raise Refusal(Reason.PROTOCOL_ERROR, "a segment's place makes no sense")
    if wire.indexes:
        indexes = list(wire.indexes)
        ascending = all(a < b for a, b in pairwise(indexes))
        sensible = len(indexes) == count and ascending and indexes[0] == wire.first_index and indexes[-1] <= wire.last_index
    else:
        sensible = wire.first_index + max(count, 1) - 1 <= wire.last_index
    if not sensible:
        raise Refusal(Reason.PROTOCOL_ERROR, "a segment's indexes make no sense")


def _check_entries(header: records_pb2.SegmentHeader, end: int, message_bytes_max: int) -> None:
    """Raises `Refusal` unless every entry of the header has its bytes to itself within `end` bytes of bodies."""
    destinations = len(header.destinations)
    used = 0
    for entry in header.entries:
        if entry.size > message_bytes_max + 65_536:
            raise Refusal(Reason.MSG_TOO_BIG_FOR_Q_MGR, f"a message of {entry.size} bytes; {message_bytes_max} were agreed")
        if entry.destination >= destinations or not (entry.stage or entry.offset + entry.size <= end):
            raise Refusal(Reason.PROTOCOL_ERROR, "an entry points outside its segment")
        if len(entry.message_id) > ID_BYTES_MAX or len(entry.correlation_id) > ID_BYTES_MAX or len(entry.stage) > STREAM_BYTES_MAX:
            raise Refusal(Reason.PROTOCOL_ERROR, "an entry's ids are too long")
        used += 0 if entry.stage else entry.size
    if header.bodies or header.bodies_size != end or used > end:
        raise Refusal(Reason.PROTOCOL_ERROR, f"{header.bodies_size} bytes of bodies announced, {end} came, {used} used")
    for destination in header.destinations:
        # An empty queue manager stands for the one that the message reaches.
        if not re.fullmatch(NAME, destination.queue) or (destination.queue_manager and not re.fullmatch(NAME, destination.queue_manager)):
            raise Refusal(Reason.PROTOCOL_ERROR, f"{destination.queue[:64]!r} at {destination.queue_manager[:64]!r} is not a destination")


def record_after(record: records_pb2.Progress, arrivals: Sequence[Arrival], wrap: int, *, luwid: str = "") -> records_pb2.Progress:
    """The receiver's record once `arrivals` (a batch, or a prefix of one) are committed. `luwid` is given with the end of a batch."""
    after = records_pb2.Progress()
    after.CopyFrom(record)
    for arrival in arrivals:
        after.confirmed[arrival.wire.priority].CopyFrom(arrival.position.record())
        count = len(arrival.header.entries)
        after.sequence = advance(after.sequence, count, wrap)
        after.messages += count
        after.bytes += arrival.payload_bytes
    if luwid:
        after.luwid = luwid
        after.batches += 1
    return after


def is_base(record: records_pb2.Progress | None, before: records_pb2.Progress) -> bool:
    """Whether `record`, as found in the store, is the one that the next batch was built on (invariant 4)."""
    return (record or records_pb2.Progress()) == before


def prefixes(arrivals: list[Arrival]) -> list[list[Arrival]]:
    """Successive parts of a batch, each for one transaction; at least one, be it empty."""
    groups: list[list[Arrival]] = [[]]
    size = 0
    for arrival in arrivals:
        more = len(arrival.wire.bodies) + len(arrival.wire.header)
        if groups[-1] and (size + more > UNIT_BYTES or len(groups[-1]) >= UNIT_SEGMENTS):
            groups.append([])
            size = 0
        groups[-1].append(arrival)
        size += more
    return groups


def halve(arrivals: list[Arrival]) -> tuple[list[Arrival], list[Arrival]]:
    """Two prefixes of about half the messages; a single segment is cut. Raises `Refusal` when there is nothing to cut."""
    if len(arrivals) > 1:
        middle = len(arrivals) // 2
        return arrivals[:middle], arrivals[middle:]
    arrival = arrivals[0]
    count = len(arrival.header.entries)
    if count < 2:
        raise Refusal(Reason.SYNCPOINT_LIMIT_REACHED, "one message needs more than a transaction holds")
    indexes = list(arrival.wire.indexes) or [arrival.wire.first_index + i for i in range(count)]
    half = count // 2
    return [_cut(arrival, indexes[:half], range(half), indexes[half - 1])], [
        _cut(arrival, indexes[half:], range(half, count), arrival.wire.last_index)
    ]


def _cut(arrival: Arrival, indexes: list[int], keep: Sequence[int], last: int) -> Arrival:
    header, bodies = segments.cut(arrival.header, arrival.wire.bodies, keep)
    wire = channel_pb2.WireSegment(
        priority=arrival.wire.priority,
        create_revision=arrival.wire.create_revision,
        suffix=arrival.wire.suffix,
        first_index=indexes[0],
        bodies=bodies,
        indexes=indexes,
        last_index=last,
    )
    return Arrival(wire, header)
