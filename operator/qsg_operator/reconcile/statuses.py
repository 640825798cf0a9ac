"""Statuses written, rate-limited, and their transitions told as Events. The one writer of conditions."""

from __future__ import annotations

import asyncio
from typing import Any

from qsg_operator import events
from qsg_operator.cache import Key, Object, key_of
from qsg_operator.conditions import Condition, merged
from qsg_operator.reconcile.context import Context
from qsg_operator.reconcile.target import TargetState, Written

NUMBERS_S = 30.0
"""What changes all the time is written so often at most, unless something else changes with it."""
NUMBERS = {
    "backlog", "sequence", "lastMessageTime", "inDoubt", "sessions", "depth",
}  # fmt: skip


def present_status(state: TargetState, resource: Object) -> dict[str, Any]:
    """As it was last written here; else as it was observed."""
    written = state.written.get(key_of(resource))
    if written is not None and written.status.get("_uid") == resource["metadata"]["uid"]:
        return {key: value for key, value in written.status.items() if key != "_uid"}
    return dict(resource.get("status") or {})


async def write_status(context: Context, state: TargetState, resource: Object, status: dict[str, Any], conditions: list[Condition]) -> None:
    """Raises `ApiError`."""
    before = present_status(state, resource)
    meta = resource["metadata"]
    generation = meta.get("generation", 0)
    new_conditions, transitions = merged(before.get("conditions") or (), conditions, generation, context.now())
    after = {**status, "observedGeneration": generation, "conditions": new_conditions}
    key = key_of(resource)
    now = asyncio.get_running_loop().time()
    if not _worth_writing(state, key, before, after, now):
        return
    answer = await context.api.apply_status(resource["kind"], meta["namespace"], meta["name"], after)
    if answer is None:
        return
    state.written[key] = Written({**after, "_uid": meta["uid"]}, now)
    await context.tell(resource, events.of_transitions(transitions) + events.of_takeover(before, after))


def _worth_writing(state: TargetState, key: Key, before: dict[str, Any], after: dict[str, Any], now: float) -> bool:
    if before == after:
        return False
    slow = [{name: value for name, value in status.items() if name not in NUMBERS} for status in (before, after)]
    if _without_messages(slow[0]) != _without_messages(slow[1]):
        return True
    written = state.written.get(key)
    return written is None or now - written.at >= NUMBERS_S


def _without_messages(status: dict[str, Any]) -> dict[str, Any]:
    """Messages of conditions hold numbers too."""
    shown = [{k: v for k, v in one.items() if k != "message"} for one in status.get("conditions") or ()]
    return {**status, "conditions": shown}
