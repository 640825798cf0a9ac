"""Frames over Unix sockets: four bytes of length (big-endian), then the frame. Joins a queue manager and its channel initiator.

A frame is delivered whole or not at all, and the end of the other process is seen at once (the kernel closes its socket). Both ends
must run as the same user: the socket is only accessible to its owner. What was sent before the end may be lost with the other process.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import stat
import struct
from collections.abc import Awaitable, Callable
from typing import cast

import structlog

from qsg.transport.contract import Closed, Refused, TransportError, Unreachable
from qsg.transport.frames import FrameQueue

log = structlog.get_logger()

MAX_FRAME = 128 << 20
READ_AHEAD = 4 << 20
WRITE_BEHIND = 1 << 20
FLUSH_S = 0.3
"""How long a closing stream waits for the other side to take what is still queued."""
_LENGTH = struct.Struct(">I")
_JOIN_BELOW = 16 << 10
_GONE = (errno.ENOENT, errno.ECONNREFUSED)


class UnixStream(asyncio.Protocol):
    """One connection. Implements `qsg.transport.contract.Stream`; `pid` is the other side's process."""

    def __init__(self, peer: str, on_connected: Callable[[UnixStream], None] | None = None) -> None:
        self.peer = peer
        self.identity = ""
        self.pid = 0
        self.received = 0
        """Bytes that came in so far, those of a frame that is not whole yet too: a sign of life."""
        self._on_connected = on_connected
        self._transport: asyncio.Transport | None = None
        self._inbox = FrameQueue(READ_AHEAD)
        self._parts: list[bytes] = []
        self._have = 0
        self._need = 0
        self._reading = True
        self._writable = asyncio.Event()
        self._writable.set()
        self._lost = asyncio.Event()

    async def send(self, frame: bytes) -> None:
        await self._writable.wait()
        self._put(frame)
        if not self._writable.is_set():
            await self._writable.wait()

    def send_nowait(self, frame: bytes) -> bool:
        """As `send`, if that neither waits nor fails; False: nothing was sent."""
        transport = self._transport
        if not self._writable.is_set() or self._inbox.ended is not None or transport is None or transport.is_closing():
            return False
        if len(frame) > MAX_FRAME:
            return False  # `send` says so
        self._put(frame)
        return True

    def _put(self, frame: bytes) -> None:
        if len(frame) > MAX_FRAME:
            raise ValueError(f"a frame of {len(frame)} bytes, at most {MAX_FRAME}")
        transport = self._transport
        if self._inbox.ended is not None or transport is None or transport.is_closing():
            raise Closed(self._inbox.ended or "closed here")
        if len(frame) < _JOIN_BELOW:
            transport.write(_LENGTH.pack(len(frame)) + frame)
        else:
            transport.write(_LENGTH.pack(len(frame)))
            transport.write(frame)

    async def receive(self) -> bytes:
        frame = await self._inbox.get()
        if not self._reading and not self._inbox.full and self._transport is not None and not self._transport.is_closing():
            self._reading = True
            self._transport.resume_reading()
        return frame

    async def close(self) -> None:
        self._inbox.end("closed here")
        transport = self._transport
        if transport is None:
            return
        transport.close()
        try:
            async with asyncio.timeout(FLUSH_S):
                await self._lost.wait()
        except TimeoutError:
            log.debug("peer does not take what is queued, dropped", peer=self.peer, bytes=transport.get_write_buffer_size())
        finally:
            transport.abort()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport = cast(asyncio.Transport, transport)  # other event loops have classes of their own
        transport.set_write_buffer_limits(high=WRITE_BEHIND)
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, WRITE_BEHIND)
        self.pid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
        if self._on_connected is not None:
            self._on_connected(self)

    def data_received(self, data: bytes) -> None:
        self.received += len(data)
        if self._inbox.ended is not None:
            return
        if self._parts:
            self._parts.append(data)
            self._have += len(data)
            if self._have < self._need:
                return
            data = b"".join(self._parts)
            self._parts.clear()
        at, end = 0, len(data)
        need = _LENGTH.size
        while end - at >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(data, at)
            if length > MAX_FRAME:
                self._fail(f"a frame of {length} bytes was announced, at most {MAX_FRAME}")
                return
            need = _LENGTH.size + length
            if end - at < need:
                break
            self._inbox.put_nowait(data[at + _LENGTH.size : at + need])
            at += need
            need = _LENGTH.size
        if at < end:
            self._parts, self._have, self._need = [data[at:]], end - at, need
        if self._inbox.full and self._reading and self._transport is not None:
            self._reading = False
            self._transport.pause_reading()

    def _fail(self, detail: str) -> None:
        log.warning("not our protocol, closed", peer=self.peer, pid=self.pid, detail=detail)
        self._inbox.end(detail)
        if self._transport is not None:
            self._transport.abort()

    def eof_received(self) -> bool:
        return False  # closes the transport: there is no half-open stream

    def connection_lost(self, error: Exception | None) -> None:
        detail = "the other side closed" if error is None else f"connection lost: {error}"
        self._inbox.end(detail + (" in the middle of a frame" if self._parts else ""))
        self._parts.clear()
        self._lost.set()
        self._writable.set()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()


UnixHandler = Callable[[UnixStream], Awaitable[None]]


class UnixListener:
    """A listening socket; each accepted stream runs in a task that ends with the listener."""

    def __init__(self, path: str, handler: UnixHandler) -> None:
        self.address = path
        self._handler = handler
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._inode = 0

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(lambda: UnixStream(self.address, self._accepted), self.address, backlog=100)
        os.chmod(self.address, stat.S_IRUSR | stat.S_IWUSR)
        self._inode = os.stat(self.address).st_ino

    def _accepted(self, stream: UnixStream) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(stream), name=f"unix stream of {stream.pid}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, stream: UnixStream) -> None:
        try:
            await self._handler(stream)
        except TransportError as e:
            log.debug("stream ended", path=self.address, pid=stream.pid, detail=str(e))
        except Exception:
            log.exception("handler failed", path=self.address, pid=stream.pid)
        finally:
            await stream.close()

    async def close(self) -> None:
        """Stops listening, cancels the handlers and waits for them."""
        if self._server is None:
            return
        self._server.close()
        self._server = None
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self._unlink()

    def _unlink(self) -> None:
        """Removes the socket, unless a successor has bound the path meanwhile."""
        try:
            if os.stat(self.address).st_ino == self._inode:
                os.unlink(self.address)
        except FileNotFoundError:
            return


async def connect_unix(path: str, *, timeout_s: float = 1.0) -> UnixStream:
    """Raises `Refused` when nobody listens at `path`, `Unreachable` otherwise."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(timeout_s):
            _, stream = await loop.create_unix_connection(lambda: UnixStream(path), path)
    except TimeoutError:
        raise Unreachable(f"{path}: no answer within {timeout_s} s") from None
    except OSError as e:
        raise (Refused if e.errno in _GONE else Unreachable)(f"{path}: {e.strerror or e}") from e
    return stream


async def listen_unix(path: str, handler: UnixHandler) -> UnixListener:
    """Listens at `path`, replacing what a dead process left there. Raises `OSError`."""
    listener = UnixListener(path, handler)
    await listener.start()
    return listener
