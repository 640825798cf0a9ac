"""The command under way, wherever in the queue manager it has got to: whether who asked still waits, whether it has changed anything.

It is found by the context of its task; tasks that it begins belong to it too. Whoever hands over what may change something says so first
(`changing`): a structure at each commit, and those who ask others. Outside of a command everything is wanted, and may have been changed.
"""

from __future__ import annotations

from contextvars import ContextVar


class Call:
    __slots__ = ("untouched", "wanted")

    def __init__(self, wanted: bool) -> None:
        self.wanted = wanted
        """False: nobody reads its answer. What it has begun goes on; it need not wait for what comes of it."""
        self.untouched = True


_CALL: ContextVar[Call | None] = ContextVar("command under way", default=None)


def begin(*, wanted: bool = True) -> Call:
    """To be called in a task that does nothing else."""
    call = Call(wanted)
    _CALL.set(call)
    return call


def wanted() -> bool:
    call = _CALL.get()
    return call is None or call.wanted


def changing() -> None:
    """From now on nobody may say that the command has done nothing."""
    if (call := _CALL.get()) is not None:
        call.untouched = False


def untouched() -> bool:
    """Whether the command has provably done nothing yet."""
    call = _CALL.get()
    return call is not None and call.untouched
