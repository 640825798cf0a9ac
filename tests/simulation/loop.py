"""A deterministic event loop: virtual time, simulated processes that share it, and the order in which they run drawn from a seed.

Owns what runs next. Invariant: handles of one process run in the order in which they became ready, as asyncio promises; between processes
the seed decides; time moves only when nobody can run. A process can be paused (its handles and timers wait, and come late) and killed
(its tasks are cancelled and what they still try is cut off). What belongs to no process (network, stores, the harness) is the kernel.
Does not simulate time that computing takes.
"""

from __future__ import annotations

import asyncio
import contextvars
import itertools
from collections import deque
from collections.abc import Coroutine
from contextvars import copy_context
from heapq import heappop, heappush
from random import Random
from typing import Any

TIMER_JITTER_S = 0.001
STEPS_AT_ONE_INSTANT_MAX = 100_000
SWEEP_S = 0.05
SWEEPS = 20

PROCESS: contextvars.ContextVar[Process] = contextvars.ContextVar("process")
KERNEL = contextvars.Context()
"""Where deliveries of the network and the stores run: nobody's pause holds them up."""


class Process:
    """Everything that runs in `context`, and in contexts copied from it."""

    def __init__(self, loop: SimLoop, name: str) -> None:
        self.name = name
        self.paused = False
        self.dead = False
        self.gone = False
        """Dead, and swept: nothing of it runs any more."""
        self.ready: deque[Handle] = deque()
        self.clock_ms = 0.0
        """How far its wall clock is ahead of the true time."""
        self.clock_rate = 1.0
        self._loop = loop
        self.context = contextvars.Context()
        self.context.run(PROCESS.set, self)

    def spawn(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        return self._loop.create_task(work, name=name, context=self.context.copy())  # type: ignore[no-any-return]

    def wall_ms(self) -> int:
        return 1_700_000_000_000 + round(1000 * self._loop.time() * self.clock_rate + self.clock_ms)

    def tasks(self) -> list[SimTask]:
        """Unfinished ones, in the order made."""
        found = [t for t in asyncio.all_tasks(self._loop) if isinstance(t, SimTask) and t.process is self]
        return sorted(found, key=lambda t: t.serial)

    def pause(self) -> None:
        if not (self.paused or self.dead):
            self.paused = True
            self._loop.unready(self)

    def resume(self) -> None:
        if self.paused:
            self.paused = False
            if self.ready:
                self._loop.runnable.append(self)

    def kill(self) -> None:
        """Cancels everything, again and again until it is gone; who calls sees to it that nothing gets out meanwhile."""
        self.dead = True
        self.resume()
        self._sweep(SWEEPS)

    def _sweep(self, left: int) -> None:
        tasks = self.tasks()
        for task in tasks:
            task.cancel()
        if tasks and left:
            self._loop.call_later(SWEEP_S, self._sweep, left - 1, context=KERNEL)
        else:
            self.gone = True
            self.ready.clear()
            self._loop.unready(self)


class Handle(list[Any]):
    """[callback, arguments, context, process, cancelled, when]: a list, since several hundred thousand are made in a second."""

    __slots__ = ()

    def cancel(self) -> None:
        self[CANCELLED] = True

    def cancelled(self) -> bool:
        return bool(self[CANCELLED])

    def when(self) -> float:
        return float(self[WHEN])


PROCESS_OF, CANCELLED, WHEN = 3, 4, 5


class SimTask(asyncio.Task[Any]):
    """Its hash is its number, so that sets of tasks have the same order in every run."""

    serials = itertools.count()

    def __init__(self, work: Coroutine[Any, Any, Any], *, process: Process, serial: int, **rest: Any) -> None:
        self.process, self.serial = process, serial
        super().__init__(work, **rest)

    def __hash__(self) -> int:
        return self.serial


class SimLoop(asyncio.BaseEventLoop):
    def __init__(self, seed: str) -> None:
        super().__init__()
        self.random = Random(seed)
        self.kernel = Process(self, "kernel")
        self.runnable: list[Process] = []
        self.steps = 0
        self.errors: list[tuple[Process, str]] = []
        """Exceptions that nobody handled, of processes that were alive."""
        self._now = 0.0
        self._timers: list[tuple[float, int, Handle]] = []
        self._timer_number = 0
        self._chance = self.random.random
        self._task_numbers = itertools.count()
        self._current = self.kernel
        self.set_exception_handler(_note)

    def time(self) -> float:
        return self._now

    # What asyncio asks of a loop. (typeshed's Handle is a class of its own; ours has what is used of it.)

    def call_soon(self, callback: Any, *args: Any, context: contextvars.Context | None = None) -> Any:  # type: ignore[override]
        if context is None:
            context = copy_context()
        process = context.get(PROCESS) or self.kernel
        handle = Handle((callback, args, context, process, False, 0.0))
        ready = process.ready
        if not ready:
            if process.gone:
                return handle
            if not process.paused:
                self.runnable.append(process)
        ready.append(handle)
        return handle

    call_soon_threadsafe = call_soon  # type: ignore[assignment]

    def call_later(self, delay: float, callback: Any, *args: Any, context: contextvars.Context | None = None) -> Any:  # type: ignore[override]
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_at(self, when: float, callback: Any, *args: Any, context: contextvars.Context | None = None) -> Any:  # type: ignore[override]
        if context is None:
            context = copy_context()
        process = context.get(PROCESS) or self.kernel
        handle = Handle((callback, args, context, process, False, when))
        if process is not self.kernel:
            when += self._chance() * TIMER_JITTER_S
        self._timer_number += 1
        heappush(self._timers, (when, self._timer_number, handle))
        return handle

    def create_task(self, coro: Any, *, name: str | None = None, context: contextvars.Context | None = None, **rest: Any) -> Any:  # type: ignore[override]
        process = (PROCESS.get(None) if context is None else context.get(PROCESS)) or self.kernel
        return SimTask(coro, loop=self, name=name, context=context, process=process, serial=next(self._task_numbers), **rest)

    # Running

    def unready(self, process: Process) -> None:
        if process in self.runnable:
            self.runnable.remove(process)

    def _run_once(self) -> None:
        runnable, random, steps = self.runnable, self._chance, self.steps
        until = steps + STEPS_AT_ONE_INSTANT_MAX
        while not self._stopping:  # type: ignore[attr-defined]
            count = len(runnable)
            if count == 1:
                process = runnable[0]
            elif count:
                process = runnable[int(random() * count)]
            else:
                self._advance()
                until = steps + STEPS_AT_ONE_INSTANT_MAX
                continue
            ready = process.ready
            callback, args, context, _, cancelled, _ = ready.popleft()
            if not ready:
                runnable.remove(process)
            if cancelled:
                continue
            self.steps = steps = steps + 1
            try:
                context.run(callback, *args)
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as error:
                self.call_exception_handler({"message": f"exception in {callback}", "exception": error, "process": process})
            if steps > until:
                raise RuntimeError(f"time stands still at {self._now}: {callback} of {process.name} runs again and again")

    def _advance(self) -> None:
        """Moves time to the next timer."""
        timers = self._timers
        while timers:
            when, _, handle = heappop(timers)
            process = handle[PROCESS_OF]
            if handle[CANCELLED] or process.gone:
                continue
            if when > self._now:
                self._now = when
            process.ready.append(handle)
            if not process.paused:
                self.runnable.append(process)  # it had nothing to do
                return
        raise RuntimeError("nothing will ever happen: every task waits for another")

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        """There is none: threads have no place here."""

    def close(self) -> None:
        self._timers.clear()
        self.runnable.clear()
        super().close()


def _note(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    assert isinstance(loop, SimLoop)
    task = context.get("future") or context.get("task")
    process = context.get("process") or getattr(task, "process", None)
    if process is not None and not process.dead:  # a mere future with an error that nobody wants is no harm
        loop.errors.append((process, f"{context['message']}: {context.get('exception')!r} {task or ''}"))
