"""What tests of slots and committers look at: faults and refusals one by one, and what is on a queue then."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from qsg.pb import records_pb2 as pb
from qsg.rules import keys
from qsg.store.contract import Compare, Op, TxnResult, get_prefix
from qsg.store.faults import Fault, Faults
from qsg.store.memory import MemoryServer, MemoryStore


def stored(server: MemoryServer, queue: str = "Q") -> list[int]:
    """Message numbers of a queue in commit order."""
    headers = server.get(get_prefix(keys.headers(queue))).kvs
    ordered = sorted(headers, key=lambda kv: (kv.create_revision, kv.key))
    return [int(e.message_id) for kv in ordered for e in pb.SegmentHeader.FromString(kv.value).entries]


def depth(server: MemoryServer, queue: str = "Q") -> int:
    sums = [pb.Totals.FromString(kv.value) for kv in server.get(get_prefix(keys.totals(queue))).kvs]
    return sum(s.put - s.got for s in sums)


@dataclass
class Scripted(Faults):
    """One fault per transaction, in order; then none. `before(n)` is called when the n-th is sent."""

    faults: list[Fault] = field(default_factory=list)
    before: Callable[[int], None] = lambda n: None
    count: int = 0

    def request(self, kind: str) -> Fault:
        if kind != "txn":
            return Fault()
        self.count += 1
        self.before(self.count)
        return self.faults.pop(0) if self.faults else Fault()


class Picky(MemoryStore):
    """Refuses transactions for reasons of its own."""

    refuse: Callable[[Sequence[Op]], Exception | None] = staticmethod(lambda ops: None)

    async def txn(
        self, compares: Sequence[Compare], ops: Sequence[Op], else_ops: Sequence[Op] = (), *, timeout_s: float | None = None
    ) -> TxnResult:
        error = self.refuse(ops)
        if error is not None:
            raise error
        return await super().txn(compares, ops, else_ops, timeout_s=timeout_s)
