"""Bad input at every door of running processes: each peer is told a reason, the log has a line, the traffic beside is not touched."""

from __future__ import annotations

import asyncio
import random
import struct
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import grpc.aio
import pytest
import pytest_asyncio

from qsg.pb import channel_pb2, client_pb2, initiator_pb2, peer_pb2
from qsg.pb import records_pb2 as pb
from qsg.pb.etcd import rpc_pb2
from qsg.process.local import GROUP
from qsg.rules import keys
from qsg.rules.definitions import Channel
from qsg.rules.negotiate import offer
from qsg.rules.reasons import Reason
from qsg.transport.codec import encode
from qsg.transport.contract import Closed, Stream, Unreachable
from qsg.transport.grpc_ import GrpcTransport
from qsg.transport.unix import connect_unix
from support.group import ConfiguredGroup, Flow, connected, eventually, flowing, running

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.processes]

CHANNEL = "HOSTILE"
TARGET = "VICTIM"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def group(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ConfiguredGroup]:
    async with running(tmp_path_factory.mktemp("group"), members=("X", "Y")) as made:
        for at, structure in (("X", "admin"), ("R", "private")):
            async with connected(made, at) as queue_manager:
                await queue_manager.command("define", kind="queue", definition={"name": TARGET, "structure": structure})
                await queue_manager.command("define", kind="channel", definition={"name": CHANNEL, "type": "receiver"})
                await queue_manager.command(
                    "define", kind="channel", definition={"name": CHANNEL + ".P", "type": "receiver", "partner": "FRIEND"}
                )
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def flow(group: ConfiguredGroup) -> AsyncIterator[Flow]:
    """Traffic that goes on beside all of this; at the end nothing of it was lost, repeated or overtaken, and no process ended."""
    async with flowing(group) as made:
        yield made
    assert set(group.starts().values()) == {1}
    assert not group.logged(event="handler failed")
    assert not group.logged(event="inbound session failed")
    assert not group.logged(event="session failed")


class Doors:
    """Where a partner comes in: R's local listener, and X's group listener."""

    def __init__(self, group: ConfiguredGroup) -> None:
        self._group = group

    def listener(self, at: str) -> str:
        config = self._group.config(at)
        return str(config["local_listener" if at == "R" else "group_listener"])

    @staticmethod
    def name(at: str) -> str:
        return "R" if at == "R" else GROUP


# A partner by hand


@asynccontextmanager
async def partner(group: ConfiguredGroup, at: str) -> AsyncIterator[Stream]:
    stream = await GrpcTransport().connect(Doors(group).listener(at), "qsg.v1.Channel", timeout_s=3)
    try:
        yield stream
    finally:
        await stream.close()


def bind(stream: bytes = b"hostile", epoch: int = 1, instance: int = 1, **values: Any) -> channel_pb2.Bind:
    made = channel_pb2.Bind(channel=CHANNEL, sender="EVIL", stream=stream, epoch=epoch, instance=instance)
    made.parameters.CopyFrom(offer(Channel(name=CHANNEL, type="receiver")))
    for name, value in values.items():
        if name == "parameters":
            made.parameters.MergeFrom(value)
        else:
            setattr(made, name, value)
    return made


def message(text: str) -> bytes:
    return pb.Message(message_id=text.encode().ljust(24, b"."), payload=text.encode()).SerializeToString()


def wire(texts: Sequence[str], *, revision: int = 100, queue: str = TARGET, queue_manager: str = "") -> channel_pb2.WireSegment:
    header = pb.SegmentHeader(destinations=[pb.Destination(queue=queue, queue_manager=queue_manager)])
    bodies = b""
    for text in texts:
        body = message(text)
        header.entries.add(message_id=text.encode().ljust(24, b"."), size=len(body), offset=len(bodies), payload_size=len(text))
        bodies += body
    header.bodies_size = len(bodies)
    return channel_pb2.WireSegment(
        create_revision=revision,
        suffix=keys.suffix("X.0", 7, revision),
        header=header.SerializeToString(),
        bodies=bodies,
        last_index=len(texts) - 1,
    )


