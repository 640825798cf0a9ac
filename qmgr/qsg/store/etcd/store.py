"""`EtcdStore`: the store contract over etcd's v3 API.

Invariant: a write that may have reached a server is never sent again from here. `txn` repeats only what was provably not applied;
everything else in doubt is `Unavailable`, and the caller settles it (guards, in the design).
Reads, leases and compaction are repeated, as repeating them is harmless.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from google.protobuf.message import Message

from qsg.pb.etcd import rpc_pb2
from qsg.store.contract import (
    Compacted,
    Compare,
    Get,
    GetResult,
    LeaseNotFound,
    Limits,
    NotApplied,
    Op,
    StoreStatus,
    TooLarge,
    TxnResult,
    Unavailable,
    WatchBatch,
)
from qsg.store.etcd import codec, errors
from qsg.store.etcd.endpoints import Security
from qsg.store.etcd.leases import LeaseKeeper
from qsg.store.etcd.pool import EndpointPool
from qsg.store.etcd.snapshot import snapshot
from qsg.store.etcd.user import Credentials, User
from qsg.store.etcd.watches import WatchHub

_READ_TOTAL_S = 5.0
_READ_ATTEMPT_S = 0.5
_PAUSE_S = 0.02
_ATTEMPT_MIN_S = 0.05
"""Less time than this is not worth an attempt: its miss would say nothing about the endpoint."""


class EtcdStore:
    """A client of the etcd members at `endpoints` (host:port, with or without a scheme; or unix:path).

    `ca`, `cert`, `key`: PEM files; `ca` turns TLS on. `server_name` overrides the name expected on the server's certificate.
    `credentials` gives user and password anew for each login.
    `timeout_s`: time for one transaction. `quota_bytes`: told by `status` where the server does not (etcd before 3.6).
    Belongs to the event loop that first uses it.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        *,
        ca: str | Path | None = None,
        cert: str | Path | None = None,
        key: str | Path | None = None,
        user: str | None = None,
        password: str | None = None,
        credentials: Credentials | None = None,
        server_name: str = "",
        timeout_s: float = 0.4,
        limits: Limits | None = None,
        quota_bytes: int = 0,
    ) -> None:
        security = Security(Path(ca), Path(cert) if cert else None, Path(key) if key else None, server_name) if ca else None
        self.limits = limits or Limits()
        self._pool = EndpointPool(endpoints, security, User(user or "", password or "", credentials))
        self._leases = LeaseKeeper(self._pool)
        self._watches = WatchHub(self._pool)
        self._timeout_s = timeout_s
        self._quota_bytes = quota_bytes
        self._accepted = Limits(1, 1, 1)
        """The largest that a server took; what it refuses lies above."""

    async def txn(
        self, compares: Sequence[Compare], ops: Sequence[Op], else_ops: Sequence[Op] = (), *, timeout_s: float | None = None
    ) -> TxnResult:
        request = codec.txn_request(compares, ops, else_ops)
        clock = asyncio.get_running_loop().time
        until = clock() + (self._timeout_s if timeout_s is None else timeout_s)
        while True:
            try:
                response = await self._pool.call("txn", request, until)
            except NotApplied:
                if self._pool.closed or clock() + _PAUSE_S + _ATTEMPT_MIN_S >= until:
                    raise
                await asyncio.sleep(_PAUSE_S)
            except TooLarge as error:
                self._learn(error, compares, max(len(ops), len(else_ops)), request.ByteSize())
                raise
            else:
                self._took(len(compares), max(len(ops), len(else_ops)), request)
                return codec.txn_result(response)

    def _took(self, compares: int, operations: int, request: Message) -> None:
        accepted = self._accepted
        if compares > accepted.compares or operations > accepted.operations:
            accepted = replace(accepted, compares=max(compares, accepted.compares), operations=max(operations, accepted.operations))
            self._accepted = replace(accepted, bytes=max(accepted.bytes, request.ByteSize()))

    def _learn(self, error: TooLarge, compares: Sequence[Compare], operations: int, size: int) -> None:
        """A refusal of what was within our limits: the server takes what it named, or what it took before, or else half of this."""
        limits, accepted = self.limits, self._accepted
        if isinstance(error, errors.TooManyOperations):
            # etcd has one limit for compares, operations and else-operations.
            if operations <= limits.operations and len(compares) <= limits.compares:
                fits = max(accepted.operations, accepted.compares, max(len(compares), operations) // 2)
                self.limits = replace(limits, operations=min(limits.operations, fits), compares=min(limits.compares, fits))
        elif isinstance(error, errors.TooManyBytes) and size <= limits.bytes:
            fits = error.limit if 0 < error.limit < size else max(accepted.bytes, size // 2)
            self.limits = replace(limits, bytes=min(limits.bytes, fits))

    async def get(self, get: Get) -> GetResult:
        response = await self._repeat("range", codec.range_request(get))
        return codec.get_result(response, response.header.revision)

    async def _repeat(self, name: str, request: Message, doubts: list[Unavailable] | None = None) -> Any:
        """A call that may be repeated, for about 5 s; each attempt that is too short for the answer is followed by a longer one.

        Attempts that may have been applied before the one that answered are noted in `doubts`.
        """
        clock = asyncio.get_running_loop().time
        end = clock() + _READ_TOTAL_S
        attempt_s = _READ_ATTEMPT_S
        while True:
            try:
                return await self._pool.call(name, request, min(clock() + attempt_s, end))
            except (NotApplied, Unavailable) as error:
                if self._pool.closed or clock() + _PAUSE_S + _ATTEMPT_MIN_S >= end:
                    raise Unavailable(str(error)) from error
                if isinstance(error, Unavailable):
                    attempt_s *= 1.5
                    if doubts is not None:
                        doubts.append(error)
                await asyncio.sleep(_PAUSE_S)

    def watch(self, key: bytes, end: bytes, from_revision: int) -> AsyncGenerator[WatchBatch, None]:
        return self._watches.watch(key, end, from_revision)

    async def grant(self, ttl_s: int) -> int:
        """An attempt whose answer is lost leaves a lease behind that nobody keeps, and that expires by itself."""
        response = await self._repeat("grant", rpc_pb2.LeaseGrantRequest(TTL=ttl_s))
        return int(response.ID)

    async def keep_alive(self, lease: int) -> float:
        return await self._leases.keep_alive(lease)

    async def revoke(self, lease: int) -> None:
        """Raises `LeaseNotFound` if it is gone already; not if an attempt whose answer was lost may have done it."""
        doubts: list[Unavailable] = []
        try:
            await self._repeat("revoke", rpc_pb2.LeaseRevokeRequest(ID=lease), doubts)
        except LeaseNotFound:
            if not doubts:
                raise

    async def compact(self, revision: int) -> None:
        """Raises `Compacted` if that is done already; not if an attempt whose answer was lost may have done it."""
        doubts: list[Unavailable] = []
        try:
            await self._repeat("compact", rpc_pb2.CompactionRequest(revision=revision), doubts)
        except Compacted:
            if not doubts:
                raise

    async def status(self) -> StoreStatus:
        response = await self._repeat("status", rpc_pb2.StatusRequest())
        return StoreStatus(
            revision=response.header.revision,
            bytes_in_use=response.dbSizeInUse,
            bytes_quota=response.dbSizeQuota or self._quota_bytes,
            version=response.version,
            leader=f"{response.leader:x}" if response.leader else "",
        )

    def snapshot(self) -> AsyncGenerator[bytes, None]:
        """See `qsg.store.etcd.snapshot`."""
        return snapshot(self._pool)

    async def close(self) -> None:
        self._pool.closed = True
        await self._watches.close()
        await self._leases.close()
        await self._pool.close()
