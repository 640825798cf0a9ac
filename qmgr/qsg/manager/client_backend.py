"""What the client API calls in a queue manager: `QueueService`, `Catalog` for definitions, `Administration` for channels and the group.

Translates between the frames of the client API and the services; decides nothing of its own. Definitions and results are JSON objects.
"""

from __future__ import annotations

import asyncio
from typing import Any, Protocol, cast

from qsg.manager.browsing import BrowseSpec
from qsg.manager.catalog import parse_definition
from qsg.manager.clients import Got, Work
from qsg.manager.getting import GetSpec
from qsg.manager.producers import ProducerNumber, ProducerState
from qsg.manager.queues import PutRequest, QueueService
from qsg.manager.units import UnitOfWork
from qsg.pb import client_pb2 as pb
from qsg.rules.definitions import Channel, Queue, Settings
from qsg.rules.reasons import Reason, Refusal


class Administration(Protocol):
    """Channels and members: what is beyond queues and definitions."""

    async def inquire(self, kind: str, name: str) -> object:
        """ "status": entries of the channel status table; "group": the group, its members and structures."""
        ...

    async def command(self, name: str, arguments: dict[str, object]) -> object:
        """start, stop, reset, resolve, ping, ... of a channel. Raises Refusal."""
        ...


class QueueBackend:
    """Implements `qsg.manager.clients.Backend`."""

    def __init__(self, queues: QueueService, administration: Administration | None = None) -> None:
        self._queues = queues
        self._catalog = queues.catalog
        self._administration = administration

    # ---- messages

    def begin(self) -> Work:
        return self._queues.begin()

    async def put(self, put: pb.Put, *, work: Work | None, affinity: str, producer: ProducerNumber | None) -> list[bytes]:
        requests = [PutRequest(put.queue, message, put.queue_manager) for message in put.messages]
        return await self._queues.put(requests, unit=cast(UnitOfWork | None, work), affinity=affinity, producer=producer)

    async def get(self, get: pb.Get, *, work: Work | None, cancel: asyncio.Event) -> list[Got]:
        spec = GetSpec(
            get.queue,
            messages_max=get.messages_max,
            bytes_max=get.bytes_max,
            wait_ms=get.wait_ms,
            message_id=get.message_id,
            correlation_id=get.correlation_id,
        )
        return list(await self._queues.get(spec, unit=cast(UnitOfWork | None, work), cancel=cancel))

    async def browse(self, browse: pb.Browse) -> tuple[list[Got], bytes]:
        spec = BrowseSpec(
            browse.queue,
            messages_max=browse.messages_max,
            cursor=browse.cursor,
            message_id=browse.message_id,
            correlation_id=browse.correlation_id,
            headers_only=browse.headers_only,
        )
        messages, cursor = await self._queues.browse(spec)
        return list(messages), cursor

    async def open_producer(self, opening: pb.OpenProducer) -> ProducerState:
        return await self._queues.open_producer(
            opening.producer, opening.queue, opening.queue_manager, structure=opening.structure, lifetime_ms=opening.lifetime_ms
        )

    # ---- objects

    async def inquire(self, kind: str, name: str) -> object:
        match kind:
            case "queue":
                return await self._queues.inquire(name)
            case "queues":
                return list(await asyncio.gather(*(self._told(queue) for queue in sorted(self._catalog.queues()))))
            case "channel":
                channel = self._catalog.channel(name)
                if channel is None:
                    raise Refusal(Reason.UNKNOWN_CHANNEL_NAME, name)
                return channel.model_dump(mode="json")
            case "channels":
                return [channel.model_dump(mode="json") for _, channel in sorted(self._catalog.channels().items())]
            case "settings":
                return self._catalog.settings.model_dump(mode="json")
        return await self._rest().inquire(kind, name)

    async def _told(self, name: str) -> dict[str, object]:
        """One queue that cannot be looked at (its structure is away) does not hide the others."""
        try:
            return await self._queues.inquire(name)
        except Refusal as refusal:
            queue = self._catalog.queue(name)
            told: dict[str, object] = queue.model_dump(mode="json") if queue else {"name": name}
            return told | {"problem": str(refusal)}

    async def command(self, name: str, arguments: dict[str, object]) -> object:
        kind = arguments.get("kind")
        if name == "define" and kind in ("queue", "channel", "settings"):
            return await self._define(str(kind), arguments)
        if name == "delete" and kind in ("queue", "channel"):
            return await self._delete(str(kind), arguments)
        if name == "purge":
            await self._queues.purge(_text(arguments, "name"))
            return {"purged": arguments["name"]}
        return await self._rest().command(name, arguments)

    async def _define(self, kind: str, arguments: dict[str, object]) -> object:
        definition, replace = arguments.get("definition"), bool(arguments.get("replace", True))
        match kind:
            case "queue":
                queue = parse_definition(definition, Queue)
                before: Any = self._catalog.queue(queue.name)
                await self._queues.define(queue, replace=replace)
                after: Any = queue
            case "channel":
                channel = parse_definition(definition, Channel)
                before = self._catalog.channel(channel.name)
                await self._catalog.define_channel(channel, replace=replace)
                after = channel
            case _:
                before, after = self._catalog.settings, parse_definition(definition, Settings)
                await self._catalog.define_settings(after)
        return {"result": "defined" if before is None else "unchanged" if before == after else "altered"}

    async def _delete(self, kind: str, arguments: dict[str, object]) -> object:
        name = _text(arguments, "name")
        if kind == "queue":
            await self._queues.delete(name, purge=bool(arguments.get("purge", False)))
        elif self._administration is not None:
            # A channel that runs must not lose its definition: that is for the one who knows to check.
            return await self._administration.command("delete", arguments)
        else:
            await self._catalog.delete_channel(name)
        return {"result": "deleted"}

    def _rest(self) -> Administration:
        if self._administration is None:
            raise Refusal(Reason.OPTIONS_ERROR, "this queue manager has no channels")
        return self._administration


def _text(arguments: dict[str, object], key: str) -> str:
    value = arguments.get(key)
    if not isinstance(value, str) or not value:
        raise Refusal(Reason.OPTIONS_ERROR, f"{key} is missing")
    return value
