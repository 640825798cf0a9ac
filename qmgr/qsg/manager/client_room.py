"""How much of one connection is in flight: back-pressure, nothing more is read from it until something is answered.

Who stands behind a get that waits, in its unit of work, takes none of the room for requests: the cancel of that get would be read too late.
Not guaranteed: that it is read beyond what may be held there (`waiting_gets` requests) or in all (`bytes`).
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from qsg.manager.client_port import ClientLimits


@dataclass(frozen=True, slots=True)
class Share:
    """What one request takes of the room."""

    bytes: int
    held: bool
    """It stands behind a get that waits, or behind who does."""


class Room:
    def __init__(self, limits: ClientLimits) -> None:
        self._limits = limits
        self.requests = 0
        self.held = 0
        self._bytes = 0
        self._left = asyncio.Event()

    async def enter(self, size: int, *, held: bool) -> Share:
        """Returns once there is room. One request always has room, however large."""
        while self._bytes and (self._full(held) or self._bytes + size > self._limits.bytes):
            self._left.clear()
            await self._left.wait()
        share = Share(size, held)
        self._count(share, 1)
        return share

    def leave(self, share: Share) -> None:
        self._count(share, -1)
        self._left.set()

    def _full(self, held: bool) -> bool:
        return self.held >= self._limits.waiting_gets if held else self.requests >= self._limits.requests

    def _count(self, share: Share, one: int) -> None:
        self._bytes += one * share.bytes
        if share.held:
            self.held += one
        else:
            self.requests += one
