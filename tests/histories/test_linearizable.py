"""The checker accepts what a register may do and rejects what it may not."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from support.linearizable import Call, Value, linearizable


def swap(start: float, end: float, expected: Value, value: Value, *, ok: bool = True) -> Call:
    return Call("swap", start, end, value, expected, ok)


def test_one_after_the_other() -> None:
    assert linearizable([Call("write", 0, 1, "a"), Call("read", 2, 3, "a"), swap(4, 5, "a", "b"), Call("read", 6, 7, "b")])


def test_a_stale_read_is_rejected() -> None:
    assert not linearizable([Call("write", 0, 1, "a"), Call("write", 2, 3, "b"), Call("read", 4, 5, "a")])


def test_overlapping_calls_may_come_in_either_order() -> None:
    for seen in ("a", "b"):
        assert linearizable([Call("write", 0, 10, "a"), Call("write", 0, 10, "b"), Call("read", 11, 12, seen)])


def test_two_owners_are_rejected() -> None:
    """Both swapped the same free lock."""
    assert linearizable([swap(0, 5, None, "X"), swap(1, 6, None, "Y", ok=False)])
    assert not linearizable([swap(0, 5, None, "X"), swap(1, 6, None, "Y")])


def test_a_swap_that_failed_for_no_reason_is_rejected() -> None:
    assert not linearizable([swap(0, 1, None, "X", ok=False)])


def test_an_unknown_outcome_may_come_at_any_time_or_never() -> None:
    late = Call("swap", 0, value="X", expected=None)
    assert linearizable([late, Call("read", 1, 2, None), Call("read", 10, 11, "X")]), "late"
    assert linearizable([late, Call("read", 10, 11, None)]), "never"
    assert not linearizable([late, Call("read", 1, 2, "X"), Call("read", 3, 4, None)]), "done and undone"
    assert not linearizable([Call("read", 0, 1, "X"), replace(late, start=2)]), "before it began"


def drawn(chance: Random, count: int) -> list[Call]:
    """A history of a real register: each call takes effect at some instant between its start and its end."""
    state: Value = None
    calls = []
    for at in sorted(chance.uniform(0, count) for _ in range(count)):
        start, end = at - chance.uniform(0, 3), at + chance.uniform(0, 3)
        kind = chance.choice(("read", "write", "swap", "swap"))
        expected, value = chance.choice((state, "other")), chance.randrange(5)
        call = Call(kind, start, end, state if kind == "read" else value, expected, ok=state == expected)  # type: ignore[arg-type]
        _, state = call.after(state)
        calls.append(replace(call, end=float("inf")) if kind != "read" and chance.random() < 0.1 else call)
    return calls


def test_histories_of_a_real_register_pass_and_altered_reads_do_not() -> None:
    chance = Random(1)
    for _ in range(60):
        assert linearizable(drawn(chance, 40))
    rejected = 0
    for _ in range(60):
        calls = drawn(chance, 40)
        reads = [i for i, c in enumerate(calls) if c.kind == "read"]
        broken = chance.choice(reads)
        calls[broken] = replace(calls[broken], value="never written")
        rejected += not linearizable(calls)
    assert rejected == 60
