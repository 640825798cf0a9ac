"""What is particular to the network transport."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from math import inf

import pytest

from qsg.transport import grpc_
from qsg.transport.contract import Closed, Refused, Stream, TransportError, Unreachable
from qsg.transport.grpc_ import ATTEMPTS, GrpcTransport, method_of

CHANNEL, PEER = "qsg.v1.Channel", "qsg.v1.Peer"


async def echo(stream: Stream) -> None:
    while True:
        await stream.send(await stream.receive())


def test_methods_are_those_of_the_protocol_files() -> None:
    assert method_of(CHANNEL) == "/qsg.v1.Channel/Session"
    assert method_of("qsg.v1.Client") == "/qsg.v1.Client/Session"
    assert method_of(PEER) == "/qsg.v1.Peer/Link"


async def test_services_of_one_listener_are_kept_apart() -> None:
    async def other(stream: Stream) -> None:
        await stream.send(b"peer")

    transport = GrpcTransport()
    listener = await transport.listen("127.0.0.1:0", {CHANNEL: echo, PEER: other})
    channel, peer = await transport.connect(listener.address, CHANNEL), await transport.connect(listener.address, PEER)
    await channel.send(b"channel")
    assert await asyncio.wait_for(channel.receive(), 5) == b"channel"
    assert await asyncio.wait_for(peer.receive(), 5) == b"peer"
    with pytest.raises(Unreachable, match="UNIMPLEMENTED"):
        await transport.connect(listener.address, "qsg.v1.Client")
    await channel.close()
    await peer.close()
    await listener.close()


async def test_a_taken_port_is_an_error() -> None:
    transport = GrpcTransport()
    listener = await transport.listen("127.0.0.1:0", {CHANNEL: echo})
    with pytest.raises(TransportError, match="cannot listen"):
        await transport.listen(listener.address, {CHANNEL: echo})
    await listener.close()


async def test_something_that_speaks_another_protocol_is_unreachable() -> None:
    async def rude(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-nothing for you\r\n" * 100)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(rude, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    with pytest.raises(Unreachable):
        await GrpcTransport().connect(f"127.0.0.1:{port}", CHANNEL)
    server.close()
    await server.wait_closed()


async def test_a_name_that_does_not_resolve_is_unreachable() -> None:
    with pytest.raises(Unreachable):
        await GrpcTransport().connect("no-such-host.invalid:1414", CHANNEL)


async def test_a_name_with_several_addresses_is_refused_only_by_all() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(Refused):
            await GrpcTransport().connect(f"localhost:{unused.getsockname()[1]}", CHANNEL)


async def test_refusals_do_not_slow_the_next_attempt() -> None:
    """No back-off is kept from one attempt to the next: the first attempt after the start succeeds."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
    transport = GrpcTransport()
    for _ in range(10):
        with pytest.raises(Refused):
            await transport.connect(address, CHANNEL)
    listener = await transport.listen(address, {CHANNEL: echo})
    stream = await transport.connect(address, CHANNEL)
    await stream.send(b"at once")
    assert await asyncio.wait_for(stream.receive(), 5) == b"at once"
    await stream.close()
    await listener.close()


class Behind:
    """An address before several processes, as a Service is: `dead` of its connections end at once, the others lead to `target`."""

    def __init__(self, target: str, dead: float) -> None:
        self.target, self.dead, self.count = target.rpartition(":"), dead, 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.count += 1
        if self.count <= self.dead:
            writer.transport.abort()
            return
        there, back = await asyncio.open_connection(self.target[0], int(self.target[2]))
        await asyncio.gather(self.pipe(reader, back), self.pipe(there, writer))

    async def pipe(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                sink.write(data)
        sink.close()


@pytest.mark.parametrize(("dead", "taken"), [(1, True), (3, True), (inf, False)])
async def test_who_meets_a_dead_one_of_several_behind_an_address_asks_again_at_once(dead: float, taken: bool) -> None:
    """A killed initiator of a group of three: a partner that came back by the Service met it in one case of three, waited, met it again;
    messages paused for up to 1.8 s."""
    transport = GrpcTransport()
    listener = await transport.listen("127.0.0.1:0", {CHANNEL: echo})
    behind = Behind(listener.address, dead)
    server = await asyncio.start_server(behind, "127.0.0.1", 0)
    address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    if taken:
        stream = await transport.connect(address, CHANNEL, timeout_s=5)
        await stream.send(b"taken")
        assert await asyncio.wait_for(stream.receive(), 5) == b"taken"
        await stream.close()
    else:
        with pytest.raises(Unreachable):
            await transport.connect(address, CHANNEL, timeout_s=5)
        assert behind.count == 2 * ATTEMPTS, "a connection and a plain one each time, and then it is enough"
    server.close()
    await listener.close()


async def test_one_plain_refusal_is_not_yet_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """`Refused` is believed at once, and what the process held is taken over: all must have refused."""
    answers = [True, True, False]

    async def refuses(*_: object) -> bool:
        return answers.pop(0)

    monkeypatch.setattr(grpc_, "_refuses", refuses)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(Unreachable):
            monkeypatch.setattr(grpc_, "ATTEMPTS", 1)
            await GrpcTransport().connect(f"127.0.0.1:{unused.getsockname()[1]}", CHANNEL)
    assert not answers


async def test_garbage_at_the_port_harms_nobody() -> None:
    transport = GrpcTransport()
    listener = await transport.listen("127.0.0.1:0", {CHANNEL: echo})
    host, _, port = listener.address.rpartition(":")
    for garbage in (b"\0" * 1000, b"GET / HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 500):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(garbage)
        writer.write_eof()
        await asyncio.wait_for(reader.read(), 5)
        writer.close()
        await writer.wait_closed()
    stream = await transport.connect(listener.address, CHANNEL)
    await stream.send(b"fine")
    assert await asyncio.wait_for(stream.receive(), 5) == b"fine"
    await stream.close()
    await listener.close()


async def test_a_cancelled_connect_leaves_nothing_behind() -> None:
    silent = socket.socket()
    silent.bind(("127.0.0.1", 0))
    silent.listen()
    task = asyncio.create_task(GrpcTransport().connect(f"127.0.0.1:{silent.getsockname()[1]}", CHANNEL, timeout_s=30))
    await asyncio.sleep(0.1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    silent.close()


async def test_closing_the_listener_while_frames_are_on_their_way_ends_both_ends() -> None:
    transport = GrpcTransport()
    listener = await transport.listen("127.0.0.1:0", {CHANNEL: echo})
    stream = await transport.connect(listener.address, CHANNEL)

    async def flood() -> None:
        while True:
            await stream.send(b"x" * 50_000)

    flooding = asyncio.create_task(flood())
    await asyncio.wait_for(stream.receive(), 5)
    await asyncio.wait_for(listener.close(), 10)
    with pytest.raises(Closed):
        await asyncio.wait_for(flooding, 5)
    await stream.close()


async def test_too_large_a_frame_is_the_callers_error() -> None:
    transport = GrpcTransport()
    listener = await transport.listen("127.0.0.1:0", {CHANNEL: echo})
    stream = await transport.connect(listener.address, CHANNEL)
    with pytest.raises(ValueError, match="at most"):
        await stream.send(bytes((128 << 20) + 1))
    await stream.send(b"still usable")
    assert await asyncio.wait_for(stream.receive(), 5) == b"still usable"
    await stream.close()
    await listener.close()
