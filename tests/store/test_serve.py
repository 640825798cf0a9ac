"""`qsg store` as etcd's clients see it: raw calls of etcd's API, its error codes and texts, its watch stream, and hostile input."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message

from qsg.pb.etcd import kv_pb2, rpc_pb2
from qsg.process.etcd_binary import tool
from qsg.store.contract import StoreError
from qsg.store.serve import LIMITS, StoreServer, main
from qsg.store.serve_calls import Calls
from qsg.store.serve_watch import WatchStream
from qsg.store.sqlite import SqliteStore
from support.stores import PATIENT_S

MIB = 1 << 20
Code = grpc.StatusCode


class Client:
    """Etcd's API by name."""

    def __init__(self, address: str) -> None:
        options = [("grpc.max_receive_message_length", 64 * MIB), ("grpc.max_send_message_length", 64 * MIB)]
        self.channel = grpc.aio.insecure_channel(address, options=options)

    async def call(self, method: str, request: Message, response: type[Message]) -> Any:
        rpc = self.channel.unary_unary(
            f"/etcdserverpb.{method}", request_serializer=lambda m: m.SerializeToString(), response_deserializer=response.FromString
        )
        return await rpc(request, timeout=PATIENT_S)

    async def put(self, key: bytes, value: bytes = b"v", **options: Any) -> Any:
        return await self.call("KV/Put", rpc_pb2.PutRequest(key=key, value=value, **options), rpc_pb2.PutResponse)

    async def range(self, key: bytes, end: bytes = b"", **options: Any) -> Any:
        return await self.call("KV/Range", rpc_pb2.RangeRequest(key=key, range_end=end, **options), rpc_pb2.RangeResponse)

    async def delete(self, key: bytes, end: bytes = b"", **options: Any) -> Any:
        return await self.call("KV/DeleteRange", rpc_pb2.DeleteRangeRequest(key=key, range_end=end, **options), rpc_pb2.DeleteRangeResponse)

    async def txn(self, request: rpc_pb2.TxnRequest) -> Any:
        return await self.call("KV/Txn", request, rpc_pb2.TxnResponse)

    async def compact(self, revision: int) -> Any:
        return await self.call("KV/Compact", rpc_pb2.CompactionRequest(revision=revision), rpc_pb2.CompactionResponse)

    async def grant(self, ttl: int, lease: int = 0) -> Any:
        return await self.call("Lease/LeaseGrant", rpc_pb2.LeaseGrantRequest(TTL=ttl, ID=lease), rpc_pb2.LeaseGrantResponse)

    def stream(self, method: str, request: type[Message], response: type[Message]) -> Any:
        return self.channel.stream_stream(
            f"/etcdserverpb.{method}", request_serializer=request.SerializeToString, response_deserializer=response.FromString
        )()

    def watch(self) -> Any:
        return self.stream("Watch/Watch", rpc_pb2.WatchRequest, rpc_pb2.WatchResponse)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[StoreServer]:
    store = SqliteStore(tmp_path / "s.db", compact_interval_s=0, limits=LIMITS)
    async with StoreServer(store, "127.0.0.1:0") as server:
        yield server


@pytest.fixture
async def client(server: StoreServer) -> AsyncIterator[Client]:
    client = Client(server.address)
    yield client
    await client.channel.close()


def put_op(key: bytes, value: bytes = b"") -> rpc_pb2.RequestOp:
    return rpc_pb2.RequestOp(request_put=rpc_pb2.PutRequest(key=key, value=value))


def create(key: bytes, end: bytes = b"", **options: Any) -> rpc_pb2.WatchRequest:
    return rpc_pb2.WatchRequest(create_request=rpc_pb2.WatchCreateRequest(key=key, range_end=end, **options))


# Calls


async def test_the_header_says_the_revision(client: Client) -> None:
    first = (await client.range(b"k")).header
    assert first.revision == 1
    assert first.cluster_id == first.member_id != 0
    assert (await client.put(b"k", b"1")).header.revision == 2
    assert (await client.range(b"k")).header.revision == 2
    response = await client.txn(rpc_pb2.TxnRequest(success=[put_op(b"a"), put_op(b"b")]))
    assert (response.header.revision, response.succeeded, len(response.responses)) == (3, True, 2)
    assert (await client.delete(b"nothing")).header.revision == 3
    assert (await client.delete(b"a", b"c")).deleted == 2
    status = await client.call("Maintenance/Status", rpc_pb2.StatusRequest(), rpc_pb2.StatusResponse)
    assert (status.header.revision, status.leader) == (4, first.member_id)
    assert 0 < status.dbSizeInUse <= status.dbSize


