"""What a connection holds and waits for when it ends, and when its member drains."""

from __future__ import annotations

import asyncio
import gc
from unittest import mock

import pytest

import qsg
from qsg.client.session import SessionLost
from qsg.manager import calls
from qsg.pb import client_pb2 as pb
from qsg.transport.contract import Closed
from support.cancelling import ticks
from support.client_group import ClientGroup


def hangs_at(group: ClientGroup, wanted: str) -> asyncio.Event:
    """Who reaches this step goes on once the event is set."""
    event = asyncio.Event()

    async def gate(step: str, member: str) -> None:
        if step == wanted:
            await event.wait()

    group.durable.gate = gate
    return event


async def test_units_are_given_back_while_a_request_that_is_not_theirs_goes_on(group: ClientGroup) -> None:
    async with group.connect() as qmgr:
        await qmgr.put("IN", b"1")
        unit = qmgr.unit()
        await unit.get("IN")
        go_on = hangs_at(group, "before command")
        member = qmgr.member
        stop = asyncio.create_task(qmgr.command("stop"))
        await asyncio.sleep(0.1)
    with pytest.raises(qsg.OutcomeUnknown):
        await stop
    await asyncio.sleep(0.1)
    assert group.payloads("IN") == [b"1"]
    assert group.services[member].connections, "what is begun is not cut in the middle"
    go_on.set()
    await asyncio.sleep(0.1)
    assert group.backends[member].commands == [("stop", {})]
    assert not group.services[member].connections


async def test_a_unit_is_not_given_back_under_a_request_of_its_own(group: ClientGroup) -> None:
    async with group.connect() as qmgr:
        await qmgr.put_many("IN", [b"1", b"2"])
        ending, other = qmgr.unit(), qmgr.unit()
        await ending.get("IN")
        await other.get("IN")
        go_on = hangs_at(group, "before commit")
        commit = asyncio.create_task(ending.commit())
        await asyncio.sleep(0.1)
    with pytest.raises(qsg.OutcomeUnknown):
        await commit
    await asyncio.sleep(0.1)
    assert group.payloads("IN") == [b"2"], "the other one is given back"
    go_on.set()
    await asyncio.sleep(0.1)
    assert group.payloads("IN") == [b"2"]
    assert not any(service.connections for service in group.services.values())


async def test_a_long_poll_ends_with_its_connection(group: ClientGroup) -> None:
    hangs_at(group, "before command")
    async with group.connect() as qmgr:
        watch = asyncio.create_task(qmgr.command("watch"))
        await asyncio.sleep(0.1)
    with pytest.raises(qsg.OutcomeUnknown):
        await watch
    await asyncio.sleep(0.1)
    assert not any(service.connections for service in group.services.values())


async def test_a_drain_does_not_wait_for_what_comes_of_a_command_that_nobody_asks_for_any_more(group: ClientGroup) -> None:
    seen: list[str] = []

    async def command(name: str, arguments: object) -> object:
        while calls.wanted():  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        seen.append(name)
        return {}

    async with group.connect() as qmgr:
        service = group.services[qmgr.member]
        with mock.patch.object(group.backends[qmgr.member], "command", command):
            stop = asyncio.create_task(qmgr.command("stop"))
            await asyncio.sleep(1)
        assert not seen
    with pytest.raises(qsg.OutcomeUnknown):
        await stop
    async with asyncio.timeout(2):
        assert await service.drain()
    assert seen == ["stop"]


async def test_a_long_poll_goes_on_elsewhere_when_its_member_drains(group: ClientGroup) -> None:
    async with group.connect() as qmgr:
        first = qmgr.member
        with mock.patch.object(group.backends[first], "command", lambda *_: asyncio.Event().wait()):
            watch = asyncio.create_task(qmgr.command("watch"))
            await asyncio.sleep(0.1)
            async with asyncio.timeout(2):
                assert await group.services[first].drain()
        assert await watch == {"done": "watch"}
        assert qmgr.member != first


@pytest.mark.parametrize("producer", ["", "P"])
@pytest.mark.parametrize("moment", range(1, 5))
async def test_a_close_that_is_cancelled_closes_all_the_same(group: ClientGroup, producer: str, moment: int) -> None:
    qmgr = await group.connect(producer=producer).open()
    group.network.delay = lambda source, target: 0.5
    put = asyncio.create_task(qmgr.put("Q", b"1"))
    await asyncio.sleep(0.1)
    closing = asyncio.create_task(qmgr.close())
    await ticks(moment)
    closing.cancel()
    await asyncio.wait([closing, put])
    assert isinstance(put.exception(), qsg.QsgError)
    await qmgr.close()
    await asyncio.sleep(2)
    assert not any(service.connections for service in group.services.values())


async def test_a_call_that_cannot_be_sent_leaves_no_error_that_nobody_reads(group: ClientGroup, monkeypatch: pytest.MonkeyPatch) -> None:
    complaints: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(str(context["message"])))
    async with group.connect() as qmgr:
        await qmgr.put("Q", b"before")
        assert qmgr._link is not None
        session = await qmgr._link.session()

        async def closed(frame: bytes) -> None:
            raise Closed("it has gone")

        monkeypatch.setattr(session._stream, "send", closed)
        with pytest.raises(SessionLost):
            await session.call(pb.ClientRequest(get=pb.Get(queue="Q")))
    gc.collect()
    assert complaints == []