def batch(*segments: channel_pb2.WireSegment, number: int = 1, first: int = 1, messages: int | None = None) -> channel_pb2.Batch:
    count = sum(len(pb.SegmentHeader.FromString(s.header).entries) for s in segments) if messages is None else messages
    return channel_pb2.Batch(number=number, luwid=f"L{number}", first_sequence=first, messages=count, segments=segments)


async def answer(stream: Stream, *wanted: int, timeout_s: float = 8.0) -> tuple[int, bytes]:
    """The next frame of a wanted type."""
    async with asyncio.timeout(timeout_s):
        while True:
            frame = await stream.receive()
            if frame[0] in wanted:
                return frame[0], frame[1:]


async def refusal(stream: Stream) -> channel_pb2.Refused:
    """What the partner is refused with; the stream ends behind it."""
    _, payload = await answer(stream, channel_pb2.FRAME_REFUSED)
    refused = channel_pb2.Refused.FromString(payload)
    with pytest.raises(Closed):
        await answer(stream, channel_pb2.FRAME_CONFIRM)
    return refused


async def bound(stream: Stream, request: channel_pb2.Bind) -> channel_pb2.Bound:
    await stream.send(encode(channel_pb2.FRAME_BIND, request))
    kind, payload = await answer(stream, channel_pb2.FRAME_BOUND, channel_pb2.FRAME_REFUSED)
    assert kind == channel_pb2.FRAME_BOUND, channel_pb2.Refused.FromString(payload)
    return channel_pb2.Bound.FromString(payload)


async def confirmed(stream: Stream, number: int) -> None:
    while True:
        _, payload = await answer(stream, channel_pb2.FRAME_CONFIRM)
        if channel_pb2.Confirm.FromString(payload).number >= number:
            return


def is_logged(group: ConfiguredGroup, at: str, text: str) -> Callable[[], bool]:
    def found() -> bool:
        lines = group.logged(at=at, level=lambda level: level in ("warning", "error"))
        return any(text in str(value) for line in lines for value in line.values())

    return found


# The first frame

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


