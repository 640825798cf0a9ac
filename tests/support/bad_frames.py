"""Frames of a partner that are wrong in one way each, and what each is refused with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from qsg.pb import channel_pb2
from qsg.pb import records_pb2 as pb
from qsg.rules.reasons import Reason
from qsg.transport.codec import encode
from support.hostile import CHANNEL, batch, bind, wire

_T = channel_pb2

FIRST: dict[str, tuple[bytes, Reason]] = {
    "empty": (b"", Reason.PROTOCOL_ERROR),
    "unknown type": (b"\x63abc", Reason.PROTOCOL_ERROR),
    "batch before bind": (encode(_T.FRAME_BATCH, batch(wire(["a"]))), Reason.PROTOCOL_ERROR),
    "confirm first": (encode(_T.FRAME_CONFIRM, _T.Confirm(number=1)), Reason.PROTOCOL_ERROR),
    "bound first": (encode(_T.FRAME_BOUND, _T.Bound()), Reason.PROTOCOL_ERROR),
    "truncated bind": (encode(_T.FRAME_BIND, bind())[:-3], Reason.PROTOCOL_ERROR),
    "garbage bind": (bytes([_T.FRAME_BIND]) + b"\xff" * 40, Reason.PROTOCOL_ERROR),
    "bind of 200 kB": (encode(_T.FRAME_BIND, bytes(200_000)), Reason.PROTOCOL_ERROR),
    "no channel": (encode(_T.FRAME_BIND, bind(channel="NO.SUCH")), Reason.UNKNOWN_CHANNEL_NAME),
    "ping of no channel": (encode(_T.FRAME_PING, _T.Ping(channel="NO.SUCH")), Reason.UNKNOWN_CHANNEL_NAME),
    "query of no channel": (encode(_T.FRAME_QUERY, bind(channel="NO.SUCH")), Reason.UNKNOWN_CHANNEL_NAME),
    "wrong receiver": (encode(_T.FRAME_BIND, bind(receiver="SOMEBODY")), Reason.WRONG_PARTNER),
    "wrong sender": (encode(_T.FRAME_BIND, bind(channel=CHANNEL + ".P")), Reason.WRONG_PARTNER),
    "no sender": (encode(_T.FRAME_BIND, bind(sender="")), Reason.WRONG_PARTNER),
    "sender is no name": (encode(_T.FRAME_BIND, bind(sender="../../m/X\n" * 100)), Reason.WRONG_PARTNER),
    "no stream": (encode(_T.FRAME_BIND, bind(stream=b"")), Reason.PROTOCOL_ERROR),
    "long stream": (encode(_T.FRAME_BIND, bind(stream=bytes(65))), Reason.PROTOCOL_ERROR),
    "epoch 0": (encode(_T.FRAME_BIND, bind(stream=b"zero", epoch=0, instance=0)), Reason.EPOCH_TOO_LOW),
    "epoch beyond all": (encode(_T.FRAME_BIND, bind(stream=b"beyond", epoch=2**64 - 1)), Reason.PROTOCOL_ERROR),
    "bound before": (encode(_T.FRAME_BIND, bind(stream=b"never", bound_before=True)), Reason.NO_RECORD),
    "sequence ahead": (encode(_T.FRAME_BIND, bind(stream=b"never", sequence=7)), Reason.SEQUENCE_ERROR),
    "reset beyond the wrap": (encode(_T.FRAME_BIND, bind(stream=b"never", reset_to=10**12)), Reason.PROTOCOL_ERROR),
    "no parameters": (encode(_T.FRAME_BIND, _T.Bind(channel=CHANNEL, sender="EVIL", stream=b"s", epoch=1)), Reason.SEQUENCE_WRAP_MISMATCH),
    "other wrap": (encode(_T.FRAME_BIND, bind(parameters=_T.Parameters(sequence_wrap=500))), Reason.SEQUENCE_WRAP_MISMATCH),
}
"""As the first frame of a connection."""


def _header(change: Callable[[pb.SegmentHeader], None], texts: Sequence[str] = ("a", "b")) -> channel_pb2.WireSegment:
    made = wire(texts)
    header = pb.SegmentHeader.FromString(made.header)
    change(header)
    made.header = header.SerializeToString()
    return made


def _set(index: int, **values: Any) -> Callable[[pb.SegmentHeader], None]:
    def change(header: pb.SegmentHeader) -> None:
        for name, value in values.items():
            setattr(header.entries[index], name, value)

    return change


def _overlapping(count: int, size: int) -> channel_pb2.WireSegment:
    made = wire(["x"])
    made.bodies = pb.Message(message_id=bytes(24), payload=bytes(size)).SerializeToString()
    header = pb.SegmentHeader.FromString(made.header)
    header.entries[0].size = header.bodies_size = len(made.bodies)
    header.entries[0].payload_size = size
    header.entries.extend([header.entries[0]] * (count - 1))
    made.header, made.last_index = header.SerializeToString(), count - 1
    return made


def _many(count: int) -> channel_pb2.WireSegment:
    made = wire(["a"])
    entry = pb.SegmentHeader(entries=[pb.Entry()]).SerializeToString()
    made.header, made.last_index = made.header + entry * count, count
    return made


def _changed(**values: Any) -> channel_pb2.WireSegment:
    made = wire(["a", "b"])
    for name, value in values.items():
        if name == "indexes":
            made.indexes.extend(value)
        else:
            setattr(made, name, value)
    return made


def _no_destination(header: pb.SegmentHeader) -> None:
    del header.destinations[:]


def _long_name(header: pb.SegmentHeader) -> None:
    header.destinations[0].queue = "Q" * 500_000


def _destinations(header: pb.SegmentHeader) -> None:
    header.destinations.extend([header.destinations[0]] * 100_000)


def _sized(size: int) -> Callable[[pb.SegmentHeader], None]:
    def change(header: pb.SegmentHeader) -> None:
        header.bodies_size = size

    return change


def _inline(header: pb.SegmentHeader) -> None:
    header.bodies = b"abc"


BAD_SEGMENTS: dict[str, channel_pb2.WireSegment] = {
    "header is garbage": _changed(header=b"\xff" * 50),
    "header is cut": _changed(header=wire(["a", "b"]).header[:-4]),
    "bodies are cut": _changed(bodies=wire(["a", "b"]).bodies[:-4]),
    "bodies are missing": _changed(bodies=b""),
    "more bodies than announced": _changed(bodies=wire(["a", "b"]).bodies + bytes(100)),
    "bodies are garbage": _changed(bodies=b"\xff" * len(wire(["a", "b"]).bodies)),
    "bodies twice": _header(_inline),
    "announced size": _header(_sized(2**63)),
    "offset beyond": _header(_set(1, offset=10_000)),
    "offset huge": _header(_set(1, offset=2**64 - 1)),
    "size beyond": _header(_set(1, size=10_000)),
    "size zero": _header(_set(1, size=0)),
    "payload size": _header(_set(1, payload_size=2**32 - 1)),
    "destination beyond": _header(_set(1, destination=7)),
    "no destination": _header(_no_destination),
    "long queue name": _header(_long_name),
    "100000 destinations": _header(_destinations),
    "stage never sent": _header(_set(1, stage=b"nothing", chunks=3, size=1000)),
    "message id of 100 kB": _header(_set(1, message_id=bytes(100_000))),
    "priority": _changed(priority=10),
    "no suffix": _changed(suffix=b""),
    "long suffix": _changed(suffix=bytes(1000)),
    "last before first": _changed(first_index=5, last_index=3),
    "index numbers": _changed(indexes=[1, 0, 7, 7]),
    "last index too low": _changed(last_index=0),
    "overlapping bodies": _overlapping(500, 3_000_000),
    "a million entries": _many(1_000_000),
}
BEHIND: dict[str, tuple[list[bytes], set[Reason]]] = {
    "unknown type": ([b"\x63abc"], {Reason.PROTOCOL_ERROR}),
    "empty frame": ([b""], {Reason.PROTOCOL_ERROR}),
    "a second bind": ([encode(_T.FRAME_BIND, bind(epoch=99))], {Reason.PROTOCOL_ERROR}),
    "a query": ([encode(_T.FRAME_QUERY, bind(epoch=99))], {Reason.PROTOCOL_ERROR}),
    "a confirm": ([encode(_T.FRAME_CONFIRM, _T.Confirm(number=1))], {Reason.PROTOCOL_ERROR}),
    "a bound": ([encode(_T.FRAME_BOUND, _T.Bound())], {Reason.PROTOCOL_ERROR}),
    "garbage batch": ([bytes([_T.FRAME_BATCH]) + b"\xff" * 99], {Reason.PROTOCOL_ERROR}),
    "truncated batch": ([encode(_T.FRAME_BATCH, batch(wire(["a", "b"])))[:-5]], {Reason.PROTOCOL_ERROR}),
    "batch 2 first": ([encode(_T.FRAME_BATCH, batch(wire(["a"]), number=2))], {Reason.BATCH_OUT_OF_ORDER}),
    "batch 0": ([encode(_T.FRAME_BATCH, batch(wire(["a"]), number=0))], {Reason.BATCH_OUT_OF_ORDER}),
    "wrong sequence": ([encode(_T.FRAME_BATCH, batch(wire(["a"]), first=2))], {Reason.BATCH_OUT_OF_ORDER}),
    "wrong count": ([encode(_T.FRAME_BATCH, batch(wire(["a"]), messages=2))], {Reason.PROTOCOL_ERROR}),
    "long luwid": (
        [encode(_T.FRAME_BATCH, _T.Batch(number=1, first_sequence=1, messages=1, luwid="L" * 10**6, segments=[wire(["a"])]))],
        {Reason.PROTOCOL_ERROR},
    ),
    "repeated batch": ([encode(_T.FRAME_BATCH, batch(wire(["once"])))] * 2, {Reason.BATCH_OUT_OF_ORDER}),
    "gap in numbers": (
        [encode(_T.FRAME_BATCH, batch(wire(["gap"]))), encode(_T.FRAME_BATCH, batch(wire(["b"], revision=101), number=3, first=2))],
        {Reason.BATCH_OUT_OF_ORDER},
    ),
    "same position again": (
        [encode(_T.FRAME_BATCH, batch(wire(["again"]))), encode(_T.FRAME_BATCH, batch(wire(["again"]), number=2, first=2))],
        {Reason.BATCH_OUT_OF_ORDER},
    ),
    "position goes back": (
        [encode(_T.FRAME_BATCH, batch(wire(["back"]))), encode(_T.FRAME_BATCH, batch(wire(["b"], revision=99), number=2, first=2))],
        {Reason.BATCH_OUT_OF_ORDER},
    ),
    "same position twice in a batch": ([encode(_T.FRAME_BATCH, batch(wire(["a"]), wire(["a"])))], {Reason.BATCH_OUT_OF_ORDER}),
    "part out of order": ([encode(_T.FRAME_PART, _T.Part(stage=b"s", index=1, chunks=3, data=b"x"))], {Reason.PROTOCOL_ERROR}),
    "part without data": ([encode(_T.FRAME_PART, _T.Part(stage=b"s", index=0, chunks=3))], {Reason.PROTOCOL_ERROR}),
    "part of nobody": ([encode(_T.FRAME_PART, _T.Part(index=0, chunks=3, data=b"x"))], {Reason.PROTOCOL_ERROR}),
    "a batch of 30 MB": ([bytes([_T.FRAME_BATCH]) + bytes(30_000_000)], {Reason.PROTOCOL_ERROR}),
    "a large part": ([encode(_T.FRAME_PART, _T.Part(stage=b"s", chunks=3, data=bytes(3 << 20)))], {Reason.PROTOCOL_ERROR}),
} | {
    what: (
        [encode(_T.FRAME_BATCH, batch(bad, messages=2))],
        {Reason.PROTOCOL_ERROR, Reason.MSG_TOO_BIG_FOR_Q_MGR, Reason.LARGE_MESSAGE_INCOMPLETE},
    )
    for what, bad in BAD_SEGMENTS.items()
}
"""Behind a good bind."""
FIRST_COMMITS = {"repeated batch", "gap in numbers", "same position again", "position goes back"}
