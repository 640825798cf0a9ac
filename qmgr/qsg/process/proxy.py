"""A TCP pass-through that can be hurt: stands in for a Kubernetes Service, or for one network path.

A connection goes to the next target in rotation that accepts it. Paths (the whole proxy, or one target's) can be cut, cut one way,
delayed and reset, while existing connections stay open: a cut path passes nothing, not even the end of a connection, and after `heal`
all that was held up goes on, as TCP does after an outage. A cut target still takes its turn, as a Service sends to a pod it cannot
reach: such a connection is accepted and stays silent.

Not guaranteed: a connection attempt cannot be black-holed before it is accepted here, as the kernel accepts it.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

Direction = Literal["both", "to_target", "from_target"]

_CONNECT_S = 10.0
_WRITE_BUFFER_BYTES = 256 * 1024
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close with RST


@dataclass(frozen=True, slots=True)
class Harm:
    """What a path suffers."""

    to_target: bool = False
    """Nothing passes towards the target."""
    from_target: bool = False
    delay_s: float = 0.0
    """One way."""


_WHOLE = Harm()


class _Side(asyncio.Protocol):
    """One of the two TCP connections of a link, and what is on its way from it to the other."""

    def __init__(self) -> None:
        self.other: _Side
        self.transport: asyncio.Transport | None = None
        self.cut = True  # until both are connected
        self.delay_s = 0.0
        self._full = False
        self._pending: deque[tuple[float, bytes | None]] = deque()
        """(loop time due, data or None for the end), towards the other."""
        self._timer: asyncio.TimerHandle | None = None
        self._lost = False
        self._ended = False
        """The end of what it sends was passed on."""
        self.on_lost: list[asyncio.Future[None]] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport = cast(asyncio.Transport, transport)  # other event loops have classes of their own
        transport.set_write_buffer_limits(high=_WRITE_BUFFER_BYTES)
        self._gate()

    def data_received(self, data: bytes) -> None:
        if not self._pending and not self.delay_s and not self.cut and self.other.transport is not None:
            self.other.transport.write(data)
        else:
            self._enqueue(data)

    def eof_received(self) -> bool:
        self._enqueue(None)
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        self._flush()
        self.other._flush()  # what it is still sent is dropped
        for future in self.on_lost:
            if not future.done():
                future.set_result(None)

    def pause_writing(self) -> None:
        self.other._fill(True)

    def resume_writing(self) -> None:
        self.other._fill(False)

    def _fill(self, full: bool) -> None:
        self._full = full
        self._gate()

    def suffer(self, *, cut: bool, delay_s: float) -> None:
        self.cut, self.delay_s = cut, delay_s
        self._gate()
        self._flush()

    def _gate(self) -> None:
        """Reads only while what is read can go on. What is not read waits in the kernel, and its sender is held up."""
        if self.transport is None or self.transport.is_closing():
            return
        if self.cut or self._full:
            self.transport.pause_reading()
        else:
            self.transport.resume_reading()

    def _enqueue(self, data: bytes | None) -> None:
        self._pending.append((asyncio.get_running_loop().time() + self.delay_s, data))
        self._flush()

    def _flush(self) -> None:
        """Passes on what is due; then the end, once there is nothing left of a lost connection."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        target = self.other.transport
        if self.cut or target is None:
            return
        loop = asyncio.get_running_loop()
        while self._pending and self._pending[0][0] <= loop.time():
            _, data = self._pending.popleft()
            if target.is_closing():
                continue
            if data is not None:
                target.write(data)
            else:
                target.write_eof()
                self._ended = True
                self._close_if_both_ended()
        if self._pending:
            self._timer = loop.call_at(self._pending[0][0], self._flush)
        elif self._lost and not target.is_closing():
            target.close()

    def _close_if_both_ended(self) -> None:
        if self._ended and self.other._ended:
            for side in (self, self.other):
                if side.transport is not None:
                    side.transport.close()

    def reset(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._pending.clear()
        if self.transport is not None:
            raw = self.transport.get_extra_info("socket")
            if raw is not None and raw.fileno() >= 0:
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self.transport.abort()


class _Link:
    """An accepted connection and its continuation to a target."""

    def __init__(self) -> None:
        self.client, self.server = _Side(), _Side()
        self.client.other, self.server.other = self.server, self.client
        self.target = ""

    def suffer(self, harm: Harm) -> None:
        self.client.suffer(cut=harm.to_target or self.server.transport is None, delay_s=harm.delay_s)
        self.server.suffer(cut=harm.from_target or self.server.transport is None, delay_s=harm.delay_s)

    def reset(self) -> None:
        self.client.reset()
        self.server.reset()


class Proxy:
    """`await Proxy.start("127.0.0.1:1415", ["127.0.0.1:2001", ...])`; harm is told by target, or without one for all."""

    def __init__(self, targets: Sequence[str]) -> None:
        self.targets = list(targets)
        self.address = ""
        """host:port as bound."""
        self.accepted = 0
        self._next = 0
        self._harm: dict[str, Harm] = {}
        self._links: set[_Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._healed = asyncio.Event()
        self._server: asyncio.Server | None = None

    @classmethod
    async def start(cls, listen: str, targets: Sequence[str]) -> Proxy:
        proxy = cls(targets)
        host, port = _split(listen)
        proxy._server = await asyncio.get_running_loop().create_server(proxy._accept, host, port)
        bound = proxy._server.sockets[0].getsockname()
        proxy.address = f"{bound[0]}:{bound[1]}"
        return proxy

    @property
    def connections(self) -> int:
        return len(self._links)

    def cut(self, target: str | None = None, direction: Direction = "both") -> None:
        """Black-holes the path: nothing passes and nobody is told."""
        to_target, from_target = direction in ("both", "to_target"), direction in ("both", "from_target")
        for t in self._meant(target):
            self._set(t, Harm(to_target, from_target, self._harm_of(t).delay_s))

    def delay(self, seconds: float, target: str | None = None) -> None:
        """Adds `seconds` each way."""
        for t in self._meant(target):
            harm = self._harm_of(t)
            self._set(t, Harm(harm.to_target, harm.from_target, seconds))

    def heal(self, target: str | None = None) -> None:
        """Ends cuts and delays."""
        for t in self._meant(target):
            self._set(t, _WHOLE)

    def break_off(self, target: str) -> None:
        """Half-open: connections break at the target's end; the other end is told nothing until the path is healed."""
        self.cut(target)
        for link in list(self._links):
            if link.target == target:
                link.server.reset()

    def reset(self, target: str | None = None) -> None:
        """Breaks existing connections at once, both sides noticing."""
        for link in list(self._links):
            if target is None or link.target == target:
                link.reset()

    def _meant(self, target: str | None) -> list[str]:
        return list(dict.fromkeys([*self.targets, *(link.target for link in self._links)])) if target is None else [target]

    def _harm_of(self, target: str) -> Harm:
        return self._harm.get(target, _WHOLE)

    def _set(self, target: str, harm: Harm) -> None:
        self._harm[target] = harm
        for link in list(self._links):
            if link.target == target:
                link.suffer(harm)
        healed, self._healed = self._healed, asyncio.Event()
        healed.set()

    def _accept(self) -> _Side:
        link = _Link()
        self.accepted += 1
        task = asyncio.get_running_loop().create_task(self._serve(link))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return link.client

    async def _serve(self, link: _Link) -> None:
        ends = [asyncio.get_running_loop().create_future() for _ in range(2)]
        link.client.on_lost.append(ends[0])
        link.server.on_lost.append(ends[1])
        self._links.add(link)
        try:
            if await self._connect(link):
                await asyncio.wait(ends)
            else:
                link.client.reset()
        finally:
            self._links.discard(link)
            link.reset()

    async def _connect(self, link: _Link) -> bool:
        """To the next target in rotation that accepts; false if none does."""
        loop = asyncio.get_running_loop()
        start, self._next = self._next, self._next + 1
        for i in range(len(self.targets)):
            target = link.target = self.targets[(start + i) % len(self.targets)]
            while self._harm_of(target).to_target or self._harm_of(target).from_target:
                await self._healed.wait()
            try:
                async with asyncio.timeout(_CONNECT_S):
                    await loop.create_connection(lambda: link.server, *_split(target))
            except (OSError, TimeoutError):
                continue
            self._next = start + i + 1
            link.suffer(self._harm_of(target))
            return True
        return False

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0)  # aborted transports close in the next round


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)
