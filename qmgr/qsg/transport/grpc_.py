"""The network transport: each stream is one gRPC bidirectional call on a connection of its own, whose messages are raw frames.

A process that died is told from one that does not answer: `Refused` when the kernel there refuses the connection, at once. One address may
stand for several processes, among which each connection chooses anew (a Service): refused by one, the next is asked at once. A stream
whose other process is killed ends with `Closed` at once. Half-closing ends the whole stream. Reading and writing run in tasks of the
stream, because cancelling a read or write of a gRPC call cancels the call: here `send` and `receive` can be cancelled freely.
Not guaranteed: that a frame whose `send` returned arrives; every protocol above has its own confirmations.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import grpc
import grpc.aio
import structlog

from qsg.endings import ended, to_the_end
from qsg.serving import KeptServer
from qsg.transport.contract import MAX_FRAME, Closed, Handler, Refused, TransportError, Unreachable
from qsg.transport.frames import FrameQueue
from qsg.transport.tls import TlsFiles

log = structlog.get_logger()

READ_AHEAD = 2 << 20
FLUSH_S = 0.3
"""How long a closing stream waits for gRPC to take what is queued, and then for the other side to see the end."""
ATTEMPTS = PROBES = 3
"""How often a connection is made while somebody listens there, and how often a plain one is refused before nobody does. Of a Service for
three processes, one of them just dead, one connection in three fails, and one `connect` in twenty."""
METHODS = {"qsg.v1.Peer": "Link"}
"""The streaming method of a service; of all others it is `Session`."""

_COMMON = (
    ("grpc.max_send_message_length", MAX_FRAME),
    ("grpc.max_receive_message_length", MAX_FRAME),
    ("grpc.keepalive_time_ms", 5000),
    ("grpc.keepalive_timeout_ms", 3000),
    ("grpc.http2.max_pings_without_data", 0),
)
CLIENT_OPTIONS = (
    *_COMMON,
    ("grpc.use_local_subchannel_pool", 1),  # a connection of its own: no back-off inherited from earlier failures
    ("grpc.enable_retries", 0),
    ("grpc.enable_http_proxy", 0),
)
SERVER_OPTIONS = (
    *_COMMON,
    ("grpc.so_reuseport", 0),  # a port that is taken is an error
    ("grpc.http2.min_ping_interval_without_data_ms", 1000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 1000),
    ("grpc.http2.max_ping_strikes", 0),
)

_ACCEPTED = ("qsg-accepted", "1")
"""Sent by the server at once: only this tells a client that there is a process behind the connection, and that it has the service."""


def method_of(service: str) -> str:
    return f"/{service}/{METHODS.get(service, 'Session')}"


class _GrpcStream:
    """What both ends have in common: an inbox that a task fills and an outbox that a task empties."""

    def __init__(self, peer: str, identity: str, read: Callable[[], Awaitable[Any]], write: Callable[[bytes], Awaitable[Any]]) -> None:
        self.peer = peer
        self.identity = identity
        self._read = read
        self._write = write
        self._inbox = FrameQueue(READ_AHEAD)
        self._outbox = FrameQueue()
        self.ended = asyncio.Event()
        """No more frames come in: the other side closed, or the connection broke, or it was closed here."""
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._reading(), name=f"read {peer}"), loop.create_task(self._writing(), name=f"write {peer}")]

    async def send(self, frame: bytes) -> None:
        if len(frame) > MAX_FRAME:
            raise ValueError(f"a frame of {len(frame)} bytes, at most {MAX_FRAME}")
        await self._outbox.put(frame)

    async def receive(self) -> bytes:
        return await self._inbox.get()

    def end(self, detail: str) -> None:
        self._inbox.end(detail)
        self._outbox.end(detail)
        self.ended.set()

    async def flush(self) -> None:
        """Waits until the frames sent so far are with gRPC, at most `FLUSH_S`."""
        self._outbox.end("closed here")
        if not self._tasks[1].done():
            await asyncio.wait(self._tasks[1:], timeout=FLUSH_S)

    async def stop(self) -> None:
        """Ends reading and writing; the call must be over or about to be cancelled."""
        self.end("closed here")
        await ended(*self._tasks)
        self._read = self._write = _gone  # gRPC keeps the connection open as long as anyone holds the call

    async def _reading(self) -> None:
        detail = "the other side closed"
        try:
            while self._inbox.ended is None:
                frame = await self._read()
                if frame is grpc.aio.EOF:
                    break
                await self._inbox.put(frame)
        except Closed:
            pass  # closed here meanwhile
        except asyncio.CancelledError:
            detail = "the call was cancelled"
            raise
        except Exception as e:  # gRPC's errors have no common class
            detail = _describe(e)
        finally:
            self.end(detail)

    async def _writing(self) -> None:
        try:
            while True:
                await self._write(await self._outbox.get())
        except Closed:
            pass  # everything is written
        except Exception as e:  # as above
            self.end(_describe(e))
            self._outbox.drop()


async def _gone(*_: object) -> Any:
    raise Closed("closed here")


def _describe(error: Exception) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name}: {error.details()}"
    return f"connection lost: {error!r}"


class _ClientStream(_GrpcStream):
    def __init__(self, peer: str, identity: str, channel: grpc.aio.Channel, call: Any) -> None:
        super().__init__(peer, identity, call.read, call.write)
        self._channel = channel
        self._call = call

    async def close(self) -> None:
        call, self._call = self._call, None
        if call is not None:
            await to_the_end(self._close(call))

    async def _close(self, call: Any) -> None:
        try:
            await self.flush()
            if not self.ended.is_set():
                await self._half_close(call)
        finally:
            self.end("closed here")
            call.cancel()
            await self.stop()
            await self._channel.close()

    async def _half_close(self, call: Any) -> None:
        """Says that no more comes, and waits until the other side has seen it, so that nothing on its way is thrown away."""
        try:
            async with asyncio.timeout(FLUSH_S):
                await call.done_writing()
                await self.ended.wait()
        except (TimeoutError, grpc.aio.AioRpcError, grpc.aio.UsageError, asyncio.InvalidStateError) as e:
            log.debug("not closed orderly", peer=self.peer, error=repr(e))


class _ServerStream(_GrpcStream):
    """The server's end; the call returns once it has `ended`."""

    def __init__(self, context: Any) -> None:
        super().__init__(_address_of(context.peer()), _identity_of(context), context.read, context.write)

    async def close(self) -> None:
        try:
            await self.flush()
        finally:
            self.end("closed here")


