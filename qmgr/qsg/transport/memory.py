"""The transport's twin in memory: hosts on a `MemoryNetwork` whose paths a simulation can delay, cut, refuse and reset.

Like TCP, and unlike a message queue: a cut path loses nothing of a stream that lives, it only holds it (frames and the news of an end
alike) until the path is healed; who is cut off learns nothing. `reset` and `kill` break streams so that both ends know; after `lose` only
silence tells. Whoever accepts a connection has to run for it (with gRPC the handshake is the process's, not the kernel's).
Deterministic: deliveries happen by loop time, in the order sent, and nothing is drawn but by the given `delay`.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Callable, Mapping

import structlog

from qsg.transport.contract import EVERYWHERE, Closed, Handler, Refused, TransportError, Unreachable
from qsg.transport.frames import FrameQueue

log = structlog.get_logger()

Delay = Callable[[str, str], float]
"""Seconds from one host to another, asked for each frame."""
HIGH_BYTES = 1 << 20


def _no_delay(source: str, target: str) -> float:
    return 0.0


class MemoryNetwork:
    """Hosts by name. `names` maps a further host name to hosts that are tried in turn (a DNS name with several addresses).

    `context`: in which deliveries run; None: in that of the sender.
    """

    def __init__(self, delay: Delay = _no_delay, context: contextvars.Context | None = None) -> None:
        self.delay = delay
        self.context = context
        self.names: dict[str, list[str]] = {}
        self.healed = asyncio.Event()
        """Pulses when a path is healed."""
        self.cuts: dict[tuple[str, str], None] = {}
        """(from, to) where nothing passes."""
        self._listeners: dict[str, MemoryListener] = {}
        self._streams: dict[MemoryStream, None] = {}
        self._transports: dict[str, list[MemoryTransport]] = {}
        self._ports = 49152

    def transport(self, host: str, identity: str = "") -> MemoryTransport:
        made = MemoryTransport(self, host, identity)
        self._transports.setdefault(host, []).append(made)
        return made

    def cut(self, a: str, b: str, *, one_way: bool = False) -> None:
        """Nothing passes from `a` to `b` (nor, unless `one_way`, back); nobody is told."""
        self.cuts[a, b] = None
        if not one_way:
            self.cuts[b, a] = None

    def heal(self, a: str, b: str) -> None:
        """Both ways; what was held goes on."""
        self.cuts.pop((a, b), None)
        self.cuts.pop((b, a), None)
        self.healed.set()
        self.healed.clear()
        for stream in list(self._streams):
            if {stream.host, stream.other_host} == {a, b}:
                stream.flow()

    def is_cut(self, a: str, b: str) -> bool:
        return (a, b) in self.cuts

    def reset(self, a: str, b: str) -> None:
        """Breaks every stream between two hosts; both ends know at once."""
        for stream in list(self._streams):
            if {stream.host, stream.other_host} == {a, b}:
                stream.break_off("connection reset")

    def kill(self, host: str) -> None:
        """The host's process is gone: connections to it are refused, its streams end (where the path is cut, unnoticed)."""
        self._end(host)
        for stream in list(self._streams):
            if stream.host == host:
                stream.die()

    def lose(self, host: str) -> None:
        """As `kill`, but nobody hears of it, as when power fails: what is sent to its streams goes nowhere. (`cut` its paths, too.)"""
        self._end(host)
        for stream in list(self._streams):
            if stream.host == host:
                stream.vanish()

    def _end(self, host: str) -> None:
        for transport in self._transports.pop(host, []):
            transport.dead = True
        for listener in [entry for address, entry in self._listeners.items() if _host_of(address) == host]:
            listener.kill()

    # For transports and streams

    def port(self) -> int:
        self._ports += 1
        return self._ports

    def bind(self, listener: MemoryListener) -> None:
        if listener.address in self._listeners:
            raise TransportError(f"cannot listen at {listener.address}: address already in use")
        self._listeners[listener.address] = listener

    def unbind(self, listener: MemoryListener) -> None:
        if self._listeners.get(listener.address) is listener:
            del self._listeners[listener.address]

    def listener(self, address: str) -> MemoryListener | None:
        return self._listeners.get(address)

    def add(self, stream: MemoryStream) -> None:
        self._streams[stream] = None

    def remove(self, stream: MemoryStream) -> None:
        self._streams.pop(stream, None)


