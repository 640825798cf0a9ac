"""Whole queue managers with their channel initiators, in memory: members of groups and queue managers outside any, on one network.

`Host` runs what a pod runs: one `QueueManager` after the other (a fenced incarnation is followed by the next) and an `Initiator`.
Channels listen at `<name>:1415` (group) and `<name>:1414` (local); the queue manager lives on host `<name>-qm`.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from qsg.initiator import Initiator
from qsg.manager.browsing import BrowseSpec
from qsg.manager.manager import Options, QueueManager
from qsg.manager.queues import PutRequest
from qsg.pb import records_pb2 as pb
from qsg.rules import keys, status
from qsg.rules.definitions import Channel, Definitions, Queue, Settings
from qsg.rules.reasons import Reason, Refusal
from qsg.rules.unit import Fenced, OutcomeUnknown
from qsg.rules.world import World
from qsg.store.contract import Get, KeyValue, get_prefix
from qsg.store.memory import MemoryServer, MemoryStore
from qsg.transport.contract import Listener, Stream
from qsg.transport.memory import MemoryNetwork

LOCAL = "qsg.v1.Initiator"
DLQ = "SYSTEM.DEAD.LETTER.QUEUE"
RETRY = {"first_ms": 50, "short_count": 1000, "short_ms": 200, "long_count": 5, "long_ms": 500}


def queue(name: str, **attributes: Any) -> Queue:
    return Queue.model_validate({"name": name, **attributes})


def xmitq(name: str, structure: str = "private") -> Queue:
    return queue(name, usage="transmission", structure=structure)


def sender(name: str, transmission_queue: str, *addresses: str, **attributes: Any) -> Channel:
    given = {"transmission_queue": transmission_queue, "connection_names": addresses, "retry": RETRY, "silence_ms": 800}
    return Channel.model_validate({"name": name, "type": "sender", **given, **attributes})


def receiver(name: str, **attributes: Any) -> Channel:
    return Channel.model_validate({"name": name, "type": "receiver", "message_retry_count": 1, "message_retry_ms": 50, **attributes})


def definitions(*objects: Queue | Channel, **settings: Any) -> Definitions:
    return Definitions(
        settings=Settings.model_validate(settings),
        queues=tuple(o for o in objects if isinstance(o, Queue)),
        channels=tuple(o for o in objects if isinstance(o, Channel)),
    )


class Host:
    """One member, or a queue manager outside a group."""

    def __init__(self, world: Universe, name: str, group: str, definitions: Definitions) -> None:
        self.universe, self.name, self.group, self.definitions = world, name, group, definitions
        self.stores: dict[str, MemoryStore] = {}
        self.manager: QueueManager
        self.initiator: Initiator
        self.incarnations = 0
        self.alive = False
        self.serving = False
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        names = {"private": f"private {self.name}", **({n: f"{self.group} {n}" for n in self.universe.structures} if self.group else {})}
        self.stores = {n: self.universe.server(key).client() for n, key in names.items()}
        for structure in self.stores:
            if (self.name, structure) in self.universe.out_of_reach:
                self.stores[structure].cut()
        world = self.universe.world(self.name)
        self.alive = True
        self._process, self._again = world.id().hex(), False
        await self._incarnate(world)
        transport = self.universe.network.transport(self.name)
        self.initiator = Initiator(
            world,
            transport,
            lambda: transport.connect(f"{self.name}-qm:1", LOCAL),
            member=self.name,
            group_listener=f"{self.name}:1415" if self.group else "",
            local_listener=f"{self.name}:1414",
            resolve=self.universe.resolve,
        )
        await self.initiator.start()
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self.initiator.run()), loop.create_task(self._keep(world))]
        await self.initiator.joined.wait()

    async def _incarnate(self, world: World) -> None:
        transport = self.universe.network.transport(f"{self.name}-qm")

        async def listen(handler: Callable[[Stream], Awaitable[None]]) -> Listener:
            return await transport.listen(f"{self.name}-qm:1", {LOCAL: handler})

        options = Options(
            member=self.name,
            group=self.group,
            address=f"{self.name}-qm:1416",
            group_listener=f"{self.name}:1415" if self.group else "",
            local_listener=f"{self.name}:1414",
            process=self._process,
            definitions=self.definitions,
            again=self._again,
        )
        self._again = True
        self.manager = QueueManager(options, world, self.stores, transport, listen)
        await self.manager.start()
        self.serving = True
        self.incarnations += 1

    async def _keep(self, world: World) -> None:
        """As the process does: behind a fenced incarnation comes the next."""
        while True:
            await self.manager.fenced.wait()
            self.serving = False
            await self.manager.stop(drain=False)
            while not self.serving:
                try:
                    await self._incarnate(world)
                except (Fenced, OutcomeUnknown):
                    await asyncio.sleep(0.2)

    async def kill(self) -> None:
        """SIGKILL of both processes: nothing more is written, connections break and are refused."""
        for store in self.stores.values():
            store.cut()
        self.universe.network.kill(self.name)
        self.universe.network.kill(f"{self.name}-qm")
        await self._end_tasks()
        self.manager.fenced.set()
        await self.manager.stop(drain=False)

    async def stop(self, *, drain: bool = True) -> None:
        ends, self._tasks = self._tasks[1:], self._tasks[:1]
        await _cancelled(ends)
        await self.manager.stop(drain=drain)
        await self._end_tasks()

    async def _end_tasks(self) -> None:
        self.alive = self.serving = False
        await _cancelled(self._tasks)
        await self.initiator.close()

    # What applications do

    async def put(self, queue: str, *texts: str, queue_manager: str = "", **fields: Any) -> None:
        for text in texts:
            message = pb.Message(payload=text.encode(), **fields)
            await self.manager.queues.put([PutRequest(queue, message, queue_manager)], affinity="test")

    async def messages(self, queue: str) -> list[pb.Message]:
        """Everything on a queue, in order; it stays there."""
        found: list[pb.Message] = []
        cursor = b""
        while True:
            try:
                page, cursor = await self.manager.queues.browse(BrowseSpec(queue, messages_max=100, cursor=cursor))
            except Refusal as refusal:
                if refusal.reason is Reason.NO_MSG_AVAILABLE:
                    return found
                raise
            found += [got.message for got in page]

    async def texts(self, queue: str) -> list[str]:
        return [message.payload.decode() for message in await self.messages(queue)]

    async def until(self, queue: str, texts: Sequence[str], timeout_s: float = 10.0) -> list[pb.Message]:
        """The messages of a queue once these are there: exactly, and in this order."""
        try:
            async with asyncio.timeout(timeout_s):
                while len(await self.texts(queue)) < len(texts):  # noqa: ASYNC110  (a store has no event)
                    await asyncio.sleep(0.005)
        except TimeoutError:
            raise AssertionError(f"{await self.texts(queue)} of {texts} on {queue} at {self.name}; {await self.troubles()}") from None
        found = await self.messages(queue)
        assert [m.payload.decode() for m in found] == list(texts), await self.troubles()
        return found

    async def troubles(self) -> str:
        """What may tell why something did not arrive: entries, and dead letters."""
        told = [str(entry) for entry in self.universe.entries(self.group or self.name)]
        for host in self.universe.hosts.values():
            letters = host.manager.catalog.settings.dead_letter_queue
            if host.alive and host.manager.catalog.queue(letters) is not None:
                told += [f"{host.name}: {m.payload.decode()[:50]!r} {m.dead_letter}" for m in await host.messages(letters)]
        return "\n".join(told)


async def _cancelled(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@dataclass
class Universe:
    structures: tuple[str, ...] = ("admin",)
    network: MemoryNetwork = field(default_factory=MemoryNetwork)
    servers: dict[str, MemoryServer] = field(default_factory=dict)
    hosts: dict[str, Host] = field(default_factory=dict)
    names: dict[str, list[str]] = field(default_factory=dict)
    """Connection name -> all addresses behind it, as a name service answers."""
    out_of_reach: set[tuple[str, str]] = field(default_factory=set)
    """(host, structure): what a host does not reach from its start on."""
    built: int = 0

    def __getitem__(self, name: str) -> Host:
        return self.hosts[name]

    def server(self, name: str) -> MemoryServer:
        return self.servers.setdefault(name, MemoryServer())

    def world(self, name: str) -> World:
        self.built += 1
        return World(lambda: 1_700_000_000_000 + round(1000 * asyncio.get_running_loop().time()), random.Random(f"{name}{self.built}"))

    async def resolve(self, name: str) -> list[str]:
        return self.names.get(name, [name])

    async def host(self, name: str, group: str = "", *objects: Queue | Channel, **settings: Any) -> Host:
        """Starts a queue manager; with a group, as a member of it."""
        made = self.hosts[name] = Host(self, name, group, definitions(*objects, **settings))
        await made.start()
        return made

    async def again(self, name: str) -> Host:
        """Starts a killed one again."""
        await self.hosts[name].start()
        return self.hosts[name]

    def found(self, server: str, prefix: bytes) -> list[KeyValue]:
        return list(self.servers[server].get(get_prefix(prefix)).kvs)

    def key(self, server: str, key: bytes) -> KeyValue | None:
        return self.servers[server].get(Get(key)).first

    def entries(self, owner: str = "G") -> list[pb.ChannelStatus]:
        """The status table of a group, or of a queue manager outside one."""
        server = f"{owner} admin" if f"{owner} admin" in self.servers else f"private {owner}"
        return [pb.ChannelStatus.FromString(kv.value) for kv in (*self.found(server, keys.STATUS_OUT), *self.found(server, keys.STATUS_IN))]

    def entry(self, channel: str, owner: str = "G") -> pb.ChannelStatus | None:
        return next((e for e in self.entries(owner) if e.channel == channel), None)

    async def state(self, channel: str, state: status.State, owner: str = "G", timeout_s: float = 10.0) -> pb.ChannelStatus:
        """The entry of a channel once it is in `state`."""
        try:
            async with asyncio.timeout(timeout_s):
                while status.state_of(self.entry(channel, owner)) != state:  # noqa: ASYNC110
                    await asyncio.sleep(0.005)
        except TimeoutError:
            raise AssertionError(f"{channel} is not {status.name(state)}: {self.entry(channel, owner)}") from None
        return self.entry(channel, owner) or pb.ChannelStatus()

    async def close(self) -> None:
        for host in self.hosts.values():
            if host.alive:
                await host.stop(drain=False)
        for server in self.servers.values():
            server.close()


@asynccontextmanager
async def universe(*structures: str, names: Mapping[str, Sequence[str]] | None = None) -> AsyncIterator[Universe]:
    made = Universe(structures or ("admin",), names={k: list(v) for k, v in (names or {}).items()})
    # As a network has it: what is sent arrives later, so that virtual time passes.
    made.network.delay = lambda source, target: 0.0005
    try:
        yield made
    finally:
        await made.close()


def numbered(first: int, last: int) -> list[str]:
    return [f"m{i:04d}" for i in range(first, last)]
