"""Members that serve the client API over a network in memory, with one fake back end for all."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import asynccontextmanager
from typing import Any

from qsg.client import QueueManager, connect
from qsg.manager.clients import SERVICE, ClientLimits, ClientService
from qsg.rules.world import World
from qsg.transport.memory import MemoryNetwork
from support.fake_backend import FakeBackend, FakeGroup


class ClientGroup:
    def __init__(self, members: str = "XYZ", limits: ClientLimits | None = None, allowed: tuple[str, ...] = ()) -> None:
        self.network = MemoryNetwork()
        self.durable = FakeGroup()
        self.services: dict[str, ClientService] = {}
        self.backends: dict[str, FakeBackend] = {}
        self.members = members
        self.limits = limits
        self.allowed = allowed
        self.world = World(wall_ms=lambda: 1_000_000, random=random.Random(7))
        self._listeners: list[Any] = []

    async def __aenter__(self) -> ClientGroup:
        for member in self.members:
            await self.start(member)
        return self

    async def start(self, member: str) -> None:
        backend = self.backends[member] = FakeBackend(self.durable, member)
        service = ClientService(member=member, group="QSG1", backend=backend, world=self.world, limits=self.limits, allowed=self.allowed)
        self.services[member] = service
        self._listeners.append(await self.network.transport(member).listen(f"{member}:1416", {SERVICE: service.handler}))

    async def __aexit__(self, *_: object) -> None:
        for service in self.services.values():
            await service.close()
        for listener in self._listeners:
            await listener.close()

    def connect(self, members: str | None = None, **options: Any) -> QueueManager:
        addresses = [f"{member}:1416" for member in members or self.members]
        return connect(addresses, transport=self.network.transport("app"), world=self.world, **options)

    def cut_at(self, step: str, times: int = 1, act: Callable[[str], None] | None = None) -> None:
        """Breaks the application's streams to the member that first reaches `step`, `times` times."""
        left = times

        async def gate(at: str, member: str) -> None:
            nonlocal left
            if at == step and left:
                left -= 1
                (act or (lambda m: self.network.reset("app", m)))(member)
                await asyncio.sleep(0)

        self.durable.gate = gate

    def payloads(self, queue: str) -> list[bytes]:
        return self.durable.payloads(queue)


@asynccontextmanager
async def client_group(members: str = "XYZ", **options: Any) -> Any:
    async with ClientGroup(members, **options) as group:
        yield group
