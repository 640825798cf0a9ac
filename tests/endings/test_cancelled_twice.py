"""Handlers that are cancelled twice, or just as they end by themselves: nothing of them is left, whatever the moment."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from qsg.manager.inflow import Inflow
from qsg.manager.link import Session
from qsg.manager.receiving import Receiver
from qsg.pb import channel_pb2, initiator_pb2
from qsg.pb import client_pb2 as cb
from qsg.pb import records_pb2 as pb
from qsg.rules import keys
from qsg.rules.definitions import Channel
from qsg.rules.negotiate import offer
from qsg.store.contract import Unavailable, get_prefix
from qsg.transport.codec import encode
from qsg.transport.contract import Stream
from qsg.transport.grpc_ import GrpcTransport
from support.cancelling import cancelled_twice, ticks
from support.channel_pair import STREAM, Rig, rig
from support.client_group import ClientGroup
from support.fake_backend import FakeWork

MOMENTS = range(0, 12)


async def until(condition: object, timeout_s: float = 3.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # type: ignore[operator]  # noqa: ASYNC110
            await asyncio.sleep(0.002)


# Client connections


@pytest.fixture
async def clients() -> AsyncIterator[ClientGroup]:
    async with ClientGroup("X") as group:
        yield group


async def _holding(clients: ClientGroup) -> Stream:
    """A raw client that has got one message in a unit of work, which takes some steps to be backed out."""
    clients.durable.queues["Q"].append((pb.Message(payload=b"kept"), 0))
    stream = await clients.network.transport("app").connect("X:1416", "qsg.v1.Client")
    await stream.send(encode(cb.CLIENT_CONNECT, cb.Connect(application="raw")))
    await stream.send(encode(cb.CLIENT_REQUEST, cb.ClientRequest(id=1, get=cb.Get(queue="Q", messages_max=1, unit=1))))
    while (await stream.receive())[0] != cb.CLIENT_RESPONSE:
        pass
    assert clients.payloads("Q") == []
    return stream


@pytest.mark.parametrize("between", MOMENTS)
@pytest.mark.parametrize("ending", [False, True])
async def test_units_of_a_connection_are_backed_out(
    clients: ClientGroup, monkeypatch: pytest.MonkeyPatch, between: int, ending: bool
) -> None:
    backout = FakeWork.backout

    async def slowly(work: FakeWork) -> None:
        await ticks(3)
        await backout(work)

    monkeypatch.setattr(FakeWork, "backout", slowly)
    stream = await _holding(clients)
    (handler,) = clients.services["X"]._tasks
    if ending:
        await stream.close()
        await ticks(between)
        handler.cancel()
        await asyncio.wait([handler])
    else:
        await cancelled_twice(handler, between)
    assert clients.payloads("Q") == [b"kept"]
    assert not clients.services["X"].connections


@pytest.mark.parametrize("between", MOMENTS)
async def test_a_unit_is_given_back_whenever_the_service_closes_under_a_request_of_it(clients: ClientGroup, between: int) -> None:
    stream = await _holding(clients)
    await stream.send(encode(cb.CLIENT_REQUEST, cb.ClientRequest(id=2, get=cb.Get(queue="EMPTY", messages_max=1, wait_ms=60_000, unit=1))))
    await ticks(between)
    await clients.services["X"].close()
    assert clients.payloads("Q") == [b"kept"]


async def test_a_backout_is_tried_until_the_structure_answers(clients: ClientGroup, monkeypatch: pytest.MonkeyPatch) -> None:
    """Claims of a living incarnation are nobody else's to give back."""
    backout, failures = FakeWork.backout, [Unavailable("away")] * 2

    async def failing(work: FakeWork) -> None:
        if failures:
            raise failures.pop()
        await backout(work)

    monkeypatch.setattr(FakeWork, "backout", failing)
    await (await _holding(clients)).close()
    await until(lambda: clients.payloads("Q") == [b"kept"])
    assert not failures


