"""A process with or without its monitor: who asks for none does not load what it needs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qsg.process.monitor import Metrics, Ready


@contextmanager
def watched(address: str, ready: Ready, metrics: Metrics | None = None) -> Iterator[None]:
    """`address` "": nothing. Raises `OSError` when it is taken. Within a running event loop."""
    if not address:
        yield
        return
    from qsg.process.monitor import Monitor

    monitor = Monitor(address, ready, metrics)
    monitor.start()
    try:
        yield
    finally:
        monitor.stop()