class MemoryStream:
    """One end of a stream. What it sends is on its way here (`_outgoing`) until it is in the other end's inbox."""

    def __init__(self, network: MemoryNetwork, host: str, other_host: str, peer: str, identity: str) -> None:
        self.host = host
        self.other_host = other_host
        self.peer = peer
        self.identity = identity
        self._network = network
        self._inbox = FrameQueue(HIGH_BYTES)
        self._outgoing: deque[tuple[float, bytes | None]] = deque()
        self._outgoing_bytes = 0
        self._moved = asyncio.Event()
        self._waits = False
        """A sender may wait for `_moved`."""
        self._timer: asyncio.TimerHandle | None = None
        self._last_due = 0.0
        self._other: MemoryStream | None = None
        network.add(self)

    def join(self, other: MemoryStream) -> None:
        self._other, other._other = other, self

    async def send(self, frame: bytes) -> None:
        while self._inbox.ended is None and self._blocked():
            self._waits = True
            self._moved.clear()
            await self._moved.wait()
        if self._inbox.ended is not None:
            raise Closed(self._inbox.ended)
        self._outgoing_bytes += len(frame)
        self._push(frame)

    def send_nowait(self, frame: bytes) -> bool:
        """As `send`, if that neither waits nor fails; False: nothing was sent."""
        if self._inbox.ended is not None or self._blocked():
            return False
        self._outgoing_bytes += len(frame)
        self._push(frame)
        return True

    async def receive(self) -> bytes:
        frame = await self._inbox.get()
        other = self._other
        if other is not None and other._waits:
            other._wake()
        return frame

    async def close(self) -> None:
        self._end_here("closed here")

    def _blocked(self) -> bool:
        return self._outgoing_bytes > HIGH_BYTES or (self._other is not None and self._other._inbox.bytes > HIGH_BYTES)

    def _wake(self) -> None:
        self._waits = False
        self._moved.set()

    def _end_here(self, detail: str) -> None:
        if self._inbox.ended is None:
            self._inbox.end(detail)
            self._wake()
            self._push(None)

    def die(self) -> None:
        """The process is gone: what it had not sent off is lost, the other end will hear of the end."""
        if self._inbox.ended is None:
            self._outgoing.clear()
            self._end_here("this process was killed")

    def vanish(self) -> None:
        """As `die`, but the other end hears nothing."""
        self._inbox.end("this host is gone")
        self._stop()

    def break_off(self, detail: str) -> None:
        for end in (self, self._other):
            if end is not None:
                end._inbox.end(detail)
                end._stop()

    # On the way

    def _push(self, item: bytes | None) -> None:
        due = asyncio.get_running_loop().time() + self._network.delay(self.host, self.other_host)
        if due < self._last_due:
            due = self._last_due
        self._last_due = due
        self._outgoing.append((due, item))
        if self._timer is None:  # nothing was on its way, or the path is cut
            self.flow()

    def flow(self) -> None:
        """Sees to it that the first item on its way arrives when it is due, unless the path is cut."""
        network = self._network
        if self._timer is None and self._outgoing and (self.host, self.other_host) not in network.cuts:
            self._timer = asyncio.get_running_loop().call_at(self._outgoing[0][0], self._arrive, context=network.context)

    def _arrive(self) -> None:
        self._timer = None
        if (self.host, self.other_host) in self._network.cuts:
            return
        now = asyncio.get_running_loop().time()
        outgoing, other = self._outgoing, self._other
        while outgoing and outgoing[0][0] <= now and other is not None:
            _, item = outgoing.popleft()
            if item is None:
                self._stop()
                other._ended_there()
                return
            self._outgoing_bytes -= len(item)
            if other._inbox.ended is None:
                other._inbox.put_nowait(item)
        if self._waits:
            self._wake()
        if outgoing:
            self.flow()

    def _ended_there(self) -> None:
        self._inbox.end("the other side closed")
        self._stop()

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._outgoing.clear()
        self._outgoing_bytes = 0
        self._wake()
        self._network.remove(self)


