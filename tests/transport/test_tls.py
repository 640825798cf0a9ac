"""TLS both ways: who has no certificate of our authority gets no stream, and both ends know each other's name."""

from __future__ import annotations

import asyncio
import shutil
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from qsg.transport.contract import Listener, Stream, Unreachable
from qsg.transport.grpc_ import GrpcTransport
from qsg.transport.tls import TlsFiles

SERVICE = "qsg.v1.Channel"
FOLDER = Path(__file__).parent / "certificates"


def files(name: str | None, authority: str = "ca") -> TlsFiles:
    chain = () if name is None else (FOLDER / f"{name}.pem", FOLDER / f"{name}.key")
    return TlsFiles(FOLDER / f"{authority}.pem", *chain)


def client(name: str | None, *, authority: str = "ca", server_name: str = "") -> GrpcTransport:
    return GrpcTransport(files(name, authority), server_name=server_name)


async def handler(stream: Stream) -> None:
    await stream.send(stream.identity.encode())
    await stream.receive()


@pytest.fixture
async def listener() -> AsyncIterator[Listener]:
    listener = await GrpcTransport(files("server")).listen("127.0.0.1:0", {SERVICE: handler})
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


def place(folder: Path, name: str, authority: str = "ca") -> None:
    """Puts three new files where the old ones were, as a mounted Secret does."""
    for source, target in ((f"{authority}.pem", "ca.pem"), (f"{name}.pem", "tls.crt"), (f"{name}.key", "tls.key")):
        shutil.copy(FOLDER / source, folder / f"new {target}")
        (folder / f"new {target}").replace(folder / target)


async def test_replaced_files_are_used_by_the_next_connection(tmp_path: Path) -> None:
    place(tmp_path, "server")
    own = TlsFiles(tmp_path / "ca.pem", tmp_path / "tls.crt", tmp_path / "tls.key")
    listener = await GrpcTransport(own).listen("127.0.0.1:0", {SERVICE: handler})
    old = await client("client").connect(listener.address, SERVICE)

    place(tmp_path, "stranger", "stranger")
    with pytest.raises(Unreachable):
        await client("client").connect(listener.address, SERVICE)
    with pytest.raises(Unreachable):  # as a client it now trusts another authority too
        await GrpcTransport(own).connect(listener.address, SERVICE, timeout_s=0.3)
    assert await asyncio.wait_for(old.receive(), 5) == b"QM.R"  # what was connected stays so
    await old.send(b"")

    place(tmp_path, "server")
    new = await client("client").connect(listener.address, SERVICE)
    assert await asyncio.wait_for(new.receive(), 5) == b"QM.R"
    await new.close()
    await listener.close()


async def test_files_that_do_not_fit_leave_the_last_ones_in_use(tmp_path: Path) -> None:
    place(tmp_path, "server")
    own = TlsFiles(tmp_path / "ca.pem", tmp_path / "tls.crt", tmp_path / "tls.key")
    listener = await GrpcTransport(own).listen("127.0.0.1:0", {SERVICE: handler})
    for spoil in (
        lambda: shutil.copy(FOLDER / "client.key", tmp_path / "tls.key"),
        lambda: (tmp_path / "tls.crt").write_text("no certificate"),
        lambda: (tmp_path / "ca.pem").unlink(),
    ):
        spoil()
        stream = await client("client").connect(listener.address, SERVICE)
        assert await asyncio.wait_for(stream.receive(), 5) == b"QM.R"
        await stream.close()
    await listener.close()


def test_files_that_are_no_good_from_the_start(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        TlsFiles(tmp_path / "ca.pem")
    with pytest.raises(ssl.SSLError):
        TlsFiles(FOLDER / "ca.pem", FOLDER / "client.pem", FOLDER / "server.key")
