"""Statuses written, rate-limited, and their transitions told as Events. The one writer of conditions.

What was written is remembered until the resource goes: the cache shows it a moment later only. Another replica that has written meanwhile
is no case: this is thrown away with the lease.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from qsg_operator import events
from qsg_operator.cache import Key, Object, key_of
from qsg_operator.conditions import Condition, find, merged
from qsg_operator.reconcile.context import Context

NUMBERS_S = 30.0
"""What changes all the time is written so often at most, unless something else changes with it."""
NUMBERS = {"backlog", "sequence", "lastMessageTime", "inDoubt", "sessions", "depth"}
RETRIED = {"state", "owner"}
"""Also so: each retry is an attempt of somebody, with an epoch and a start of its own."""


@dataclass(frozen=True)
class Written:
    uid: str
    status: dict[str, Any]
    at: float


class Statuses:
    def __init__(self, context: Context) -> None:
        self._context = context
        self._written: dict[Key, Written] = {}

    def present(self, resource: Object) -> dict[str, Any]:
        """As it was last written here; else as it was observed."""
        written = self._written.get(key_of(resource))
        if written is not None and written.uid == resource["metadata"]["uid"]:
            return dict(written.status)
        return dict(resource.get("status") or {})

    async def write(self, resource: Object, status: dict[str, Any], conditions: list[Condition]) -> None:
        """Raises `ApiError`."""
        before = self.present(resource)
        generation = resource["metadata"].get("generation", 0)
        new_conditions, transitions = merged(before.get("conditions") or (), conditions, generation, self._context.now())
        after = {**status, "observedGeneration": generation, "conditions": new_conditions}
        if self._worth_writing(key_of(resource), before, after) and await self.put(resource, after):
            await self._context.tell(resource, events.of_transitions(transitions) + events.of_takeover(before, after))

    async def put(self, resource: Object, status: dict[str, Any]) -> bool:
        """Writes a whole status; False when the resource is gone."""
        meta, key = resource["metadata"], key_of(resource)
        answer = await self._context.api.apply_status(resource["kind"], meta["namespace"], meta["name"], status)
        if answer is None:
            self._written.pop(key, None)
            return False
        self._written[key] = Written(meta["uid"], status, asyncio.get_running_loop().time())
        return True

    def prune(self) -> None:
        """Nothing is remembered of what is gone."""
        self._written = {key: one for key, one in self._written.items() if self._context.cache.get(*key) is not None}

    def _worth_writing(self, key: Key, before: dict[str, Any], after: dict[str, Any]) -> bool:
        if before == after:
            return False
        if _slow(before) != _slow(after):
            return True
        written = self._written.get(key)
        return written is None or asyncio.get_running_loop().time() - written.at >= NUMBERS_S


def _slow(status: dict[str, Any]) -> dict[str, Any]:
    """Without numbers, and without the messages of conditions and errors, which hold numbers too. Without what every retry changes."""
    shown = [{k: v for k, v in one.items() if k != "message"} for one in status.get("conditions") or ()]
    found = {name: value for name, value in status.items() if name not in NUMBERS} | {"conditions": shown}
    if "lastError" in found:
        found["lastError"] = found["lastError"].get("reason")
    if find(shown, "Ready").get("reason") == "Retrying":
        found = {name: value for name, value in found.items() if name not in RETRIED}
        found["takeovers"] = (found.get("takeovers") or {}).get("count")
    return found
