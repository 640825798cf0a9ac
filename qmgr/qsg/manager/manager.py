"""The queue manager: one incarnation of a member, put together from its services.

Owns everything that lives as long as the incarnation: memberships, catalog, queues, channels, peer links, client connections. Torn down
whole when it is fenced or told to end; the next incarnation is a new object (docs/decisions/0001).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import structlog

from qsg.endings import ended
from qsg.manager import membership
from qsg.manager.administration import Administration
from qsg.manager.backend import Command, Inquiry, QueueManagerBackend
from qsg.manager.catalog import ADMIN, Catalog
from qsg.manager.channels import ChannelSupervisor
from qsg.manager.clients import ClientService
from qsg.manager.commands import ChannelCommands
from qsg.manager.link import InitiatorLink
from qsg.manager.members import Members
from qsg.manager.moving import InternalChannels
from qsg.manager.peers import PeerLinks
from qsg.manager.queues import QueueService
from qsg.manager.receiving import Receivers, ReceiverServices
from qsg.manager.structure import Structure
from qsg.pb import records_pb2 as pb
from qsg.rules import keys
from qsg.rules.definitions import PRIVATE, Definitions
from qsg.rules.internal import private_of
from qsg.rules.world import World
from qsg.store.contract import Get, Store, StoreError
from qsg.transport.contract import Handler, Listener, Stream, Transport

log = structlog.get_logger()

JOIN_S = 5.0
"""A member starts without an application structure that does not answer for so long."""
CLIENT = "qsg.v1.Client"
PEER = "qsg.v1.Peer"


@dataclass(frozen=True, slots=True)
class Options:
    """Of one member. `advertise`: the address that peers and clients are told; "" = as bound."""

    member: str
    group: str = ""
    address: str = "127.0.0.1:0"
    advertise: str = ""
    group_listener: str = ""
    local_listener: str = ""
    process: str = ""
    """Random id of the process."""
    again: bool = False
    """The process was fenced and joins again: it gives way to another process of its name."""
    slots: int = 2
    lease_ttl_s: int = 5
    definitions: Definitions = field(default_factory=Definitions)
    """Applied where they are absent."""
    highest: Mapping[str, int] = field(default_factory=dict)
    """Structure -> the highest revision that this member ever saw there."""
    peer_names: tuple[str, ...] = ()
    client_names: tuple[str, ...] = ()
    """Names in certificates: of members of the group, and of who may use the client API. () = any."""


LocalListen = Callable[[Callable[[Stream], Awaitable[None]]], Awaitable[Listener]]
"""Opens the socket for the channel initiator."""


class QueueManager:
    """`stores`: "private", and for a member of a group "admin" and any others. `fenced` is set when this incarnation is over."""

    def __init__(
        self,
        options: Options,
        world: World,
        stores: Mapping[str, Store],
        transport: Transport,
        local_listen: LocalListen,
        *,
        kill: Callable[[int], None] | None = None,
        on_revision: Callable[[str, int], None] = lambda structure, revision: None,
    ) -> None:
        self.options = options
        self.fenced = asyncio.Event()
        self.structures: dict[str, Structure] = {}
        self._world, self._stores, self._transport, self._local_listen, self._kill = world, stores, transport, local_listen, kill
        self._on_revision = on_revision
        self._ends = AsyncExitStack()
        self._watchers: list[asyncio.Task[None]] = []
        self.members: Members | None = None
        self.peers: PeerLinks | None = None
        self.address = ""
        self.absent: list[str] = []
        """Structures that did not answer at the start. What lies there is refused here until they do."""

    @property
    def admin(self) -> Structure:
        """Where channel status and definitions are: the group's admin structure, outside a group the private store."""
        return self.structures[ADMIN if self.options.group else PRIVATE]

    async def start(self) -> None:
        """Joins every structure and opens the doors. When it raises, nothing is left behind."""
        try:
            await self._join()
            await self._serve()
        except BaseException:
            await self._close()
            raise

    async def _join(self) -> None:
        o = self.options
        address = o.advertise or o.address
        record = pb.MemberRecord(
            member=o.member,
            process=o.process,
            peer_address=address,
            client_address=address,
            group_listener=o.group_listener,
            local_listener=o.local_listener,
            started_at_ms=self._world.wall_ms(),
        )
        # The admin structure first: a member elsewhere without a key there is taken for half dead.
        for name in sorted(self._stores, key=lambda n: (n != PRIVATE, n != ADMIN, n)):
            try:
                async with asyncio.timeout(None if name in (PRIVATE, ADMIN) else JOIN_S):
                    structure = await self._join_one(name, record)
            except TimeoutError:
                log.warning("structure out of reach, starting without it", structure=name)
                self.absent.append(name)
                continue
            self.structures[name] = structure
            self._ends.push_async_callback(self._part, structure)
            log.info("joined", structure=name, incarnation=structure.incarnation)
            self._watchers.append(asyncio.get_running_loop().create_task(self._watch(structure), name=f"fence of {name}"))

    async def _join_one(self, name: str, record: pb.MemberRecord) -> Structure:
        o = self.options
        return await membership.join(
            self._stores[name],
            name,
            record,
            self._world,
            slots=o.slots,
            lease=name != PRIVATE,
            ttl_s=o.lease_ttl_s,
            highest=o.highest.get(name, 0),
            on_revision=lambda revision: self._on_revision(name, revision),
            compact=name != PRIVATE,
            again=o.again,
            sole=name == PRIVATE,
        )

    async def _watch_absent(self, name: str) -> None:
        """A structure that this incarnation had to start without answers again: channels are handed over, and the next one joins it."""
        while True:
            await asyncio.sleep(JOIN_S)
            try:
                await self._stores[name].get(Get(keys.member(self.options.member), keys_only=True))
                break
            except StoreError as error:
                log.info("structure is still out of reach", structure=name, error=repr(error))
        log.warning("structure answers again, joining anew", structure=name)
        try:
            await self.supervisor.drain()
            await self.receivers.drain()
        except Exception:
            log.exception("draining failed, ending as it stands")
        self.fenced.set()

    async def _part(self, structure: Structure) -> None:
        if self.fenced.is_set():
            await structure.close()
        else:
            await structure.leave()

    async def _watch(self, structure: Structure) -> None:
        await structure.fenced.wait()
        self.fenced.set()

    async def _serve(self) -> None:
        await self._open_queues()
        handlers = self._open_channels()
        self._ends.push_async_callback(self.supervisor.close)  # a start that is cut off has begun to follow the table
        await self.supervisor.start()
        handlers[CLIENT] = self.clients.handler
        listener = await self._transport.listen(self.options.address, handlers)
        self._ends.push_async_callback(listener.close)
        self._ends.push_async_callback(self.clients.close)
        self.address = listener.address
        if self.peers is not None:
            await self.peers.start()
            self._ends.push_async_callback(self.peers.close)
        # The initiator last: from then on partners come in, and channels start.
        socket = await self._local_listen(self.link.serve)
        self._ends.push_async_callback(socket.close)
        for name in self.absent:
            self._watchers.append(asyncio.get_running_loop().create_task(self._watch_absent(name), name=f"return of {name}"))
        log.info("serving", address=listener.address)

    async def _open_queues(self) -> None:
        o = self.options
        self.catalog = Catalog(self.structures, member=o.member, group=o.group)
        self._ends.push_async_callback(self.catalog.close)
        await self.catalog.start()
        self.queues = QueueService(self.catalog, self._world)
        self._ends.push_async_callback(self.queues.close)
        self.queues.start()
        self.administration = Administration(self.catalog, self.queues)
        await self.administration.apply(self._possible(o.definitions), replace=False)
        if o.group:
            # So that whoever knows the group's definitions knows its members, dead ones too.
            await self.queues.placer.internal(ADMIN, private_of(o.member))
        if o.group:
            self.members = Members(o.member, self.structures, ADMIN)
            self._ends.push_async_callback(self.members.close)
            await self.members.start()
            self.members.on_gone.append(self.queues.member_gone)

    def _possible(self, definitions: Definitions) -> Definitions:
        """Without those that need a structure which is out of reach: the next incarnation makes them."""
        queues = tuple(q for q in definitions.queues if q.structure not in self.absent)
        channels = tuple(c for c in definitions.channels if c.structure not in self.absent)
        return definitions.model_copy(update={"queues": queues, "channels": channels})

    def _open_channels(self) -> dict[str, Handler]:
        """The handlers of this member's address, but for that of the clients."""
        o = self.options
        handlers: dict[str, Handler] = {}
        self.link = InitiatorLink(self.admin, group=o.group, kill=self._kill)
        self._ends.push_async_callback(self.link.close)
        if self.members is not None:
            self.peers = PeerLinks(
                self.members,
                self.admin.incarnation,
                self._transport,
                self._world,
                group=o.group,
                own_load=lambda: self.supervisor.own_load(),
                allowed=o.peer_names,
            )
            handlers[PEER] = self.peers.serve
        self.supervisor = ChannelSupervisor(
            member=o.member,
            group=o.group,
            structures=self.structures,
            catalog=self.catalog,
            link=self.link,
            world=self._world,
            members=self.members,
            peers=self.peers,
        )
        services = ReceiverServices(
            self._world,
            self.structures,
            self.queues.placer,
            self.catalog.channel,
            member=o.member,
            group=o.group,
            observer=self.supervisor.inbound,
        )
        self.receivers = Receivers(services)
        self.link.on_accept = self.receivers.accept
        moving = InternalChannels(self.catalog, services)
        self._ends.push_async_callback(moving.close)
        self.link.internal = moving
        self.link.on_joined = self.supervisor.initiator_joined
        self.link.on_lost = self.supervisor.initiator_lost
        commands, self._inquiries = self._vocabulary()
        backend = QueueManagerBackend(self.queues, commands, self._inquiries)
        self.clients = ClientService(member=o.member, group=o.group, backend=backend, world=self._world, allowed=o.client_names)
        return handlers

    def _vocabulary(self) -> tuple[dict[str, Command], dict[str, Inquiry]]:
        """Commands and inquiries by name."""
        channels = ChannelCommands(self.supervisor)
        self.administration.alterable = channels.alterable
        commands = self.administration.commands()
        inquiries = self.administration.inquiries()
        for name in ("start", "stop", "move", "resolve", "reset", "ping", "status", "group", "watch"):
            commands[name] = partial(channels.command, name)
        commands["delete"] = partial(_delete, channels, commands["delete"])
        inquiries["status"] = lambda name: channels.command("status", {"channel": name})
        inquiries["group"] = lambda name: channels.command("group", {})
        return commands, inquiries

    async def inquire(self, kind: str, name: str = "") -> Any:
        """As a client's inquiry: "status", "group", "queue", "channel" …"""
        return await self._inquiries[kind](name)

    async def stop(self, *, drain: bool = True) -> None:
        """Ends the incarnation. With `drain` applications finish their units of work and channels are handed to other members first."""
        try:
            if drain and not self.fenced.is_set():
                self.clients.announce()
                # Partners come back at once, and may meet this member again: it answers them while it is busy with its own channels.
                await asyncio.gather(self.supervisor.drain(), self.receivers.drain())
                await self.clients.drain()
        finally:
            await self._close()

    async def _close(self) -> None:
        try:
            await ended(*self._watchers)
        finally:
            await self._ends.aclose()


async def _delete(channels: ChannelCommands, delete: Command, arguments: dict[str, object]) -> object:
    """The command `delete`, refused for a channel that is in use."""
    if arguments.get("kind") == "channel":
        await channels.deletable(str(arguments.get("name", "")))
    return await delete(arguments)
