"""Short and long retry: delays, attempts left, exhaustion."""

from __future__ import annotations

import random

from qsg.rules.definitions import Retry
from qsg.rules.retry import JITTER, Attempts, next_delay

RULES = Retry(first_ms=50, short_count=3, short_ms=1_000, long_count=2, long_ms=20_000)


def series(rules: Retry, left: Attempts) -> list[int]:
    """Delays without jitter's share, rounded to what they stand for."""
    chance = random.Random(1)
    delays = []
    while (step := next_delay(rules, left, chance)) is not None:
        delay, left = step
        delays.append(delay)
    return delays


def near(delay: int, base: int) -> bool:
    return base * (1 - JITTER) - 1 <= delay <= base * (1 + JITTER) + 1


def test_first_then_short_then_long_then_none() -> None:
    delays = series(RULES, Attempts.full(RULES))
    expected = [50, 1_000, 1_000, 20_000, 20_000]
    assert len(delays) == len(expected)
    assert all(near(d, e) for d, e in zip(delays, expected, strict=True)), delays


def test_jitter_spreads() -> None:
    delays = {step[0] for seed in range(50) if (step := next_delay(RULES, Attempts(2, 2), random.Random(seed)))}
    assert len(delays) > 20 and all(near(d, 1_000) for d in delays)


def test_counting_goes_on_where_another_member_left_off() -> None:
    step = next_delay(RULES, Attempts(0, 1), random.Random(1))
    assert step is not None and near(step[0], 20_000) and step[1] == Attempts(0, 0)
    assert next_delay(RULES, Attempts(0, 0), random.Random(1)) is None


def test_an_altered_definition_bounds_what_is_left() -> None:
    step = next_delay(RULES, Attempts(60, 999_999_999), random.Random(1))
    assert step is not None and step[1] == Attempts(2, 2)


def test_without_short_retries_the_first_is_a_long_one() -> None:
    rules = Retry(first_ms=50, short_count=0, long_count=2, long_ms=9_000)
    delays = series(rules, Attempts.full(rules))
    assert near(delays[0], 50) and near(delays[1], 9_000) and len(delays) == 2
