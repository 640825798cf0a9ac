"""How long a get waits for a message, asked for in slices: a member is not left with a wait that nobody counts any more.

Owns the reading of `wait_ms` (MQ's WaitInterval: -1 = for ever) and what is left of it.
"""

from __future__ import annotations

import asyncio

from qsg.client.errors import error_for
from qsg.rules.reasons import Reason

SLICE_MS = 3_600_000
FOR_EVER = -1


class Wait:
    """Begins when it is made. Raises WAIT_INTERVAL_ERROR (2090) for what is no wait."""

    def __init__(self, wait_ms: int) -> None:
        if wait_ms < FOR_EVER:
            raise error_for(int(Reason.WAIT_INTERVAL_ERROR), f"wait_ms {wait_ms}: milliseconds, 0, or {FOR_EVER} for ever")
        self._ends = None if wait_ms == FOR_EVER else asyncio.get_running_loop().time() + wait_ms / 1000
        self.last = False
        """Behind the slice that was answered last there is nothing left to wait."""

    def slice_ms(self) -> int:
        """How long to wait this time."""
        if self._ends is None:
            return SLICE_MS
        left_ms = max(0, round((self._ends - asyncio.get_running_loop().time()) * 1000))
        self.last = left_ms <= SLICE_MS
        return min(left_ms, SLICE_MS)
