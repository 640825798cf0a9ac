"""One Event a transition, none for what goes on, none for what has just been made and is not known yet."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from qsg_operator import events
from qsg_operator.conditions import Condition, Transition


@pytest.mark.parametrize(
    ("condition", "before", "told"),
    [
        (Condition("Ready", True, "Running"), "False", ("Running", False)),
        (Condition("Ready", True, "Running"), "", None),
        (Condition("Ready", True, "Idle"), "True", None),
        (Condition("Ready", False, "Retrying", "refused"), "True", ("Retrying", True)),
        (Condition("Ready", False, "Retrying"), "", ("Retrying", True)),
        (Condition("Ready", False, "Retrying"), "False", ("Retrying", True)),
        (Condition("Ready", False, "Starting"), "", ("Starting", False)),
        (Condition("Ready", False, "Starting"), "True", ("Starting", False)),
        (Condition("Ready", False, "Starting"), "False", None),
        (Condition("Ready", False, "Binding"), "False", None),
        (Condition("Ready", False, "Recovering"), "False", None),
        (Condition("Ready", False, "Stopped"), "True", ("Stopped", False)),
        (Condition("Ready", None, "MembersUnreachable"), "", None),
        (Condition("Ready", None, "MembersUnreachable"), "True", ("MembersUnreachable", True)),
        (Condition("Stalled", True, "NoProgress"), "False", ("NoProgress", True)),
        (Condition("Stalled", False, "Moving"), "True", None),
        (Condition("Redundant", False, "NoSpareMember"), "True", ("NoSpareMember", True)),
        (Condition("Redundant", True, "MemberAndStoreSpare"), "False", ("MemberAndStoreSpare", False)),
        (Condition("Connected", False, "Retrying"), "True", None),
        (Condition("Valid", False, "Refused"), "", ("Refused", True)),
        (Condition("Valid", True, "Defined"), "False", None),
        (Condition("Valid", None, "NotYet"), "True", None),
    ],
)
def test_what_is_told(condition: Condition, before: str, told: tuple[str, bool] | None) -> None:
    found = [(one.reason, one.warning) for one in events.of_transitions([Transition(condition, before)])]
    assert found == ([told] if told else [])


def status(count: int, **last: Any) -> dict[str, Any]:
    return {"takeovers": {"count": count, "lastFrom": "X", "lastTo": "Y", "lastCause": "gone", "lastDurationMs": 9} | last}


def test_takeovers_are_told_once_with_their_number() -> None:
    assert [one.message for one in events.of_takeover({}, status(1))] == ["Y took it over from X in 9 ms: gone"]
    assert events.of_takeover(status(1), status(1)) == []
    (one,) = events.of_takeover(status(1), status(4))
    assert "3 takeovers" in one.message
    assert events.of_takeover(status(4), status(1)) == [], "a table that was made anew"
    assert events.of_takeover({}, {}) == []


def test_an_event_names_its_object() -> None:
    resource = {"kind": "SharedChannel", "metadata": {"name": "c" * 250, "namespace": "shop", "uid": "u"}}
    made = events.event(resource, events.Happened("Retrying", "m" * 2000, warning=True), "operator-0", datetime(2026, 11, 25, tzinfo=UTC))
    assert len(made["metadata"]["name"]) <= 253 and len(made["message"]) <= 1024
    assert made["involvedObject"]["uid"] == "u" and made["type"] == "Warning"
