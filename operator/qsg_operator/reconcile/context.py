"""What all reconciles share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import structlog

from qsg_operator import names
from qsg_operator.api import Api, ApiError
from qsg_operator.cache import Cache, Object, version
from qsg_operator.children.objects import Images
from qsg_operator.events import Happened, event

log = structlog.get_logger()
TOGETHER = 8
"""Calls at once of one reconcile."""


def wall_clock() -> datetime:
    return datetime.now(UTC)


@dataclass
class Context:
    api: Api
    cache: Cache
    images: Images
    identity: str
    now: Callable[[], datetime] = wall_clock

    async def tell(self, resource: Object, happened: list[Happened]) -> None:
        """Events; that one could not be written holds up nothing."""
        for one in happened:
            log.info(
                "event", kind=resource["kind"], namespace=resource["metadata"]["namespace"], name=resource["metadata"]["name"],
                reason=one.reason, message=one.message,
            )  # fmt: skip
            try:
                await self.api.create(event(resource, one, self.identity, self.now()))
            except ApiError as error:
                log.warning("an event was not written", reason=one.reason, error=str(error))


async def together(work: list[Any]) -> list[Any]:
    """All of them, some at once; the first error after all have ended."""
    room = asyncio.Semaphore(TOGETHER)

    async def one(part: Any) -> Any:
        async with room:
            return await part

    found = await asyncio.gather(*(one(part) for part in work), return_exceptions=True)
    for result in found:
        if isinstance(result, BaseException):
            raise result
    return found


def is_ours(found: Object, uid: str) -> bool:
    return any(r.get("uid") == uid for r in found["metadata"].get("ownerReferences") or ())


def settled(found: Object) -> object:
    """Changes when somebody changed what we write, not when a controller writes its status."""
    generation = found["metadata"].get("generation")
    return generation if generation is not None else version(found)


def dependents(cache: Cache, kind: str, namespace: str, name: str) -> list[Object]:
    """SharedChannels and SharedQueues of a group or queue manager, oldest first."""
    field_name = "group" if kind == names.QUEUE_SHARING_GROUP else "queueManager"
    found = [
        one
        for of in (names.SHARED_CHANNEL, names.SHARED_QUEUE)
        for one in cache.of(of, namespace)
        if one.get("spec", {}).get(field_name) == name
    ]
    return sorted(found, key=lambda one: (one["metadata"].get("creationTimestamp", ""), one["metadata"]["uid"]))
