"""A member that is to end says so first: applications have the next session before they leave the one that they have."""

from __future__ import annotations

import asyncio

import pytest

import qsg
from qsg.pb import client_pb2 as pb
from qsg.rules.announce import LEAVING
from qsg.transport.codec import encode
from support.client_group import ClientGroup
from support.group import eventually


async def test_the_next_session_is_there_before_the_member_refuses_anything(group: ClientGroup) -> None:
    async with group.connect(producer="P") as qmgr:
        first = qmgr.member
        service = group.services[first]
        refused = 0
        perform = service.backend.put

        async def put(*arguments: object, **more: object) -> list[bytes]:
            nonlocal refused
            refused += service.draining
            return await perform(*arguments, **more)  # type: ignore[arg-type]

        service.backend.put = put  # type: ignore[method-assign]
        await qmgr.put("Q", b"0")
        drained = asyncio.create_task(service.drain())
        for number in range(1, 50):
            await qmgr.put("Q", b"%d" % number)
        assert await drained
        assert (refused, qmgr.reconnections, qmgr.member != first) == (0, 1, True)
    assert group.payloads("Q") == [b"%d" % number for number in range(50)]


async def test_who_has_no_other_member_is_served_until_the_end(group: ClientGroup) -> None:
    async with group.connect("X") as qmgr:
        group.services["X"].announce()
        await asyncio.sleep(0.1)
        await qmgr.put("Q", b"1")
        assert (qmgr.member, qmgr.reconnections) == ("X", 0)
    assert group.payloads("Q") == [b"1"]


async def test_a_unit_of_work_ends_where_it_was_begun(group: ClientGroup) -> None:
    async with group.connect() as qmgr:
        first = qmgr.member
        unit = qmgr.unit()
        await unit.put("Q", b"1")
        group.services[first].announce()
        await eventually(lambda: qmgr.member != first)
        await unit.put("Q", b"2")
        await unit.commit()
        await eventually(lambda: not group.services[first].connections)
    assert group.payloads("Q") == [b"1", b"2"]


async def test_a_unit_that_the_member_refuses_to_go_on_with_gives_back_at_once(group: ClientGroup) -> None:
    """Its get waits as the member drains, and another unit holds the connection open."""
    async with group.connect() as qmgr:
        await qmgr.put("IN", b"1")
        service = group.services[qmgr.member]
        other, unit = qmgr.unit(), qmgr.unit()
        await other.put("OUT", b"1")
        await unit.get("IN")
        waiting = asyncio.create_task(unit.get("EMPTY", wait_ms=60_000))
        drained = asyncio.create_task(service.drain())
        with pytest.raises(qsg.BackedOut):
            await waiting
        await asyncio.sleep(0.1)
        assert group.payloads("IN") == [b"1"]
        await other.commit()
        assert await drained
    assert group.payloads("OUT") == [b"1"]


async def test_a_member_that_is_to_end_takes_no_more_applications(group: ClientGroup) -> None:
    group.services["X"].announce()
    with pytest.raises(qsg.HostNotAvailable):
        await group.connect("X", connect_s=0.2).open()
    async with group.connect() as qmgr:
        assert qmgr.member != "X"


async def test_an_application_that_does_not_know_of_it_is_sent_away_as_ever(group: ClientGroup) -> None:
    stream = await group.network.transport("app").connect("X:1416", "qsg.v1.Client")
    await stream.send(encode(pb.CLIENT_CONNECT, pb.Connect(application="old")))
    assert (await stream.receive())[0] == pb.CLIENT_CONNECTED
    drained = asyncio.create_task(group.services["X"].drain())
    assert await stream.receive() == encode(pb.CLIENT_BEAT, LEAVING)
    await eventually(lambda: group.services["X"].draining)
    await drained
    with pytest.raises(Exception, match="closed"):
        while True:
            await stream.receive()


async def test_a_get_whose_member_drains_waits_elsewhere_for_what_is_left(group: ClientGroup) -> None:
    async with group.connect() as qmgr:
        loop = asyncio.get_running_loop()
        began = loop.time()
        get = asyncio.create_task(qmgr.get("Q", wait_ms=20_000))
        await asyncio.sleep(15)
        assert await group.services[qmgr.member].drain()
        with pytest.raises(qsg.NoMessageAvailable):
            await get
        assert 19.9 < loop.time() - began < 20.1