async def test_a_commit_that_failed_for_the_store_is_backed_out(clients: ClientGroup, monkeypatch: pytest.MonkeyPatch) -> None:
    async def failing(work: FakeWork, producer: object) -> None:
        raise Unavailable("away")

    monkeypatch.setattr(FakeWork, "commit", failing)
    stream = await _holding(clients)
    await stream.send(encode(cb.CLIENT_REQUEST, cb.ClientRequest(id=2, end_unit=cb.EndUnit(unit=1, commit=True))))
    await until(lambda: clients.payloads("Q") == [b"kept"])
    await stream.close()


async def test_a_service_that_closes_does_not_wait_for_a_store_that_is_away(clients: ClientGroup, monkeypatch: pytest.MonkeyPatch) -> None:
    async def hanging(work: FakeWork) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(FakeWork, "backout", hanging)
    monkeypatch.setattr("qsg.manager.client_backout.BACKOUT_S", 0.05)
    await _holding(clients)
    async with asyncio.timeout(2):
        await clients.services["X"].close()
    assert not clients.services["X"].connections


# The client library


@pytest.mark.parametrize("between", MOMENTS)
@pytest.mark.parametrize("how", ["backout", "commit"])
async def test_a_unit_whose_end_is_cancelled_is_not_left_at_the_member(clients: ClientGroup, how: str, between: int) -> None:
    clients.durable.queues["Q"].append((pb.Message(payload=b"kept"), 0))
    async with clients.connect() as queue_manager:
        unit = queue_manager.unit()
        await unit.get("Q")
        (connection,) = clients.services["X"].connections
        ending = asyncio.ensure_future(getattr(unit, how)())
        await ticks(between)
        ending.cancel()
        await asyncio.wait([ending])
        if between:
            await until(lambda: not connection._units)
            assert clients.payloads("Q") == [b"kept"] or how == "commit"
    if not between:  # it was not begun: it ends with its connection
        await until(lambda: clients.payloads("Q") == [b"kept"])


async def test_a_unit_whose_commit_could_not_be_sent_is_backed_out(clients: ClientGroup) -> None:
    """The commit's producer is refused: the application hears *backed out*, and it must be so while its connection lives."""
    clients.durable.queues["Q"].append((pb.Message(payload=b"kept"), 0))
    async with clients.connect() as queue_manager:
        unit = queue_manager.unit()
        await unit.get("Q")
        clients.durable.missing.add("Q")
        with pytest.raises(Exception, match=r"backed out|not sent"):
            await unit.commit()
        await until(lambda: clients.payloads("Q") == [b"kept"])


# Inbound sessions


@pytest.fixture
async def two() -> AsyncIterator[Rig]:
    async with rig() as made:
        yield made


def _bind(instance: int = 1) -> channel_pb2.Bind:
    bind = channel_pb2.Bind(channel="X.TO.R", sender="QSG", stream=STREAM, epoch=1, instance=instance)
    bind.parameters.CopyFrom(offer(Channel(name="X.TO.R", type="receiver")))
    return bind


async def _bound(two: Rig, instance: int = 1) -> Session:
    order = initiator_pb2.Open(channel="X.TO.R", addresses=["R:1414"], bind=_bind(instance), silence_ms=1500)
    return await two.xp.link.open(order)


@pytest.mark.parametrize("between", MOMENTS)
async def test_a_session_that_is_cut_off_while_it_replaces_another_is_not_registered(
    two: Rig, monkeypatch: pytest.MonkeyPatch, between: int
) -> None:
    await _bound(two)
    displace, reached = Receiver.displace, asyncio.Event()

    async def slowly(receiver: Receiver) -> None:
        reached.set()
        await ticks(4)
        await displace(receiver)

    monkeypatch.setattr(Receiver, "displace", slowly)
    opening = asyncio.ensure_future(_bound(two, instance=2))
    await reached.wait()
    (newer,) = two.receivers.active
    assert newer._task is not None
    await ticks(between)
    newer._task.cancel()
    await asyncio.wait([newer._task])
    assert newer not in two.receivers.active
    opening.cancel()
    await asyncio.gather(opening, return_exceptions=True)


