"""A group with peer links, initiators and supervisors, and a queue manager R outside it, all in memory and in virtual time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from qsg.manager.catalog import Catalog
from qsg.manager.channels import ChannelSupervisor
from qsg.manager.commands import ChannelCommands
from qsg.manager.inbound import InboundTable
from qsg.manager.members import Members
from qsg.manager.membership import join
from qsg.manager.peers import SERVICE, PeerLinks
from qsg.manager.placing import Placer
from qsg.manager.queue_store import QueueStore
from qsg.manager.receiving import Receivers, ReceiverServices
from qsg.manager.steps import Driver
from qsg.manager.structure import Structure
from qsg.pb import records_pb2 as pb
from qsg.rules import keys, segments, status
from qsg.rules.balance import Load
from qsg.rules.definitions import Channel, Queue, Settings
from qsg.rules.unit import NewMessage, Unit
from qsg.rules.world import World
from qsg.store.contract import Get, get_prefix
from qsg.store.memory import MemoryServer, MemoryStore
from qsg.transport.memory import MemoryListener, MemoryNetwork
from support.pair import Pair, pair

GROUP = "QSG"
XMITQ = "R"
CHANNEL = "QSG.TO.R"
APART = pytest.mark.parametrize("apart", [False, True], ids=["one store", "two structures"])
RETRY = {"first_ms": 50, "short_count": 20, "short_ms": 200, "long_count": 5, "long_ms": 500}


@dataclass
class Station:
    """A member, its queue manager on host `<name>-qm`."""

    name: str
    stores: dict[str, MemoryStore]
    structures: dict[str, Structure]
    catalog: Catalog
    pair: Pair
    supervisor: ChannelSupervisor
    commands: ChannelCommands
    members: Members | None = None
    peers: PeerLinks | None = None
    listener: MemoryListener | None = None
    alive: bool = True

    async def command(self, name: str, **arguments: Any) -> dict[str, Any]:
        return await self.commands.command(name, arguments)

    async def close(self, *, leave: bool = True) -> None:
        self.alive = False
        await self.supervisor.close()
        if self.peers is not None and self.members is not None:
            await self.peers.close()
            await self.members.close()
        if self.listener is not None:
            await self.listener.close()
        await self.catalog.close()
        await self.pair.close()
        for structure in self.structures.values():
            await (structure.leave() if leave else structure.close())


@dataclass
class Town:
    names: tuple[str, ...]
    network: MemoryNetwork = field(default_factory=MemoryNetwork)
    servers: dict[str, MemoryServer] = field(default_factory=dict)
    stations: dict[str, Station] = field(default_factory=dict)
    identity: str = ""
    """Name in the members' certificate, which no other may have."""
    wall_ms: int = 1_700_000_000_000
    built: int = 0

    def world(self, name: str) -> World:
        self.built += 1
        return World(lambda: self.wall_ms + round(1000 * asyncio.get_running_loop().time()), random.Random(f"{name}{self.built}"))

    async def station(self, name: str, *, group: str = GROUP) -> Station:
        """Starts a member (anew), in the order in which a queue manager does."""
        world = self.world(name)
        wanted = {"private": f"private {name}", **({n: n for n in self.names} if group else {})}
        stores = {n: self.servers.setdefault(key, MemoryServer()).client() for n, key in wanted.items()}
        host = f"{name}-qm"
        record = pb.MemberRecord(member=name, process=world.id().hex(), peer_address=f"{host}:1416" if group else "")
        structures = {n: await join(s, n, record, world, lease=n != "private", compact=False) for n, s in stores.items()}
        catalog = Catalog(structures, member=name, group=group)
        await catalog.start()
        linked = await pair(name, self.network, structures["admin" if group else "private"], world, group=group)
        members = peers = listener = None
        if group:
            members = Members(name, structures, "admin")
            await members.start()

            def own_load() -> Load:
                return supervisor.own_load()

            transport = self.network.transport(host, self.identity)
            allowed = (self.identity,) if self.identity else ()
            peers = PeerLinks(members, structures["admin"].incarnation, transport, world, group=group, own_load=own_load, allowed=allowed)
        supervisor = ChannelSupervisor(
            member=name, group=group, structures=structures, catalog=catalog, link=linked.link, world=world, members=members, peers=peers
        )
        linked.link.on_joined, linked.link.on_lost = supervisor.initiator_joined, supervisor.initiator_lost
        if peers is not None:
            listener = await self.network.transport(host).listen(f"{host}:1416", {SERVICE: peers.serve})
            await peers.start()
        await supervisor.start()
        made = Station(name, stores, structures, catalog, linked, supervisor, ChannelCommands(supervisor), members, peers, listener)
        self.stations[name] = made
        return made

    async def kill(self, name: str) -> None:
        """SIGKILL of both processes of a member: nothing more is written, connections break and are refused."""
        station = self.stations[name]
        for store in station.stores.values():
            store.cut()
        self.network.kill(f"{name}-qm")
        self.network.kill(name)
        await station.close(leave=False)

    async def entry(self, channel: str = CHANNEL) -> pb.ChannelStatus | None:
        result = self.servers["admin"].get(Get(keys.status_out(channel)))
        return None if result.first is None else status.parse(result.first.value)

    def prefix(self, structure: str, prefix: bytes) -> list[bytes]:
        return [kv.key for kv in self.servers[structure].get(get_prefix(prefix)).kvs]

    async def until(self, state: status.State, *, owner: str = "", channel: str = CHANNEL, timeout_s: float = 10.0) -> pb.ChannelStatus:
        """The entry once it is in `state` (of `owner`); INACTIVE: once it is gone."""
        entry = None
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    entry = await self.entry(channel)
                    if status.state_of(entry) == state and (not owner or (entry is not None and entry.owner == owner)):
                        return entry or pb.ChannelStatus()
                    await asyncio.sleep(0.001)
        except TimeoutError:
            raise AssertionError(f"not {status.name(state)} of {owner}: {entry}") from None

    async def put(self, texts: list[str], station: Station) -> None:
        puts: list[NewMessage] = []
        for text in texts:
            message = pb.Message(message_id=text.encode().ljust(24, b".")[:24], payload=text.encode())
            body = message.SerializeToString()
            entry = pb.Entry(message_id=message.message_id, size=len(body), payload_size=len(message.payload))
            puts.append(NewMessage(XMITQ, 0, entry, body, ("TARGET", "R")))
        await station.structures[self.home].commit(Unit("put", puts=[*puts]))

    @property
    def home(self) -> str:
        """Where the transmission queue lies."""
        return self.names[-1]

    async def arrived(self) -> list[str]:
        """Payloads at R, in commit order."""
        server = self.servers["private R"]
        stored = {kv.key: kv.value for kv in server.get(get_prefix(keys.bodies("TARGET"))).kvs}
        found = []
        for kv in sorted(server.get(get_prefix(keys.headers("TARGET"))).kvs, key=lambda kv: (kv.create_revision, kv.key)):
            header = pb.SegmentHeader.FromString(kv.value)
            body_key = keys.body("TARGET", *keys.split_segment_key("TARGET", kv.key))
            for _, _, body in segments.iterate(header, stored.get(body_key, b"")):
                found.append(pb.Message.FromString(bytes(body)).payload.decode())
        return found

    async def until_arrived(self, texts: list[str], timeout_s: float = 10.0) -> None:
        """Exactly these, in this order."""
        try:
            async with asyncio.timeout(timeout_s):
                while len(await self.arrived()) < len(texts):  # noqa: ASYNC110  (R's store has no event)
                    await asyncio.sleep(0.001)
        except TimeoutError:
            raise AssertionError(f"arrived: {await self.arrived()}, entry: {await self.entry()}") from None
        assert await self.arrived() == texts

    async def close(self) -> None:
        for station in self.stations.values():
            if station.alive:
                await station.close()
        for server in self.servers.values():
            server.close()


