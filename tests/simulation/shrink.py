"""The shortest list of events with which a seed still fails.

Greedy: halves, then quarters, … then single events are left out while what is left fails, for `SECONDS` at most. Not guaranteed to be the
shortest of all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")
SECONDS = 60.0
"""Of processor time."""


def shrink(events: Sequence[T], fails: Callable[[Sequence[T]], bool], seconds: float = SECONDS) -> list[T]:
    """`events` is known to fail."""
    kept = list(events)
    size = max(1, len(kept) // 2)
    end = time.process_time() + seconds
    while size and time.process_time() < end:
        at = 0
        left_out = False
        while at < len(kept) and time.process_time() < end:
            fewer = kept[:at] + kept[at + size :]
            if fails(fewer):
                kept, left_out = fewer, True
            else:
                at += size
        if not (left_out and size == 1):
            size //= 2
    return kept
