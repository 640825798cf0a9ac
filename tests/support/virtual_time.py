"""An event loop whose clock jumps to the next timer: timeouts of seconds pass in no time, and the same run is the same again.

A machine that is slow, or stops for a while, changes nothing: only what the tasks wait for moves the clock. It is for what lives in one
process and in memory. Jobs of executors are waited for with the clock standing still; sockets and other processes are not.

A folder of tests has this loop by `from support.virtual_time import pytest_asyncio_loop_factories` in its conftest; tests with real
sockets, processes or threads are marked `real_time`.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar

import pytest

T = TypeVar("T")
HANGS_S = 30.0
BEHIND_S = 1e-9
"""A loop runs a timer that is due within its clock's resolution; here the clock would stand still before it, and who waits until then
would wait again, for ever."""
ENDLESS_S = 7200.0
"""Of virtual time: nothing waits so long for what will still come."""


class _Selector(selectors.SelectSelector):
    """Does not wait: tells the loop to move its clock instead."""

    waited = 0.0
    jobs = 0
    """Of executors, under way."""

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready or (timeout is not None and timeout <= 0):
            return ready
        if self.jobs or timeout is None:
            ready = super().select(None if self.jobs else HANGS_S)  # an executor that is shut down is waited for without a job
            if not ready:
                raise RuntimeError("nothing will ever happen: every task waits for another")
        else:
            self.waited += timeout + BEHIND_S
            if self.waited > ENDLESS_S:
                raise RuntimeError(f"nothing has ended this in {ENDLESS_S:.0f} s: what is waited for will never happen")
        return ready


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._virtual = _Selector()
        super().__init__(self._virtual)

    def time(self) -> float:
        return self._virtual.waited

    def pass_by(self, seconds: float) -> None:
        """The clock goes on and nothing is done meanwhile: the whole process stands still."""
        self._virtual.waited += seconds

    def run_in_executor(self, executor: Any, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:  # type: ignore[override]
        self._virtual.jobs += 1
        future = super().run_in_executor(executor, func, *args)
        future.add_done_callback(self._job_done)
        return future

    def _job_done(self, _: asyncio.Future[Any]) -> None:
        self._virtual.jobs -= 1


def run(main: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run` in virtual time."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)


def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """pytest-asyncio asks a conftest for this."""
    return {"real": asyncio.new_event_loop} if item.get_closest_marker("real_time") else {"virtual": VirtualTimeLoop}