async def test_ranges_filter_and_sort(client: Client) -> None:
    for key, value in ((b"a", b"3"), (b"b", b"2"), (b"c", b"1"), (b"a", b"4")):
        await client.put(key, value)

    async def keys(**options: Any) -> list[bytes]:
        return [kv.key for kv in (await client.range(b"a", b"z", **options)).kvs]

    sort = rpc_pb2.RangeRequest
    assert await keys() == [b"a", b"b", b"c"]
    assert await keys(sort_order=sort.DESCEND) == [b"c", b"b", b"a"]
    assert await keys(sort_order=sort.ASCEND, sort_target=sort.VALUE) == [b"c", b"b", b"a"]
    assert await keys(sort_order=sort.DESCEND, sort_target=sort.MOD, limit=1) == [b"a"]
    assert await keys(sort_order=sort.ASCEND, sort_target=sort.CREATE, limit=2) == [b"a", b"b"]
    assert await keys(min_mod_revision=4) == [b"a", b"c"]
    assert await keys(max_mod_revision=4) == [b"b", b"c"]
    assert await keys(min_create_revision=3, max_create_revision=3) == [b"b"]
    limited = await client.range(b"a", b"z", limit=2)
    assert (limited.more, limited.count, [kv.value for kv in limited.kvs]) == (True, 3, [b"4", b"2"])
    values = await client.range(b"a", b"z", keys_only=True, sort_order=sort.ASCEND, sort_target=sort.VALUE)
    assert [(kv.key, kv.value) for kv in values.kvs] == [(b"c", b""), (b"b", b""), (b"a", b"")]


async def test_previous_values_are_given(client: Client) -> None:
    await client.put(b"k", b"1")

    assert (await client.put(b"k", b"2", prev_kv=True)).prev_kv.value == b"1"
    assert [kv.value for kv in (await client.delete(b"k", prev_kv=True)).prev_kvs] == [b"2"]
    assert not (await client.put(b"k", b"3", prev_kv=True)).HasField("prev_kv")


