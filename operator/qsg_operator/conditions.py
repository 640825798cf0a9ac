"""Conditions: one writer, and a transition is told once. Pure; `now` comes in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

MESSAGE_MAX = 1024


@dataclass(frozen=True)
class Condition:
    """`ok` None = unknown. `reason` in CamelCase."""

    type: str
    ok: bool | None
    reason: str
    message: str = ""

    @property
    def status(self) -> str:
        return "Unknown" if self.ok is None else str(self.ok)


@dataclass(frozen=True)
class Transition:
    """A condition that has changed its status or its reason. `before` is its status before; "" = it is new."""

    condition: Condition
    before: str


def merged(
    present: Iterable[Mapping[str, Any]], wanted: Sequence[Condition], generation: int, now: datetime
) -> tuple[list[dict[str, Any]], list[Transition]]:
    """The conditions as they are to be written, in the order of `wanted`, and what has changed. Others than `wanted` go."""
    old = {str(one.get("type")): one for one in present}
    found: list[dict[str, Any]] = []
    transitions: list[Transition] = []
    for condition in wanted:
        before = old.get(condition.type)
        same = before is not None and before.get("status") == condition.status
        found.append(
            {
                "type": condition.type,
                "status": condition.status,
                "observedGeneration": generation,
                "lastTransitionTime": before["lastTransitionTime"] if same and before else timestamp(now),
                "reason": condition.reason,
                "message": condition.message[:MESSAGE_MAX],
            }
        )
        if before is None or not same or before.get("reason") != condition.reason:
            transitions.append(Transition(condition, str(before.get("status")) if before else ""))
    return found, transitions


def find(conditions: Iterable[Mapping[str, Any]], type_: str) -> Mapping[str, Any]:
    return next((one for one in conditions if one.get("type") == type_), {})


def timestamp(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def from_ms(ms: int) -> str:
    return timestamp(datetime.fromtimestamp(ms / 1000, UTC))
