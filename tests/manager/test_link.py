"""The queue manager's side of the socket: who may join, what a new initiator replaces, what nonsense does; and over real sockets."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from qsg.initiator import Initiator
from qsg.manager.link import InboundSession, InitiatorLink, SessionFailed
from qsg.pb import channel_pb2, initiator_pb2, records_pb2
from qsg.rules.reasons import Reason
from qsg.rules.unit import Committed, Unit
from qsg.transport.contract import Closed, Stream
from qsg.transport.grpc_ import GrpcTransport
from qsg.transport.memory import MemoryNetwork
from qsg.transport.mux import LinkLost, Mux
from qsg.transport.unix import connect_unix, listen_unix
from support.members import Member, group
from support.pair import LOCAL, Pair, pair


@pytest.fixture
async def x() -> AsyncIterator[Member]:
    async with group("admin") as members:
        yield await members.member("X")


@pytest.fixture
async def one(x: Member) -> AsyncIterator[Pair]:
    made = await pair("X", MemoryNetwork(), x.structures["admin"], x.world, group="G")
    yield made
    await made.close()


async def stranger(one: Pair) -> Stream:
    return await one.network.transport("stranger").connect("X-qm:1", LOCAL)


async def test_the_incarnation_of_the_initiator_is_the_revision_of_its_record(x: Member, one: Pair) -> None:
    cell = await x.structures["admin"].cell(one.link.cell.key)
    record = records_pb2.InitiatorRecord.FromString(cell.value or b"")
    assert one.link.initiator == cell.mod_revision == one.initiator.welcome.initiator
    assert (record.member, record.incarnation) == ("X", x.structures["admin"].incarnation)
    assert (one.initiator.welcome.group, one.initiator.welcome.incarnation) == ("G", record.incarnation)
    await one.stop_initiator()
    await one.link.settled()
    after = await x.structures["admin"].cell(one.link.cell.key)
    assert after.mod_revision > cell.mod_revision
    assert not records_pb2.InitiatorRecord.FromString(after.value or b"").process


async def test_another_initiator_takes_the_place_of_the_first_which_is_ended(one: Pair) -> None:
    first = one.link.initiator
    stream = await stranger(one)
    kinds: list[int] = []
    mux = Mux(stream, lambda kind, number, payload: kinds.append(kind))
    mux.put(initiator_pb2.LOCAL_JOIN, 0, initiator_pb2.Join(member="X", process="p2", pid=4712))
    running = asyncio.create_task(mux.run())
    async with asyncio.timeout(2):
        while True:
            if initiator_pb2.LOCAL_WELCOME in kinds:
                break
            await asyncio.sleep(0.01)
    assert one.link.initiator > first and one.killed == [4711]
    assert one.lost == [(first, "another initiator joined")]
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


@pytest.mark.parametrize("ends", [None, 0, 1])
async def test_of_two_that_join_at_once_the_record_of_the_one_that_stays_is_written(x: Member, one: Pair, ends: int | None) -> None:
    """Also when one of them ends while the other's record is being written. Nobody that is joined has none."""
    await one.stop_initiator()
    await one.link.settled()
    structure, commit, second = x.structures["admin"], x.structures["admin"].commit, asyncio.Event()
    count = itertools.count(1)

    async def slow(unit: Unit, **options: Any) -> Committed:
        committed = await commit(unit, **options)
        if unit.label == "initiator" and next(count) == 2:
            second.set()
            await asyncio.sleep(0.05)
        return committed

    structure.commit = slow  # type: ignore[method-assign]
    muxes = [Mux(await stranger(one), lambda kind, number, payload: None) for _ in range(2)]
    for number, mux in enumerate(muxes):
        mux.put(initiator_pb2.LOCAL_JOIN, 0, initiator_pb2.Join(member="X", process=f"p{number}", pid=4712 + number))
    running = asyncio.gather(*(mux.run() for mux in muxes), return_exceptions=True)
    await second.wait()
    if ends is not None:
        await muxes[ends].stream.close()
    await asyncio.sleep(0.3)
    cell = await x.structures["admin"].cell(one.link.cell.key)
    record = records_pb2.InitiatorRecord.FromString(cell.value or b"")
    assert one.link.initiator == (cell.mod_revision if record.process else 0) and one.link.joined == bool(record.process)
    assert one.link.joined or ends == 1
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_an_initiator_of_another_member_is_refused(one: Pair) -> None:
    first = one.link.initiator
    mux = Mux(await stranger(one), lambda kind, number, payload: None)
    mux.put(initiator_pb2.LOCAL_JOIN, 0, initiator_pb2.Join(member="Y", process="p2"))
    with pytest.raises(LinkLost):
        await asyncio.wait_for(mux.run(), 2)
    assert one.link.initiator == first and one.killed == []


@pytest.mark.parametrize("frame", [b"", b"\x01", b"\x01" + bytes(8) + b"\xff\xff", b"\x63" + bytes(8), b"\x07" + bytes(8) + b"\xff"])
async def test_nonsense_on_the_socket_harms_nobody(one: Pair, frame: bytes) -> None:
    first = one.link.initiator
    stream = await stranger(one)
    await stream.send(frame)
    with pytest.raises(Closed):
        async with asyncio.timeout(3):
            while True:
                await stream.receive()
    assert one.link.initiator == first and one.lost == []


async def test_a_lost_link_ends_an_open_under_way(one: Pair) -> None:
    one.network.cut("X", "R")
    opening = asyncio.create_task(one.link.open(initiator_pb2.Open(channel="CH", addresses=["R:1"], connect_timeout_ms=5000)))
    await asyncio.sleep(0.05)
    one.network.kill("X")
    with pytest.raises(SessionFailed) as failed:
        await asyncio.wait_for(opening, 1)
    assert failed.value.reason is Reason.NO_INITIATOR


@pytest.mark.real_time
async def test_over_real_sockets(x: Member, tmp_path: Path) -> None:
    """Unix socket to the initiator, gRPC between an outbound and an inbound session of the same member."""
    link = InitiatorLink(x.structures["admin"], group="G")
    accepted: asyncio.Queue[InboundSession] = asyncio.Queue()

    async def accept(session: InboundSession) -> None:
        await session.receive()
        await session.send(channel_pb2.FRAME_BOUND, channel_pb2.Bound(receiver=session.portal))
        await accepted.put(session)
        _, payload = await session.receive()
        await session.send(channel_pb2.FRAME_CONFIRM, channel_pb2.Confirm(number=len(payload)))
        with pytest.raises(SessionFailed):
            await session.receive()

    link.on_accept = accept
    path = str(tmp_path / "s")
    listener = await listen_unix(path, link.serve)
    initiator = Initiator(x.world, GrpcTransport(), lambda: connect_unix(path), member="X", local_listener="127.0.0.1:0")
    await initiator.start()
    running = asyncio.create_task(initiator.run())
    try:
        await asyncio.wait_for(initiator.joined.wait(), 5)
        order = initiator_pb2.Open(channel="CH", addresses=[initiator.listeners["local"].address], bind=channel_pb2.Bind(channel="CH"))
        session = await asyncio.wait_for(link.open(order), 5)
        assert session.bound.receiver == "local"
        await session.send(channel_pb2.FRAME_BATCH, bytes(3 << 20))
        kind, payload = await asyncio.wait_for(session.receive(), 5)
        assert (kind, channel_pb2.Confirm.FromString(payload).number) == (channel_pb2.FRAME_CONFIRM, 3 << 20)
        assert (await accepted.get()).portal == "local"
        await session.close()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await initiator.close()
        await link.close()
        await listener.close()
