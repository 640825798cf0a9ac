"""A snapshot of an etcd's whole database, as it was at one revision: the bytes of the file that `etcdutl snapshot restore` takes.

Invariant: an end without an error means that all of it came, as the digest at its end says. Not guaranteed: that it is small, or quick.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator

import grpc

from qsg.pb.etcd import rpc_pb2
from qsg.store.contract import Unavailable
from qsg.store.etcd import errors
from qsg.store.etcd.pool import EndpointPool

CONNECT_S = 5.0
DIGEST_BYTES = 32


async def snapshot(pool: EndpointPool) -> AsyncGenerator[bytes, None]:
    """Raises `StoreError`."""
    endpoint = await pool.connected(asyncio.get_running_loop().time() + CONNECT_S)
    digest, tail = hashlib.sha256(), b""
    try:
        async for response in endpoint.download("snapshot", rpc_pb2.SnapshotRequest(), pool.metadata):
            come = tail + response.blob
            tail = come[-DIGEST_BYTES:]
            digest.update(come[:-DIGEST_BYTES])
            yield response.blob
    except grpc.aio.AioRpcError as error:
        raise errors.from_rpc(error) from error
    if digest.digest() != tail:
        raise Unavailable("the snapshot has not come whole")