@pytest.mark.parametrize("between", MOMENTS)
async def test_what_a_session_has_staged_and_reserved_goes_with_it(two: Rig, between: int) -> None:
    session = await _bound(two)
    part = channel_pb2.Part(stage=b"s", index=0, chunks=9, data=bytes(1 << 20), destination=pb.Destination(queue="FULL", queue_manager="R"))
    await session.send(channel_pb2.FRAME_PART, part)
    private = two.r.structures["private"]

    async def left() -> int:
        _, (markers, chunks) = await private.read(get_prefix(keys.stages("FULL")), get_prefix(keys.queue("FULL") + b"x/"))
        return len(markers.kvs) + len(chunks.kvs)

    async with asyncio.timeout(3):
        while await left() < 5:  # noqa: ASYNC110
            await asyncio.sleep(0.002)
    (receiver,) = two.receivers.active
    assert receiver._task is not None and isinstance(receiver._inflow, Inflow)
    await cancelled_twice(receiver._task, between)
    assert await left() == 0
    assert not any(estimate.under_way for estimate in two.placer._depths.values())


# Senders


@pytest.mark.parametrize("moment", range(0, 40, 2))
async def test_a_sender_that_is_cancelled_while_it_opens_leaves_no_session(two: Rig, moment: int) -> None:
    sender = await two.sender()
    running = two.start(sender)
    await ticks(moment)
    await cancelled_twice(running, moment % 5)
    current = two.xp.link._current
    assert current is not None
    await until(lambda: not current.mux.sessions and not two.receivers.active)


async def test_a_session_that_opens_as_its_sender_is_cancelled_is_ended(two: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    sender = await two.sender()
    opened: list[Session] = []
    link_open, held = two.xp.link.open, asyncio.Event()

    async def open_(order: initiator_pb2.Open) -> Session:
        opened.append(await link_open(order))
        running.cancel()  # the session is there, its sender has not been told yet
        held.set()
        return opened[0]

    monkeypatch.setattr(two.xp.link, "open", open_)
    running = two.start(sender)
    await held.wait()
    await asyncio.wait([running])
    await ticks(2)
    assert opened[0].over


# Relays


@pytest.mark.parametrize("between", MOMENTS)
async def test_a_relay_that_is_cancelled_twice_closes_its_stream(two: Rig, between: int) -> None:
    await _bound(two)
    for initiator in (two.xp.initiator, two.rp.initiator):
        for task in [*initiator._sessions, *initiator._accepted]:
            await cancelled_twice(task, between)
    assert not [s for s in two.network._streams if {s.host, s.other_host} == {"X", "R"}]
    for link in (two.xp.link, two.rp.link):
        await until(lambda link=link: not link._current.mux.sessions)


# The queue manager's side of its initiator


async def test_an_initiator_whose_record_cannot_be_written_may_join_again(two: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it would stay connected and never be welcomed."""
    structure, failures = two.x.structures["private"], [Unavailable("away")]
    commit = structure.commit

    async def failing(unit: object, **where: object) -> object:
        if getattr(unit, "label", "") == "initiator" and failures and failing_now:
            raise failures.pop()
        return await commit(unit, **where)  # type: ignore[arg-type]

    failing_now = False
    monkeypatch.setattr(structure, "commit", failing)
    await two.xp.stop_initiator()
    await two.xp.link.settled()
    failing_now = True
    async with asyncio.timeout(5):
        await two.xp.start_initiator()
    assert not failures and two.xp.link.joined


# gRPC streams


@pytest.mark.real_time
@pytest.mark.parametrize("between", [*range(0, 8), 20, 60])
async def test_a_grpc_stream_whose_closing_is_cancelled_is_closed(between: int) -> None:
    transport = GrpcTransport()
    served: list[Stream] = []

    async def hold(stream: Stream) -> None:
        served.append(stream)
        with contextlib.suppress(Exception):
            await stream.receive()

    listener = await transport.listen("127.0.0.1:0", {"qsg.v1.Channel": hold})
    try:
        stream = await transport.connect(listener.address, "qsg.v1.Channel", timeout_s=5)
        closing = asyncio.ensure_future(stream.close())
        await ticks(1)
        await cancelled_twice(closing, between)
        assert all(task.done() for task in stream._tasks)
        await until(lambda: served and served[0].ended.is_set())  # type: ignore[attr-defined]
        await until(lambda: not listener._service.tasks)
    finally:
        await listener.close()
