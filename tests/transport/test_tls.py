"""TLS both ways: who has no certificate of our authority gets no stream, and both ends know each other's name."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from qsg.transport.contract import Listener, Stream, Unreachable
from qsg.transport.grpc_ import GrpcTransport

SERVICE = "qsg.v1.Channel"
FOLDER = Path(__file__).parent / "certificates"


def pem(name: str) -> bytes:
    return (FOLDER / name).read_bytes()


def client(name: str | None, *, authority: str = "ca", server_name: str = "") -> GrpcTransport:
    chain = (None, None) if name is None else (pem(f"{name}.key"), pem(f"{name}.pem"))
    return GrpcTransport(client_credentials=grpc.ssl_channel_credentials(pem(f"{authority}.pem"), *chain), server_name=server_name)


@pytest.fixture
async def listener() -> AsyncIterator[Listener]:
    async def handler(stream: Stream) -> None:
        await stream.send(stream.identity.encode())
        await stream.receive()

    pairs = [(pem("server.key"), pem("server.pem"))]
    credentials = grpc.ssl_server_credentials(pairs, pem("ca.pem"), require_client_auth=True)
    listener = await GrpcTransport(server_credentials=credentials).listen("127.0.0.1:0", {SERVICE: handler})
    yield listener
    await listener.close()


async def test_both_know_each_other(listener: Listener) -> None:
    stream = await client("client").connect(listener.address, SERVICE)
    assert await asyncio.wait_for(stream.receive(), 5) == b"QM.R"
    assert stream.identity == "127.0.0.1"
    await stream.close()
    named = await client("client", server_name="server.test").connect(listener.address, SERVICE)
    assert named.identity == "server.test"
    await named.close()


@pytest.mark.parametrize(
    "transport",
    [
        pytest.param(lambda: client("stranger"), id="a client that our authority does not know"),
        pytest.param(lambda: client(None), id="a client without a certificate"),
        pytest.param(lambda: client("client", authority="stranger"), id="a server that the client's authority does not know"),
        pytest.param(lambda: client("client", server_name="other.test"), id="a server of another name"),
        pytest.param(GrpcTransport, id="a client without TLS"),
    ],
)
async def test_who_is_not_trusted_is_unreachable(listener: Listener, transport: type[GrpcTransport]) -> None:
    with pytest.raises(Unreachable):
        await transport().connect(listener.address, SERVICE)
    stream = await client("client").connect(listener.address, SERVICE)  # and harms nobody else
    assert await asyncio.wait_for(stream.receive(), 5) == b"QM.R"
    await stream.close()
