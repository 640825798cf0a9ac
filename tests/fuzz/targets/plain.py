"""Parsers that are plain functions: frames of every protocol, batches, records, and the framing of Unix sockets."""

from __future__ import annotations

import asyncio
from typing import Any

from google.protobuf.message import DecodeError, Message

from fuzz import wire
from fuzz.target import Target, Violation, mutate_frames
from qsg.initiator.mca import Failed, _answer
from qsg.initiator.relay import FROM_RECEIVER, FROM_SENDER, BadFrame, check
from qsg.manager.browsing import Cursor
from qsg.pb import channel_pb2, client_pb2, initiator_pb2, peer_pb2
from qsg.pb import records_pb2 as pb
from qsg.rules import consume, receiver, segments, status
from qsg.rules.announce import grace_s
from qsg.rules.consume import Claimer
from qsg.rules.definitions import Channel
from qsg.rules.lanes import Position
from qsg.rules.negotiate import negotiate, offer
from qsg.rules.reasons import Refusal, reason_of
from qsg.rules.receiver import Course, Holder
from qsg.rules.records import read_record, stored_message
from qsg.transport.codec import ProtocolError, decode, encode, parse
from qsg.transport.frames import FrameQueue
from qsg.transport.unix import MAX_FRAME, UnixStream
from support.channel_segments import message, message_id

CHANNEL = Channel(name="C", type="receiver")
_T = channel_pb2


def bind(stream: bytes = b"s", epoch: int = 1, instance: int = 1) -> channel_pb2.Bind:
    made = _T.Bind(channel="C", sender="P", stream=stream, epoch=epoch, instance=instance)
    made.parameters.CopyFrom(offer(CHANNEL))
    return made


def wire_segment(texts: list[str], revision: int = 100, queue: str = "TARGET") -> channel_pb2.WireSegment:
    header = pb.SegmentHeader(destinations=[pb.Destination(queue=queue)])
    bodies = b""
    for text in texts:
        body = message(text)
        header.entries.add(message_id=message_id(text), size=len(body), offset=len(bodies), payload_size=len(text))
        bodies += body
    header.bodies_size = len(bodies)
    return _T.WireSegment(
        create_revision=revision,
        suffix=b"X.0/%040x" % revision,
        header=header.SerializeToString(),
        bodies=bodies,
        last_index=len(texts) - 1,
    )


def batch(number: int, first: int, *parts: channel_pb2.WireSegment) -> channel_pb2.Batch:
    count = sum(len(pb.SegmentHeader.FromString(s.header).entries) for s in parts)
    return _T.Batch(number=number, luwid=f"L{number}", first_sequence=first, messages=count, segments=parts)


def conversation() -> list[bytes]:
    """What a sender says: bind, batches, a large message in parts."""
    one, two = batch(1, 1, wire_segment(["a", "b"])), batch(2, 3, wire_segment(["c"], 101), wire_segment(["d", "e"], 102))
    part = _T.Part(stage=b"st", index=0, chunks=1, data=bytes(300), destination=pb.Destination(queue="TARGET"))
    return [encode(_T.FRAME_BIND, bind()), encode(_T.FRAME_BATCH, one), encode(_T.FRAME_PART, part), encode(_T.FRAME_BATCH, two)]


_MESSAGES: tuple[type[Message], ...] = (
    *(_T.Bind, _T.Bound, _T.Refused, _T.Batch, _T.Part, _T.Confirm, _T.Beat, _T.Close, _T.Ping),
    *(client_pb2.Connect, client_pb2.Connected, client_pb2.ClientRequest, client_pb2.ClientResponse),
    *(peer_pb2.Hello, peer_pb2.PeerBeat, peer_pb2.Request, peer_pb2.Reply),
    *(initiator_pb2.Join, initiator_pb2.Welcome, initiator_pb2.Open, initiator_pb2.Opened, initiator_pb2.Accept, initiator_pb2.End),
)


_ORDERS = (initiator_pb2.Open(), initiator_pb2.Open(ping=True, ping_bytes=100))


def _check_frames(data: bytes) -> None:
    for frame in wire.split(data):
        grace_s(frame)
        for allowed in (FROM_SENDER, FROM_RECEIVER):
            try:
                check(frame, allowed, 1000)
            except BadFrame:
                continue
        for order in _ORDERS:
            try:
                _answer(frame, order, "peer")
            except (Failed, BadFrame, DecodeError) as error:
                if isinstance(error, Failed):
                    reason_of(error.end.reason)
        try:
            _, payload = decode(frame)
        except ProtocolError:
            continue
        for kind in _MESSAGES:
            try:
                parse(kind, payload)
            except ProtocolError:
                continue
        try:
            Cursor.decode(payload)
        except Refusal:
            continue


def frames() -> Target:
    answers = [
        encode(_T.FRAME_BOUND, _T.Bound(receiver="R", member="R", record=pb.Progress(sequence=3), parameters=offer(CHANNEL))),
        encode(_T.FRAME_REFUSED, _T.Refused(reason=9002, detail="old", epoch_seen=7)),
        encode(_T.FRAME_CONFIRM, _T.Confirm(number=1, luwid="L1", sequence=2)),
        encode(_T.FRAME_CLOSE, _T.Close(reason=9021)),
    ]
    return Target("frames", [wire.join(conversation()), wire.join(answers)], _check_frames, mutate_frames(1))


