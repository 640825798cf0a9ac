"""What a target is, and how one input is held against the property."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random
from typing import Any

import structlog

from fuzz import wire
from support.virtual_time import VirtualTimeLoop

SLOW_S = 1.0
SLOW_S_PER_BYTE = 1e-5
"""An input that takes longer is out of proportion (measured in processor time, with much room for slow machines)."""

Mutator = Callable[[bytes, list[bytes], Random], bytes]


class Violation(AssertionError):
    """The property does not hold."""


class Log:
    """Log lines of one input: errors that tell of a defect are violations."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def __call__(self, logger: object, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        self.lines.append({**event, "level": method})
        raise structlog.DropEvent

    def take_defects(self) -> list[str]:
        """What was logged with a traceback since the last call: nobody declared that."""
        found = [
            f"{line['event']}: {line.get('exc_info')!r}" for line in self.lines if line.get("exc_info") or line["level"] == "exception"
        ]
        self.lines.clear()
        return found


@contextmanager
def logged_to(log: Log) -> Iterator[None]:
    before = structlog.get_config()
    structlog.configure(processors=[log])
    try:
        yield
    finally:
        structlog.configure(**before)


def mutate_frames(head: int) -> Mutator:
    return lambda data, seeds, random: wire.mutate_frames(data, head, seeds, random)


@dataclass
class Target:
    """`check` raises for an input that violates the property. Made by `open`, ended by `close`."""

    name: str
    seeds: list[bytes]
    check: Callable[[bytes], None]
    mutate: Mutator
    close: Callable[[], None] = lambda: None

    def hold(self, data: bytes) -> None:
        began = time.process_time()
        try:
            with logged_to(Log()):
                self.check(data)
        except Violation:
            raise
        except Exception as error:
            raise Violation(f"{self.name}: {error!r} is not a declared error") from error
        took = time.process_time() - began
        if took > SLOW_S + SLOW_S_PER_BYTE * len(data):
            raise Violation(f"{self.name}: {took:.2f} s for {len(data)} bytes")


class Loop:
    """An event loop in virtual time for targets that are services: what nobody awaits and fails there is a violation too."""

    def __init__(self, *, virtual: bool = True, known: tuple[type[BaseException], ...] = ()) -> None:
        """`known`: errors that a library leaves in tasks of its own, and that are dealt with."""
        self._known = known
        self.runner = asyncio.Runner(loop_factory=VirtualTimeLoop if virtual else None)
        self.log = Log()
        self._failures: list[str] = []
        self.runner.get_loop().set_exception_handler(self._failed)

    def _failed(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if not isinstance(context.get("exception"), self._known):
            self._failures.append(f"{context.get('message')}: {context.get('exception')!r}")

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        with logged_to(self.log):
            return self.runner.run(work)

    def hold(self, work: Coroutine[Any, Any, None]) -> None:
        """Runs what one input does, and sees that nothing went wrong beside it."""
        self.run(work)
        defects = [*self.log.take_defects(), *self._failures]
        self._failures.clear()
        if defects:
            raise Violation("; ".join(defects))

    def close(self) -> None:
        self.runner.close()
