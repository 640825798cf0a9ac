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
        self._filled = asyncio.Event()
        self._taken = asyncio.Event()

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
        self._filled.set()

    async def put(self, frame: bytes) -> None:
        """Waits for room first. Raises `Closed`."""
        while self.full and self.ended is None:
            self._taken.clear()
            await self._taken.wait()
        self.put_nowait(frame)

    async def get(self) -> bytes:
        while not self._frames:
            if self.ended is not None:
                raise Closed(self.ended)
            self._filled.clear()
            await self._filled.wait()
        frame = self._frames.popleft()
        self.bytes -= len(frame)
        self._taken.set()
        return frame

    def end(self, detail: str) -> None:
        """No more frames; those inside can still be got."""
        if self.ended is None:
            self.ended = detail
        self._filled.set()
        self._taken.set()

    def drop(self) -> None:
        """Forgets what is inside."""
        self._frames.clear()
        self.bytes = 0
        self._taken.set()

    async def drained(self) -> None:
        """Returns once everything was taken out."""
        while self._frames:
            self._taken.clear()
            await self._taken.wait()
