"""Consumption records: claims, releases, backouts and the end of a segment, against a model."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qsg.rules import consume
from qsg.rules.consume import Claimer, LastEntries
from qsg.rules.reasons import Reason, Refusal
from qsg.store.contract import Relation, Target

A, B = Claimer("X", 5, b"a"), Claimer("Y", 9, b"b")


def free(value: bytes | None, count: int, void: tuple[tuple[str, int], ...] = ()) -> list[int]:
    return consume.indexes_of(consume.free_mask(consume.parse(value), count, void))


def test_untouched_segment_is_free() -> None:
    assert free(None, 3) == [0, 1, 2]


def test_claim_then_gone_then_last() -> None:
    record = consume.claim_change(A, [0, 2], 3)(None)
    assert free(record, 3) == [1]
    record = consume.gone_change([0, 2], 3, last=False, claimer=A)(record)
    assert free(record, 3) == [1]
    assert not consume.parse(record).claims

    assert consume.gone_change([1], 3, last=True)(record) is None


def test_claims_of_several_units_stay_apart() -> None:
    record = consume.claim_change(A, [0], 3)(None)
    record = consume.claim_change(B, [1], 3)(record)
    record = consume.claim_change(A, [2], 3)(record)

    assert consume.gathered(consume.parse(record), A).mask == 0b101
    assert consume.gathered(consume.parse(record), B).mask == 0b010


def test_claimed_entries_are_refused_to_others() -> None:
    record = consume.claim_change(A, [0], 2)(None)
    for change in (consume.claim_change(B, [0, 1], 2), consume.gone_change([0], 2, last=False)):
        with pytest.raises(Refusal) as refused:
            change(record)
        assert refused.value.reason is Reason.CHANGED_MEANWHILE


def test_void_claims_are_dropped_on_the_way() -> None:
    record = consume.claim_change(A, [0, 1], 3)(None)
    void = consume.void_holders(consume.parse(record), {("X", 6), ("Y", 9)})
    assert void == {("X", 5)}

    taken = consume.claim_change(B, [1], 3, void)(record)

    assert free(taken, 3) == [0, 2]
    assert [c.member for c in consume.parse(taken).claims] == ["Y"]
    (compare,) = consume.dead_compares(void)
    assert (compare.target, compare.relation, compare.operand) == (Target.CREATE, Relation.NOT_EQUAL, 5)


def test_back_out_counts_and_release_does_not() -> None:
    record = consume.claim_change(A, [0, 1], 2)(None)
    record = consume.release_change(A, [0], backed_out=True)(record)
    record = consume.release_change(A, [1], backed_out=False)(record)

    assert dict(consume.parse(record).backouts) == {0: 1}
    assert free(record, 2) == [0, 1]
    record = consume.claim_change(B, [0], 2)(record)
    record = consume.release_change(B, [0], backed_out=True)(record)
    assert dict(consume.parse(record).backouts) == {0: 2}


def test_release_of_a_claim_that_is_gone_is_refused() -> None:
    record = consume.claim_change(B, [0], 2)(None)
    for value in (None, record):
        with pytest.raises(Refusal):
            consume.release_change(A, [0], backed_out=True)(value)


@pytest.mark.parametrize(("entries", "last"), [([1], False), ([0], True)])
def test_the_end_of_a_segment_must_be_foreseen(entries: list[int], last: bool) -> None:
    record = consume.gone_change([0], 2, last=False)(None) if not last else None
    with pytest.raises(LastEntries) as refused:
        consume.gone_change(entries, 2, last=last)(record)
    assert refused.value.last is not last


def test_bodies_of_small_segments_have_no_key() -> None:
    assert [d.key for d in consume.deletes("Q", 3, b"X.0/1", bodies_inline=True)] == [b"q/Q/h/3/X.0/1"]
    assert [d.key for d in consume.deletes("Q", 3, b"X.0/1", bodies_inline=False)] == [b"q/Q/h/3/X.0/1", b"q/Q/b/3/X.0/1"]


STEPS = st.lists(
    st.tuples(st.sampled_from(["claim", "commit", "backout", "get"]), st.sampled_from([A, B]), st.sets(st.integers(0, 9), min_size=1)),
    max_size=40,
)


@settings(max_examples=200, deadline=None)
@given(steps=STEPS)
def test_against_a_model(steps: list[tuple[str, Claimer, set[int]]]) -> None:
    """Each entry is free, claimed by one unit, or gone; what is refused changes nothing."""
    count = 10
    state: dict[int, object] = dict.fromkeys(range(count), "free")
    backouts = dict.fromkeys(range(count), 0)
    value: bytes | None = None
    for what, who, entries in steps:
        before = "free" if what in ("claim", "get") else who
        allowed = all(state[e] == before for e in entries)
        remaining = [e for e in state if state[e] != "gone" and e not in entries]
        change = {
            "claim": consume.claim_change(who, entries, count),
            "commit": consume.gone_change(entries, count, last=not remaining, claimer=who),
            "backout": consume.release_change(who, entries, backed_out=True),
            "get": consume.gone_change(entries, count, last=not remaining),
        }[what]
        if not allowed:
            with pytest.raises(Refusal):
                change(value)
            continue
        value = change(value)
        for entry in entries:
            state[entry] = {"claim": who, "commit": "gone", "backout": "free", "get": "gone"}[what]
            backouts[entry] += what == "backout"
        if value is None:
            assert all(s == "gone" for s in state.values())
            return
        assert free(value, count) == [e for e, s in state.items() if s == "free"]
        counts = {e: n for e, n in backouts.items() if n and state[e] != "gone"}
        assert dict(consume.parse(value).backouts) == counts