@asynccontextmanager
async def town(
    *members: str, apart: bool = False, identity: str = "", network: MemoryNetwork | None = None, **channel: Any
) -> AsyncIterator[Town]:
    """Members of QSG and R. `apart`: the transmission queue lies in a structure of its own. `channel`: attributes of the sender."""
    made = Town(("admin", "app1") if apart else ("admin",), network or MemoryNetwork(), identity=identity)
    # As a network has it: what is sent arrives later, so that virtual time passes.
    made.network.delay = lambda source, target: 0.0005
    try:
        await receiving(made)
        for name in members:
            await made.station(name)
        first = made.stations[members[0]]
        store = QueueStore(first.catalog, first.supervisor.world)
        await store.define(Queue(name=XMITQ, structure=made.home, usage="transmission"))
        definition = {
            "name": CHANNEL,
            "type": "sender",
            "transmission_queue": XMITQ,
            "connection_names": ["R:1414"],
            "partner": "R",
            "silence_ms": 800,
            "disconnect_interval_s": 0,
            "retry": RETRY,
            **channel,
        }
        await first.catalog.define_channel(Channel.model_validate(definition))
        await asyncio.sleep(0.5)  # until every member has heard every other
        yield made
    finally:
        await made.close()


async def receiving(made: Town) -> Station:
    """Queue manager R, with the receiver."""
    r = await made.station("R", group="")
    store = QueueStore(r.catalog, r.supervisor.world)
    for queue in (Queue(name="TARGET"), Queue(name="DLQ")):
        await store.define(queue)
    await r.catalog.define_channel(Channel(name=CHANNEL, type="receiver", partner=GROUP))
    await r.catalog.define_settings(Settings(dead_letter_queue="DLQ"))
    inbound = InboundTable(Driver("R", r.structures, r.pair.link), r.supervisor.world)
    r.supervisor.inbound = inbound
    services = ReceiverServices(r.supervisor.world, r.structures, Placer(r.catalog, store), r.catalog.channel, "R", "", inbound)
    r.pair.link.on_accept = Receivers(services).accept
    return r


def texts(first: int, last: int) -> list[str]:
    return [f"m{i:04d}" for i in range(first, last)]


async def owner(made: Town) -> str:
    """Who runs the channel, once somebody does."""
    return (await made.until(pb.RUNNING)).owner


def others(made: Town, name: str) -> list[Station]:
    """The living members of the group but for one."""
    return [s for s in made.stations.values() if s.alive and s.name not in (name, "R")]


async def sending(made: Town, count: int = 2) -> tuple[str, list[Station]]:
    """The first `count` messages have arrived: who runs the channel, and the others."""
    await made.put(texts(0, count), made.stations["X"])
    first = await owner(made)
    await made.until_arrived(texts(0, count))
    return first, others(made, first)
