"""The shortest list of events with which a seed still fails.

Greedy: halves, then quarters, … then single events are left out while what is left fails. Not guaranteed to be the shortest of all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


def shrink(events: Sequence[T], fails: Callable[[Sequence[T]], bool], attempts_max: int = 200) -> list[T]:
    """`events` is known to fail."""
    kept = list(events)
    size = max(1, len(kept) // 2)
    attempts = 0
    while size and attempts < attempts_max:
        at = 0
        left_out = False
        while at < len(kept) and attempts < attempts_max:
            fewer = kept[:at] + kept[at + size :]
            attempts += 1
            if fails(fewer):
                kept, left_out = fewer, True
            else:
                at += size
        if not (left_out and size == 1):
            size //= 2
    return kept
