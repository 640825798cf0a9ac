"""The client over real gRPC, asynchronous and synchronous."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import qsg
from qsg.manager.clients import SERVICE, ClientService
from qsg.rules.world import World
from qsg.transport.grpc_ import GrpcTransport
from qsg.transport.tls import TlsFiles
from support.fake_backend import FakeBackend, FakeGroup

pytestmark = pytest.mark.real_time

FOLDER = Path(__file__).parent.parent / "transport" / "certificates"


def pem(name: str) -> bytes:
    return (FOLDER / name).read_bytes()


class Served:
    """Members X and Y behind gRPC on this machine."""

    def __init__(self) -> None:
        self.durable = FakeGroup()
        self.addresses: dict[str, str] = {}
        self._running: list[tuple[object, ClientService]] = []

    async def start(self) -> None:
        for member in "XY":
            service = ClientService(member=member, group="QSG1", backend=FakeBackend(self.durable, member), world=World(lambda: 1))
            listener = await GrpcTransport().listen("127.0.0.1:0", {SERVICE: service.handler})
            self.addresses[member] = listener.address
            self._running.append((listener, service))

    async def stop(self) -> None:
        for listener, service in self._running:
            await service.close()
            await listener.close()  # type: ignore[attr-defined]


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    served = Served()
    await served.start()
    yield served
    await served.stop()


async def test_put_get_and_units(served: Served) -> None:
    async with qsg.connect(list(served.addresses.values()), application="grpc") as qmgr:
        await asyncio.gather(*(qmgr.put("Q", b"%d" % i) for i in range(2_000)))
        async with qmgr.unit() as unit:
            got = await unit.get_many("Q", 2_000)
            await unit.put("OUT", b"x" * 3_000_000)
        large = await qmgr.get("OUT")

    assert len(got) == 2_000
    assert len(large.payload) == 3_000_000


async def test_another_member_takes_over(served: Served) -> None:
    async with qsg.connect(list(served.addresses.values()), producer="P") as qmgr:
        await qmgr.put("Q", b"1")
        lost = qmgr.member
        service = next(service for _, service in served._running if service.member == lost)
        await service.close()
        await qmgr.put("Q", b"2")

        assert qmgr.member != lost
    assert served.durable.payloads("Q") == [b"1", b"2"]


async def test_not_a_queue_manager() -> None:
    async def talks_otherwise(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(talks_otherwise, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    with pytest.raises(qsg.HostNotAvailable):
        await qsg.connect(f"127.0.0.1:{port}", connect_s=0.5).open()
    server.close()


@pytest.fixture
def served_elsewhere() -> object:
    """The same in a thread of its own, for synchronous applications."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    served = Served()
    asyncio.run_coroutine_threadsafe(served.start(), loop).result()
    yield served
    asyncio.run_coroutine_threadsafe(served.stop(), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def test_without_asyncio(served_elsewhere: Served) -> None:
    with qsg.sync.connect(",".join(served_elsewhere.addresses.values()), producer="S") as qmgr:
        message_id = qmgr.put("Q", "1", priority=3)
        qmgr.put_many("Q", [b"2", b"3"])
        assert [message.payload for message in qmgr.browse("Q")] == [b"1", b"2", b"3"]
        assert qmgr.get("Q", message_id=message_id).priority == 3
        with qmgr.unit() as unit:
            unit.put("OUT", unit.get("Q").payload)
        with pytest.raises(qsg.NoMessageAvailable):
            qmgr.get("NONE", wait_ms=10)
        with pytest.raises(ZeroDivisionError), qmgr.unit() as unit:
            unit.get("Q")
            raise ZeroDivisionError
        assert qmgr.get_many("Q")[0].backout_count == 1
        assert qmgr.inquire_queue("OUT")["depth"] == 1
        assert qmgr.producer_state("Q")[2] == 3
        assert qmgr.name == "QSG1"
    with pytest.raises(qsg.ConnectionBroken):
        qmgr.put("Q", b"")
    with pytest.raises(qsg.HostNotAvailable), qsg.sync.connect("127.0.0.1:1", connect_s=0.1):
        pass


def test_several_threads_share_a_connection(served_elsewhere: Served) -> None:
    with qsg.sync.connect(served_elsewhere.addresses["X"]) as qmgr:
        threads = [threading.Thread(target=lambda: [qmgr.put("Q", b"") for _ in range(20)]) for _ in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert qmgr.inquire_queue("Q")["depth"] == 200


async def test_tls() -> None:
    ca, certificate, key = (FOLDER / name for name in ("ca.pem", "client.pem", "client.key"))
    durable = FakeGroup()
    service = ClientService(member="X", group="", backend=FakeBackend(durable, "X"), world=World(lambda: 1))
    tls = TlsFiles(ca, FOLDER / "server.pem", FOLDER / "server.key")
    listener = await GrpcTransport(tls).listen("127.0.0.1:0", {SERVICE: service.handler})
    async with qsg.connect(listener.address, ca=ca, certificate=certificate, key=key) as qmgr:
        await qmgr.put("Q", b"secret")
    with pytest.raises(qsg.HostNotAvailable):
        await qsg.connect(listener.address, connect_s=0.3).open()
    await service.close()
    await listener.close()

    assert durable.payloads("Q") == [b"secret"]
