"""The initiator joined to its queue manager: sessions, relaying, silence, bad bytes, and the end of either process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import pytest

from qsg.initiator import mca
from qsg.initiator.resolving import resolve_host
from qsg.manager.link import InboundSession, Session, SessionFailed
from qsg.pb import channel_pb2 as pb
from qsg.pb import initiator_pb2
from qsg.rules.reasons import Reason
from qsg.transport.codec import encode
from qsg.transport.contract import Closed
from qsg.transport.memory import MemoryNetwork
from qsg.transport.mux import WINDOW
from support.members import Group, group
from support.pair import Pair, pair

SERVICE = "qsg.v1.Channel"


@dataclass
class Two:
    """Member X opens sessions, member R accepts them: BIND is answered with BOUND, PING with PONG; then `script` has the session."""

    network: MemoryNetwork
    x: Pair
    r: Pair
    accepted: asyncio.Queue[InboundSession] = field(default_factory=asyncio.Queue)
    refuse: pb.Refused | None = None
    done: asyncio.Event = field(default_factory=asyncio.Event)
    pings: list[pb.Ping] = field(default_factory=list)
    pong: Callable[[bytes], bytes] = bytes

    async def accept(self, session: InboundSession) -> None:
        kind, payload = await session.receive()
        if self.refuse is not None:
            await session.refuse(self.refuse)
            return
        if kind == pb.FRAME_PING:
            self.pings.append(pb.Ping.FromString(payload))
            await session.send(pb.FRAME_PONG, self.pong(payload))
            return
        bind = pb.Bind.FromString(payload)
        await session.send(pb.FRAME_BOUND, pb.Bound(receiver="R", member=session.portal, parameters=pb.Parameters(heartbeat_ms=bind.epoch)))
        await self.accepted.put(session)
        await self.done.wait()

    async def open(self, *addresses: str, ping: bool = False, ping_bytes: int = 0, query: bool = False) -> Session:
        bind = pb.Bind(channel="CH", sender="X", stream=b"s", epoch=100, instance=1)
        order = initiator_pb2.Open(
            channel="CH",
            addresses=addresses or ("R:1414",),
            bind=bind,
            silence_ms=300,
            connect_timeout_ms=200,
            heartbeat_ms=100,
            ping=ping,
            ping_bytes=ping_bytes,
            query=query,
        )
        return await self.x.link.open(order)


@pytest.fixture
async def members() -> AsyncIterator[Group]:
    async with group("admin") as made:
        yield made


@pytest.fixture
async def two(members: Group) -> AsyncIterator[Two]:
    network = MemoryNetwork()
    pairs = []
    for name in ("X", "R"):
        member = await members.member(name)
        pairs.append(await pair(name, network, member.structures["private"], member.world))
    made = Two(network, pairs[0], pairs[1])
    made.r.link.on_accept = made.accept
    yield made
    made.done.set()
    for one in pairs:
        await one.close()


async def test_a_session_relays_both_ways(two: Two) -> None:
    session = await two.open()
    inbound = await two.accepted.get()
    assert (session.bound.receiver, session.address, inbound.portal) == ("R", "R:1414", "local")
    assert session.initiator == two.x.link.initiator > 0
    for number in range(20):
        await session.send(pb.FRAME_BATCH, pb.Batch(number=number))
    numbers = [pb.Batch.FromString((await inbound.receive())[1]).number for _ in range(20)]
    assert numbers == list(range(20))
    await inbound.send(pb.FRAME_CONFIRM, pb.Confirm(number=7))
    kind, payload = await session.receive()
    assert kind == pb.FRAME_CONFIRM and pb.Confirm.FromString(payload).number == 7
    await session.close(Reason.NONE, "done")
    with pytest.raises(SessionFailed) as ended:
        await inbound.receive()
    assert (ended.value.reason, ended.value.detail) == (Reason.PARTNER_CLOSED, "done")


async def test_addresses_are_tried_in_turn_and_aliases_resolved(two: Two) -> None:
    assert (await two.open("gone:1", "r.example:1414")).address == "R:1414"
    assert (await two.accepted.get()).portal == "local"
    assert (await two.open("R:1415")).address == "R:1415"
    assert (await two.accepted.get()).portal == "group"


async def test_a_stream_connected_ahead_is_used_by_the_next_session(two: Two) -> None:
    await two.x.link.prepare(initiator_pb2.Open(channel="CH", addresses=("gone:1", "R:1414"), connect_timeout_ms=200, prepare=True))
    streams = two.network._streams.copy()
    assert await two.open("R:1414")
    assert (await two.accepted.get()).portal == "local"
    assert two.network._streams == streams, "no other was connected"
    assert await two.open("R:1414")
    assert len(two.network._streams) == len(streams) + 2


async def test_a_stream_connected_ahead_that_broke_costs_a_new_connection(two: Two) -> None:
    order = initiator_pb2.Open(channel="CH", addresses=("R:1414",), connect_timeout_ms=200, prepare=True)
    await two.x.link.prepare(order)
    two.network.reset("X", "R")
    assert (await two.open("R:1414")).bound.receiver == "R"
    await two.accepted.get()


async def test_streams_connected_ahead_are_not_held_for_long(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mca, "READY_S", 0.05)
    before = two.network._streams.copy()
    order = initiator_pb2.Open(channel="CH", addresses=("R:1414",), connect_timeout_ms=200, prepare=True)
    for _ in range(3):
        await two.x.link.prepare(order)
    assert len(two.network._streams) > len(before)
    await asyncio.sleep(0.1)
    assert two.network._streams == before
    with pytest.raises(SessionFailed) as failed:
        await two.x.link.prepare(initiator_pb2.Open(channel="CH", addresses=("gone:1",), connect_timeout_ms=200, prepare=True))
    assert failed.value.reason is Reason.HOST_UNREACHABLE


async def test_nobody_there(two: Two) -> None:
    with pytest.raises(SessionFailed) as failed:
        await two.open("gone:1", "away:2")
    assert failed.value.reason is Reason.HOST_UNREACHABLE
    assert "gone:1" in failed.value.detail and "away:2" in failed.value.detail


async def test_a_refusal_reaches_the_queue_manager_with_the_epoch_seen(two: Two) -> None:
    two.refuse = pb.Refused(reason=int(Reason.EPOCH_TOO_LOW), detail="old", epoch_seen=7, instance_seen=3)
    with pytest.raises(SessionFailed) as failed:
        await two.open("R:1414", "R:1415")
    assert (failed.value.reason, failed.value.epoch_seen, failed.value.instance_seen) == (Reason.EPOCH_TOO_LOW, 7, 3)


async def test_ping_and_query(two: Two) -> None:
    session = await two.open(ping=True)
    assert session.address == "R:1414" and not session.bound.receiver
    answered = await two.open(query=True)
    assert answered.bound.receiver == "R"
    with pytest.raises(SessionFailed):
        await answered.receive()


@pytest.mark.parametrize(("asked", "sent"), [(0, 16), (16, 16), (1000, 1000), (32_768, 32_768), (4_000_000_000, 32_768)])
async def test_a_ping_has_the_bytes_asked_for_and_all_come_back(two: Two, asked: int, sent: int) -> None:
    assert (await two.open(ping=True, ping_bytes=asked)).ping_bytes == sent
    (ping,) = two.pings
    assert (len(ping.data), ping.channel, ping.sender) == (sent, "CH", "X")


@pytest.mark.parametrize(
    ("pong", "problem"),
    [
        (lambda _: pb.Ping(channel="CH").SerializeToString(), "1000 bytes were sent, 0 came back"),
        (lambda payload: pb.Ping(data=pb.Ping.FromString(payload).data[:-1]).SerializeToString(), "1000 bytes were sent, 999 came back"),
        (lambda _: pb.Ping(data=bytes(1000)).SerializeToString(), "1000 came back, others"),
    ],
    ids=["none", "cut", "changed"],
)
async def test_a_ping_is_not_answered_by_other_bytes(two: Two, pong: Callable[[bytes], bytes], problem: str) -> None:
    two.pong = pong
    with pytest.raises(SessionFailed, match=problem) as failed:
        await two.open(ping=True, ping_bytes=1000)
    assert failed.value.reason is Reason.PROTOCOL_ERROR


async def test_heartbeats_keep_an_idle_session_and_silence_ends_it(two: Two) -> None:
    session = await two.open()
    inbound = await two.accepted.get()
    await asyncio.sleep(0.8)
    assert not session.over and not inbound.over
    two.network.cut("X", "R")
    with pytest.raises(SessionFailed) as ended:
        await asyncio.wait_for(session.receive(), 2)
    assert ended.value.reason is Reason.PARTNER_SILENT


async def test_a_broken_stream_ends_the_session_at_once(two: Two) -> None:
    session = await two.open()
    inbound = await two.accepted.get()
    two.network.reset("X", "R")
    for end in (session, inbound):
        with pytest.raises(SessionFailed) as ended:
            await asyncio.wait_for(end.receive(), 0.2)
        assert ended.value.reason is Reason.PARTNER_CLOSED


async def test_a_killed_initiator_is_noticed_at_once_and_another_joins(two: Two) -> None:
    session = await two.open()
    old = two.x.link.initiator
    await two.x.stop_initiator()
    with pytest.raises(SessionFailed) as ended:
        await asyncio.wait_for(session.receive(), 0.2)
    assert ended.value.reason is Reason.NO_INITIATOR
    assert [initiator for initiator, _ in two.x.lost] == [old] and not two.x.link.joined
    assert two.x.killed == []
    with pytest.raises(SessionFailed) as failed:
        await two.open()
    assert failed.value.reason is Reason.NO_INITIATOR
    await two.x.link.settled()
    assert two.x.link.cell.mod_revision > old
    await two.x.start_initiator()
    assert two.x.link.initiator > two.x.link.cell.create_revision > 0
    assert (await two.open()).bound.receiver == "R"


async def test_a_silent_initiator_is_ended_by_pid(two: Two) -> None:
    """Interleaving H4a: its socket stays open, and its queue manager is fine; without its heartbeats it is killed."""
    session = await two.open()
    two.network.cut("X", "X-qm")
    with pytest.raises(SessionFailed) as ended:
        await asyncio.wait_for(session.receive(), 3)
    assert ended.value.reason is Reason.NO_INITIATOR
    assert two.x.killed == [4711]


async def test_an_initiator_without_its_queue_manager_closes_sessions_and_refuses(two: Two) -> None:
    session = await two.open()
    await two.r.link.close()
    await two.r.listener.close()
    with pytest.raises(SessionFailed) as ended:
        await asyncio.wait_for(session.receive(), 0.3)
    assert ended.value.reason is Reason.PARTNER_CLOSED
    with pytest.raises(SessionFailed) as refused:
        await two.open()
    assert refused.value.reason is Reason.Q_MGR_NOT_AVAILABLE


async def test_a_queue_manager_that_is_silent_loses_its_sessions_and_gets_the_initiator_back(two: Two) -> None:
    """Interleaving H4b: the initiator would go on answering the partner; without heartbeats it closes its sessions."""
    session = await two.open()
    two.network.cut("R", "R-qm")
    with pytest.raises(SessionFailed):
        await asyncio.wait_for(session.receive(), 3)
    assert not two.r.initiator.joined.is_set()
    two.network.heal("R", "R-qm")
    await asyncio.wait_for(two.r.initiator.joined.wait(), 3)
    assert (await two.open()).bound.receiver == "R"


@pytest.mark.parametrize(
    "frame", [b"", b"\x63abc", encode(pb.FRAME_BATCH, b""), bytes([pb.FRAME_BIND]) + b"\xff\xff\xff", encode(pb.FRAME_BIND, bytes(200_000))]
)
async def test_bad_first_bytes_are_refused_and_harm_nothing(two: Two, frame: bytes) -> None:
    session = await two.open()
    stream = await two.network.transport("stranger").connect("R:1414", SERVICE)
    await stream.send(frame)
    answer = await asyncio.wait_for(stream.receive(), 1)
    assert answer[0] == pb.FRAME_REFUSED and pb.Refused.FromString(answer[1:]).reason == Reason.PROTOCOL_ERROR
    with pytest.raises(Closed):
        await asyncio.wait_for(stream.receive(), 1)
    assert not session.over


async def test_bad_bytes_in_a_session_end_only_that_session(two: Two) -> None:
    session = await two.open()
    await two.accepted.get()
    stream = await two.network.transport("stranger").connect("R:1414", SERVICE)
    await stream.send(encode(pb.FRAME_BIND, pb.Bind(channel="CH", epoch=100)))
    assert (await stream.receive())[0] == pb.FRAME_BOUND
    inbound = await two.accepted.get()
    await stream.send(encode(pb.FRAME_CONFIRM, b""))
    with pytest.raises(SessionFailed) as ended:
        await inbound.receive()
    assert ended.value.reason is Reason.PROTOCOL_ERROR
    assert (await asyncio.wait_for(stream.receive(), 1))[0] == pb.FRAME_REFUSED
    assert not session.over


async def test_a_session_that_takes_nothing_holds_up_no_other(two: Two) -> None:
    slow, slow_there = await two.open(), await two.accepted.get()
    quick, quick_there = await two.open(), await two.accepted.get()
    big = bytes(256 << 10)
    sent = 0

    async def pour() -> None:
        nonlocal sent
        while True:
            await slow.send(pb.FRAME_BATCH, big)
            sent += len(big)

    pouring = asyncio.create_task(pour())
    await asyncio.sleep(0.5)
    assert WINDOW < sent < 6 * WINDOW
    stuck = sent
    await quick.send(pb.FRAME_BATCH, b"quick")
    assert await asyncio.wait_for(quick_there.receive(), 0.5) == (pb.FRAME_BATCH, b"quick")
    await asyncio.sleep(0.5)
    assert not slow.over and sent == stuck, "waiting for room is not silence"
    for _ in range(40):
        await slow_there.receive()
    await asyncio.sleep(0.05)
    assert sent > stuck
    pouring.cancel()
    await asyncio.gather(pouring, return_exceptions=True)


async def test_giving_up_an_open_frees_the_session(two: Two) -> None:
    two.network.cut("X", "R")
    opening = asyncio.create_task(two.open())
    await asyncio.sleep(0.05)
    opening.cancel()
    await asyncio.gather(opening, return_exceptions=True)
    await asyncio.sleep(0.05)
    assert opening.cancelled()
    assert not two.x.initiator._sessions


async def test_an_address_that_did_not_answer_a_bind_is_tried_last(two: Two) -> None:
    async def mute(stream: object) -> None:
        await asyncio.sleep(5)

    listener = await two.network.transport("M").listen("M:1414", {SERVICE: mute})
    assert (await two.open("M:1414", "R:1414")).address == "R:1414"
    started = asyncio.get_running_loop().time()
    assert (await two.open("M:1414", "R:1414")).address == "R:1414"
    assert asyncio.get_running_loop().time() - started < 0.2
    await listener.close()


async def test_all_addresses_behind_a_name_are_tried(two: Two) -> None:
    async def resolve(address: str) -> list[str]:
        return {"group.example:1414": ["gone:1414", "R:1414"]}.get(address, [address])

    two.x.initiator._agents._resolve = resolve
    assert (await two.open("group.example:1414")).address == "R:1414"


async def test_names_are_resolved_to_all_their_addresses() -> None:
    assert await resolve_host("127.0.0.1:1414") == ["127.0.0.1:1414"]
    assert await resolve_host("[::1]:1414") == ["[::1]:1414"]
    assert await resolve_host("no-such-host.invalid:1414") == ["no-such-host.invalid:1414"]
