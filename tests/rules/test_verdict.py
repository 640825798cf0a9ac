"""Verdicts on members: refused, silent to a majority, or left to the lease."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsg.rules.verdict import Link, Report, judge

GROUP = {"W": 1, "X": 2, "Y": 3, "Z": 4}


def says(member: str, silent_ms: float = 2_000, *, incarnation: int | None = None, refused: bool = False, age_ms: float = 100) -> Report:
    return Report(member, GROUP[member] if incarnation is None else incarnation, silent_ms, refused, age_ms)


def heard(*members: str) -> dict[str, Link]:
    return {m: Link(GROUP[m], 100) for m in members}


def some(*members: str) -> dict[str, int]:
    return {m: GROUP[m] for m in members}


def test_refused_is_dead_at_once() -> None:
    (verdict,) = judge("X", some("X", "Y"), {"Y": Link(3, 12.0, refused=True)}, {})
    assert (verdict.member, verdict.incarnation, verdict.silent_ms) == ("Y", 3, 12.0)
    assert "refused" in verdict.cause


@pytest.mark.parametrize("reached", [0, 2, 4])
def test_never_against_an_incarnation_that_the_link_had_not_reached(reached: int) -> None:
    """H3b."""
    assert judge("X", some("X", "Y"), {"Y": Link(reached, 9_000, refused=True)}, {}) == []


def test_silence_between_two_is_left_to_the_lease() -> None:
    """H3."""
    assert judge("X", some("X", "Y"), {"Y": Link(3, 60_000)}, {}) == []


def test_silent_to_two_of_three() -> None:
    links = {"Y": Link(3, 1_600), **heard("Z")}
    (verdict,) = judge("X", some("X", "Y", "Z"), links, {"Z": [says("Y", 1_450)]})
    assert verdict.member == "Y" and verdict.cause == "silent to 2 of 3 members"


@pytest.mark.parametrize(
    "report",
    [says("Y", 1_000), says("Y", incarnation=2), says("Y", age_ms=1_200), says("W")],
    ids=["heard by the other", "another incarnation", "an old report", "another member"],
)
def test_reports_that_do_not_count(report: Report) -> None:
    links = {"Y": Link(3, 1_600), **heard("Z")}
    assert judge("X", some("X", "Y", "Z"), links, {"Z": [report]}) == []


def test_a_reporter_must_be_registered_in_the_incarnation_that_we_hear() -> None:
    links = {"Y": Link(3, 1_600), "Z": Link(99, 10)}
    assert judge("X", some("X", "Y", "Z"), links, {"Z": [says("Y")]}) == []
    assert judge("X", some("X", "Y"), {**links, "Z": Link(4, 10)}, {"Z": [says("Y")]}) == []


def test_two_pairs_do_not_accuse_each_other() -> None:
    """N15: four members, links cut into two pairs."""
    for me, mate, others in (("W", "X", "YZ"), ("Y", "Z", "WX")):
        links = {**heard(mate), **{o: Link(GROUP[o], 5_000) for o in others}}
        assert judge(me, GROUP, links, {mate: [says(o, 5_000) for o in others]}) == []


def test_three_of_four_are_a_majority() -> None:
    links = {**heard("X", "Y"), "Z": Link(4, 1_500)}
    (verdict,) = judge("W", GROUP, links, {"X": [says("Z")], "Y": [says("Z", 0, refused=True)]})
    assert verdict.member == "Z"


def test_nobody_judges_itself_or_the_unregistered() -> None:
    assert judge("X", some("X"), {"X": Link(2, 9_000, True), "Y": Link(3, 9_000, True)}, {}) == []


SILENT = st.sampled_from([0.0, 100.0, 1_499.0, 1_500.0, 9_000.0])
LINKS = st.dictionaries(st.sampled_from("WXYZ"), st.builds(Link, st.sampled_from([0, 1, 2, 3, 4, 9]), SILENT, st.booleans()))
REPORTS = st.dictionaries(
    st.sampled_from("WXYZ"),
    st.lists(
        st.builds(Report, st.sampled_from("WXYZ"), st.integers(1, 4), SILENT, st.booleans(), st.sampled_from([0.0, 999.0, 5_000.0])),
        max_size=4,
    ),
)


@given(st.sets(st.sampled_from("WXYZ"), min_size=1), LINKS, REPORTS)
def test_a_verdict_is_only_against_whom_our_link_reached_and_with_a_majority(
    members: set[str], links: dict[str, Link], reports: dict[str, list[Report]]
) -> None:
    me = min(members)
    registered = some(*members)
    for verdict in judge(me, registered, links, reports):
        link = links[verdict.member]
        assert verdict.member != me and registered[verdict.member] == verdict.incarnation == link.reached
        if not link.refused:
            assert link.silent_ms >= 1_500
            # Ourselves, and who says so and is heard in its registered incarnation.
            others = [m for m in members - {me, verdict.member} if (heard_of := links.get(m)) and heard_of.reached == registered[m]]
            assert 2 * (1 + len(others)) > len(members)


@given(st.permutations("WXYZ"), st.integers(0, 4))
def test_halves_of_a_split_group_never_both_accuse(order: list[str], cut: int) -> None:
    """Whoever is on the same side hears each other, nobody hears the other side."""
    sides = order[:cut], order[cut:]
    accusing = []
    for here, there in (sides, sides[::-1]):
        for me in here:
            links = {m: Link(GROUP[m], 100 if m in here else 3_000) for m in GROUP if m != me}
            reports = {m: [says(victim) for victim in there] for m in here if m != me}
            if judge(me, GROUP, links, reports):
                accusing.append(tuple(here))
    assert len(set(accusing)) <= 1
