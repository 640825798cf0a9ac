from __future__ import annotations

from qsg.process.workload import Pace, burst


def test_messages_fall_due_at_the_rate() -> None:
    pace = Pace(100, 1000, 1000)
    first = pace.due(10.0)
    pace.take(first)

    assert 1 == first
    assert 50 == pace.due(10.5)


def test_nothing_is_due_beyond_the_budget_and_a_pause_does_not_cause_a_burst() -> None:
    pace = Pace(100, 1000, 5)
    pace.take(pace.due(0.0))
    pace.take(pace.due(1.0))
    assert 0 == pace.due(2.0)

    pace.allowed = 1000

    assert 1 == pace.due(60.0)


def test_exhausted_at_the_total() -> None:
    pace = Pace(1000, 3, 10)
    pace.take(pace.due(0.0))
    pace.take(pace.due(9.0))

    assert pace.exhausted
    assert 0 == pace.due(10.0)


def test_large_messages_are_put_a_few_at_once() -> None:
    assert [burst(size, 256) for size in (0, 1024, 1 << 20, 100 << 20)] == [256, 256, 16, 1]
