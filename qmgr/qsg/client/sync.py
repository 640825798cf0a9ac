"""The same client without asyncio: `with qsg.sync.connect(...) as qmgr: qmgr.put(...)`.

Runs the asynchronous client on an event loop in a thread of its own, one per connection; may be used from several threads, whose puts
then share commits. Names, arguments and errors are those of `qsg.client.qmgr.QueueManager`. An interrupted call (Ctrl-C) is cancelled.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from qsg.client import qmgr as aio
from qsg.client.errors import ConnectionBroken
from qsg.client.message import Message
from qsg.client.unit import UnitOfWork as AsyncUnitOfWork
from qsg.rules.world import World
from qsg.transport.contract import Transport

T = TypeVar("T")


class _Loop:
    """An event loop in a thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._handing_in = threading.Lock()
        self._ended = False
        self._thread = threading.Thread(target=self._serve, name="qsg client", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        with self._handing_in:
            if self._ended:  # perhaps by another thread, just now
                work.close()
                raise ConnectionBroken("the connection is closed")
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        if self._ended:
            return
        self.run(_cancel_others())
        with self._handing_in:
            self._ended = True
            self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _serve(self) -> None:
        """All of it in one thread: Python 3.14 shows each thread its own tasks alone."""
        self._loop.run_forever()
        self._loop.run_until_complete(_cancel_others())  # of threads that called meanwhile: they would wait for ever
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()


async def _cancel_others() -> None:
    tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def connect(
    addresses: str | Sequence[str] = "",
    *,
    application: str = "",
    queue_manager: str = "",
    producer: str = "",
    connect_s: float = 10.0,
    reconnect_s: float = 60.0,
    ca: str | Path = "",
    certificate: str | Path = "",
    key: str | Path = "",
    server_name: str = "",
    transport: Transport | None = None,
    world: World | None = None,
) -> QueueManager:
    """As `qsg.connect`; the result is used with `with`, or `open` and `close`."""
    return QueueManager(
        aio.connect(
            addresses,
            application=application,
            queue_manager=queue_manager,
            producer=producer,
            connect_s=connect_s,
            reconnect_s=reconnect_s,
            ca=ca,
            certificate=certificate,
            key=key,
            server_name=server_name,
            transport=transport,
            world=world,
        )
    )


class QueueManager:
    def __init__(self, inner: aio.QueueManager) -> None:
        self._inner = inner
        self._loop: _Loop | None = None

    def open(self) -> QueueManager:
        self._loop = _Loop()
        try:
            self._loop.run(self._inner.open())
        except BaseException:
            self.close()
            raise
        return self

    def close(self) -> None:
        loop, self._loop = self._loop, None
        if loop is not None:
            try:
                loop.run(self._inner.close())
            finally:
                loop.close()

    def __enter__(self) -> QueueManager:
        return self.open()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        if self._loop is None:
            work.close()
            raise ConnectionBroken("not connected")
        return self._loop.run(work)

    @property
    def name(self) -> str:
        return self._inner.name

    @property
    def member(self) -> str:
        return self._inner.member

    @property
    def reconnections(self) -> int:
        return self._inner.reconnections

    def put(
        self,
        queue: str,
        payload: bytes | str,
        *,
        priority: int | None = None,
        expiry_ms: int = 0,
        message_id: bytes = b"",
        correlation_id: bytes = b"",
        reply_to: str | tuple[str, str] | None = None,
        properties: Mapping[str, str] | None = None,
        persistent: bool = True,
        format: str = "",  # noqa: A002
        queue_manager: str = "",
    ) -> bytes:
        return self._run(
            self._inner.put(
                queue,
                payload,
                priority=priority,
                expiry_ms=expiry_ms,
                message_id=message_id,
                correlation_id=correlation_id,
                reply_to=reply_to,
                properties=properties,
                persistent=persistent,
                format=format,
                queue_manager=queue_manager,
            )
        )

    def put_many(
        self,
        queue: str,
        payloads: Sequence[bytes | str],
        *,
        priority: int | None = None,
        expiry_ms: int = 0,
        correlation_id: bytes = b"",
        reply_to: str | tuple[str, str] | None = None,
        properties: Mapping[str, str] | None = None,
        persistent: bool = True,
        queue_manager: str = "",
    ) -> list[bytes]:
        return self._run(
            self._inner.put_many(
                queue,
                payloads,
                priority=priority,
                expiry_ms=expiry_ms,
                correlation_id=correlation_id,
                reply_to=reply_to,
                properties=properties,
                persistent=persistent,
                queue_manager=queue_manager,
            )
        )

    def producer_state(self, queue: str, queue_manager: str = "") -> tuple[str, int, int]:
        return self._run(self._inner.producer_state(queue, queue_manager))

    def get(self, queue: str, *, wait_ms: int = 0, message_id: bytes = b"", correlation_id: bytes = b"") -> Message:
        return self._run(self._inner.get(queue, wait_ms=wait_ms, message_id=message_id, correlation_id=correlation_id))

    def get_many(
        self, queue: str, max_messages: int = 100, *, wait_ms: int = 0, message_id: bytes = b"", correlation_id: bytes = b""
    ) -> list[Message]:
        return self._run(self._inner.get_many(queue, max_messages, wait_ms=wait_ms, message_id=message_id, correlation_id=correlation_id))

    def browse(self, queue: str, *, message_id: bytes = b"", correlation_id: bytes = b"", headers_only: bool = False) -> Iterator[Message]:
        shown = self._inner.browse(queue, message_id=message_id, correlation_id=correlation_id, headers_only=headers_only)

        async def step() -> Message | None:
            return await anext(shown, None)

        while (message := self._run(step())) is not None:
            yield message

    def unit(self) -> UnitOfWork:
        return UnitOfWork(self, self._inner.unit())

    def inquire(self, kind: str, name: str = "") -> Any:
        return self._run(self._inner.inquire(kind, name))

    def inquire_queue(self, queue: str) -> dict[str, Any]:
        return self._run(self._inner.inquire_queue(queue))

    def command(self, name: str, /, **arguments: Any) -> Any:
        return self._run(self._inner.command(name, **arguments))


class UnitOfWork:
    """As `qsg.client.unit.UnitOfWork`, with `with`."""

    def __init__(self, qmgr: QueueManager, inner: AsyncUnitOfWork) -> None:
        self._qmgr = qmgr
        self._inner = inner

    def __enter__(self) -> UnitOfWork:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._qmgr._run(self._inner.__aexit__(kind, error, trace))

    def put(
        self,
        queue: str,
        payload: bytes | str,
        *,
        priority: int | None = None,
        expiry_ms: int = 0,
        message_id: bytes = b"",
        correlation_id: bytes = b"",
        reply_to: str | tuple[str, str] | None = None,
        properties: Mapping[str, str] | None = None,
        persistent: bool = True,
        format: str = "",  # noqa: A002
        queue_manager: str = "",
    ) -> bytes:
        return self._qmgr._run(
            self._inner.put(
                queue,
                payload,
                priority=priority,
                expiry_ms=expiry_ms,
                message_id=message_id,
                correlation_id=correlation_id,
                reply_to=reply_to,
                properties=properties,
                persistent=persistent,
                format=format,
                queue_manager=queue_manager,
            )
        )

    def put_many(self, queue: str, payloads: Sequence[bytes | str], *, expiry_ms: int = 0, queue_manager: str = "") -> list[bytes]:
        return self._qmgr._run(self._inner.put_many(queue, payloads, expiry_ms=expiry_ms, queue_manager=queue_manager))

    def get(self, queue: str, *, wait_ms: int = 0, message_id: bytes = b"", correlation_id: bytes = b"") -> Message:
        return self._qmgr._run(self._inner.get(queue, wait_ms=wait_ms, message_id=message_id, correlation_id=correlation_id))

    def get_many(
        self, queue: str, max_messages: int = 100, *, wait_ms: int = 0, message_id: bytes = b"", correlation_id: bytes = b""
    ) -> list[Message]:
        return self._qmgr._run(
            self._inner.get_many(queue, max_messages, wait_ms=wait_ms, message_id=message_id, correlation_id=correlation_id)
        )

    def commit(self) -> None:
        self._qmgr._run(self._inner.commit())

    def backout(self) -> None:
        self._qmgr._run(self._inner.backout())
