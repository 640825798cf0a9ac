"""An event whose wait may have an end: as `asyncio.Event` in `asyncio.timeout_at`, without a task that is cancelled and an exception.

For loops that wait for news or for the time of their next beat, many times a second. Invariant: `wait` returns False only once the loop's
time is `until`, and the bell was not rung.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Once:
    """Is set once and for all. Who listens is called then, or at once when it is set already."""

    __slots__ = ("_listener", "_set")

    def __init__(self) -> None:
        self._set = False
        self._listener: Callable[[], object] | None = None

    def is_set(self) -> bool:
        return self._set

    def set(self) -> None:
        if not self._set:
            self._set = True
            if self._listener is not None:
                self._listener()

    def listen(self, listener: Callable[[], object]) -> None:
        """One listens at a time."""
        self._listener = listener
        if self._set:
            listener()


class Bell:
    __slots__ = ("_rung", "_waiting")

    def __init__(self) -> None:
        self._rung = False
        self._waiting: list[asyncio.Future[bool]] = []

    def is_set(self) -> bool:
        return self._rung

    def set(self) -> None:
        self._rung = True
        for place in self._waiting:
            _wake(place, True)

    def clear(self) -> None:
        self._rung = False

    async def wait(self, until: float | None = None) -> bool:
        """Until it is rung (True), or the loop's time is `until` (False)."""
        if self._rung:
            return True
        loop = asyncio.get_running_loop()
        place: asyncio.Future[bool] = loop.create_future()
        self._waiting.append(place)
        timer = None if until is None else loop.call_at(until, _wake, place, False)
        try:
            return await place or self._rung
        finally:
            self._waiting.remove(place)
            if timer is not None:
                timer.cancel()


def _wake(place: asyncio.Future[bool], rung: bool) -> None:
    if not place.done():
        place.set_result(rung)
