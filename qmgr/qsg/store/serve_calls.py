"""The unary calls of `qsg store`: KV, Lease, Maintenance, and the keep-alive stream.

Invariant: a header's revision is that of the state the answer speaks of, as etcd's is.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias, TypeVar

import grpc
import structlog
from google.protobuf.message import Message

from qsg.pb.etcd import rpc_pb2
from qsg.store import serve_wire as wire
from qsg.store.contract import LeaseNotFound, StoreError, TooLarge
from qsg.store.sqlite import SqliteStore
from qsg.store.sqlite_engine import Applied

log = structlog.get_logger()

Context: TypeAlias = Any
"""A `grpc.aio.ServicerContext` (grpc has no types)."""
Q = TypeVar("Q", bound=Message)
R = TypeVar("R", bound=Message)

API_VERSION = "3.6.0"
REQUEST_TIMEOUT_S = 7.0
TTL_MAX_S = 9_000_000_000


class Calls:
    """One method a call. Each raises `StoreError`; `handler` turns that into a gRPC status."""

    def __init__(self, store: SqliteStore) -> None:
        self._store = store

    def header(self, revision: int = 0) -> rpc_pb2.ResponseHeader:
        identity = self._store.identity
        return rpc_pb2.ResponseHeader(cluster_id=identity, member_id=identity, revision=revision or self._store.revision, raft_term=1)

    def handlers(self) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
        unary: dict[str, tuple[Callable[[Any, Context], Awaitable[Message]], type[Message]]] = {
            "KV/Range": (self.range, rpc_pb2.RangeRequest),
            "KV/Put": (self.put, rpc_pb2.PutRequest),
            "KV/DeleteRange": (self.delete_range, rpc_pb2.DeleteRangeRequest),
            "KV/Txn": (self.txn, rpc_pb2.TxnRequest),
            "KV/Compact": (self.compact, rpc_pb2.CompactionRequest),
            "Lease/LeaseGrant": (self.lease_grant, rpc_pb2.LeaseGrantRequest),
            "Lease/LeaseRevoke": (self.lease_revoke, rpc_pb2.LeaseRevokeRequest),
            "Lease/LeaseTimeToLive": (self.lease_time_to_live, rpc_pb2.LeaseTimeToLiveRequest),
            "Lease/LeaseLeases": (self.lease_leases, rpc_pb2.LeaseLeasesRequest),
            "Maintenance/Status": (self.status, rpc_pb2.StatusRequest),
            "Maintenance/Alarm": (self.alarm, rpc_pb2.AlarmRequest),
        }
        found: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            name: grpc.unary_unary_rpc_method_handler(
                _answering(call), request_deserializer=request.FromString, response_serializer=_serialize
            )
            for name, (call, request) in unary.items()
        }
        found["Lease/LeaseKeepAlive"] = grpc.stream_stream_rpc_method_handler(
            self.lease_keep_alive, request_deserializer=rpc_pb2.LeaseKeepAliveRequest.FromString, response_serializer=_serialize
        )
        return found

    # KV

    async def range(self, request: rpc_pb2.RangeRequest, context: Context) -> rpc_pb2.RangeResponse:
        response, applied = await self._single(rpc_pb2.RequestOp(request_range=request), context)
        response.response_range.header.CopyFrom(self.header(applied.revision))
        return response.response_range

    async def put(self, request: rpc_pb2.PutRequest, context: Context) -> rpc_pb2.PutResponse:
        response, applied = await self._single(rpc_pb2.RequestOp(request_put=request), context)
        response.response_put.header.CopyFrom(self.header(applied.revision))
        return response.response_put

    async def delete_range(self, request: rpc_pb2.DeleteRangeRequest, context: Context) -> rpc_pb2.DeleteRangeResponse:
        response, applied = await self._single(rpc_pb2.RequestOp(request_delete_range=request), context)
        response.response_delete_range.header.CopyFrom(self.header(applied.revision))
        return response.response_delete_range

    async def _single(self, request: rpc_pb2.RequestOp, context: Context) -> tuple[rpc_pb2.ResponseOp, Applied]:
        one = wire.plan(request)
        applied = await self._store.apply((), one.ops, timeout_s=_time_left_s(context))
        return wire.responses([one], applied)[0], applied

    async def txn(self, request: rpc_pb2.TxnRequest, context: Context) -> rpc_pb2.TxnResponse:
        limit = self._store.limits
        if max(len(request.compare), len(request.success), len(request.failure)) > limit.operations:
            raise TooLarge("too many operations")
        compares = [wire.compare(c) for c in request.compare]
        success, failure = [[wire.plan(r) for r in branch] for branch in (request.success, request.failure)]
        applied = await self._store.apply(
            compares,
            [op for one in success for op in one.ops],
            [op for one in failure for op in one.ops],
            timeout_s=_time_left_s(context),
        )
        return rpc_pb2.TxnResponse(
            header=self.header(applied.revision),
            succeeded=applied.succeeded,
            responses=wire.responses(success if applied.succeeded else failure, applied),
        )

    async def compact(self, request: rpc_pb2.CompactionRequest, context: Context) -> rpc_pb2.CompactionResponse:
        await self._store.compact(request.revision)
        return rpc_pb2.CompactionResponse(header=self.header())

    # Leases

    async def lease_grant(self, request: rpc_pb2.LeaseGrantRequest, context: Context) -> rpc_pb2.LeaseGrantResponse:
        if request.TTL > TTL_MAX_S:
            raise wire.Refused(grpc.StatusCode.OUT_OF_RANGE, "etcdserver: too large lease TTL")
        ttl_s = max(1, request.TTL)
        lease = await self._store.grant(ttl_s, request.ID)
        return rpc_pb2.LeaseGrantResponse(header=self.header(), ID=lease, TTL=ttl_s)

    async def lease_revoke(self, request: rpc_pb2.LeaseRevokeRequest, context: Context) -> rpc_pb2.LeaseRevokeResponse:
        await self._store.revoke(request.ID)
        return rpc_pb2.LeaseRevokeResponse(header=self.header())

    async def lease_time_to_live(self, request: rpc_pb2.LeaseTimeToLiveRequest, context: Context) -> rpc_pb2.LeaseTimeToLiveResponse:
        try:
            granted_s, left_s = self._store.lease_remaining(request.ID)
        except LeaseNotFound:
            return rpc_pb2.LeaseTimeToLiveResponse(header=self.header(), ID=request.ID, TTL=-1)
        keys = await self._store.lease_keys(request.ID) if request.keys else []
        return rpc_pb2.LeaseTimeToLiveResponse(header=self.header(), ID=request.ID, TTL=int(left_s), grantedTTL=granted_s, keys=keys)

    async def lease_leases(self, request: rpc_pb2.LeaseLeasesRequest, context: Context) -> rpc_pb2.LeaseLeasesResponse:
        leases = [rpc_pb2.LeaseStatus(ID=lease) for lease in self._store.lease_ids()]
        return rpc_pb2.LeaseLeasesResponse(header=self.header(), leases=leases)

    async def lease_keep_alive(
        self, requests: AsyncIterator[rpc_pb2.LeaseKeepAliveRequest], context: Context
    ) -> AsyncIterator[rpc_pb2.LeaseKeepAliveResponse]:
        """A TTL of 0 says that the lease is gone."""
        async for request in requests:
            try:
                ttl_s = int(await self._store.keep_alive(request.ID))
            except LeaseNotFound:
                ttl_s = 0
            except StoreError as e:
                await context.abort(*wire.refusal(e))
            yield rpc_pb2.LeaseKeepAliveResponse(header=self.header(), ID=request.ID, TTL=ttl_s)

    # Maintenance

    async def status(self, request: rpc_pb2.StatusRequest, context: Context) -> rpc_pb2.StatusResponse:
        status = await self._store.status()
        header = self.header(status.revision)
        return rpc_pb2.StatusResponse(
            header=header,
            version=API_VERSION,
            dbSize=self._store.bytes_total,
            dbSizeInUse=status.bytes_in_use,
            dbSizeQuota=status.bytes_quota,
            leader=header.member_id,
            raftIndex=status.revision,
            raftAppliedIndex=status.revision,
            raftTerm=header.raft_term,
        )

    async def alarm(self, request: rpc_pb2.AlarmRequest, context: Context) -> rpc_pb2.AlarmResponse:
        """There is one alarm, *no space*, on while the quota is used up; nobody has to clear it."""
        if request.action == rpc_pb2.AlarmRequest.ACTIVATE:
            raise wire.Refused(grpc.StatusCode.UNIMPLEMENTED, "alarms cannot be set")
        status = await self._store.status()
        header = self.header(status.revision)
        response = rpc_pb2.AlarmResponse(header=header)
        if 0 < status.bytes_quota <= status.bytes_in_use:
            response.alarms.add(memberID=header.member_id, alarm=rpc_pb2.NOSPACE)
        return response


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()


def _time_left_s(context: Context) -> float:
    left_s = context.time_remaining()
    return REQUEST_TIMEOUT_S if left_s is None else max(0.001, min(REQUEST_TIMEOUT_S, left_s))


def _answering(call: Callable[[Any, Context], Awaitable[R]]) -> Callable[[Any, Context], Awaitable[R]]:
    async def answer(request: Any, context: Context) -> R:
        try:
            return await call(request, context)
        except StoreError as e:
            code, text = wire.refusal(e)
            await context.abort(code, text)
            raise AssertionError("abort raises") from e

    return answer