def _address_of(peer: str) -> str:
    """gRPC says "ipv4:10.0.0.1:4711"."""
    scheme, _, address = peer.partition(":")
    return address.replace("%5B", "[").replace("%5D", "]") if scheme in ("ipv4", "ipv6") else peer


def _identity_of(context: Any) -> str:
    """The common name of the client's certificate, else its first alternative name."""
    properties = context.auth_context()
    for name in ("x509_common_name", "x509_subject_alternative_name"):
        for value in properties.get(name, ()):
            return bytes(value).decode(errors="replace")
    return ""


class _Service(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Runs a handler for each call, in a task that the listener owns (gRPC would cancel it with the call)."""

    def __init__(self, handlers: Mapping[str, Handler]) -> None:
        self._methods = {method_of(service): handler for service, handler in handlers.items()}
        self.tasks: set[asyncio.Task[None]] = set()
        self.closing = False

    def service(self, details: Any) -> Any:
        handler = self._methods.get(details.method)
        if handler is None:
            log.warning("no such service", method=str(details.method)[:200])
            return None

        async def session(_: Any, context: Any) -> None:
            await self._session(handler, context)

        return grpc.stream_stream_rpc_method_handler(session)

    async def _session(self, handler: Handler, context: Any) -> None:
        if self.closing:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "shutting down")
        await context.send_initial_metadata((_ACCEPTED,))
        stream = _ServerStream(context)
        task = asyncio.get_running_loop().create_task(self._serve(handler, stream), name=f"stream of {stream.peer}")
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        try:
            await stream.ended.wait()
        finally:
            await stream.stop()

    async def _serve(self, handler: Handler, stream: _ServerStream) -> None:
        try:
            await handler(stream)
        except TransportError as e:
            log.debug("stream ended", peer=stream.peer, detail=str(e))
        except Exception:
            log.exception("handler failed", peer=stream.peer)
        finally:
            await stream.close()


class GrpcListener:
    def __init__(self, server: KeptServer, service: _Service) -> None:
        self.address = server.address
        self._server = server
        self._service = service

    async def close(self) -> None:
        """Takes no more calls, cancels the handlers and waits for them; every stream ends."""
        self._service.closing = True
        tasks = list(self._service.tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await self._server.stop(None)


class GrpcTransport:
    """Implements `qsg.transport.contract.Transport`. With `tls`, mutual TLS."""

    def __init__(self, tls: TlsFiles | None = None, *, server_name: str = "") -> None:
        self._tls = tls
        self._server_name = server_name

    async def connect(self, address: str, service: str, *, timeout_s: float = 1.0) -> _ClientStream:
        loop, left = asyncio.get_running_loop(), ATTEMPTS
        until = loop.time() + timeout_s
        while True:
            left -= 1
            try:
                return await self._connect(address, service, max(0.0, until - loop.time()))
            except _SomebodyListens:
                if not left or loop.time() >= until - timeout_s / 2:  # what is said is why, not that there was no time for more
                    raise

    async def _connect(self, address: str, service: str, timeout_s: float) -> _ClientStream:
        channel = self._channel(address)
        call = channel.stream_stream(method_of(service))()
        try:
            async with asyncio.timeout(timeout_s):
                if _ACCEPTED not in tuple(await call.initial_metadata()):
                    raise await _classify(address, await call.code(), await call.details(), timeout_s)
        except TimeoutError:
            await to_the_end(channel.close())
            raise Unreachable(f"{address}: no answer within {timeout_s:.3g} s") from None
        except BaseException:
            call.cancel()
            await to_the_end(channel.close())
            raise
        identity = "" if self._tls is None else self._server_name or _host_port(address)[0]
        return _ClientStream(address, identity, channel, call)

    def _channel(self, address: str) -> grpc.aio.Channel:
        if self._tls is None:
            return grpc.aio.insecure_channel(address, options=CLIENT_OPTIONS)
        options: list[tuple[str, int | str]] = [*CLIENT_OPTIONS]
        if self._server_name:
            options.append(("grpc.ssl_target_name_override", self._server_name))
        return grpc.aio.secure_channel(address, self._tls.client(), options=options)

    async def listen(self, address: str, handlers: Mapping[str, Handler]) -> GrpcListener:
        service = _Service(handlers)

        def bind(server: grpc.aio.Server, at: str) -> int:
            return int(server.add_insecure_port(at) if self._tls is None else server.add_secure_port(at, self._tls.server()))

        server = KeptServer(lambda: grpc.aio.server(handlers=[service], options=SERVER_OPTIONS), bind)
        try:
            await server.start(address)
        except RuntimeError as e:
            raise TransportError(f"cannot listen at {address}: {e}") from e
        return GrpcListener(server, service)


def _host_port(address: str) -> tuple[str, str]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), port


class _SomebodyListens(Unreachable):
    """A plain connection was taken after one that had failed."""


async def _classify(address: str, code: grpc.StatusCode, words: str, timeout_s: float) -> TransportError:
    """Asks the kernel there: `Refused` when every address refuses plain connections. gRPC's own words are not to be relied on."""
    detail = f"{address}: {code.name}: {words}"
    if code is not grpc.StatusCode.UNAVAILABLE:
        return Unreachable(detail)
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(timeout_s):
            found = await loop.getaddrinfo(*_host_port(address), type=socket.SOCK_STREAM)
            for family, kind, protocol, _, target in found * PROBES:
                if not await _refuses(family, kind, protocol, target):
                    return _SomebodyListens(detail)
    except (OSError, TimeoutError):
        return Unreachable(detail)
    return Refused(detail)


async def _refuses(family: int, kind: int, protocol: int, target: Any) -> bool:
    """Whether nobody takes a plain connection. Raises `OSError` when that cannot be told."""
    with socket.socket(family, kind, protocol) as sock:
        sock.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(sock, target)
        except ConnectionRefusedError:
            return True
    return False
