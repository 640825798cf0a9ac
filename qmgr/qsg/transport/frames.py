"""A queue of frames bounded by bytes: one direction of a stream inside a process.

Invariant: frames come out in the order put in, and `Closed` only behind the last of them. The bound is soft: one frame may exceed it.
"""

from __future__ import annotations

import asyncio
from collections import deque

from qsg.transport.contract import Closed

HIGH_BYTES = 1 << 20
"""A putter waits while more than this is queued."""


class FrameQueue:
    def __init__(self, high_bytes: int = HIGH_BYTES) -> None:
        self.bytes = 0
        self.ended: str | None = None
        """Why no more frames come, once that is so."""
        self._high = high_bytes
        self._frames: deque[bytes] = deque()
        self._getting: list[asyncio.Future[None]] = []
        """Who waits for a frame, and below for room. Futures and no events: every frame of every stream passes here."""
        self._putting: list[asyncio.Future[None]] = []

    def __len__(self) -> int:
        return len(self._frames)

    @property
    def full(self) -> bool:
        return self.bytes > self._high

    def put_nowait(self, frame: bytes) -> None:
        if self.ended is not None:
            raise Closed(self.ended)
        self._frames.append(frame)
        self.bytes += len(frame)
        if self._getting:
            _wake(self._getting)

    async def put(self, frame: bytes) -> None:
        """Waits for room first. Raises `Closed`."""
        while self.full and self.ended is None:
            await _turn(self._putting)
        self.put_nowait(frame)

    async def get(self) -> bytes:
        while not self._frames:
            if self.ended is not None:
                raise Closed(self.ended)
            await _turn(self._getting)
        frame = self._frames.popleft()
        self.bytes -= len(frame)
        if self._putting:
            _wake(self._putting)
        return frame

    def end(self, detail: str) -> None:
        """No more frames; those inside can still be got."""
        if self.ended is None:
            self.ended = detail
        _wake(self._getting)
        _wake(self._putting)

    def drop(self) -> None:
        """Forgets what is inside."""
        self._frames.clear()
        self.bytes = 0
        _wake(self._putting)

    async def drained(self) -> None:
        """Returns once everything was taken out."""
        while self._frames:
            await _turn(self._putting)


async def _turn(line: list[asyncio.Future[None]]) -> None:
    """Waits in a line until it is woken."""
    place = asyncio.get_running_loop().create_future()
    line.append(place)
    try:
        await place
    except asyncio.CancelledError:
        if place in line:
            line.remove(place)
        raise


def _wake(line: list[asyncio.Future[None]]) -> None:
    """Everybody in it looks again."""
    for place in line:
        if not place.done():
            place.set_result(None)
    line.clear()
