"""When a failed channel is tried again: MQ's SHORTRTY/SHORTTMR/LONGRTY/LONGTMR, with jitter.

Owns: the next delay and the attempts left (MQ: SHORTRTS and LONGRTS are attempts *left*; both are reset when a message gets through).
The counters live in the status table, so that a retry by another member goes on counting. Does not start anything.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from qsg.rules.definitions import Retry

JITTER = 0.2
"""A delay is spread over this part of itself, so that many channels to one partner do not come back at once."""
DOUBLINGS = 32
"""More than any delay needs."""
COUNT_MAX = 0xFFFFFFFF
"""What the status table has room for: for ever, as much as any more would be."""


@dataclass(frozen=True, slots=True)
class Attempts:
    """Attempts left."""

    short: int
    long: int

    @staticmethod
    def full(retry: Retry) -> Attempts:
        return Attempts(min(retry.short_count, COUNT_MAX), min(retry.long_count, COUNT_MAX))

    def within(self, retry: Retry) -> Attempts:
        """After the definition was altered: never more than it allows."""
        return Attempts(min(self.short, retry.short_count), min(self.long, retry.long_count))


def next_delay(retry: Retry, left: Attempts, chance: random.Random) -> tuple[int, Attempts] | None:
    """(milliseconds to wait, attempts left behind it), or None: exhausted, the channel becomes STOPPED.

    The first attempt of a series waits `first_ms` only, and each further short one twice as long as the one before, up to `short_ms`:
    one address may stand for several members, and the one that has just died may be met once more. (Without short ones the first is a
    long one.)
    """
    left = left.within(retry)
    full = Attempts.full(retry)
    if left.short > 0:
        used = full.short - left.short
        base, after = min(retry.short_ms, retry.first_ms << min(used, DOUBLINGS)), Attempts(left.short - 1, left.long)
    elif left.long > 0:
        base, after = retry.long_ms, Attempts(left.short, left.long - 1)
        base = min(base, retry.first_ms) if left == full else base
    else:
        return None
    return max(1, round(base * (1 + JITTER * (2 * chance.random() - 1)))), after