async def all_of(cases: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Several at a time; what failed is told together."""
    few = asyncio.Semaphore(6)

    async def one(case: Coroutine[Any, Any, None]) -> None:
        async with few:
            await case

    found = await asyncio.gather(*(one(case) for case in cases), return_exceptions=True)
    problems = [problem for problem in found if problem is not None]
    assert not problems, "\n".join(map(repr, problems))


@pytest.mark.parametrize("at", ["R", "X"])
async def test_a_first_frame_that_is_no_good_bind(group: ConfiguredGroup, flow: Flow, at: str) -> None:
    async def case(what: str, frame: bytes, reason: Reason) -> None:
        async with partner(group, at) as stream:
            await stream.send(frame)
            refused = await refusal(stream)
            assert refused.reason == reason, (what, Reason(refused.reason).name, refused.detail)
            assert refused.detail, what
            await eventually(is_logged(group, at, refused.detail.removeprefix("not a bind: ")[:40]), 3, what)

    await all_of(case(what, frame, reason) for what, (frame, reason) in FIRST.items())
    await flow.moves()


@pytest.mark.parametrize(("at", "channel"), [("R", "R.TO.QSG"), ("X", "QSG.TO.R")])
async def test_the_name_of_a_sender_channel(group: ConfiguredGroup, flow: Flow, at: str, channel: str) -> None:
    for kind, request in ((_T.FRAME_BIND, bind(channel=channel)), (_T.FRAME_PING, _T.Ping(channel=channel))):
        async with partner(group, at) as stream:
            await stream.send(encode(kind, request))
            assert (await refusal(stream)).reason == Reason.CHANNEL_TYPE_ERROR
    await flow.moves()


async def test_an_old_epoch_and_an_old_instance_are_told_what_was_seen(group: ConfiguredGroup, flow: Flow) -> None:
    async with partner(group, "R") as first:
        await bound(first, bind(b"epochs", epoch=5, instance=3))
        for epoch, instance in ((4, 9), (5, 3), (5, 2)):
            async with partner(group, "R") as stream:
                await stream.send(encode(_T.FRAME_BIND, bind(b"epochs", epoch=epoch, instance=instance)))
                refused = await refusal(stream)
                assert (refused.reason, refused.epoch_seen, refused.instance_seen) == (Reason.EPOCH_TOO_LOW, 5, 3)
        await first.send(encode(_T.FRAME_BATCH, batch(wire(["still bound"]))))
        await confirmed(first, 1)
        async with partner(group, "R") as newer:
            record = (await bound(newer, bind(b"epochs", epoch=5, instance=4, sequence=1))).record
            assert record.sequence == 1
            with pytest.raises(Closed):
                await answer(first, _T.FRAME_CONFIRM)
    await flow.moves()


# Behind the bind


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
    "a batch of 90 MB": ([bytes([_T.FRAME_BATCH]) + bytes(90_000_000)], {Reason.PROTOCOL_ERROR}),
    "a large part": ([encode(_T.FRAME_PART, _T.Part(stage=b"s", chunks=3, data=bytes(3 << 20)))], {Reason.PROTOCOL_ERROR}),
} | {
    what: (
        [encode(_T.FRAME_BATCH, batch(bad, messages=2))],
        {Reason.PROTOCOL_ERROR, Reason.MSG_TOO_BIG_FOR_Q_MGR, Reason.LARGE_MESSAGE_INCOMPLETE},
    )
    for what, bad in BAD_SEGMENTS.items()
}
FIRST_COMMITS = {"repeated batch", "gap in numbers", "same position again", "position goes back"}


@pytest.mark.parametrize("at", ["R", "X"])
async def test_bad_frames_behind_a_good_bind(group: ConfiguredGroup, flow: Flow, at: str) -> None:
    async def case(what: str, frames: list[bytes], reasons: set[Reason]) -> None:
        async with partner(group, at) as stream:
            await bound(stream, bind(what.encode()))
            rest = frames
            if what in FIRST_COMMITS:
                await stream.send(frames[0])
                await confirmed(stream, 1)
                rest = frames[1:]
            for frame in rest:
                await stream.send(frame)
            refused = await refusal(stream)
            assert Reason(refused.reason) in reasons, (what, Reason(refused.reason).name, refused.detail)
            assert refused.detail, what
            await eventually(is_logged(group, at, refused.detail[:50]), 3, what)

    async with connected(group, at) as queue_manager:
        before = (await queue_manager.inquire_queue(TARGET))["depth"]
        await all_of(case(what, frames, reasons) for what, (frames, reasons) in BEHIND.items())
        depth = (await queue_manager.inquire_queue(TARGET))["depth"]
        assert depth - before == len(FIRST_COMMITS), "only what was right was put"
        assert (await queue_manager.inquire_queue("SYSTEM.DEAD.LETTER.QUEUE"))["depth"] == 0
    await flow.moves()


# The client API


@asynccontextmanager
async def service(group: ConfiguredGroup, at: str, name: str) -> AsyncIterator[Stream]:
    stream = await GrpcTransport().connect(group.addresses[at], name, timeout_s=3)
    try:
        yield stream
    finally:
        await stream.close()


_C = client_pb2
HELLO = encode(_C.CLIENT_CONNECT, _C.Connect(application="evil"))
BAD_HELLOS = {
    "empty": (b"", Reason.PROTOCOL_ERROR),
    "random": (random.Random(1).randbytes(300), Reason.PROTOCOL_ERROR),
    "a request": (encode(_C.CLIENT_REQUEST, _C.ClientRequest(id=1)), Reason.PROTOCOL_ERROR),
    "garbage": (bytes([_C.CLIENT_CONNECT]) + b"\xff" * 30, Reason.PROTOCOL_ERROR),
    "other name": (encode(_C.CLIENT_CONNECT, _C.Connect(queue_manager="NOBODY")), Reason.Q_MGR_NAME_ERROR),
}


async def test_applications_that_do_not_connect_properly(group: ConfiguredGroup, flow: Flow) -> None:
    for what, (frame, reason) in BAD_HELLOS.items():
        async with service(group, "X", "qsg.v1.Client") as stream:
            await stream.send(frame)
            _, payload = await answer(stream, _C.CLIENT_CONNECTED)
            connected_ = _C.Connected.FromString(payload)
            assert connected_.reason == reason, what
            assert connected_.detail, what
            with pytest.raises(Closed):
                await answer(stream, _C.CLIENT_RESPONSE)
            await eventually(is_logged(group, "X", connected_.detail[:40]), 3, what)
    await flow.moves()


def request(**values: Any) -> bytes:
    return encode(_C.CLIENT_REQUEST, _C.ClientRequest(**values))


BAD_FRAMES = {
    "empty": b"",
    "unknown": b"\x77",
    "connect again": HELLO,
    "garbage": bytes([_C.CLIENT_REQUEST]) + b"\xfe" * 50,
    "no kind": request(id=1),
    "no id": request(inquire=_C.Inquire(object="queues")),
    "response": encode(_C.CLIENT_RESPONSE, _C.ClientResponse(id=1)),
    "unit frame cut": request(id=1, put=_C.Put(queue="A", messages=[pb.Message(payload=b"abc")]))[:-2],
}


async def test_frames_of_an_application_that_are_none(group: ConfiguredGroup, flow: Flow) -> None:
    for what, frame in BAD_FRAMES.items():
        async with service(group, "X", "qsg.v1.Client") as stream:
            await stream.send(HELLO)
            await answer(stream, _C.CLIENT_CONNECTED)
            await stream.send(frame)
            _, payload = await answer(stream, _C.CLIENT_RESPONSE)
            response = _C.ClientResponse.FromString(payload)
            assert (response.id, response.reason) == (0, Reason.PROTOCOL_ERROR), what
            with pytest.raises(Closed):
                await answer(stream, _C.CLIENT_RESPONSE)
            await eventually(is_logged(group, "X", response.detail[:40]), 3, what)
    await flow.moves()


def _put(**values: Any) -> dict[str, Any]:
    return {"put": _C.Put(queue=TARGET, messages=[pb.Message(**values)])}


BAD_REQUESTS: dict[str, tuple[dict[str, Any], set[Reason]]] = {
    "no queue": ({"put": _C.Put(messages=[pb.Message(payload=b"x")])}, {Reason.UNKNOWN_OBJECT_NAME}),
    "queue is no name": ({"put": _C.Put(queue="a/../\n" * 9, messages=[pb.Message()])}, {Reason.UNKNOWN_OBJECT_NAME}),
    "no messages": ({"put": _C.Put(queue=TARGET)}, {Reason.OPTIONS_ERROR}),
    "priority": (_put(priority=77), {Reason.PRIORITY_ERROR}),
    "message id": (_put(message_id=b"short"), {Reason.MD_ERROR}),
    "correlation id": (_put(correlation_id=bytes(5_000)), {Reason.MD_ERROR}),
    "producer without opening": (
        {"put": _C.Put(queue=TARGET, messages=[pb.Message()], producer_number=7)},
        {Reason.OPTIONS_ERROR, Reason.PRODUCER_FENCED, Reason.PROTOCOL_ERROR},
    ),
    "get of none": ({"get": _C.Get(queue=TARGET, messages_max=0)}, {Reason.OPTIONS_ERROR}),
    "get of many": ({"get": _C.Get(queue=TARGET, messages_max=2**31)}, {Reason.OPTIONS_ERROR}),
    "get from nowhere": ({"get": _C.Get(queue="NOWHERE", messages_max=1)}, {Reason.UNKNOWN_OBJECT_NAME}),
    "get by long id": ({"get": _C.Get(queue=TARGET, messages_max=1, message_id=bytes(999))}, {Reason.MD_ERROR}),
    "bad cursor": ({"browse": _C.Browse(queue=TARGET, messages_max=10, cursor=b"\xff\x00garbage" * 9)}, {Reason.OPTIONS_ERROR}),
    "unknown unit": (
        {"end_unit": _C.EndUnit(unit=77, commit=True)},
        {Reason.HANDLE_NOT_AVAILABLE, Reason.OPTIONS_ERROR, Reason.BACKED_OUT},
    ),
    "inquiry of nothing": ({"inquire": _C.Inquire(object="moon")}, {Reason.OPTIONS_ERROR, Reason.COMMAND_FAILED}),
    "unknown command": ({"command": _C.Command(name="dance")}, {Reason.OPTIONS_ERROR, Reason.COMMAND_FAILED}),
    "arguments are no JSON": ({"command": _C.Command(name="start", arguments="{{")}, {Reason.OPTIONS_ERROR, Reason.COMMAND_FAILED}),
    "arguments are a list": ({"command": _C.Command(name="start", arguments="[1]")}, {Reason.OPTIONS_ERROR, Reason.COMMAND_FAILED}),
    "arguments are deep": ({"command": _C.Command(name="start", arguments="[" * 100_000)}, {Reason.OPTIONS_ERROR, Reason.COMMAND_FAILED}),
    "channel is a number": ({"command": _C.Command(name="start", arguments='{"channel": 5}')}, {Reason.OPTIONS_ERROR}),
    "wait is a word": (
        {"command": _C.Command(name="start", arguments='{"channel": "QSG.TO.R", "wait_s": "long"}')},
        {Reason.OPTIONS_ERROR, Reason.CHANNEL_ALREADY_RUNNING},
    ),
    "definition is a word": (
        {"command": _C.Command(name="define", arguments='{"kind": "queue", "definition": "x"}')},
        {Reason.DEFINITION_ERROR},
    ),
    "producer without a name": (
        {"open_producer": _C.OpenProducer(queue=TARGET)},
        {Reason.OPTIONS_ERROR, Reason.MD_ERROR, Reason.OBJECT_NAME_ERROR},
    ),
}


@pytest.mark.parametrize("at", ["X", "R"])
async def test_requests_that_make_no_sense_are_answered_and_the_connection_goes_on(group: ConfiguredGroup, flow: Flow, at: str) -> None:
    wrong = []
    async with service(group, at, "qsg.v1.Client") as stream:
        await stream.send(HELLO)
        await answer(stream, _C.CLIENT_CONNECTED)
        for number, (what, (values, reasons)) in enumerate(BAD_REQUESTS.items(), start=1):
            if at == "R" and "QSG.TO.R" in str(values):
                continue
            await stream.send(request(id=number, **values))
            _, payload = await answer(stream, _C.CLIENT_RESPONSE)
            response = _C.ClientResponse.FromString(payload)
            if response.id != number or Reason(response.reason) not in reasons:
                wrong.append(f"{what}: {Reason(response.reason).name} {response.detail[:200]}")
    assert not wrong, "\n".join(wrong)
    assert not group.logged(event="request failed"), "none of them was an unexpected error"
    await flow.moves()


# The peer links


_P = peer_pb2
BAD_PEERS = {
    "empty": b"",
    "beat": encode(_P.PEER_BEAT, _P.PeerBeat()),
    "garbage": bytes([_P.PEER_HELLO]) + b"\xff" * 20,
    "another group": encode(_P.PEER_HELLO, _P.Hello(member="Y", incarnation=1, group="OTHER")),
}


async def test_peers_that_are_none(group: ConfiguredGroup, flow: Flow) -> None:
    for what, frame in BAD_PEERS.items():
        async with service(group, "X", "qsg.v1.Peer") as stream:
            await stream.send(frame)
            _, payload = await answer(stream, _P.PEER_REPLY)
            reply = _P.Reply.FromString(payload)
            assert reply.reason == Reason.PROTOCOL_ERROR, what
            with pytest.raises(Closed):
                await answer(stream, _P.PEER_REPLY)
            await eventually(is_logged(group, "X", reply.detail[:40]), 3, what)
    await flow.moves()


async def test_requests_of_a_peer_that_make_no_sense(group: ConfiguredGroup, flow: Flow) -> None:
    async with service(group, "X", "qsg.v1.Peer") as stream:
        await stream.send(encode(_P.PEER_HELLO, _P.Hello(member="W", incarnation=1, group=GROUP)))
        await answer(stream, _P.PEER_HELLO)
        await stream.send(encode(_P.PEER_REQUEST, _P.Request(id=1, cut_off=_P.CutOff(structure="admin", incarnation=1))))
        _, payload = await answer(stream, _P.PEER_REPLY)
        assert _P.Reply.FromString(payload).reason == Reason.NOT_AUTHORIZED
    async with service(group, "X", "qsg.v1.Peer") as stream:
        await stream.send(encode(_P.PEER_HELLO, _P.Hello(member="Y", incarnation=1, group=GROUP)))
        await answer(stream, _P.PEER_HELLO)
        for number, values in enumerate(
            (
                {},
                {"start": _P.StartChannel(channel="NO.SUCH")},
                {"cut_off": _P.CutOff(structure="nowhere", incarnation=1)},
                {"cut_off": _P.CutOff(structure="admin", incarnation=1)},
            ),
            start=1,
        ):
            await stream.send(encode(_P.PEER_REQUEST, _P.Request(id=number, **values)))  # type: ignore[arg-type]
            _, payload = await answer(stream, _P.PEER_REPLY)
            reply = _P.Reply.FromString(payload)
            assert reply.id == number
            assert reply.reason != Reason.UNEXPECTED_ERROR, (values, reply.detail)
        await stream.send(bytes([_P.PEER_REQUEST]) + b"\xff" * 9)
        _, payload = await answer(stream, _P.PEER_REPLY)
        assert _P.Reply.FromString(payload).reason == Reason.PROTOCOL_ERROR
    assert not group.logged(event="a peer's request failed")
    await flow.moves()


# Any bytes at any port


def doors(group: ConfiguredGroup) -> dict[str, str]:
    x, r = group.config("X"), group.config("R")
    return {
        "client": str(x["address"]),
        "group listener": str(x["group_listener"]),
        "local listener": str(x["local_listener"]),
        "client of R": str(r["address"]),
        "local listener of R": str(r["local_listener"]),
        "store": group.store_address,
    }


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes.fromhex("000000040000000000")
RAW = {
    "random": random.Random(2).randbytes(5_000),
    "zeros": bytes(100_000),
    "http/1.1": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "tls": bytes.fromhex("16030100a5010000a10303") + random.Random(3).randbytes(160),
    "preface and garbage": PREFACE + random.Random(4).randbytes(3_000),
    "huge http/2 frame": PREFACE + bytes.fromhex("ffffff000000000001") + bytes(50_000),
    "half a preface": PREFACE[:10],
}


async def test_raw_bytes_at_every_port(group: ConfiguredGroup, flow: Flow) -> None:
    async def one(address: str, data: bytes) -> None:
        host, _, port = address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            writer.write(data)
            async with asyncio.timeout(5):
                await writer.drain()
                writer.write_eof()
                await reader.read()
        except OSError:
            pass  # reset: as good an answer as there is below HTTP
        finally:
            writer.close()
            await asyncio.gather(writer.wait_closed(), return_exceptions=True)

    await asyncio.gather(*(one(address, data) for address in doors(group).values() for data in RAW.values()))
    await flow.moves()


async def test_unknown_services_and_methods(group: ConfiguredGroup, flow: Flow) -> None:
    for what, address in doors(group).items():
        async with grpc.aio.insecure_channel(address) as channel:
            for method in ("/qsg.v1.Nothing/Session", "/etcdserverpb.KV/Dance", "/", "/qsg.v1.Client/Session/more"):
                call = channel.stream_stream(method)()
                assert await call.code() is grpc.StatusCode.UNIMPLEMENTED, (what, method)
    for at in ("X", "R"):
        await eventually(partial(group.logged, at=at, event="no such service", method="/qsg.v1.Nothing/Session"), 3)
    await flow.moves()


async def test_the_wrong_service_at_each_port(group: ConfiguredGroup, flow: Flow) -> None:
    config = group.config("X")
    for address, name in (
        (config["address"], "qsg.v1.Channel"),
        (config["group_listener"], "qsg.v1.Client"),
        (config["local_listener"], "qsg.v1.Peer"),
        (group.addresses["R"], "qsg.v1.Peer"),
        (group.store_address, "qsg.v1.Client"),
    ):
        with pytest.raises(Unreachable, match="UNIMPLEMENTED"):
            await GrpcTransport().connect(str(address), name, timeout_s=3)
    await flow.moves()


async def test_a_frame_larger_than_any(group: ConfiguredGroup, flow: Flow) -> None:
    frame = bytes([0x04]) + bytes((129 << 20) - 1)
    for what, address in doors(group).items():
        if what == "store":
            continue
        async with grpc.aio.insecure_channel(address, options=[("grpc.max_send_message_length", -1)]) as channel:
            call = channel.stream_stream(
                "/qsg.v1.Client/Session" if "client" in what else "/qsg.v1.Channel/Session",
            )()
            await call.write(frame)
            assert await call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED, what
            assert "larger than max" in (await call.details()), what
    for at in ("X", "R"):
        for event in ("a connection without CONNECT has ended", "a stream without a bind has ended"):
            await eventually(partial(group.logged, at=at, event=event), 3, event)
    await flow.moves()


async def test_bad_calls_of_the_embedded_store(group: ConfiguredGroup, flow: Flow) -> None:
    async with grpc.aio.insecure_channel(group.store_address) as channel:
        for method in ("KV/Txn", "KV/Range", "KV/Put", "Lease/LeaseGrant"):
            call = channel.unary_unary(f"/etcdserverpb.{method}")
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await call(b"\xff" * 60, timeout=5)
            assert error.value.code() is not grpc.StatusCode.DEADLINE_EXCEEDED, method
        put = channel.unary_unary("/etcdserverpb.KV/Put")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await put(rpc_pb2.PutRequest(key=b"", value=b"x").SerializeToString(), timeout=5)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        with pytest.raises(grpc.aio.AioRpcError) as large:
            await put(rpc_pb2.PutRequest(key=b"k", value=bytes(40 << 20)).SerializeToString(), timeout=5)
        assert large.value.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED)
        watch = channel.stream_stream("/etcdserverpb.Watch/Watch")()
        await watch.write(b"\xff" * 60)
        assert await watch.code() is not grpc.StatusCode.OK
    await flow.moves()


# The initiator's socket

LOCAL_HEAD = struct.Struct(">BQ")


def local(kind: int, session: int, payload: Any = b"") -> bytes:
    return LOCAL_HEAD.pack(kind, session) + (payload if isinstance(payload, bytes) else payload.SerializeToString())


_L = initiator_pb2
SOCKET = {
    "empty": [b""],
    "short": [b"\x01\x02"],
    "unknown": [local(99, 0)],
    "garbage join": [local(_L.LOCAL_JOIN, 0, b"\xff" * 40)],
    "accept before join": [local(_L.LOCAL_ACCEPT, 1 << 63, _L.Accept(portal="group", address="nowhere"))],
    "another member": [local(_L.LOCAL_JOIN, 0, _L.Join(member="Y", process="evil", pid=1))],
    "no member": [local(_L.LOCAL_JOIN, 0, _L.Join(process="evil", pid=1))],
}


async def test_the_initiators_socket(group: ConfiguredGroup, flow: Flow) -> None:
    path = str(group.config("X")["socket"])
    for what, frames in SOCKET.items():
        stream = await connect_unix(path)
        for frame in frames:
            await stream.send(frame)
        ends = []
        with pytest.raises(Closed):
            async with asyncio.timeout(5):
                while True:
                    frame = await stream.receive()
                    if frame[0] == _L.LOCAL_END:
                        ends.append(_L.End.FromString(frame[LOCAL_HEAD.size :]))
        await stream.close()
        assert any(Reason(end.reason) in (Reason.PROTOCOL_ERROR, Reason.NOT_AUTHORIZED) and end.detail for end in ends), (what, ends)
        await eventually(is_logged(group, "X", ends[-1].detail[:40]), 3, what)
    await flow.moves()


async def test_raw_bytes_on_the_initiators_socket(group: ConfiguredGroup, flow: Flow) -> None:
    path = str(group.config("X")["socket"])
    for data in (b"\xff" * 100, struct.pack(">I", 129 << 20) + b"abc", b"GET / HTTP/1.1\r\n\r\n"):
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(data)
        async with asyncio.timeout(5):
            await asyncio.gather(reader.read(), return_exceptions=True)
        writer.close()
    await eventually(lambda: len(group.logged(at="X", event="not our protocol, closed")) >= 3, 3)
    await flow.moves()
