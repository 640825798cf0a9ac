"""A kept bidirectional stream to one endpoint: messages out through a queue, messages in through a callback.

Ends by itself when the server ends it or the connection breaks; `ended` then holds the reason. Closing it never raises.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import structlog
from google.protobuf.message import Message

from qsg.store.contract import StoreError, Unavailable
from qsg.store.etcd import errors
from qsg.store.etcd.endpoints import Endpoint
from qsg.store.etcd.pool import EndpointPool, this_task_is_cancelled

log = structlog.get_logger()


class Duplex:
    def __init__(self, pool: EndpointPool, endpoint: Endpoint, name: str, on_message: Callable[[Any], None]) -> None:
        loop = asyncio.get_running_loop()
        self.endpoint = endpoint
        self.last_heard = loop.time()
        """Loop time of the last message, or of the start."""
        self.ended: asyncio.Future[StoreError] = loop.create_future()
        self._clock = loop.time
        self._pool = pool
        self._on_message = on_message
        self._outbox: asyncio.Queue[Message] = asyncio.Queue()
        self._call = endpoint.stream(name, pool.metadata)
        self._tasks = [loop.create_task(self._read()), loop.create_task(self._write())]

    def send(self, message: Message) -> None:
        self._outbox.put_nowait(message)

    async def _write(self) -> None:
        try:
            while True:
                await self._call.write(await self._outbox.get())
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            return  # the reader is told the reason
        except asyncio.CancelledError:
            if this_task_is_cancelled():
                raise

    async def _read(self) -> None:
        error: StoreError = Unavailable("stream ended")
        try:
            while (message := await self._call.read()) is not grpc.aio.EOF:
                self.last_heard = self._clock()
                self._on_message(message)
        except grpc.aio.AioRpcError as rpc_error:
            error = errors.from_rpc(rpc_error)
        except asyncio.CancelledError:
            if this_task_is_cancelled():
                raise
        finally:
            if not self.ended.done():
                self.ended.set_result(error)
        self._pool.failed(self.endpoint, error, missed=False)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        self._call.cancel()
        for result in await asyncio.gather(*self._tasks, return_exceptions=True):
            if isinstance(result, Exception):
                log.error("etcd stream failed", endpoint=self.endpoint.address, exc_info=result)
