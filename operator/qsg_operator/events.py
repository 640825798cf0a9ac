"""Events on resources: one for each transition, never for what merely goes on."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from qsg_operator import names
from qsg_operator.conditions import Transition, timestamp
from qsg_operator.status.channel import ON_ITS_WAY, title

QUIET = (
    "Stopped",
    "Inactive",
    "Idle",
    "Listening",
    "Defined",
    "NotYet",
    "Starting",
    "Binding",
    "Initializing",
    "RollingOut",
    "NoMemberReady",
    "ExternalStore",
)
GOOD_WHEN_FALSE = ("Stalled",)
PASSING = tuple(title(state) for state in ON_ITS_WAY)
"""Reasons that follow each other within a moment: only the change to one of them from another status is told."""


@dataclass(frozen=True)
class Happened:
    reason: str
    message: str
    warning: bool = False


def of_transitions(transitions: Iterable[Transition]) -> list[Happened]:
    """A condition that is new and as it should be says nothing; nor does one whose reason alone has changed while it is true."""
    found = []
    for one in transitions:
        condition = one.condition
        good = condition.ok is True if condition.type not in GOOD_WHEN_FALSE else condition.ok is False
        if good and (one.before in ("", condition.status) or condition.type in ("Valid", *GOOD_WHEN_FALSE)):
            continue
        if one.before == condition.status and condition.reason in PASSING:
            continue
        if condition.type == "Valid" and condition.ok is None:
            continue
        if condition.type == "Connected":
            continue  # Ready says it
        if condition.ok is None and not one.before:
            continue  # it has just been made
        text = f"{condition.type} is {condition.status}" + (f": {condition.message}" if condition.message else "")
        found.append(Happened(condition.reason, text, warning=not good and condition.reason not in QUIET))
    return found


def of_takeover(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Happened]:
    """`before`, `after`: the status. Several between two looks are told as one, with their number."""
    old, new = before.get("takeovers", {}).get("count", 0), after.get("takeovers", {}).get("count", 0)
    if not 0 < old + 1 <= new or "lastTo" not in after["takeovers"]:
        return []
    last = after["takeovers"]
    more = f" ({new - old} takeovers since the last look)" if new - old > 1 else ""
    text = f"{last['lastTo']} took it over from {last['lastFrom']} in {last['lastDurationMs']} ms: {last['lastCause']}{more}"
    return [Happened("ChannelTakenOver", text)]


def event(resource: Mapping[str, Any], happened: Happened, identity: str, now: datetime) -> dict[str, Any]:
    meta = resource["metadata"]
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{meta['name'][:200]}.{uuid.uuid4().hex[:16]}", "namespace": meta["namespace"]},
        "involvedObject": {
            "apiVersion": names.API_VERSION,
            "kind": resource["kind"],
            "name": meta["name"],
            "namespace": meta["namespace"],
            "uid": meta["uid"],
        },
        "reason": happened.reason,
        "message": happened.message[:1000],
        "type": "Warning" if happened.warning else "Normal",
        "firstTimestamp": timestamp(now),
        "lastTimestamp": timestamp(now),
        "count": 1,
        "source": {"component": names.FIELD_MANAGER},
        "reportingComponent": names.FIELD_MANAGER,
        "reportingInstance": identity,
    }
