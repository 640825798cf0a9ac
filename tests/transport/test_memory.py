"""The twin: cuts hold, resets and kills end, delays are loop time."""

from __future__ import annotations

import asyncio

import pytest

from qsg.transport.contract import Closed, Refused, Stream, TransportError, Unreachable
from qsg.transport.memory import MemoryNetwork
from support.simulated import simulated

SERVICE = "qsg.v1.Channel"


async def echo(stream: Stream) -> None:
    while True:
        await stream.send(await stream.receive())


@pytest.fixture
def network() -> MemoryNetwork:
    return MemoryNetwork()


@simulated
async def test_a_cut_path_holds_frames_and_news(network: MemoryNetwork) -> None:
    await network.transport("b").listen("b:1", {SERVICE: echo})
    stream = await network.transport("a").connect("b:1", SERVICE)
    network.cut("a", "b")
    await stream.send(b"held")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await stream.receive()
    network.heal("a", "b")
    assert await stream.receive() == b"held"
    network.cut("a", "b")
    network.kill("b")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await stream.receive()
    network.heal("a", "b")
    with pytest.raises(Closed):
        await stream.receive()


@simulated
async def test_a_cut_one_way(network: MemoryNetwork) -> None:
    await network.transport("b").listen("b:1", {SERVICE: echo})
    heard: asyncio.Queue[bytes] = asyncio.Queue()

    async def handler(stream: Stream) -> None:
        while True:
            frame = await stream.receive()
            heard.put_nowait(frame)
            await stream.send(frame)

    listener = await network.transport("c").listen("c:1", {SERVICE: handler})
    stream = await network.transport("a").connect("c:1", SERVICE)
    network.cut("c", "a", one_way=True)
    await stream.send(b"question")
    assert await heard.get() == b"question"
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await stream.receive()
    network.heal("a", "c")
    assert await stream.receive() == b"question"
    await listener.close()


@simulated
async def test_connecting_over_a_cut_path_takes_its_time_and_a_dead_host_refuses(network: MemoryNetwork) -> None:
    await network.transport("b").listen("b:1", {SERVICE: echo})
    a = network.transport("a")
    network.cut("a", "b")
    with pytest.raises(Unreachable):
        await a.connect("b:1", SERVICE, timeout_s=0.02)
    connecting = asyncio.create_task(a.connect("b:1", SERVICE))
    await asyncio.sleep(0.01)
    network.heal("a", "b")
    stream = await connecting
    network.kill("b")
    with pytest.raises(Closed):
        await stream.receive()
    with pytest.raises(Refused):
        await a.connect("b:1", SERVICE)


@simulated
async def test_reset_ends_both_ends_at_once(network: MemoryNetwork) -> None:
    await network.transport("b").listen("b:1", {SERVICE: echo})
    ended: asyncio.Queue[str] = asyncio.Queue()

    async def handler(stream: Stream) -> None:
        try:
            await stream.receive()
        except Closed as e:
            ended.put_nowait(str(e))

    listener = await network.transport("c").listen("c:1", {SERVICE: handler})
    stream = await network.transport("a").connect("c:1", SERVICE)
    await asyncio.sleep(0)
    network.cut("a", "c")
    network.reset("c", "a")
    with pytest.raises(Closed, match="reset"):
        await stream.receive()
    assert "reset" in await ended.get()
    await listener.close()


@simulated
async def test_delays_keep_the_order_of_one_stream() -> None:
    delays = iter([0.0, 0.0, 0.03, 0.0, 0.01] + [0.0] * 20)
    network = MemoryNetwork(lambda source, target: next(delays))
    listener = await network.transport("b").listen("b:1", {SERVICE: echo})
    stream = await network.transport("a").connect("b:1", SERVICE)
    for i in range(5):
        await stream.send(b"%d" % i)
    assert [await stream.receive() for _ in range(5)] == [b"0", b"1", b"2", b"3", b"4"]
    await listener.close()


@simulated
async def test_a_name_of_several_hosts_is_tried_in_turn(network: MemoryNetwork) -> None:
    await network.transport("b").listen("b:1", {SERVICE: echo})
    network.names["group"] = ["dead", "b"]
    stream = await network.transport("a").connect("group:1", SERVICE)
    await stream.send(b"x")
    assert await stream.receive() == b"x"
    network.names["group"] = ["dead", "gone"]
    with pytest.raises(Refused):
        await network.transport("a").connect("group:1", SERVICE)


@simulated
async def test_a_taken_address_is_an_error_and_identities_are_shown(network: MemoryNetwork) -> None:
    await network.transport("b").listen("b:1", {SERVICE: echo})
    with pytest.raises(TransportError, match="in use"):
        await network.transport("b").listen("b:1", {SERVICE: echo})
    seen: asyncio.Queue[str] = asyncio.Queue()

    async def handler(stream: Stream) -> None:
        seen.put_nowait(stream.identity)

    listener = await network.transport("s", identity="server").listen("0.0.0.0:0", {SERVICE: handler})
    stream = await network.transport("c", identity="client").connect(listener.address, SERVICE)
    assert (stream.identity, await seen.get()) == ("server", "client")
    await listener.close()
