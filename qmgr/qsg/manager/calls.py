"""The command under way, wherever in the queue manager it has got to: whether who asked still waits.

It is found by the context of its task; tasks that it begins belong to it too. Outside of a command everything is wanted.
"""

from __future__ import annotations

from contextvars import ContextVar


class Call:
    __slots__ = ("wanted",)

    def __init__(self, wanted: bool) -> None:
        self.wanted = wanted
        """False: nobody reads its answer. What it has begun goes on; it need not wait for what comes of it."""


_CALL: ContextVar[Call | None] = ContextVar("command under way", default=None)


def begin(*, wanted: bool = True) -> Call:
    """To be called in a task that does nothing else."""
    call = Call(wanted)
    _CALL.set(call)
    return call


def wanted() -> bool:
    call = _CALL.get()
    return call is None or call.wanted
