"""Definitions by command: queues, channels and settings defined, deleted, purged and inquired, over the client API and at start."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import structlog

from qsg.manager.backend import Command, Inquiry
from qsg.manager.catalog import Catalog, parse_definition
from qsg.manager.queues import QueueService
from qsg.rules.definitions import Channel, Definitions, Queue, Settings
from qsg.rules.reasons import Reason, Refusal

log = structlog.get_logger()


class Administration:
    def __init__(self, catalog: Catalog, queues: QueueService) -> None:
        self._catalog = catalog
        self._queues = queues
        self.alterable: Callable[[Channel], Awaitable[None]] | None = None
        """Raises `Refusal` for a channel that is in use and must not become that."""

    async def apply(self, definitions: Definitions, *, replace: bool) -> list[str]:
        """Defines all of them, settings and queues first; what was done, in words. `replace` False leaves what is there as it is."""
        self._check(definitions)
        if replace:
            for channel in definitions.channels:
                await self._check_use(channel)
        done: list[str] = []
        if definitions.settings != Settings() and (replace or self._catalog.settings == Settings()):
            await self._catalog.define_settings(definitions.settings)
            done.append("settings")
        everything: list[Queue | Channel] = [*definitions.queues, *definitions.channels]
        for definition in everything:
            try:
                if isinstance(definition, Queue):
                    await self._queues.define(definition, replace=replace)
                else:
                    await self._catalog.define_channel(definition, replace=replace)
            except Refusal as refusal:
                if replace or refusal.reason is not Reason.OBJECT_ALREADY_EXISTS:
                    raise
            else:
                done.append(f"{'queue' if isinstance(definition, Queue) else 'channel'} {definition.name}")
        return done

    def _check(self, definitions: Definitions) -> None:
        """What can be seen to be wrong beforehand is refused before anything is defined. Raises `Refusal` DEFINITION_ERROR."""
        present = self._catalog.structures
        for kind, names in (("queues", [q.name for q in definitions.queues]), ("channels", [c.name for c in definitions.channels])):
            for number, name in enumerate(names):
                if name in names[:number]:
                    raise Refusal(Reason.DEFINITION_ERROR, f"{kind}.{number}.name: {name} is defined twice")
        for number, queue in enumerate(definitions.queues):
            if queue.type == "local" and queue.structure not in present:
                raise Refusal(Reason.DEFINITION_ERROR, f"queues.{number}.structure: there is no structure {queue.structure} here")
        for number, channel in enumerate(definitions.channels):
            if channel.type == "receiver" and channel.structure and channel.structure not in present:
                raise Refusal(Reason.DEFINITION_ERROR, f"channels.{number}.structure: there is no structure {channel.structure} here")

    async def _check_use(self, channel: Channel) -> None:
        if self.alterable is not None:
            await self.alterable(channel)

    def commands(self) -> dict[str, Command]:
        return {"apply": self._apply, "define": self._define, "delete": self._delete, "purge": self._purge}

    def inquiries(self) -> dict[str, Inquiry]:
        return {"queue": self._queues.inquire, "queues": self._all_queues, "channel": self._channel, "channels": self._channels}

    async def _apply(self, arguments: dict[str, object]) -> object:
        """{"definitions": {...}, "replace": true}"""
        definitions = parse_definition(arguments.get("definitions"), Definitions)
        return {"done": await self.apply(definitions, replace=bool(arguments.get("replace", True)))}

    async def _define(self, arguments: dict[str, object]) -> object:
        """{"kind": "queue" | "channel" | "settings", "definition": {...}, "replace": true}"""
        data, replace = arguments.get("definition"), bool(arguments.get("replace", True))
        match arguments.get("kind"):
            case "queue":
                queue = parse_definition(data, Queue)
                await self._queues.define(queue, replace=replace)
                return queue.model_dump(mode="json")
            case "channel":
                channel = parse_definition(data, Channel)
                if replace:
                    await self._check_use(channel)
                await self._catalog.define_channel(channel, replace=replace)
                return channel.model_dump(mode="json")
            case "settings":
                settings = parse_definition(data, Settings)
                await self._catalog.define_settings(settings)
                return settings.model_dump(mode="json")
        raise Refusal(Reason.COMMAND_FAILED, "kind: queue, channel or settings")

    async def _delete(self, arguments: dict[str, object]) -> object:
        """{"kind": "queue" | "channel", "name": "...", "purge": false}"""
        name = str(arguments.get("name", ""))
        match arguments.get("kind"):
            case "queue":
                await self._queues.delete(name, purge=bool(arguments.get("purge", False)))
            case "channel":
                await self._catalog.delete_channel(name)
            case _:
                raise Refusal(Reason.COMMAND_FAILED, "kind: queue or channel")
        return {"deleted": name}

    async def _purge(self, arguments: dict[str, object]) -> object:
        """{"name": "..."}"""
        name = str(arguments.get("name", ""))
        await self._queues.purge(name)
        return {"purged": name}

    async def _all_queues(self, name: str) -> object:
        """Those whose names begin with `name`, with their depths."""
        names = [queue for queue in sorted(self._catalog.queues()) if queue.startswith(name)]
        return {"queues": [await self._queues.inquire(queue) for queue in names]}

    async def _channel(self, name: str) -> object:
        channel = self._catalog.channel(name)
        if channel is None:
            raise Refusal(Reason.CHANNEL_NOT_FOUND, name)
        return channel.model_dump(mode="json")

    async def _channels(self, name: str) -> object:
        channels = self._catalog.channels()
        return {"channels": [channels[c].model_dump(mode="json") for c in sorted(channels) if c.startswith(name)]}
