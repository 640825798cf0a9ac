"""The client service against raw frames: bad bytes, limits, order, ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from unittest import mock

import pytest

import qsg
from qsg.client.link import LinkOptions
from qsg.manager.client_connection import Connection
from qsg.manager.clients import SERVICE, ClientLimits
from qsg.pb import client_pb2 as pb
from qsg.pb import records_pb2 as records
from qsg.rules.reasons import Reason, Refusal
from qsg.rules.unit import Fenced, OutcomeUnknown
from qsg.store.contract import Unavailable
from qsg.transport.codec import encode
from qsg.transport.contract import Closed, Stream
from qsg.transport.memory import MemoryNetwork, MemoryStream
from support.client_group import ClientGroup
from support.group import eventually


@pytest.fixture
async def group() -> AsyncIterator[ClientGroup]:
    async with ClientGroup("X", limits=ClientLimits(requests=4, bytes=10_000, units=2)) as group:
        yield group


async def raw(group: ClientGroup) -> Stream:
    return await group.network.transport("app").connect("X:1416", SERVICE)


async def connected(group: ClientGroup) -> Stream:
    stream = await raw(group)
    await stream.send(encode(pb.CLIENT_CONNECT, pb.Connect(application="raw", heartbeat_ms=5_000)))
    answer = pb.Connected.FromString((await stream.receive())[1:])
    assert answer.reason == 0
    return stream


async def answer_to(stream: Stream, request: pb.ClientRequest) -> pb.ClientResponse:
    await stream.send(encode(pb.CLIENT_REQUEST, request))
    return await next_answer(stream)


async def next_answer(stream: Stream) -> pb.ClientResponse:
    while (frame := await stream.receive())[0] != pb.CLIENT_RESPONSE:
        pass
    return pb.ClientResponse.FromString(frame[1:])


def put(number: int, size: int = 1, unit: int = 0, queue: str = "Q") -> pb.ClientRequest:
    return pb.ClientRequest(id=number, put=pb.Put(queue=queue, messages=[records.Message(payload=b"%d" % number * size)], unit=unit))


@pytest.mark.parametrize("frame", [b"", b"\x00", b"\x03", b"\x01\xff\xff", b"GET / HTTP/1.1\r\n\r\n", bytes(range(256))])
async def test_bad_bytes_instead_of_connect(group: ClientGroup, frame: bytes) -> None:
    stream = await raw(group)
    await stream.send(frame)
    answer = await stream.receive()

    assert answer[0] == pb.CLIENT_CONNECTED
    assert pb.Connected.FromString(answer[1:]).reason == Reason.PROTOCOL_ERROR
    with pytest.raises(Closed):
        await stream.receive()


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\x00",
        b"\x07abc",
        b"\x03\xff\xff",
        b"\x03",
        encode(pb.CLIENT_REQUEST, pb.ClientRequest(id=1)),
        encode(pb.CLIENT_REQUEST, pb.ClientRequest(get=pb.Get(queue="Q"))),
        encode(pb.CLIENT_CONNECT, pb.Connect()),
    ],
)
async def test_bad_bytes_later(group: ClientGroup, frame: bytes) -> None:
    stream = await connected(group)
    await stream.send(frame)

    assert (await next_answer(stream)).reason == Reason.PROTOCOL_ERROR
    with pytest.raises(Closed):
        await stream.receive()
    await asyncio.sleep(0)
    other = await connected(group)
    assert (await answer_to(other, put(1))).reason == 0


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (pb.ClientRequest(id=1, put=pb.Put(queue="Q")), Reason.OPTIONS_ERROR),
        (pb.ClientRequest(id=1, put=pb.Put(queue="Q", messages=[records.Message(message_id=b"short")])), Reason.MD_ERROR),
        (pb.ClientRequest(id=1, put=pb.Put(queue="Q", messages=[records.Message(priority=10)])), Reason.PRIORITY_ERROR),
        (pb.ClientRequest(id=1, put=pb.Put(queue="Q", messages=[records.Message()], producer_number=1)), Reason.OPTIONS_ERROR),
        (pb.ClientRequest(id=1, put=pb.Put(queue="Q", messages=[records.Message()], producer_number=1, unit=1)), Reason.OPTIONS_ERROR),
        (pb.ClientRequest(id=1, get=pb.Get(queue="Q")), Reason.OPTIONS_ERROR),
        (pb.ClientRequest(id=1, get=pb.Get(queue="Q", messages_max=1, message_id=b"x")), Reason.MD_ERROR),
        (pb.ClientRequest(id=1, open_producer=pb.OpenProducer(queue="Q")), Reason.OPTIONS_ERROR),
        (pb.ClientRequest(id=1, command=pb.Command(name="start", arguments="{")), Reason.OPTIONS_ERROR),
        (pb.ClientRequest(id=1, command=pb.Command(name="start", arguments="[]")), Reason.OPTIONS_ERROR),
        (pb.ClientRequest(id=1, end_unit=pb.EndUnit(unit=9, commit=True)), Reason.BACKED_OUT),
        (pb.ClientRequest(id=1, end_unit=pb.EndUnit(unit=9)), Reason.NONE),
    ],
)
async def test_bad_requests_are_refused_and_the_connection_lives(group: ClientGroup, request_: pb.ClientRequest, reason: Reason) -> None:
    stream = await connected(group)

    assert (await answer_to(stream, request_)).reason == reason
    assert (await answer_to(stream, put(2))).reason == 0


async def test_application_may_not_set_what_belongs_to_the_queue_manager(group: ClientGroup) -> None:
    stream = await connected(group)
    forged = records.Message(put_at_ms=5, put_application="other", hops=3, dead_letter=records.DeadLetter(reason=1), origin="QM9")
    await answer_to(stream, pb.ClientRequest(id=1, put=pb.Put(queue="Q", messages=[forged])))
    (message, _) = group.durable.queues["Q"][0]

    assert (message.put_at_ms, message.put_application, message.hops, message.origin) == (1_000_000, "raw", 0, "")
    assert not message.HasField("dead_letter")


async def test_puts_of_a_queue_stay_in_order_however_long_one_takes(group: ClientGroup) -> None:
    slow = asyncio.Event()
    first = True

    async def gate(step: str, member: str) -> None:
        nonlocal first
        if step == "before put" and first:
            first = False
            await slow.wait()

    group.durable.gate = gate
    stream = await connected(group)
    for number in (1, 2, 3):
        await stream.send(encode(pb.CLIENT_REQUEST, put(number)))
    assert (await answer_to(stream, put(4, queue="OTHER"))).id == 4
    slow.set()

    assert [(await next_answer(stream)).id for _ in range(3)] == [1, 2, 3]
    assert group.payloads("Q") == [b"1", b"2", b"3"]


async def test_too_much_in_flight_waits(group: ClientGroup) -> None:
    slow = asyncio.Event()

    async def gate(step: str, member: str) -> None:
        if step == "before put":
            await slow.wait()

    group.durable.gate = gate
    stream = await connected(group)
    for number in range(1, 11):
        await stream.send(encode(pb.CLIENT_REQUEST, put(number, queue=f"Q{number}")))
    await asyncio.sleep(0.01)
    (connection,) = group.services["X"].connections
    assert connection._room.requests == 4
    slow.set()

    assert sorted([(await next_answer(stream)).id for _ in range(10)]) == list(range(1, 11))


async def test_one_large_put_has_room(group: ClientGroup) -> None:
    stream = await connected(group)

    assert (await answer_to(stream, put(1, size=50_000))).reason == 0


async def test_waiting_gets_do_not_use_up_the_room(group: ClientGroup) -> None:
    stream = await connected(group)
    for number in range(1, 20):
        await stream.send(encode(pb.CLIENT_REQUEST, pb.ClientRequest(id=number, get=pb.Get(queue="W", messages_max=1, wait_ms=60_000))))

    assert (await answer_to(stream, put(100))).id == 100


async def test_cancel_ends_a_waiting_get(group: ClientGroup) -> None:
    stream = await connected(group)
    await stream.send(encode(pb.CLIENT_REQUEST, pb.ClientRequest(id=1, get=pb.Get(queue="W", messages_max=1, wait_ms=60_000))))
    answer = await answer_to(stream, pb.ClientRequest(id=2, cancel=pb.Cancel(request=1)))

    assert (answer.id, answer.reason) == (1, Reason.NO_MSG_AVAILABLE)


def get(number: int, unit: int = 0, wait_ms: int = 60_000) -> pb.ClientRequest:
    return pb.ClientRequest(id=number, get=pb.Get(queue="W", messages_max=1, wait_ms=wait_ms, unit=unit))


async def test_a_get_can_be_cancelled_however_many_requests_of_its_unit_stand_behind_it(group: ClientGroup) -> None:
    stream = await connected(group)
    behind = [*(put(number, unit=1) for number in range(2, 9)), get(9, unit=1, wait_ms=0), *(put(n, unit=1) for n in range(10, 13))]
    for request in (get(1, unit=1), *behind, put(13, queue="OTHER")):
        await stream.send(encode(pb.CLIENT_REQUEST, request))
    assert (await next_answer(stream)).id == 13, "others are not held up"
    async with asyncio.timeout(1):
        answer = await answer_to(stream, pb.ClientRequest(id=14, cancel=pb.Cancel(request=1)))
        assert (answer.id, answer.reason) == (1, Reason.NO_MSG_AVAILABLE)
        assert [(await next_answer(stream)).id for _ in behind] == [request.id for request in behind]
    (connection,) = group.services["X"].connections
    assert (connection._room.requests, connection._room.held, connection._room._bytes) == (0, 0, 0)


@pytest.mark.parametrize("size", [1, 6_000], ids=["requests", "bytes"])
async def test_what_stands_behind_a_get_is_bounded(group: ClientGroup, size: int) -> None:
    group.services["X"].limits = ClientLimits(requests=4, bytes=10_000, waiting_gets=8)
    stream = await connected(group)
    for request in (get(1, unit=1), *(put(number, size, unit=1) for number in range(2, 20))):
        await stream.send(encode(pb.CLIENT_REQUEST, request))
    await asyncio.sleep(0.1)
    (connection,) = group.services["X"].connections
    assert connection._room.held == (8 if size == 1 else 1)
    await stream.close()


async def test_number_of_units_is_bounded(group: ClientGroup) -> None:
    stream = await connected(group)
    answers = [(await answer_to(stream, put(number, unit=number))).reason for number in (1, 2, 3)]
    await answer_to(stream, pb.ClientRequest(id=4, end_unit=pb.EndUnit(unit=1, commit=True)))

    assert answers == [0, 0, Reason.HANDLE_NOT_AVAILABLE]
    assert (await answer_to(stream, put(5, unit=5))).reason == 0


async def test_a_call_that_did_nothing_begins_no_unit(group: ClientGroup) -> None:
    stream = await connected(group)
    for number in range(1, 9):
        found = await answer_to(stream, pb.ClientRequest(id=number, get=pb.Get(queue="Q", messages_max=1, unit=number)))
        assert found.reason == Reason.NO_MSG_AVAILABLE
    answers = [(await answer_to(stream, put(10 + number, unit=number))).reason for number in (1, 2)]
    assert answers == [0, 0], "two units have room"
    nothing = await answer_to(stream, pb.ClientRequest(id=20, get=pb.Get(queue="EMPTY", messages_max=1, unit=1)))
    assert nothing.reason == Reason.NO_MSG_AVAILABLE
    assert (await answer_to(stream, pb.ClientRequest(id=21, end_unit=pb.EndUnit(unit=1, commit=True)))).reason == 0, "it held a put"
    assert group.durable.commits == 1


async def test_a_unit_is_ended_at_the_member_when_something_may_be_in_it(group: ClientGroup) -> None:
    ends: list[int] = []
    end_unit = Connection._end_unit

    async def noted(connection: Connection, end: pb.EndUnit) -> None:
        ends.append(end.unit)
        await end_unit(connection, end)

    with mock.patch.object(Connection, "_end_unit", noted):
        async with group.connect() as application:
            for _ in range(3):  # nothing was there
                with pytest.raises(qsg.NoMessageAvailable):
                    async with application.unit() as unit:
                        await unit.get("Q")
            assert ends == []
            unit = application.unit()  # something was done
            await unit.put("Q", b"1")
            with pytest.raises(qsg.NoMessageAvailable):
                await unit.get("EMPTY")
            await unit.backout()
            assert len(ends) == 1
            unit = application.unit()  # a call that was given up
            waiting = asyncio.create_task(unit.get("Q", wait_ms=60_000))
            await asyncio.sleep(0.05)
            waiting.cancel()
            await asyncio.wait([waiting])
            await unit.backout()
            assert len(ends) == 2
            unit = application.unit()  # nobody knows what it did
            with mock.patch.object(group.backends["X"], "get", mock.AsyncMock(side_effect=OutcomeUnknown())):
                with pytest.raises(qsg.QsgError):
                    await unit.get("Q")
            await unit.backout()
            assert len(ends) == 3


@pytest.mark.parametrize(
    ("problem", "reason"),
    [
        (Fenced(), Reason.CONNECTION_BROKEN),
        (OutcomeUnknown(), Reason.CALL_INTERRUPTED),
        (RuntimeError("a bug"), Reason.CALL_INTERRUPTED),
    ],
)
async def test_what_went_wrong_is_told(group: ClientGroup, problem: Exception, reason: Reason) -> None:
    async def gate(step: str, member: str) -> None:
        raise problem

    group.durable.gate = gate
    stream = await connected(group)

    assert (await answer_to(stream, put(1))).reason == reason


async def test_a_refusal_that_no_text_can_carry_is_told(group: ClientGroup) -> None:
    unspeakable = mock.AsyncMock(side_effect=Refusal(Reason.CHANNEL_NOT_FOUND, "no channel \udcff"))  # as from a command line
    stream = await connected(group)
    with mock.patch.object(group.backends["X"], "command", unspeakable):
        for number in range(1, 7):  # more than there is room for
            answer = await answer_to(stream, pb.ClientRequest(id=number, command=pb.Command(name="start")))
            assert (answer.reason, answer.detail) == (Reason.CHANNEL_NOT_FOUND, "no channel \\udcff")

    assert (await answer_to(stream, put(9))).reason == 0


async def test_an_answer_that_cannot_be_sent_is_told(group: ClientGroup, monkeypatch: pytest.MonkeyPatch) -> None:
    send = MemoryStream.send

    async def sends(stream: MemoryStream, frame: bytes) -> None:
        if b"a large result" in frame:
            raise ValueError("more than a frame carries")
        await send(stream, frame)

    monkeypatch.setattr(MemoryStream, "send", sends)
    group.backends["X"].objects["queues"] = "a large result"
    stream = await connected(group)

    answer = await answer_to(stream, pb.ClientRequest(id=1, inquire=pb.Inquire(object="queues")))
    assert answer.reason == Reason.UNEXPECTED_ERROR
    assert "more than a frame carries" in answer.detail


@pytest.mark.parametrize("problem", [Unavailable("away"), RuntimeError("a bug")])
async def test_a_command_that_may_have_changed_something_is_not_told_as_refused(group: ClientGroup, problem: Exception) -> None:
    async def gate(step: str, member: str) -> None:
        raise problem

    group.durable.gate = gate
    async with group.connect() as application:
        for command in ("start", "define", "purge"):
            with pytest.raises(qsg.OutcomeUnknown):
                await application.command(command)
        for command in ("status", "ping"):
            with pytest.raises(qsg.QsgError) as raised:
                await application.command(command)
            assert raised.value.reason in (Reason.STRUCTURE_NOT_AVAILABLE, Reason.UNEXPECTED_ERROR)


async def test_a_put_under_way_is_finished_when_its_connection_ends(group: ClientGroup) -> None:
    slow = asyncio.Event()

    async def gate(step: str, member: str) -> None:
        await slow.wait()

    group.durable.gate = gate
    stream = await connected(group)
    await stream.send(encode(pb.CLIENT_REQUEST, put(1)))
    await asyncio.sleep(0.01)
    await stream.close()
    slow.set()
    await eventually(lambda: not group.services["X"].connections)

    assert group.payloads("Q") == [b"1"]


async def test_nothing_is_left_behind(group: ClientGroup) -> None:
    before = len(asyncio.all_tasks())
    for _ in range(50):
        stream = await connected(group)
        await stream.send(encode(pb.CLIENT_REQUEST, pb.ClientRequest(id=1, get=pb.Get(queue="W", messages_max=1, wait_ms=60_000))))
        await answer_to(stream, put(2, unit=7))
        await stream.close()
    await asyncio.sleep(0.05)

    assert not group.services["X"].connections
    assert len(asyncio.all_tasks()) == before


async def test_numbers_that_no_date_has_reach_an_application(group: ClientGroup) -> None:
    """A raw client may say any number: the message must not be lost with the application that gets it."""
    stream = await connected(group)
    odd = records.Message(payload=b"x", expires_at_ms=2**64 - 1)
    assert (await answer_to(stream, pb.ClientRequest(id=1, put=pb.Put(queue="Q", messages=[odd])))).reason == 0
    async with group.connect() as queue_manager:
        message = await queue_manager.get("Q")
    assert message.payload == b"x" and message.expires_at is not None and message.expires_at.year == 9999


@pytest.mark.parametrize(
    "answer",
    [pb.ClientResponse(id=1), pb.ClientResponse(id=1, message_ids=[b"1", b"2"]), pb.ClientResponse(id=1, result="{")],
)
async def test_an_answer_that_does_not_fit_is_an_error_of_the_library(answer: pb.ClientResponse) -> None:
    async def odd(stream: Stream) -> None:
        await stream.receive()
        await stream.send(encode(pb.CLIENT_CONNECTED, pb.Connected(member="X")))
        await stream.receive()
        await stream.send(encode(pb.CLIENT_RESPONSE, answer))
        await asyncio.sleep(0.2)

    network = MemoryNetwork()
    listener = await network.transport("X").listen("X:1416", {SERVICE: odd})
    async with qsg.connect(["X:1416"], transport=network.transport("app"), reconnect_s=0.1) as queue_manager:
        with pytest.raises(qsg.QsgError):
            await (queue_manager.command("status") if answer.result else queue_manager.put("Q", b"x"))
    await listener.close()


async def test_only_certificates_that_are_allowed_may_connect() -> None:
    async with ClientGroup("X", allowed=("orders-client",)) as group:
        options = LinkOptions(("X:1416",), connect_s=1)
        async with qsg.QueueManager(options, group.network.transport("app", identity="orders-client"), group.world) as qmgr:
            await qmgr.put("Q", b"")
        for identity in ("BANK", ""):
            with pytest.raises(qsg.NotAuthorized, match=f"certificate name '{identity}' is not allowed"):
                await qsg.QueueManager(options, group.network.transport(f"app {identity}", identity=identity), group.world).open()
