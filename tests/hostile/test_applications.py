"""Bad frames and requests at the ports of applications and peers: each is answered with a reason, and the traffic beside goes on."""

from __future__ import annotations

import random
from typing import Any

import pytest

from qsg.pb import client_pb2, peer_pb2
from qsg.pb import records_pb2 as pb
from qsg.process.local import GROUP
from qsg.rules.reasons import Reason
from qsg.transport.codec import encode
from qsg.transport.contract import Closed
from support.group import ConfiguredGroup, Flow, eventually
from support.hostile import TARGET, answer, is_logged, service

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.processes]

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
            await eventually(is_logged(group, "X", connected_.detail[:40]), what=what)
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
            await eventually(is_logged(group, "X", response.detail[:40]), what=what)
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
        {Reason.OPTIONS_ERROR, Reason.MD_ERROR},
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
            await eventually(is_logged(group, "X", reply.detail[:40]), what=what)
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