def _check_batches(data: bytes) -> None:
    """Bind, then batches: what is accepted lies behind the record, has its bytes, and leaves the record behind it."""
    first, *rest = wire.split(data) or [b""]
    try:
        request = parse(_T.Bind, first[1:])
        receiver.check_names(request, CHANNEL, "Q", "")
        parameters = negotiate(offer(CHANNEL), request.parameters)
        accepted = receiver.bind(request, None, None, Holder("R", 1, 1, b"h"), parameters.sequence_wrap)
    except (ProtocolError, Refusal):
        return
    record, course = accepted.record, Course.after(accepted.record, parameters)
    for frame in rest:
        try:
            arrivals = course.accept(parse(_T.Batch, frame[1:]))
        except (ProtocolError, Refusal):
            return
        for arrival in arrivals:
            known = record.confirmed.get(arrival.wire.priority)
            if known is not None and arrival.position < Position.of(known):
                raise Violation("a position at or below the record was accepted")
            for _, entry, body in segments.iterate(arrival.header, arrival.wire.bodies):
                if not entry.stage and len(body) != entry.size:
                    raise Violation("an entry without its bytes was accepted")
        for group in receiver.prefixes(arrivals):
            record = receiver.record_after(record, group, parameters.sequence_wrap)
            for one in group:
                if len(one.header.entries) > 1:
                    halves = receiver.halve([one])
                    if sum(len(h.header.entries) for half in halves for h in half) != len(one.header.entries):
                        raise Violation("halves lose messages")
        if record.sequence != course.sequence:
            raise Violation("record and course differ")


def batches() -> Target:
    return Target("batches", [wire.join([f for f in conversation() if f[0] != _T.FRAME_PART])], _check_batches, mutate_frames(1))


_RECORDS: tuple[type[Message], ...] = (
    *(pb.MemberRecord, pb.Guard, pb.SegmentHeader, pb.Message, pb.Consumption, pb.Totals, pb.QueueState, pb.Lock, pb.SenderFence),
    *(pb.Progress, pb.ReceiverFence, pb.ProducerRecord, pb.ChannelStatus, pb.InitiatorRecord),
)


def _check_records(data: bytes) -> None:
    for value in wire.split(data):
        for kind in _RECORDS:
            try:
                read_record(kind, value, b"key")
            except Refusal:
                continue
        claimer = Claimer("X", 7, b"unit")
        for apply in (
            consume.claim_change(claimer, [0, 1], 4),
            consume.release_change(claimer, [0], backed_out=False),
            consume.gone_change([2], 4, last=False),
            consume.gone_change([0], 4, last=False, claimer=claimer),
        ):
            try:
                apply(value)
            except Refusal:
                continue
        try:
            entry = status.parse(value)
            status.altered(entry, pb.STOPPING, 5)
        except (Refusal, status.IllegalTransition):
            pass
        try:
            header = read_record(pb.SegmentHeader, value)
            for _, one, body in segments.iterate(header):
                stored_message(one, body)
            segments.cut(header, b"", range(0, len(header.entries), 2))
        except Refusal:
            continue


def records() -> Target:
    consumption = pb.Consumption(gone=b"\x04", claims=[pb.Claim(member="X", incarnation=7, unit=b"unit", entries=[0])], backouts={0: 2})
    header, _ = segments.attach(pb.SegmentHeader.FromString(wire_segment(["a", "b"]).header), wire_segment(["a", "b"]).bodies)
    values: list[Message] = [
        consumption,
        pb.ChannelStatus(channel="C", state=pb.RUNNING, epoch=3, owner="X"),
        pb.Totals(put=5, got=2, last={0: b"X.0/1"}),
        pb.Progress(confirmed={0: pb.Position(create_revision=5, suffix=b"X.0/1", index=2)}, sequence=9),
    ]
    seeds = [wire.join([header]), *(wire.join([value.SerializeToString()]) for value in values)]
    return Target("records", seeds, _check_records, mutate_frames(0))


class _Socket(asyncio.Transport):
    """Stands for the kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.aborted = False

    def abort(self) -> None:
        self.aborted = True

    def pause_reading(self) -> None:
        return

    def get_write_buffer_size(self) -> int:
        return 0


def _check_unix(data: bytes) -> None:
    """However the bytes are cut into pieces, the same frames come out, and a length that is none ends the stream."""
    outcomes = []
    for size in (max(1, len(data)), 7, 1):
        if size == 1 and len(data) > 2000:
            continue
        stream = UnixStream("p")
        stream._inbox = FrameQueue()
        stream._transport = _Socket()
        for at in range(0, len(data), size):
            stream.data_received(data[at : at + size])
        outcomes.append((list(stream._inbox._frames), stream._inbox.ended))
    if any(outcome != outcomes[0] for outcome in outcomes):
        raise Violation("frames depend on how they come in")
    found, ended = outcomes[0]
    at = sum(4 + len(frame) for frame in found)
    if wire.join(found) != data[:at]:
        raise Violation("the frames are not those that were sent")
    rest = data[at:]
    announced = int.from_bytes(rest[:4], "big") if len(rest) >= 4 else None
    if (ended is not None) != (announced is not None and announced > MAX_FRAME):
        raise Violation(f"ended: {ended}, though {announced} bytes were announced")


def unix() -> Target:
    seeds: list[Any] = [
        wire.join(conversation()),
        wire.join([b""] * 5),
        wire.join([bytes(70_000)]),
        (MAX_FRAME + 1).to_bytes(4, "big") + b"x",
    ]
    return Target("unix", seeds, _check_unix, lambda data, seeds, random: wire.mutate_bytes(data, random))
