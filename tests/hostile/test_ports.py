"""Any bytes at any port, and on the initiator's socket: answered and logged, and the traffic beside is not touched.

What does not get as far as a call of gRPC is ended, by a reset or with what HTTP/2 says; of that nothing is logged.
"""

from __future__ import annotations

import asyncio
import random
import struct
from functools import partial
from typing import Any

import grpc.aio
import pytest

from qsg.pb import initiator_pb2
from qsg.pb.etcd import rpc_pb2
from qsg.rules.reasons import Reason
from qsg.transport.contract import Closed, Unreachable
from qsg.transport.grpc_ import GrpcTransport
from qsg.transport.unix import connect_unix
from support.group import READY_S, ConfiguredGroup, Flow, eventually
from support.hostile import is_logged

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.processes]


def doors(group: ConfiguredGroup) -> dict[str, str]:
    x, r = group.config("X"), group.config("R")
    return {
        "client": str(x["address"]),
        "group listener": str(x["group_listener"]),
        "local listener": str(x["local_listener"]),
        "client of R": str(r["address"]),
        "local listener of R": str(r["local_listener"]),
        "store": group.store_address,
    }


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes.fromhex("000000040000000000")
RAW = {
    "random": random.Random(2).randbytes(5_000),
    "zeros": bytes(100_000),
    "http/1.1": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "tls": bytes.fromhex("16030100a5010000a10303") + random.Random(3).randbytes(160),
    "preface and garbage": PREFACE + random.Random(4).randbytes(3_000),
    "huge http/2 frame": PREFACE + bytes.fromhex("ffffff000000000001") + bytes(50_000),
    "half a preface": PREFACE[:10],
}


async def answer(address: str, method: str) -> grpc.StatusCode:
    async with grpc.aio.insecure_channel(address) as channel:
        code: grpc.StatusCode = await channel.stream_stream(method)().code()
        return code


async def test_raw_bytes_at_every_port_are_ended_and_the_port_goes_on_answering(group: ConfiguredGroup, flow: Flow) -> None:
    async def one(what: str, address: str, name: str, data: bytes) -> None:
        host, _, port = address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            writer.write(data)
            async with asyncio.timeout(READY_S):
                await writer.drain()
                writer.write_eof()
                await reader.read()
        except TimeoutError:
            raise AssertionError(f"{name} at {what}: not ended") from None
        except OSError:
            pass  # reset: as good an answer as there is below HTTP
        finally:
            writer.close()
            await asyncio.gather(writer.wait_closed(), return_exceptions=True)

    await asyncio.gather(*(one(what, address, name, data) for what, address in doors(group).items() for name, data in RAW.items()))
    for what, address in doors(group).items():
        assert await answer(address, "/qsg.v1.Nothing/Raw") is grpc.StatusCode.UNIMPLEMENTED, what
    await flow.moves()


async def test_unknown_services_and_methods(group: ConfiguredGroup, flow: Flow) -> None:
    for what, address in doors(group).items():
        for method in ("/qsg.v1.Nothing/Session", "/etcdserverpb.KV/Dance", "/", "/qsg.v1.Client/Session/more"):
            assert await answer(address, method) is grpc.StatusCode.UNIMPLEMENTED, (what, method)
    for at in ("X", "R"):
        await eventually(partial(group.logged, at=at, event="no such service", method="/qsg.v1.Nothing/Session"), 15)
    await flow.moves()


async def test_the_wrong_service_at_each_port(group: ConfiguredGroup, flow: Flow) -> None:
    config = group.config("X")
    for address, name in (
        (config["address"], "qsg.v1.Channel"),
        (config["group_listener"], "qsg.v1.Client"),
        (config["local_listener"], "qsg.v1.Peer"),
        (group.addresses["R"], "qsg.v1.Peer"),
        (group.store_address, "qsg.v1.Client"),
    ):
        with pytest.raises(Unreachable, match="UNIMPLEMENTED"):
            await GrpcTransport().connect(str(address), name, timeout_s=READY_S)
    await flow.moves()