class MemoryListener:
    """Accepts streams at one address; each runs in a task that ends with the listener."""

    def __init__(self, network: MemoryNetwork, address: str, identity: str, handlers: Mapping[str, Handler]) -> None:
        self.address = address
        self.identity = identity
        self.handlers = dict(handlers)
        self.context = contextvars.copy_context()
        """Of the process that listens."""
        self._network = network
        self._tasks: dict[asyncio.Task[None], None] = {}

    def accept(self, handler: Handler, stream: MemoryStream) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(handler, stream), name=f"stream of {stream.peer} at {self.address}")
        self._tasks[task] = None
        task.add_done_callback(self._tasks.pop)

    async def _serve(self, handler: Handler, stream: MemoryStream) -> None:
        try:
            await handler(stream)
        except TransportError as e:
            log.debug("stream ended", peer=stream.peer, detail=str(e))
        except Exception:
            log.exception("handler failed", peer=stream.peer)
        finally:
            await stream.close()

    def kill(self) -> None:
        """Stops at once, without waiting for the handlers."""
        self._network.unbind(self)
        for task in self._tasks:
            task.cancel()

    async def close(self) -> None:
        tasks = list(self._tasks)
        self.kill()
        if tasks:
            await asyncio.wait(tasks)


class MemoryTransport:
    """What one host sees of the network. Implements `qsg.transport.contract.Transport`."""

    def __init__(self, network: MemoryNetwork, host: str, identity: str) -> None:
        self.network = network
        self.host = host
        self.identity = identity
        self.dead = False
        """Its process was killed."""

    async def connect(self, address: str, service: str, *, timeout_s: float = 1.0) -> MemoryStream:
        host, _, port = address.rpartition(":")
        errors: list[TransportError] = []
        try:
            async with asyncio.timeout(timeout_s):
                for target in self.network.names.get(host, [host]):
                    try:
                        return await self._connect_host(target, f"{target}:{port}", service)
                    except (Refused, Unreachable) as e:
                        errors.append(e)
        except TimeoutError:
            raise Unreachable(f"{address}: no answer within {timeout_s} s") from None
        unreachable = [e for e in errors if not isinstance(e, Refused)]
        raise unreachable[0] if unreachable else Refused(f"{address}: connection refused")

    async def _connect_host(self, host: str, address: str, service: str) -> MemoryStream:
        if self.dead:
            raise Unreachable(f"{address}: this process was killed")
        await self._travel(self.host, host)
        listener = self.network.listener(address)
        handler = None if listener is None else listener.handlers.get(service)
        if listener is None or handler is None:
            await self._travel(host, self.host)
            if listener is not None:
                raise Unreachable(f"{address}: does not serve {service}")
            raise Refused(f"{address}: connection refused")
        here = MemoryStream(self.network, self.host, host, address, listener.identity)
        there = MemoryStream(self.network, host, self.host, f"{self.host}:{self.network.port()}", self.identity)
        here.join(there)
        try:
            await self._accepted(listener, handler, there)
            await self._travel(host, self.host)
        except BaseException:
            await here.close()
            raise
        return here

    async def _accepted(self, listener: MemoryListener, handler: Handler, stream: MemoryStream) -> None:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()

        def accept() -> None:
            if self.network.listener(listener.address) is listener:
                listener.accept(handler, stream)
                if not done.done():
                    done.set_result(None)
            elif not done.done():
                done.set_exception(Refused(f"{listener.address}: connection refused"))

        loop.call_soon(accept, context=listener.context)
        await done

    async def _travel(self, source: str, target: str) -> None:
        """One message's way; for ever where the path is cut (the caller's timeout ends that)."""
        await asyncio.sleep(self.network.delay(source, target))
        while self.network.is_cut(source, target):
            await self.network.healed.wait()

    async def listen(self, address: str, handlers: Mapping[str, Handler]) -> MemoryListener:
        if self.dead:
            raise TransportError(f"cannot listen at {address}: this process was killed")
        host, _, port = address.rpartition(":")
        host = self.host if host in EVERYWHERE else host
        listener = MemoryListener(self.network, f"{host}:{port if port != '0' else self.network.port()}", self.identity, handlers)
        self.network.bind(listener)
        return listener


def _host_of(address: str) -> str:
    return address.rpartition(":")[0]
