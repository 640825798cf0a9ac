"""Members of a group over stores in memory, with a catalog each: what tests of queues stand on."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from qsg.manager.catalog import Catalog
from qsg.manager.getting import GetSpec
from qsg.manager.membership import join
from qsg.manager.queues import PutRequest, QueueService
from qsg.manager.structure import Structure
from qsg.pb import records_pb2 as pb
from qsg.rules import keys
from qsg.rules.definitions import Queue
from qsg.rules.world import World
from qsg.store.contract import Delete
from qsg.store.memory import MemoryServer, MemoryStore


@dataclass
class Wall:
    ms: int = 1_700_000_000_000

    def __call__(self) -> int:
        return self.ms


@dataclass
class Member:
    name: str
    world: World
    wall: Wall
    structures: dict[str, Structure]
    catalog: Catalog
    queues: QueueService
    stores: dict[str, MemoryStore] = field(default_factory=dict)

    async def put(self, queue: str, *payloads: bytes, **fields: object) -> list[bytes]:
        requests = [PutRequest(queue, pb.Message(payload=p, **fields)) for p in payloads]  # type: ignore[arg-type]
        return await self.queues.put(requests)

    async def get(self, queue: str, count: int = 1, **spec: object) -> list[bytes]:
        got = await self.queues.get(GetSpec(queue, messages_max=count, **spec))  # type: ignore[arg-type]
        return [g.message.payload for g in got]

    def in_flight(self, structure: str) -> bool:
        """A transaction of ours is out, and not answered."""
        return any(slot.out for slot in self.structures[structure]._committer._slots)

    async def close(self) -> None:
        await self.queues.close()
        await self.catalog.close()
        for structure in self.structures.values():
            await structure.leave()

    async def crash(self) -> None:
        """Ends without a word; its member keys are deleted, as by a verdict."""
        await self.queues.close()
        await self.catalog.close()
        for structure in self.structures.values():
            await structure.close()
            await self.stores[structure.name].txn([], [Delete(keys.member(self.name))])


@dataclass
class Group:
    """Stores of a group "G"; members join one after the other."""

    names: Sequence[str] = ("admin", "app1")
    servers: dict[str, MemoryServer] = field(default_factory=dict)
    members: list[Member] = field(default_factory=list)
    wall: Wall = field(default_factory=Wall)
    sole: bool = False
    """Nobody else has any of the stores of a member that joins now, so units of work claim in memory."""

    def server(self, name: str) -> MemoryServer:
        return self.servers.setdefault(name, MemoryServer())

    async def member(self, name: str, *, slots: int = 2, group: str = "G") -> Member:
        world = World(self.wall, random.Random(name + str(len(self.members))))
        servers = {"private": self.server(f"private {name}"), **({n: self.server(n) for n in self.names} if group else {})}
        structures = {}
        stores = {}
        for store_name, server in servers.items():
            store = stores[store_name] = server.client()
            record = pb.MemberRecord(member=name, process=world.id().hex())
            lease, sole = store_name != "private", self.sole or store_name == "private"
            structures[store_name] = await join(store, store_name, record, world, slots=slots, lease=lease, compact=False, sole=sole)
        catalog = Catalog(structures, member=name, group=group)
        await catalog.start()
        queues = QueueService(catalog, world)
        queues.start()
        member = Member(name, world, self.wall, structures, catalog, queues, stores)
        self.members.append(member)
        return member

    async def close(self) -> None:
        for member in self.members:
            if not any(s.fenced.is_set() for s in member.structures.values()):
                await member.close()
        for server in self.servers.values():
            server.close()


@asynccontextmanager
async def group(*names: str) -> AsyncIterator[Group]:
    made = Group(names or ("admin", "app1"))
    try:
        yield made
    finally:
        await made.close()


def shared(name: str, **attributes: object) -> Queue:
    return Queue.model_validate({"name": name, "structure": "app1", **attributes})
