"""Whether a history of calls on one register with compare-and-swap is linearizable (Wing and Gong's search, with Lowe's memory).

A call of unknown outcome has no end: it may have taken effect at any time after its start, or never. Partition by key first: the search
is exponential in the calls that overlap, not in the length of a history.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Literal

Value = Hashable


@dataclass(frozen=True, slots=True)
class Call:
    """`read` returned `value`; `write` wrote `value`; `swap` replaced `expected` by `value`, or found that it was something else."""

    kind: Literal["read", "write", "swap"]
    start: float
    end: float = inf
    """inf: its outcome is not known."""
    value: Value = None
    expected: Value = None
    ok: bool = True
    """Of a swap with an end: whether it was done."""

    def after(self, state: Value) -> tuple[bool, Value]:
        """Whether it can have taken effect in `state` as it was answered, and the state behind it."""
        if self.kind == "read":
            return self.end == inf or state == self.value, state
        if self.kind == "write":
            return True, self.value
        done = state == self.expected
        if self.end != inf and done != self.ok:
            return False, state
        return True, self.value if done else state


def linearizable(calls: Sequence[Call], initial: Value = None) -> bool:
    ordered = sorted(calls, key=lambda c: (c.start, c.end))
    must = sum(1 << i for i, call in enumerate(ordered) if call.end != inf)
    stack: list[tuple[int, Value]] = [(0, initial)]
    seen: set[tuple[int, Value]] = set(stack)
    while stack:
        done, state = stack.pop()
        if done & must == must:
            return True
        for i in _next(ordered, done):
            possible, after = ordered[i].after(state)
            step = (done | 1 << i, after)
            if possible and step not in seen:
                seen.add(step)
                stack.append(step)
    return False


def _next(ordered: Sequence[Call], done: int) -> list[int]:
    """Calls that may come next: those that began before the first of the others ended."""
    found: list[int] = []
    earliest = inf
    for i, call in enumerate(ordered):
        if call.start > earliest:
            break
        if not done >> i & 1:
            found.append(i)
            earliest = min(earliest, call.end)
    return [i for i in found if ordered[i].start <= earliest]
