"""Short and long retry: delays, attempts left, exhaustion."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from qsg.rules.definitions import Retry
from qsg.rules.retry import JITTER, Attempts, next_delay

RULES = Retry(first_ms=300, short_count=4, short_ms=1_000, long_count=2, long_ms=20_000)


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
    expected = [300, 600, 1_000, 1_000, 20_000, 20_000]
    assert len(delays) == len(expected)
    assert all(near(d, e) for d, e in zip(delays, expected, strict=True)), delays


def test_jitter_spreads() -> None:
    delays = {step[0] for seed in range(50) if (step := next_delay(RULES, Attempts(1, 2), random.Random(seed)))}
    assert len(delays) > 20 and all(near(d, 1_000) for d in delays)


def test_counting_goes_on_where_another_member_left_off() -> None:
    step = next_delay(RULES, Attempts(0, 1), random.Random(1))
    assert step is not None and near(step[0], 20_000) and step[1] == Attempts(0, 0)
    assert next_delay(RULES, Attempts(0, 0), random.Random(1)) is None


def test_an_altered_definition_bounds_what_is_left() -> None:
    step = next_delay(RULES, Attempts(60, 999_999_999), random.Random(1))
    assert step is not None and step[1] == Attempts(3, 2)


def test_without_short_retries_the_first_is_a_long_one() -> None:
    rules = Retry(first_ms=50, short_count=0, long_count=2, long_ms=9_000)
    delays = series(rules, Attempts.full(rules))
    assert near(delays[0], 50) and near(delays[1], 9_000) and len(delays) == 2


RETRIES = st.builds(
    Retry,
    first_ms=st.integers(10, 10_000),
    short_count=st.integers(0, 9),
    short_ms=st.integers(10, 10_000),
    long_count=st.integers(0, 9),
    long_ms=st.integers(10, 100_000),
)


@given(RETRIES, st.integers(0, 2**32))
def test_a_series_has_as_many_attempts_as_are_defined_and_each_waits_about_as_defined(rules: Retry, seed: int) -> None:
    chance, left, delays = random.Random(seed), Attempts.full(rules), []
    while (step := next_delay(rules, left, chance)) is not None:
        assert (step[1].short + step[1].long) == (left.short + left.long) - 1
        delays.append(step[0])
        left = step[1]
    bases = [min(rules.short_ms, rules.first_ms * 2**n) for n in range(rules.short_count)] + [rules.long_ms] * rules.long_count
    if bases:
        bases[0] = min(bases[0], rules.first_ms)
    assert len(delays) == len(bases)
    assert all(near(delay, base) and delay >= 1 for delay, base in zip(delays, bases, strict=True))


@given(RETRIES, RETRIES, st.integers(0, 20), st.integers(0, 20))
def test_however_a_definition_is_altered_attempts_run_out(first: Retry, then: Retry, short: int, long: int) -> None:
    left, count = Attempts(short, long).within(first), 0
    while (step := next_delay(then, left, random.Random(count))) is not None:
        left, count = step[1], count + 1
    assert count <= min(short, first.short_count, then.short_count) + min(long, first.long_count, then.long_count)