async def refused(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    return error.value.code(), error.value.details() or ""


async def test_errors_have_etcds_codes_and_texts(client: Client) -> None:
    await client.put(b"k", b"1")
    await client.put(b"k", b"2")
    await client.compact(3)

    compacted = "etcdserver: mvcc: required revision has been compacted"
    assert await refused(client.range(b"k", revision=2)) == (Code.OUT_OF_RANGE, compacted)
    assert await refused(client.compact(3)) == (Code.OUT_OF_RANGE, compacted)
    future = "etcdserver: mvcc: required revision is a future revision"
    assert await refused(client.range(b"k", revision=99)) == (Code.OUT_OF_RANGE, future)
    assert await refused(client.compact(99)) == (Code.OUT_OF_RANGE, future)
    assert await refused(client.put(b"k", lease=77)) == (Code.NOT_FOUND, "etcdserver: requested lease not found")
    assert await refused(client.put(b"")) == (Code.INVALID_ARGUMENT, "etcdserver: key is not provided")
    many = rpc_pb2.TxnRequest(success=[put_op(b"%d" % i) for i in range(129)])
    assert await refused(client.txn(many)) == (Code.INVALID_ARGUMENT, "etcdserver: too many operations in txn request")
    large = await refused(client.put(b"k", b"x" * (1536 * 1024)))
    assert large == (Code.INVALID_ARGUMENT, "etcdserver: request is too large")
    twice = rpc_pb2.TxnRequest(success=[put_op(b"a"), put_op(b"a")])
    assert await refused(client.txn(twice)) == (Code.INVALID_ARGUMENT, "etcdserver: duplicate key given in txn request")
    await client.grant(60, 5)
    assert await refused(client.grant(60, 5)) == (Code.FAILED_PRECONDITION, "etcdserver: lease already exists")
    nested = rpc_pb2.TxnRequest(success=[rpc_pb2.RequestOp(request_txn=rpc_pb2.TxnRequest())])
    assert (await refused(client.txn(nested)))[0] is Code.UNIMPLEMENTED
    assert (await refused(client.call("Cluster/MemberList", rpc_pb2.MemberListRequest(), rpc_pb2.MemberListResponse)))[
        0
    ] is Code.UNIMPLEMENTED


async def test_a_quota_is_told_as_etcd_does(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "s.db", quota_bytes=MIB, limits=LIMITS)
    async with StoreServer(store, f"unix:{tmp_path}/socket") as server:
        client = Client(server.address)
        for i in range(7):
            await client.put(b"k%d" % i, b"x" * 128 * 1024)

        full = (Code.RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded")
        assert await refused(client.put(b"more", b"x" * 256 * 1024)) == full
        assert (await client.delete(b"k0")).deleted == 1
        await client.channel.close()


# Watches


async def test_watches_share_a_stream(client: Client) -> None:
    stream = client.watch()
    await client.put(b"a/1")
    await client.put(b"b/1")
    await stream.write(create(b"a/", b"a0", start_revision=2))
    created = await stream.read()
    assert (created.created, created.watch_id, created.header.revision) == (True, 0, 3)
    events = await stream.read()
    assert [(e.type, e.kv.key, e.kv.mod_revision) for e in events.events] == [(kv_pb2.Event.PUT, b"a/1", 2)]

    await stream.write(create(b"b/", b"b0"))
    second = await stream.read()
    assert (second.created, second.watch_id) == (True, 1)
    await client.txn(rpc_pb2.TxnRequest(success=[put_op(b"b/2", b"x"), put_op(b"b/3", b"x")]))
    await client.delete(b"b/2")
    found: list[tuple[int, bytes, int]] = []
    while len(found) < 3:
        response = await stream.read()
        assert response.watch_id == 1
        found += [(e.type, e.kv.key, e.kv.mod_revision) for e in response.events]
    put, deleted = kv_pb2.Event.PUT, kv_pb2.Event.DELETE
    assert found == [(put, b"b/2", 4), (put, b"b/3", 4), (deleted, b"b/2", 5)]

    await stream.write(rpc_pb2.WatchRequest(cancel_request=rpc_pb2.WatchCancelRequest(watch_id=1)))
    cancelled = await stream.read()
    assert (cancelled.watch_id, cancelled.canceled, cancelled.compact_revision) == (1, True, 0)
    stream.cancel()


async def test_progress_is_told_after_the_events(client: Client) -> None:
    stream = client.watch()
    await stream.write(create(b"k", start_revision=1))
    assert (await stream.read()).created
    for i in range(20):
        revision = (await client.put(b"k", b"%d" % i)).header.revision
    revision = (await client.put(b"other")).header.revision
    await stream.write(rpc_pb2.WatchRequest(progress_request=rpc_pb2.WatchProgressRequest()))

    seen = 0
    while (response := await stream.read()).watch_id != -1:
        seen += len(response.events)
    assert (seen, response.header.revision, len(response.events)) == (20, revision, 0)
    stream.cancel()


async def test_a_compacted_watch_is_cancelled_with_the_revision(client: Client) -> None:
    for i in range(5):
        await client.put(b"k", b"%d" % i)
    await client.compact(4)
    stream = client.watch()
    await stream.write(create(b"k", start_revision=2))

    assert (await stream.read()).created
    response = await stream.read()
    assert (response.canceled, response.compact_revision) == (True, 4)
    stream.cancel()


async def test_filters_are_kept(client: Client) -> None:
    stream = client.watch()
    await stream.write(create(b"k", filters=[rpc_pb2.WatchCreateRequest.NOPUT], start_revision=1))
    assert (await stream.read()).created
    await client.put(b"k")
    await client.delete(b"k")

    response = await stream.read()
    assert [e.type for e in response.events] == [kv_pb2.Event.DELETE]
    stream.cancel()


async def test_large_catch_ups_come_in_portions(client: Client) -> None:
    for i in range(12):
        await client.put(b"k%02d" % i, b"x" * 700_000)
    stream = client.watch()
    await stream.write(create(b"k", b"l", start_revision=2))
    assert (await stream.read()).created

    keys: list[bytes] = []
    while len(keys) < 12:
        response = await stream.read()
        assert response.ByteSize() < 3 * MIB
        keys += [e.kv.key for e in response.events]
    assert keys == [b"k%02d" % i for i in range(12)]
    stream.cancel()


async def test_streams_that_are_dropped_leave_nothing_behind(server: StoreServer, client: Client) -> None:
    for _ in range(5):
        stream = client.watch()
        for i in range(10):
            await stream.write(create(b"%d" % i))
            await stream.read()
        stream.cancel()

    async with asyncio.timeout(PATIENT_S):
        while server.store._hub._watches or len(asyncio.all_tasks()) >= 25:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


class Unread:
    """A server's call whose responses go nowhere."""

    async def write(self, response: rpc_pb2.WatchResponse) -> None:
        await asyncio.sleep(0)


@pytest.mark.parametrize("ticks", range(12))
async def test_a_stream_that_is_cancelled_while_it_ends_leaves_no_watch(server: StoreServer, ticks: int) -> None:
    """gRPC ends the requests of a call that its client dropped and cancels its task: in either order, some steps apart."""
    ended = asyncio.Event()

    async def requests() -> AsyncIterator[rpc_pb2.WatchRequest]:
        for i in range(10):
            yield create(b"%d" % i)
        await ended.wait()

    task = asyncio.ensure_future(WatchStream(server.store, Calls(server.store), Unread()).run(requests()))
    while len(server.store._hub._watches) < 10:  # noqa: ASYNC110
        await asyncio.sleep(0)
    ended.set()
    for _ in range(ticks):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])

    assert not server.store._hub._watches


