"""`qsg store`: one process that owns a SQLite file and speaks the part of etcd's v3 API that members use.

For a group on one machine: members run the same client code as with etcd. Served: KV (Range, Put, DeleteRange, Txn, Compact), Watch,
Lease, Maintenance.Status. After a start or a stall every lease has its full time to live. Not served: authentication, clustering,
transactions inside transactions. Whoever reaches the address may write, so it belongs on a socket or the loopback interface.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc
import structlog
import uvloop

from qsg.pb.etcd import rpc_pb2
from qsg.serving import KeptServer
from qsg.store import serve_wire as wire
from qsg.store.contract import Limits, StoreError
from qsg.store.serve_calls import Calls
from qsg.store.serve_watch import WatchStream
from qsg.store.sqlite import SqliteStore

log = structlog.get_logger()

REQUEST_BYTES = 1536 * 1024
FRAMING_BYTES = 512 * 1024
STOP_GRACE_S = 0.5
LIMITS = Limits(operations=128, compares=128, bytes=REQUEST_BYTES)
OPTIONS = (
    ("grpc.max_receive_message_length", REQUEST_BYTES + FRAMING_BYTES),
    ("grpc.max_send_message_length", -1),
    ("grpc.so_reuseport", 0),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 1000),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.keepalive_permit_without_calls", 1),
)


class StoreServer:
    """A store and the server before it. `async with`; `address` is then the one to connect to (port 0 = one is chosen)."""

    def __init__(self, store: SqliteStore, address: str) -> None:
        self.store = store
        self.address = address
        self._server: KeptServer | None = None

    async def __aenter__(self) -> StoreServer:
        await self.start()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.stop()

    async def start(self) -> None:
        """Raises `StoreError` when the file cannot be opened or the address not be listened on."""
        await self.store.open()
        try:
            handlers = self._handlers()

            def make() -> grpc.aio.Server:
                server = grpc.aio.server(options=OPTIONS)
                server.add_generic_rpc_handlers((handlers,))
                return server

            self._server = KeptServer(make, lambda server, address: int(server.add_insecure_port(address)))
            try:
                await self._server.start(self.address)
            except RuntimeError as e:
                raise StoreError(f"{self.address} cannot be listened on: {e}") from e
            self.address = self._server.address
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            await server.stop(STOP_GRACE_S)
        await self.store.close()

    def _handlers(self) -> _Handlers:
        calls = Calls(self.store)

        async def watch(requests: AsyncIterator[rpc_pb2.WatchRequest], context: grpc.aio.ServicerContext[Any, Any]) -> None:
            try:
                await WatchStream(self.store, calls, context).run(requests)
            except StoreError as e:
                await context.abort(*wire.refusal(e))

        handlers = calls.handlers()
        handlers["Watch/Watch"] = grpc.stream_stream_rpc_method_handler(
            watch,
            request_deserializer=rpc_pb2.WatchRequest.FromString,
            response_serializer=rpc_pb2.WatchResponse.SerializeToString,
        )
        return _Handlers(handlers)


class _Handlers(grpc.GenericRpcHandler):  # type: ignore[misc]
    def __init__(self, handlers: dict[str, grpc.RpcMethodHandler[Any, Any]]) -> None:
        self._handlers = {f"/etcdserverpb.{name}": handler for name, handler in handlers.items()}

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        handler = self._handlers.get(details.method)
        if handler is None:
            log.warning("no such service", method=str(details.method)[:200])
        return handler


async def serve(path: str | Path, address: str, *, quota_bytes: int = 0) -> None:
    """Serves until cancelled; raises `StoreError` when the file or the address cannot be had, or the file fails."""
    store = SqliteStore(path, quota_bytes=quota_bytes, limits=LIMITS)
    async with StoreServer(store, address) as server:
        log.info("store is served", path=str(path), address=server.address, revision=store.revision)
        await store.failed.wait()
        raise StoreError(f"the file {path} failed")


async def serve_until_signal(path: str | Path, address: str, *, quota_bytes: int = 0) -> None:
    """As `serve`, until SIGTERM or SIGINT."""
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(serve(path, address, quota_bytes=quota_bytes))
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
    await asyncio.wait([task])
    if not task.cancelled():
        task.result()


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m qsg.store.serve PATH ADDRESS [--quota-bytes N]`; the exit status."""
    parser = argparse.ArgumentParser(prog="qsg store", description="Serve a store from one SQLite file.")
    parser.add_argument("path", type=Path)
    parser.add_argument("address", help="host:port or unix:PATH")
    parser.add_argument("--quota-bytes", type=int, default=0, help="puts beyond this are refused (0 = only when the disk is full)")
    given = parser.parse_args(arguments)
    try:
        uvloop.run(serve_until_signal(given.path, given.address, quota_bytes=given.quota_bytes))
    except StoreError as e:
        log.error("store ended", error=str(e))
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
