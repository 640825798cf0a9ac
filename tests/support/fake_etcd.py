"""One etcd endpoint that says and does what a test tells it: who leads, in which term, what becomes of a transaction."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio

from qsg.pb.etcd import rpc_pb2


class FakeEtcd(grpc.GenericRpcHandler):  # type: ignore[misc]
    """`member`: its id. Every transaction is answered as applied, unless `refuses` or `drops`."""

    def __init__(self, member: int) -> None:
        self.member = member
        self.leader = member
        self.term = 1
        self.cluster = 0
        """The cluster that it says it is of; 0 = it does not say."""
        self.refuses = False
        """Transactions end as on a connection that the server has told to go away."""
        self.drops = False
        """Transactions are never answered."""
        self.taken = 0
        self.told = 0
        """How often it was asked who leads."""
        self.address = ""
        self.ttl_s = 5
        """Of every lease; 0 = there is none."""
        self.renewing = 0
        """Streams of renewals that are open."""
        self.watching = 0
        """Streams of watches that are open; they bring nothing but answers to questions."""
        self._methods: dict[str, Any] = {
            "/etcdserverpb.KV/Txn": grpc.unary_unary_rpc_method_handler(self._txn, rpc_pb2.TxnRequest.FromString, _serialize),
            "/etcdserverpb.Maintenance/Status": grpc.unary_unary_rpc_method_handler(
                self._status, rpc_pb2.StatusRequest.FromString, _serialize
            ),
            "/etcdserverpb.Lease/LeaseKeepAlive": grpc.stream_stream_rpc_method_handler(
                self._keep_alive, rpc_pb2.LeaseKeepAliveRequest.FromString, _serialize
            ),
            "/etcdserverpb.Watch/Watch": grpc.stream_stream_rpc_method_handler(self._watch, rpc_pb2.WatchRequest.FromString, _serialize),
        }

    def service(self, details: Any) -> Any:
        return self._methods.get(details.method)

    def _header(self) -> rpc_pb2.ResponseHeader:
        return rpc_pb2.ResponseHeader(cluster_id=self.cluster, member_id=self.member, raft_term=self.term, revision=1)

    async def _txn(self, request: rpc_pb2.TxnRequest, context: Any) -> rpc_pb2.TxnResponse:
        self.taken += 1
        if self.refuses:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "GOAWAY received")
        if self.drops:
            await asyncio.Event().wait()
        return rpc_pb2.TxnResponse(header=self._header(), succeeded=True)

    async def _status(self, request: rpc_pb2.StatusRequest, context: Any) -> rpc_pb2.StatusResponse:
        self.told += 1
        return rpc_pb2.StatusResponse(header=self._header(), leader=self.leader)

    async def _keep_alive(self, requests: AsyncIterator[rpc_pb2.LeaseKeepAliveRequest], context: Any) -> AsyncIterator[Any]:
        self.renewing += 1
        try:
            async for request in requests:
                yield rpc_pb2.LeaseKeepAliveResponse(header=self._header(), ID=request.ID, TTL=self.ttl_s)
        finally:
            self.renewing -= 1

    async def _watch(self, requests: AsyncIterator[rpc_pb2.WatchRequest], context: Any) -> AsyncIterator[Any]:
        self.watching += 1
        try:
            async for request in requests:
                if request.HasField("create_request"):
                    yield rpc_pb2.WatchResponse(header=self._header(), watch_id=request.create_request.watch_id, created=True)
                elif request.HasField("progress_request"):
                    yield rpc_pb2.WatchResponse(header=self._header(), watch_id=-1)
        finally:
            self.watching -= 1


def _serialize(message: Any) -> bytes:
    return bytes(message.SerializeToString())


@asynccontextmanager
async def serving(*members: FakeEtcd) -> AsyncIterator[list[str]]:
    """Their addresses."""
    servers = []
    for member in members:
        server = grpc.aio.server(handlers=[member])
        member.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        servers.append(server)
    try:
        yield [member.address for member in members]
    finally:
        for server in servers:
            await server.stop(None)