# Leases


async def test_leases(client: Client) -> None:
    lease = (await client.grant(60)).ID
    await client.put(b"m", lease=lease)
    request = rpc_pb2.LeaseTimeToLiveRequest(ID=lease, keys=True)
    left = await client.call("Lease/LeaseTimeToLive", request, rpc_pb2.LeaseTimeToLiveResponse)
    assert (left.grantedTTL, list(left.keys)) == (60, [b"m"])
    assert 30 <= left.TTL <= 60
    leases = await client.call("Lease/LeaseLeases", rpc_pb2.LeaseLeasesRequest(), rpc_pb2.LeaseLeasesResponse)
    assert [s.ID for s in leases.leases] == [lease]

    alive = client.stream("Lease/LeaseKeepAlive", rpc_pb2.LeaseKeepAliveRequest, rpc_pb2.LeaseKeepAliveResponse)
    await alive.write(rpc_pb2.LeaseKeepAliveRequest(ID=lease))
    assert (await alive.read()).TTL == 60
    await client.call("Lease/LeaseRevoke", rpc_pb2.LeaseRevokeRequest(ID=lease), rpc_pb2.LeaseRevokeResponse)
    await alive.write(rpc_pb2.LeaseKeepAliveRequest(ID=lease))
    assert (await alive.read()).TTL == 0
    alive.cancel()
    assert (await client.range(b"m")).count == 0
    gone = await client.call("Lease/LeaseTimeToLive", request, rpc_pb2.LeaseTimeToLiveResponse)
    assert gone.TTL == -1


# The process and its port


