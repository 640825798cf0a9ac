"""A member's path to a structure, on which what happens to a request depends on what it is about.

With no aim it is `RandomFaults`, and draws the same numbers: ordinary histories stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from qsg.rules import keys
from qsg.store.contract import Compare, Get, Op, TxnResult
from qsg.store.faults import Fault, RandomFaults
from qsg.store.memory import MemoryStore

OWNERSHIP, CLAIMS, OTHER = "ownership", "claims", "other"
OWNED = (keys.STATUS_OUT, keys.STATUS_IN, keys.FENCES, keys.RECEIVER_FENCES, keys.MEMBERS)
CLAIMED = (b"/c/", b"/y/")


class Aim(NamedTuple):
    """What happens to transactions of one kind: shares, and how late those are that come late."""

    reply_lost: float = 0.0
    late: float = 0.0
    late_s: float = 1.0


@dataclass(slots=True)
class AimedFaults(RandomFaults):
    aims: dict[str, Aim] = field(default_factory=dict)
    about: str = OTHER

    def request(self, kind: str) -> Fault:
        aim = self.aims.get(self.about) if self.aims and kind == "txn" else None
        if aim is None:
            return RandomFaults.request(self, kind)
        drawn, late = self.random.random(), self.random.random() < aim.late
        delay_s = self.random.uniform(0, aim.late_s) if late else self.random.random() * self.delay_s
        return Fault(delay_s, self.random.random() * self.delay_s, reply_lost=drawn < aim.reply_lost)


class AimedStore(MemoryStore):
    faults: AimedFaults

    async def txn(
        self, compares: Sequence[Compare], ops: Sequence[Op], else_ops: Sequence[Op] = (), *, timeout_s: float | None = None
    ) -> TxnResult:
        if self.faults.aims:
            self.faults.about = about(ops)
        return await super().txn(compares, ops, else_ops, timeout_s=timeout_s)


def about(ops: Sequence[Op]) -> str:
    """What a transaction writes, if it does what it was asked to."""
    written = [op.key for op in ops if not isinstance(op, Get)]
    if any(key.startswith(OWNED) or key.endswith(b"/l") for key in written):
        return OWNERSHIP
    if any(part in key for key in written for part in CLAIMED):
        return CLAIMS
    return OTHER
