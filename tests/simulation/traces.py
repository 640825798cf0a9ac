"""A readable trace: virtual time, where, what; with the product's own log lines between."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

import structlog
from structlog.typing import EventDict

from simulation.loop import PROCESS
from simulation.plan import Plan


class Printer:
    """Give it to `run` as its trace."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._now = 0.0

    def __call__(self, now: float, where: str, what: str) -> None:
        self._now = now
        self._out.write(f"{now:9.4f} {where:<12} {what}\n")

    def plan(self, plan: Plan, numbers: Sequence[int]) -> None:
        """`numbers`: of the events that are played."""
        flows = ", ".join(f.name for f in plan.flows)
        self._out.write(f"seed {plan.seed}, structures {', '.join(plan.structures)}, flows {flows}\n")
        self._out.writelines(f"  {number:2} {plan.events[number]}\n" for number in numbers)

    @contextmanager
    def logs(self) -> Iterator[None]:
        before = structlog.get_config()
        structlog.configure(
            processors=[self._line], wrapper_class=structlog.BoundLogger, logger_factory=structlog.ReturnLoggerFactory(), context_class=dict
        )
        try:
            yield
        finally:
            structlog.configure(**before)

    def _line(self, logger: Any, method: str, event: EventDict) -> str:
        process = PROCESS.get(None)
        rest = " ".join(f"{k}={v}" for k, v in event.items() if k not in ("event", "exc_info"))
        now = asyncio.get_running_loop().time()
        self(now, "kernel" if process is None else process.name, f"{method}: {event.get('event')} {rest}")
        return ""
