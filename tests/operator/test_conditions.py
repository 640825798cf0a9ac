"""Conditions have one writer, and say each transition once."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from qsg_operator.conditions import Condition, Transition, find, merged

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)
UP = Condition("Ready", True, "Running", "x")
DOWN = Condition("Ready", False, "Retrying", "y")


def test_a_transition_has_its_time_and_is_told_once() -> None:
    first, told = merged([], [UP], 1, NOW)
    assert told == [Transition(UP, "")]
    assert first[0]["lastTransitionTime"] == "2026-11-25T12:00:00Z" and first[0]["status"] == "True"
    again, told = merged(first, [UP], 2, NOW + timedelta(minutes=1))
    assert told == []
    assert again[0]["lastTransitionTime"] == "2026-11-25T12:00:00Z" and again[0]["observedGeneration"] == 2
    later, told = merged(again, [DOWN], 2, NOW + timedelta(minutes=2))
    assert told == [Transition(DOWN, "True")]
    assert later[0]["lastTransitionTime"] == "2026-11-25T12:02:00Z"


def test_another_reason_is_told_and_keeps_the_time() -> None:
    first, _ = merged([], [DOWN], 1, NOW)
    second, told = merged(first, [Condition("Ready", False, "Stopped")], 1, NOW + timedelta(minutes=1))
    assert [t.condition.reason for t in told] == ["Stopped"]
    assert second[0]["lastTransitionTime"] == first[0]["lastTransitionTime"]


def test_another_message_alone_is_no_transition() -> None:
    first, _ = merged([], [DOWN], 1, NOW)
    second, told = merged(first, [Condition("Ready", False, "Retrying", "z" * 5000)], 1, NOW)
    assert told == [] and len(second[0]["message"]) == 1024


def test_unknown_is_unknown_and_what_nobody_wants_goes() -> None:
    found, _ = merged([{"type": "Old", "status": "True"}], [Condition("Ready", None, "MembersUnreachable")], 1, NOW)
    assert [(c["type"], c["status"]) for c in found] == [("Ready", "Unknown")]
    assert find(found, "Old") == {} and find(found, "Ready")["reason"] == "MembersUnreachable"
