"""Receives a stream's frames, and says when none has come for too long.

As `asyncio.timeout` around each `receive`, but with one timer for all frames of a while: it is set anew only when it goes off and somebody
was heard meanwhile. Invariant: `TimeoutError` is raised only by a `receive` that has itself waited for `silence_s`; what a caller does
between two of them does not count, nor does time in which this process stood still: what came meanwhile is still unread, and when the
whole machine stood still nobody could say anything. Not guaranteed: that a frame which comes in that very instant is not left to the next
`receive`.
"""

from __future__ import annotations

import asyncio

from qsg.transport.contract import Stream

LATE_S = 0.05
"""A timer that goes off so late was held up: this process stood still, or had no CPU."""
GRACE_S = 0.5
"""How long whoever is listened to has then to be heard: what is unread is read at once, and a heartbeat that is overdue is sent at once."""


class Hearing:
    """`silence_s` may be changed; it holds from the next `receive` on. One `receive` at a time."""

    def __init__(self, stream: Stream, silence_s: float) -> None:
        self.stream, self.silence_s = stream, silence_s
        self._timer: asyncio.TimerHandle | None = None
        self._due: float | None = None
        """When who waits now has waited long enough; None: nobody waits."""
        self._task: asyncio.Task[object] | None = None
        self._silent = False
        self._graced = False

    async def receive(self) -> bytes:
        """The next frame. Raises `TimeoutError`, and what the stream raises."""
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None
        due = self._due = loop.time() + self.silence_s
        self._task = task
        if self._timer is None or self._timer.when() > due:
            self._arm(due)
        cancelling = task.cancelling()
        try:
            return await self.stream.receive()
        except asyncio.CancelledError as error:
            if self._silent and task.uncancel() <= cancelling:
                raise TimeoutError(f"nothing was heard for {self.silence_s:g} s") from error
            raise
        finally:
            self._due = self._task = None
            self._silent = self._graced = False

    def _arm(self, due: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_at(due, self._look)

    def _look(self) -> None:
        timer, self._timer = self._timer, None
        if self._due is None or self._task is None or timer is None:
            return
        now = asyncio.get_running_loop().time()
        if now >= self._due and now - timer.when() >= LATE_S and not self._graced:
            self._graced = True
            self._due = now + GRACE_S
        if now >= self._due:
            self._silent = True
            self._task.cancel()
        else:
            self._arm(self._due)