async def test_random_bytes_at_the_port_do_nothing(server: StoreServer, client: Client) -> None:
    chance = random.Random(5)
    await client.put(b"k", b"1")
    host, _, port = server.address.rpartition(":")
    for preface in (b"", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n") * 5:
        _reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(preface + chance.randbytes(2000))
        await writer.drain()
        writer.close()
    junk = client.channel.unary_unary("/etcdserverpb.KV/Txn")
    for size in (1, 10, 1000):
        with pytest.raises(grpc.aio.AioRpcError):
            await junk(b"\xff" + chance.randbytes(size), timeout=PATIENT_S)

    assert [(kv.key, kv.value) for kv in (await client.range(b"\0", b"\0")).kvs] == [(b"k", b"1")]


async def test_an_address_that_is_taken_is_refused(server: StoreServer, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be listened on"):
        await StoreServer(SqliteStore(tmp_path / "other.db"), server.address).start()


def test_a_file_that_cannot_be_opened_ends_the_program(tmp_path: Path) -> None:
    (tmp_path / "junk").write_bytes(b"junk" * 1000)

    assert main([str(tmp_path / "junk"), f"unix:{tmp_path}/socket"]) == 1


@pytest.mark.processes
async def test_the_process_survives_being_killed(tmp_path: Path) -> None:
    path, address = tmp_path / "s.db", f"unix:{tmp_path}/socket"
    for round_ in range(2):
        child = await asyncio.create_subprocess_exec(sys.executable, "-m", "qsg.store.serve", str(path), address)
        client = Client(address)
        await client.channel.channel_ready()
        found = await client.range(b"k", b"l")
        assert found.count == round_ * 50
        for i in range(50):
            await client.put(b"k%d/%d" % (round_, i))
        child.send_signal(signal.SIGKILL if round_ == 0 else signal.SIGTERM)
        status = await child.wait()
        assert status == (-signal.SIGKILL if round_ == 0 else 0)
        await client.channel.close()
    assert "s.db-wal" not in os.listdir(tmp_path)  # closed in order


@pytest.mark.processes
async def test_a_process_that_was_stopped_for_a_while_ends_no_lease(tmp_path: Path) -> None:
    """Interleaving N20: the store wakes from SIGSTOP with every lease overdue; each has its full time again, and ends unless renewed."""
    address = f"unix:{tmp_path}/socket"
    child = await asyncio.create_subprocess_exec(sys.executable, "-m", "qsg.store.serve", str(tmp_path / "s.db"), address)
    client = Client(address)
    await client.channel.channel_ready()
    lease = (await client.grant(6)).ID
    await client.put(b"m", lease=lease)
    child.send_signal(signal.SIGSTOP)
    await asyncio.sleep(7.0)
    child.send_signal(signal.SIGCONT)
    await asyncio.sleep(0.7)

    assert (await client.range(b"m")).count == 1
    async with asyncio.timeout(PATIENT_S):
        while (await client.range(b"m")).count:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    await client.channel.close()
    child.send_signal(signal.SIGTERM)
    assert await child.wait() == 0


# The real command


@pytest.mark.etcd
async def test_etcdctl(server: StoreServer) -> None:
    etcdctl = await asyncio.to_thread(tool, "etcdctl")
    patient = [f"--dial-timeout={PATIENT_S:g}s", f"--command-timeout={PATIENT_S:g}s"]

    async def run(*arguments: str, given: str = "") -> str:
        process = await asyncio.create_subprocess_exec(
            etcdctl, f"--endpoints={server.address}", *patient, *arguments,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        output, _ = await asyncio.wait_for(process.communicate(given.encode()), PATIENT_S)
        return output.decode()

    assert await run("put", "k/1", "one") == "OK\n"
    await run("put", "k/2", "two")
    assert await run("get", "--prefix", "k/") == "k/1\none\nk/2\ntwo\n"
    assert await run("get", "--prefix", "k/", "--limit=1", "--order=DESCEND") == "k/2\ntwo\n"
    assert await run("txn", given='mod("k/1") > "0"\n\nput k/3 three\nget k/1\n\nget k/2\n\n') == "SUCCESS\n\nOK\n\nk/1\none\n"
    assert await run("txn", given='val("k/1") = "no"\n\nput k/3 no\n\nget k/2\n\n') == "FAILURE\n\nk/2\ntwo\n"
    granted = await run("lease", "grant", "60")
    lease = granted.split()[1]
    assert await run("put", "m", "x", f"--lease={lease}") == "OK\n"
    assert "attached keys([m])" in await run("lease", "timetolive", lease, "--keys")
    assert await run("lease", "keep-alive", "--once", lease) == f"lease {lease} keepalived with TTL(60)\n"
    assert "revoked" in await run("lease", "revoke", lease)
    assert await run("get", "m") == ""
    watching = await asyncio.create_subprocess_exec(
        etcdctl, f"--endpoints={server.address}", "watch", "--rev=2", "k/1", stdout=asyncio.subprocess.PIPE
    )
    assert watching.stdout is not None
    assert [await asyncio.wait_for(watching.stdout.readline(), PATIENT_S) for _ in range(3)] == [b"PUT\n", b"k/1\n", b"one\n"]
    watching.kill()
    await watching.wait()
    assert await run("del", "--prefix", "k/") == "3\n"
    assert "compacted revision 5" in await run("compact", "5")
    assert server.address in await run("endpoint", "status")
    assert "is healthy" in await run("endpoint", "health")