async def test_a_frame_larger_than_any(group: ConfiguredGroup, flow: Flow) -> None:
    frame = bytes([0x04]) + bytes((129 << 20) - 1)
    for what, address in doors(group).items():
        if what == "store":
            continue
        async with grpc.aio.insecure_channel(address, options=[("grpc.max_send_message_length", -1)]) as channel:
            call = channel.stream_stream(
                "/qsg.v1.Client/Session" if "client" in what else "/qsg.v1.Channel/Session",
            )()
            await call.write(frame)
            assert await call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED, what
            assert "larger than max" in (await call.details()), what
    for at in ("X", "R"):
        for event in ("a connection without CONNECT has ended", "a stream without a bind has ended"):
            await eventually(partial(group.logged, at=at, event=event), what=event)
    await flow.moves()


async def test_bad_calls_of_the_embedded_store(group: ConfiguredGroup, flow: Flow) -> None:
    async with grpc.aio.insecure_channel(group.store_address) as channel:
        for method in ("KV/Txn", "KV/Range", "KV/Put", "Lease/LeaseGrant"):
            call = channel.unary_unary(f"/etcdserverpb.{method}")
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await call(b"\xff" * 60, timeout=READY_S)
            assert error.value.code() is not grpc.StatusCode.DEADLINE_EXCEEDED, method
        put = channel.unary_unary("/etcdserverpb.KV/Put")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await put(rpc_pb2.PutRequest(key=b"", value=b"x").SerializeToString(), timeout=READY_S)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        with pytest.raises(grpc.aio.AioRpcError) as large:
            await put(rpc_pb2.PutRequest(key=b"k", value=bytes(40 << 20)).SerializeToString(), timeout=READY_S)
        assert large.value.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED)
        watch = channel.stream_stream("/etcdserverpb.Watch/Watch")()
        await watch.write(b"\xff" * 60)
        assert await watch.code() is not grpc.StatusCode.OK
    await flow.moves()


# The initiator's socket

LOCAL_HEAD = struct.Struct(">BQ")


def local(kind: int, session: int, payload: Any = b"") -> bytes:
    return LOCAL_HEAD.pack(kind, session) + (payload if isinstance(payload, bytes) else payload.SerializeToString())


_L = initiator_pb2
SOCKET = {
    "empty": [b""],
    "short": [b"\x01\x02"],
    "unknown": [local(99, 0)],
    "garbage join": [local(_L.LOCAL_JOIN, 0, b"\xff" * 40)],
    "accept before join": [local(_L.LOCAL_ACCEPT, 1 << 63, _L.Accept(portal="group", address="nowhere"))],
    "another member": [local(_L.LOCAL_JOIN, 0, _L.Join(member="Y", process="evil", pid=1))],
    "no member": [local(_L.LOCAL_JOIN, 0, _L.Join(process="evil", pid=1))],
}


async def test_the_initiators_socket(group: ConfiguredGroup, flow: Flow) -> None:
    path = str(group.config("X")["socket"])
    for what, frames in SOCKET.items():
        stream = await connect_unix(path)
        for frame in frames:
            await stream.send(frame)
        ends = []
        with pytest.raises(Closed):
            async with asyncio.timeout(READY_S):
                while True:
                    frame = await stream.receive()
                    if frame[0] == _L.LOCAL_END:
                        ends.append(_L.End.FromString(frame[LOCAL_HEAD.size :]))
        await stream.close()
        assert any(Reason(end.reason) in (Reason.PROTOCOL_ERROR, Reason.NOT_AUTHORIZED) and end.detail for end in ends), (what, ends)
        await eventually(is_logged(group, "X", ends[-1].detail[:40]), what=what)
    await flow.moves()


async def test_raw_bytes_on_the_initiators_socket(group: ConfiguredGroup, flow: Flow) -> None:
    path = str(group.config("X")["socket"])
    closed = partial(group.logged, at="X", event="not our protocol, closed")
    before = len(closed())
    for data in (b"\xff" * 100, struct.pack(">I", 129 << 20) + b"abc", b"GET / HTTP/1.1\r\n\r\n"):
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(data)
        async with asyncio.timeout(READY_S):
            await asyncio.gather(reader.read(), return_exceptions=True)
        writer.close()
    await eventually(lambda: len(closed()) == before + 3)
    await flow.moves()
