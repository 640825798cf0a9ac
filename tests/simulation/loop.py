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
import sys
from collections import deque
from collections.abc import Coroutine, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from contextvars import copy_context
from functools import partial
from heapq import heappop, heappush
from random import Random
from typing import Any
from unittest import mock
from weakref import ref

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
        self.ready: deque[tuple[Any, Any, contextvars.Context, Handle | None]] = deque()
        """Callback, arguments, context, and the handle with which it may have been cancelled."""
        self.clock_ms = 0.0
        """How far its wall clock is ahead of the true time."""
        self.clock_rate = 1.0
        self._loop = loop
        self._made: list[ref[SimTask]] = []
        """Tasks, in the order made; finished ones are left out now and then."""
        self._crowd = 64
        self.context = contextvars.Context()
        self.context.run(PROCESS.set, self)

    def spawn(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        return self._loop.create_task(work, name=name, context=self.context.copy())  # type: ignore[no-any-return]

    def wall_ms(self) -> int:
        return 1_700_000_000_000 + round(1000 * self._loop.time() * self.clock_rate + self.clock_ms)

    def tasks(self) -> list[SimTask]:
        """Unfinished ones, in the order made."""
        return [task for made in self._made if (task := made()) is not None and not task.done()]

    def made(self, task: SimTask) -> None:
        self._made.append(ref(task))
        if len(self._made) > self._crowd:
            self._made = [ref(left) for left in self.tasks()]
            self._crowd = 64 + 2 * len(self._made)

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

    process: Process
    serial = 0
    """Set once it is made: an `__init__` here would be called for each, and each is hashed only later."""

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
        # Asked for with every future; these two answer without a call of Python.
        self.create_future = partial(asyncio.Future, loop=self)  # type: ignore[method-assign]
        self.get_debug = itertools.repeat(False).__next__  # type: ignore[method-assign]
        self.set_exception_handler(_note)

    def time(self) -> float:
        return self._now

    # What asyncio asks of a loop. (typeshed's Handle is a class of its own; ours has what is used of it.)

    def call_soon(self, callback: Any, *args: Any, context: contextvars.Context | None = None) -> Any:  # type: ignore[override]
        """Who gives a context (as futures and tasks do) gets no handle: nobody cancels those."""
        handle = None
        if context is None:
            context = copy_context()
            handle = Handle((callback, args, context, None, False, 0.0))
        process = context.get(PROCESS) or self.kernel
        ready = process.ready
        if not ready:
            if process.gone:
                return handle
            if not process.paused:
                self.runnable.append(process)
        ready.append((callback, args, context, handle))
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
        self._timer_number = number = self._timer_number + 1
        heappush(self._timers, (when, number, handle))
        return handle

    def create_task(self, coro: Any, *, name: str | None = None, context: contextvars.Context | None = None, **rest: Any) -> Any:  # type: ignore[override]
        process = (PROCESS.get(None) if context is None else context.get(PROCESS)) or self.kernel
        task = SimTask(coro, loop=self, name=name, context=context, **rest)
        task.process, task.serial = process, next(self._task_numbers)
        process.made(task)
        return task

    # Running

    def unready(self, process: Process) -> None:
        if process in self.runnable:
            self.runnable.remove(process)

    def _run_once(self) -> None:
        with _known(self):
            self._play()

    def _play(self) -> None:
        runnable, random, timers, steps = self.runnable, self._chance, self._timers, self.steps
        until = steps + STEPS_AT_ONE_INSTANT_MAX
        while not self._stopping:  # type: ignore[attr-defined]
            if runnable:
                process = runnable[0] if len(runnable) == 1 else runnable[int(random() * len(runnable))]
                ready = process.ready
                callback, args, context, handle = ready.popleft()
                if not ready:
                    runnable.remove(process)
                if handle is not None and handle[CANCELLED]:
                    continue
            else:  # time moves to the next timer
                if not timers:
                    raise RuntimeError("nothing will ever happen: every task waits for another")
                when, _, timer = heappop(timers)
                callback, args, context, process, cancelled, _ = timer
                if cancelled or process.gone:
                    continue
                if when > self._now:
                    self._now = when
                    until = steps + STEPS_AT_ONE_INSTANT_MAX
                if process.paused:
                    process.ready.append((callback, args, context, timer))
                    continue
                # Nobody else can run: it is next, without having been in a queue.
            self.steps = steps = steps + 1
            try:
                context.run(callback, *args)
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as error:
                self.call_exception_handler({"message": f"exception in {callback}", "exception": error, "process": process})
            if steps > until:
                raise RuntimeError(f"time stands still at {self._now}: {callback} of {process.name} runs again and again")

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        """There is none: threads have no place here."""

    def close(self) -> None:
        self._timers.clear()
        self.runnable.clear()
        super().close()


@contextmanager
def _known(loop: SimLoop) -> Iterator[None]:
    """Until the end, who asks for the running loop is told without a system call (which CPython 3.11 makes each time).

    Nor does asyncio keep its set of all tasks, which nobody asks for here: a weak set takes longer than all else that a task needs.
    """
    tell = itertools.repeat(loop).__next__
    with (
        mock.patch.object(asyncio, "get_running_loop", tell),
        mock.patch.multiple(asyncio.events, get_running_loop=tell, _get_running_loop=tell),
        _no_set_of_tasks(),
        _current_task_at_hand(loop),
    ):
        yield


def _no_set_of_tasks() -> AbstractContextManager[Any]:
    everybody = getattr(asyncio.tasks, "_all_tasks", None)  # of CPython 3.11; later ones have none, or none in Python
    return nullcontext() if everybody is None else mock.patch.object(everybody, "add", id)


def _current_task_at_hand(loop: SimLoop) -> AbstractContextManager[Any]:
    if sys.version_info >= (3, 12):
        return nullcontext()  # there it is C
    tell = partial(asyncio.tasks._current_tasks.get, loop)  # type: ignore[attr-defined]
    patched = ExitStack()
    for module in (asyncio, asyncio.tasks):
        patched.enter_context(mock.patch.object(module, "current_task", tell))
    return patched


def _note(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    assert isinstance(loop, SimLoop)
    task = context.get("future") or context.get("task")
    process = context.get("process") or getattr(task, "process", None)
    if process is not None and not process.dead:  # a mere future with an error that nobody wants is no harm
        loop.errors.append((process, f"{context['message']}: {context.get('exception')!r} {task or ''}"))
