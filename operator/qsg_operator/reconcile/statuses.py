"""Statuses written, rate-limited, and their transitions told as Events. The one writer of conditions.

What was written is remembered, as the cache shows it a moment later only, until another status is observed. Invariant: a status is never
written over one that was not known here. A request of a replica that was cut off may be on its way long after another one leads: it fails,
or is observed and mended. So an operation is not begun twice either.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from qsg_operator import events
from qsg_operator.api import ApiError
from qsg_operator.cache import Key, Object, key_of, version
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
    shown: dict[str, Any]
    """The same, as the API server has it."""
    version: int
    at: float


class Statuses:
    def __init__(self, context: Context) -> None:
        self._context = context
        self._written: dict[Key, Written] = {}

    def present(self, resource: Object) -> dict[str, Any]:
        """As it was last written here, unless another was observed since."""
        written = self._mine(resource)
        observed = resource.get("status") or {}
        if written is None or (version(resource) > written.version and observed != written.shown):
            return dict(observed)
        return dict(written.status)

    def _mine(self, resource: Object) -> Written | None:
        written = self._written.get(key_of(resource))
        return written if written is not None and written.uid == resource["metadata"]["uid"] else None

    async def write(self, resource: Object, status: dict[str, Any], conditions: list[Condition]) -> None:
        """Raises `ApiError`."""
        before = self.present(resource)
        generation = resource["metadata"].get("generation", 0)
        new_conditions, transitions = merged(before.get("conditions") or (), conditions, generation, self._context.now())
        after = {**status, "observedGeneration": generation, "conditions": new_conditions}
        if self._worth_writing(key_of(resource), before, after) and await self.put(resource, after):
            await self._context.tell(resource, events.of_transitions(transitions) + events.of_takeover(before, after))

    async def put(self, resource: Object, status: dict[str, Any]) -> bool:
        """Writes a whole status; False when the resource is gone. Raises `ApiError`, 409 when another status has been written meanwhile."""
        known: Object | None = resource
        while known is not None and known["metadata"]["uid"] == resource["metadata"]["uid"]:
            mine, meta = self._mine(known), known["metadata"]
            at = max(version(known), mine.version if mine is not None else 0)
            try:
                answer = await self._context.api.apply_status(known["kind"], meta["namespace"], meta["name"], status, str(at))
            except ApiError as error:
                if error.status != 409:
                    raise
                known = await self._with_the_same_status(known, error)
                if known is not None and version(known) <= at:  # it is refused for something else, or the cluster is back from a backup
                    raise
                continue
            if answer is None:
                break
            now = asyncio.get_running_loop().time()
            self._written[key_of(known)] = Written(meta["uid"], status, answer.get("status") or {}, version(answer), now)
            return True
        self._written.pop(key_of(resource), None)
        return False

    async def _with_the_same_status(self, known: Object, error: ApiError) -> Object | None:
        """As it is now, when only the rest of it has changed; None: it is gone."""
        found = await self._context.api.get(*key_of(known))
        if found is not None and self.present(found) != self.present(known):
            raise error
        return found

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
