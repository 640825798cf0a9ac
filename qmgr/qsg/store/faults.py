"""What can go wrong on the path between a client's handle and a store in memory: drawn by chance, or scripted by a test.

Says what happens to each request and to each delivery of a watch; `qsg.store.memory` carries it out. Chance is the given `random.Random`.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random


@dataclass(slots=True)
class Fault:
    """What happens to one request. All zero: nothing."""

    delay_s: float = 0.0
    """On its way to the store."""
    reply_delay_s: float = 0.0
    """Of the answer on its way back."""
    refused: bool = False
    """`NotApplied`: never sent."""
    lost: bool = False
    """Never arrives; the caller gets `Unavailable`."""
    reply_lost: bool = False
    """Applied, but the caller gets `Unavailable`."""
    late_s: float = 0.0
    """The caller gets `Unavailable` now; the request is evaluated this much later."""
    full: bool = False
    """Applied, but the caller gets `NoSpace`, as etcd does it with the transaction that fills its quota."""


class Faults:
    """The hook of a handle: asked for every request and every delivery to a watch. This one does no harm."""

    def request(self, kind: str) -> Fault:
        """`kind`: txn, get, grant, keep_alive, revoke, compact, status."""
        return _NO_FAULT

    def watch_delay_s(self) -> float:
        return 0.0


_NO_FAULT = Fault()


@dataclass(slots=True)
class RandomFaults(Faults):
    """Each kind of fault with its own probability, drawn from `random`."""

    random: Random
    delay_s: float = 0.0
    """Each way up to this long."""
    refused: float = 0.0
    lost: float = 0.0
    reply_lost: float = 0.0
    late: float = 0.0
    late_s: float = 2.0

    def request(self, kind: str) -> Fault:
        random = self.random.random
        delay, reply, drawn = random() * self.delay_s, random() * self.delay_s, random()
        if drawn < self.refused:
            return Fault(refused=True)
        drawn -= self.refused
        if drawn < self.lost:
            return Fault(delay, reply, lost=True)
        drawn -= self.lost
        if drawn < self.reply_lost:
            return Fault(delay, reply, reply_lost=True)
        drawn -= self.reply_lost
        if drawn < self.late:
            return Fault(delay, reply, late_s=self.random.uniform(0, self.late_s))
        return Fault(delay, reply)

    def watch_delay_s(self) -> float:
        return self.random.random() * self.delay_s
