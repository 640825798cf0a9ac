"""Whether a history of calls on one register with compare-and-swap is linearizable (Wing and Gong's search, with Lowe's memory).

A call of unknown outcome has no end: it may have taken effect at any time after its start, or never. Partition by key first: the search
is exponential in the calls that overlap, not in the length of a history. Two things are never tried both ways: a read that fits the
present state may as well take effect now, and a call of unknown outcome that changes nothing may as well never have.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
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
    who: str = ""

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
    return not stuck(calls, initial)


def stuck(calls: Sequence[Call], initial: Value = None) -> list[Call]:
    """Nothing when the calls are linearizable, else those of which none can come next where the search came furthest."""
    return _Search(calls).run(initial)


@dataclass(frozen=True, slots=True)
class _Point:
    """How far a search has come: all ended calls below `low`, of those from there on the ones in `more`; of the unended ones `used`."""

    low: int
    more: int
    used: int
    state: Value

    def with_ended(self, i: int, state: Value) -> _Point:
        low, more = self.low, self.more | 1 << (i - self.low)
        while more & 1:
            low, more = low + 1, more >> 1
        return _Point(low, more, self.used, state)


class _Search:
    def __init__(self, calls: Sequence[Call]) -> None:
        ordered = sorted(calls, key=lambda c: (c.start, c.end))
        self.ended = [c for c in ordered if c.end != inf]
        self.unended = [c for c in ordered if c.end == inf]

    def run(self, initial: Value) -> list[Call]:
        first = _Point(0, 0, 0, initial)
        stack, seen, furthest = [first], {first}, first
        while stack:
            point = stack.pop()
            if point.low == len(self.ended):
                return []
            if point.low > furthest.low:
                furthest = point
            for following in self._following(point):
                if following not in seen:
                    seen.add(following)
                    stack.append(following)
        return [self.ended[i] for i in self._next(furthest)]

    def _next(self, point: _Point) -> list[int]:
        """Ended calls that may come next: those that began before the first of the others ended."""
        found: list[int] = []
        earliest = inf
        for i in range(point.low, len(self.ended)):
            call = self.ended[i]
            if call.start > earliest:
                break
            if not point.more >> (i - point.low) & 1:
                found.append(i)
                earliest = min(earliest, call.end)
        return [i for i in found if self.ended[i].start <= earliest]

    def _following(self, point: _Point) -> Iterator[_Point]:
        candidates = self._next(point)
        for i in candidates:
            if self.ended[i].kind == "read" and self.ended[i].value == point.state:
                yield point.with_ended(i, point.state)
                return
        latest = min(self.ended[i].end for i in candidates)
        for n, call in enumerate(self.unended):
            if call.start > latest:
                break
            _, after = call.after(point.state)
            if not point.used >> n & 1 and after != point.state:
                yield _Point(point.low, point.more, point.used | 1 << n, after)
        for i in candidates:
            possible, after = self.ended[i].after(point.state)
            if possible:
                yield point.with_ended(i, after)
