"""Decisions of a receiver: may this instance bind, is this batch the next one, what is the record after it.

Owns: the meaning of the two records of a stream, the fence `r/<stream>` and the progress `rp/<stream>` (patent: SYNCQ entry of the
receiving side). Invariants: (epoch, instance) only rises; a position at or below the record is never accepted; numbers and sequence
numbers of a session have no gap. Does not guarantee durability: the caller commits the record with the messages, comparing the fence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from google.protobuf.message import DecodeError

from qsg.pb import channel_pb2, records_pb2
from qsg.rules.definitions import Channel
from qsg.rules.lanes import Position
from qsg.rules.negotiate import advance, is_ahead
from qsg.rules.reasons import Reason, Refusal

RETRYABLE = frozenset({Reason.Q_FULL, Reason.PUT_INHIBITED, Reason.STORAGE_NOT_AVAILABLE})
"""Reasons for which a message is tried again before it is a dead letter (MQ: MRRTY, for Q_FULL, PUT_INHIBITED, PAGESET_FULL)."""


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


@dataclass(frozen=True, slots=True)
class Accepted:
    """A bind that is accepted: the fence to write, the record to answer, and whether the record is written too (only by a reset)."""

    fence: records_pb2.ReceiverFence
    record: records_pb2.Progress
    record_changed: bool


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
    if not request.stream or len(request.stream) > 64:
        raise Refusal(Reason.PROTOCOL_ERROR, "a bind needs a stream id of 1 to 64 bytes")
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
    record = records_pb2.Progress()
    if progress is not None:
        record.CopyFrom(progress)
    if request.reset_to:
        record.sequence = request.reset_to - 1
    elif is_ahead(request.sequence, record.sequence, wrap):
        detail = f"sequence number {request.sequence} was confirmed, the record here says {record.sequence}"
        raise BindRefused(Reason.SEQUENCE_ERROR, detail, *seen)
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
    return Accepted(raised, record, bool(request.reset_to))


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
        if wire.priority > 9 or wire.last_index < wire.first_index or not wire.suffix or len(wire.suffix) > 256:
            raise Refusal(Reason.PROTOCOL_ERROR, "a segment's place makes no sense")
        end = len(wire.bodies)
        destinations = len(header.destinations)
        for entry in header.entries:
            if entry.size > self.message_bytes_max + 65_536:
                raise Refusal(Reason.MSG_TOO_BIG_FOR_Q_MGR, f"a message of {entry.size} bytes; {self.message_bytes_max} were agreed")
            if entry.destination >= destinations or not (entry.stage or entry.offset + entry.size <= end):
                raise Refusal(Reason.PROTOCOL_ERROR, "an entry points outside its segment")
        if header.bodies or header.bodies_size != end:
            raise Refusal(Reason.PROTOCOL_ERROR, f"{header.bodies_size} bytes of bodies announced, {end} came")
        return Arrival(wire, header)


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
