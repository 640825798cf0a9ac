"""Breadth-first search over all states that a model can reach, and what it says when an invariant does not hold.

Owns: which states were seen (by their canonical digest), and the shortest way to each. A model gives the moves of a state; a move is a
label, unique among the moves of its state, and a thunk that makes the next state and raises `AssertionError` when an invariant is
broken on the way. Not guaranteed: that two different states never share a digest (128 bits of BLAKE2b).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from qsg.rules.status import IllegalTransition

Move = tuple[str, Callable[[], Any]]


class Model(Protocol):
    name: str
    bounds: str
    """What it is bounded by, in words."""

    def initial(self) -> Any: ...

    def moves(self, state: Any) -> Iterable[Move]: ...

    def digest(self, state: Any) -> bytes: ...

    def check(self, state: Any) -> None:
        """Raises `AssertionError`."""
        ...


class Violation(Exception):
    """An invariant is broken: `steps` is a shortest way there."""

    def __init__(self, model: str, steps: Sequence[str], what: str) -> None:
        super().__init__(what)
        self.model, self.steps, self.what = model, list(steps), what
        self.counts = Counts()
        """How far a search had come."""

    def __str__(self) -> str:
        lines = [f"model {self.model}: {self.what}", *(f"{i:4}  {step}" for i, step in enumerate(self.steps, start=1))]
        return "\n".join(lines)


@dataclass(slots=True)
class Counts:
    states: int = 0
    transitions: int = 0
    depth: int = 0
    seconds: float = 0.0
    """Of processor time."""
    exhausted: bool = True
    widths: list[int] = field(default_factory=list)


FAILURES = (AssertionError, IllegalTransition)


def search(model: Model, at_most: int = 0) -> Counts:
    """Visits every reachable state, or `at_most` of them (0 = all). Raises `Violation`."""
    began = time.process_time()
    first = model.initial()
    came: dict[bytes, tuple[bytes, str]] = {model.digest(first): (b"", "")}
    counts = Counts()
    try:
        _visit(model, first, came, at_most, counts)
    except Violation as violation:
        violation.counts, counts.depth = counts, len(violation.steps)
        raise
    finally:
        counts.states, counts.seconds = len(came), time.process_time() - began
    return counts


def _visit(model: Model, first: Any, came: dict[bytes, tuple[bytes, str]], at_most: int, counts: Counts) -> None:
    layer: list[tuple[bytes, Any]] = [(next(iter(came)), first)]
    _check(model, first, came, layer[0][0])
    while layer and counts.exhausted:
        counts.widths.append(len(layer))
        following: list[tuple[bytes, Any]] = []
        for here, state in layer:
            for label, make in model.moves(state):
                counts.transitions += 1
                try:
                    after = make()
                except FAILURES as error:
                    raise Violation(model.name, [*_way(came, here), label], _what(error)) from error
                digest = model.digest(after)
                if digest in came:
                    continue
                came[digest] = here, label
                _check(model, after, came, digest)
                following.append((digest, after))
            if at_most and len(came) >= at_most:
                counts.exhausted = False
                break
        layer = following
    counts.depth = len(counts.widths) - 1


def _check(model: Model, state: Any, came: dict[bytes, tuple[bytes, str]], digest: bytes) -> None:
    try:
        model.check(state)
    except FAILURES as error:
        raise Violation(model.name, _way(came, digest), _what(error)) from error


def _what(error: Exception) -> str:
    return str(error) or repr(error)


def _way(came: dict[bytes, tuple[bytes, str]], digest: bytes) -> list[str]:
    steps: list[str] = []
    while True:
        digest, label = came[digest]
        if not label:
            return steps[::-1]
        steps.append(label)


def replay(model: Model, steps: Sequence[str], show: Callable[[int, Any, Any], None] = lambda i, before, after: None) -> Any:
    """Goes one way again. Raises `Violation` where an invariant breaks, `LookupError` when a step is not possible.

    `show` is told of each step: its index, the state before and after it.
    """
    state = model.initial()
    for i, step in enumerate(steps):
        moves = dict(model.moves(state))
        if step not in moves:
            raise LookupError(f"{step!r} is not possible after step {i}; these are: {', '.join(moves)}")
        try:
            before, state = state, moves[step]()
            show(i, before, state)
            model.check(state)
        except FAILURES as error:
            raise Violation(model.name, steps[: i + 1], _what(error)) from error
    return state
