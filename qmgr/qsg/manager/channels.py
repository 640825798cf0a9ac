"""The channels of this member: which to look after, when to start one, where, and how to give all of them away.

Owns one `Caretaker` for each channel that this member runs, pursues or stops; what is looked at by level; start requests of
peers; recovery; the planned drain. Invariant: at most one caretaker a channel in this process. Does not guarantee that a channel runs
here: the table, the lock and the fence decide; this only tries.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import structlog

from qsg.endings import ended
from qsg.failpoint import task_failpoint
from qsg.manager.asking import OUT_OF_REACH, told_known
from qsg.manager.caretaker import Caretaker
from qsg.manager.catalog import ADMIN, Catalog
from qsg.manager.inbound import InboundTable
from qsg.manager.link import InitiatorLink
from qsg.manager.members import Members
from qsg.manager.office import MakeSender, Office, Passage, remove_entry, remove_stopped
from qsg.manager.peers import PeerLinks, PeerUnreachable
from qsg.manager.planned import hand_all_over
from qsg.manager.preparing import get_ready
from qsg.manager.recovery import Recovery
from qsg.manager.sending import Grant, Sender
from qsg.manager.steps import Driver
from qsg.manager.structure import Structure
from qsg.manager.table import StatusTable
from qsg.manager.triggers import Triggers
from qsg.pb import peer_pb2
from qsg.pb import records_pb2 as pb
from qsg.rules import internal, status
from qsg.rules.balance import Load, full
from qsg.rules.definitions import PRIVATE
from qsg.rules.handover import given, is_gift
from qsg.rules.ownership import Held, Occasion
from qsg.rules.reasons import Reason, Refusal
from qsg.rules.steps import Place, Sight
from qsg.rules.unit import CompareFailed, Fenced, OutcomeUnknown
from qsg.rules.world import World
from qsg.store.contract import StoreError

log = structlog.get_logger()

LEVEL_S = 2.0
"""How often transmission queues without an owner, and entries without one, are looked for."""
WATCH_S = 0.25
OUT_OF_REACH_S = 1.5
DRAIN_S = 10.0
HAND_OVER_S = 2.0
"""How long a draining member looks for one that can take its channels."""


class ChannelSupervisor:
    """`members` and `peers` are None outside a group. Set `link.on_joined` and `on_lost` to `initiator_joined` and `initiator_lost`."""

    def __init__(
        self,
        *,
        member: str,
        group: str,
        structures: Mapping[str, Structure],
        catalog: Catalog,
        link: InitiatorLink,
        world: World,
        members: Members | None = None,
        peers: PeerLinks | None = None,
        make_sender: MakeSender | None = None,
    ) -> None:
        self.member, self.group = member, group
        self.structures, self.catalog, self.link, self.world = structures, catalog, link, world
        self.members, self.peers = members, peers
        self.driver = Driver(member, structures, link)
        self.tables = {name: StatusTable(structures[name]) for name in (ADMIN, PRIVATE) if name in structures}
        self.inbound = InboundTable(self.driver, world)
        self.office = Office(
            self.driver,
            world,
            self.tables,
            make_sender or self._make_sender,
            lambda place: member if place.admin == PRIVATE else group,
            self.find,
            self.own_load,
            self.only_at,
            peers,
            initiators=ADMIN if group else PRIVATE,
        )
        self.recovery = Recovery(self.office, self._adopt, lambda: self._care, self._pinned)
        self._care: dict[str, Caretaker] = {}
        self.triggers = Triggers(self)
        self._unreachable: dict[str, float] = {}
        self._cut_off: dict[str, float] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._moves: set[asyncio.Task[None]] = set()
        """Of channels that nobody looks after here any more."""
        self._next_look: asyncio.TimerHandle | None = None
        self._started = False

    # Beginning and end

    async def start(self) -> None:
        """Own left-over entries first, then those of inactive members, then whatever has messages waiting (patent, start-up)."""
        for table in self.tables.values():
            table.on_change.append(self._entry_changed)
            await table.start()
        self.triggers.start()
        if self.members is not None:
            self.members.on_gone.append(self.recovery.member_gone)
        if self.peers is not None:
            self.peers.requests["start"] = self._start_requested
            self.peers.requests["prepare"] = self._prepare_requested
            self.peers.requests["move"] = self._move_requested
            self.peers.requests["cut_off"] = self._cut_off_requested
        self._started = True
        self._tell_peers()
        self.recovery.sweep()
        self.spawn(self._level(), "triggers by level")
        self._next_look = asyncio.get_running_loop().call_later(WATCH_S, self._look_at_structures)

    async def close(self) -> None:
        """Ends everything as it stands; `drain` first where channels are to go on elsewhere."""
        self._started = False
        if self._next_look is not None:
            self._next_look.cancel()
        self.triggers.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.recovery.close()
        await asyncio.gather(*(care.close() for care in list(self._care.values())))
        await ended(*self._moves)
        await self.inbound.close(remove=False)
        for table in self.tables.values():
            await table.close()

    async def drain(self, timeout_s: float = DRAIN_S) -> None:
        """Planned stop: no new channel starts here, batches in flight are finished, and each channel is handed to another member."""
        self.office.drain_until = asyncio.get_running_loop().time() + HAND_OVER_S
        self._tell_peers()
        log.info("draining", channels=list(self._care))
        await task_failpoint("handover.before_channels")
        await hand_all_over(self._care, timeout_s)
        await task_failpoint("handover.after_channels")
        await self.inbound.close()

    # What there is

    @property
    def channels(self) -> dict[str, Caretaker]:
        return dict(self._care)

    def looks_after(self, channel: str) -> bool:
        return channel in self._care

    def find(self, channel: str) -> Place | None:
        """A sender channel and where its records lie; None when it is not defined, or its transmission queue is not.

        A structure that this member could not join counts: its entries are looked after here, and others asked to run the channel.
        """
        definition = self.catalog.channel(channel)
        if definition is None or definition.type != "sender":
            return None
        queue = self.catalog.queue(definition.transmission_queue)
        if queue is None or queue.type != "local" or queue.usage != "transmission":
            return None
        # A sender channel is shared if its transmission queue is, whatever its own disposition.
        admin = PRIVATE if queue.structure == PRIVATE else ADMIN
        if admin not in self.structures:
            return None
        return Place(definition, admin, queue.structure)

    def only_at(self, place: Place) -> str:
        queue = self.catalog.queue(place.queue)
        return internal.only_at(queue) if queue is not None else ""

    def own_load(self) -> Load:
        """Active channels are those that are held or being taken, and inbound sessions."""
        active = sum(1 for care in self._care.values() if care.held is not None or care.taking) + len(self.inbound.sessions)
        reached = frozenset(name for name, s in self.structures.items() if s.reachable and not s.fenced.is_set())
        return Load(
            self.member, active, self.catalog.settings.channels_max, self.link.joined and self._started, self.office.draining, reached
        )

    def _pinned(self, channel: str) -> bool:
        definition = self.catalog.channel(channel)
        if definition is None or definition.disposition != "fixed-shared":
            return False
        place = self.find(channel)
        return place is None or self.only_at(place) != self.member  # who was told to start what only we can run may die over it

    def _make_sender(self, held: Held, instance: int) -> Sender:
        place = held.place
        grant = Grant(
            place.channel,
            self.structures[place.structure],
            held.lock,
            held.fence,
            held.progress,
            held.epoch,
            instance,
            held.stream,
            self.office.sender_name(place),
        )
        return Sender(grant, self.link)

    # Starting

    async def start_channel(self, channel: str, occasion: Occasion, passage: Passage | None = None, known: Sight | None = None) -> None:
        """Takes the channel here and runs it; returns once the lock is had. Raises `Refusal`.

        Who chose this member may have seen an older load: one that has as many channels as it may refuses, and another is asked.
        """
        place = self.find(channel)
        if place is None:
            raise Refusal(Reason.CHANNEL_NOT_FOUND, f"no sender channel {channel} with a transmission queue here")
        if self.office.draining or not self._started:
            raise Refusal(Reason.DRAINING, f"{self.member} is ending")
        if self.only_at(place) not in ("", self.member):
            raise Refusal(Reason.CHANNEL_CONFIG_ERROR, f"{channel} runs on {self.only_at(place)} only")
        care = self._care.get(channel)
        if care is not None:
            if care.held is not None:
                raise Refusal(Reason.CHANNEL_ALREADY_RUNNING, f"already running on {self.member}")
            raise Refusal(Reason.CHANNEL_IN_USE, f"{self.member} is already at it")
        self._check_room()
        await self._look_after(place, passage).start(occasion, known)

    def _check_room(self) -> None:
        load = self.own_load()
        if full(load):
            raise Refusal(
                Reason.CHANNEL_NOT_AVAILABLE, f"{self.member} has {load.channels} active channels, of at most {load.channels_max}"
            )

    def _look_after(self, place: Place, passage: Passage | None = None) -> Caretaker:
        care = self._care[place.channel.name] = Caretaker(self.office, place, self._ended, passage)
        return care

    def _ended(self, care: Caretaker) -> None:
        if self._care.get(care.name) is care:
            del self._care[care.name]
            self.triggers.gone(care.name)
        for move in care.moving:
            self._moves.add(move)
            move.add_done_callback(self._moves.discard)

    def _is_mine(self, admin: str, entry: pb.ChannelStatus) -> bool:
        return (entry.owner, entry.owner_incarnation) == (self.member, self.structures[admin].incarnation)

    def _adopt(self, channel: str, passage: Passage) -> None:
        """The entry is ours now, and asks for something."""
        place = self.find(channel)
        if place is None:
            log.warning("recovered a channel that is not defined here", channel=channel)
        elif channel in self._care:
            # The watch showed the entry before its recovery was answered.
            self._care[channel].adopted(passage)
        elif self._started:
            self._look_after(place, passage).start()

    async def adopt(self, channel: str) -> None:
        """For commands: the entry was made ours."""
        self._adopt(channel, Passage(asyncio.get_running_loop().time()))

    async def _start_requested(self, asking: str, request: peer_pb2.Request) -> str:
        start = request.start
        care = self._care.get(start.channel)
        if care is not None and care.held is None:
            # It is at the end of an earlier run, or pursues what has been taken from it.
            await asyncio.wait([asyncio.ensure_future(care.finished())], timeout=0.2)
        if start.cause == "trigger":
            await self.start_channel(start.channel, Occasion("trigger", self.world.wall_ms(), asking))
            return ""
        passage = Passage(asyncio.get_running_loop().time() - start.since_ms / 1000, start.detect_ms)
        if start.cause == OUT_OF_REACH:
            self._check_room()  # what is taken back must run somewhere
            await self.recovery.take_back(asking, start.channel)
        known = told_known(start)
        if known is not None and (place := self.find(start.channel)) and is_gift(self.driver.me, place, known):
            if not self._started or start.channel in self._care:
                raise Refusal(Reason.CHANNEL_IN_USE, f"{self.member} is already at it, or ending")
            held = given(self.driver.me, place, known)  # refused before anybody looks after it
            care = self._look_after(place, passage)
            await care.start(held=held)
            if self.office.draining:
                care.hand_over()  # who gave it did not know yet
            return ""
        await self.start_channel(start.channel, Occasion("request", self.world.wall_ms(), asking), passage, known)
        return ""

    async def _prepare_requested(self, asking: str, request: peer_pb2.Request) -> str:
        if self.office.draining or not self._started:
            raise Refusal(Reason.DRAINING, f"{self.member} is ending")
        return await get_ready(self.link, self.find, request)

    async def _move_requested(self, asking: str, request: peer_pb2.Request) -> str:
        return await self.give_away(request.move.channel, request.move.to)

    async def give_away(self, channel: str, to: str) -> str:
        """See `Caretaker.move`. Raises `Refusal`."""
        care = self._care.get(channel)
        if care is None:
            raise Refusal(Reason.CHANNEL_NOT_ACTIVE, f"{channel} does not run on {self.member}")
        return await care.move(to)

    # By level

    async def _level(self) -> None:
        """By level: at start and every few seconds, whatever was missed (H6b)."""
        while True:
            try:
                await self.recovery.swept()
                await self.triggers.look()
                for name, table in self.tables.items():
                    await self.inbound.sweep(name, table.inbound())
                    await self._remove_undefined(table)
            except (StoreError, Fenced, OutcomeUnknown, Refusal) as error:
                log.info("level not looked at", error=repr(error))
            await asyncio.sleep(LEVEL_S)
            self.recovery.sweep()
            if self.members is not None:
                self.members.sweep()

    async def _remove_undefined(self, table: StatusTable) -> None:
        """Entries of channels whose definition is gone, wanted ones also without a transmission queue, where nobody runs or stops them."""
        for entry in table.outbound():
            name = entry.channel
            if name in self._care:
                continue
            if entry.state == pb.STOPPED:
                if not self.catalog.has_channel(name) and (entry.owner == self.member or not table.registered(entry.owner)):
                    await remove_stopped(table, name, self.driver.me, log_as="definition deleted")
            elif self.catalog.channel(name) is None or (entry.state in status.WANTED and self.find(name) is None):
                await remove_entry(table, name, self.driver.me, log_as="definition deleted")

    # What happens around

    def _entry_changed(self, channel: str, entry: pb.ChannelStatus | None, revision: int) -> None:
        care = self._care.get(channel)
        if care is not None:
            care.entry_changed(entry, revision)
            return
        if entry is None:
            self.triggers.gone(channel)
        place = self.find(channel)
        if place is None or entry is None or not self._started or not self._is_mine(place.admin, entry):
            return
        if entry.state in (pb.STOPPING, *status.WANTED):
            self._look_after(place, self._passage_of(entry)).start()
        elif entry.state == pb.STARTING:
            self.spawn(self.recovery.sweep_later(), f"gift of {channel}")

    def _passage_of(self, entry: pb.ChannelStatus) -> Passage | None:
        """Of a takeover that is under way, as far as the entry tells."""
        if not entry.takeover.at_ms or entry.takeover.resume_ms:
            return None
        under_way_s = max(0.0, (self.world.wall_ms() - entry.takeover.at_ms) / 1000)  # whoever wrote it may have a clock that is ahead
        return Passage(asyncio.get_running_loop().time() - under_way_s, entry.takeover.detect_ms)

    def _tell_peers(self) -> None:
        if self.peers is not None:
            self.peers.beat_now()

    def initiator_joined(self, initiator: int) -> None:
        self._tell_peers()
        log.info("channels can be started", initiator=initiator)
        for care in self._care.values():
            care.entry_changed(None, 0)
        self.recovery.sweep()
        self.triggers.ask_anew()

    def initiator_lost(self, initiator: int, cause: str) -> None:
        """Its senders end by themselves, with their sessions; what no task looks after is found by recovery (patent, scenario 3)."""
        log.warning("channel initiator failed", initiator=initiator, cause=cause)
        self._tell_peers()
        self.recovery.sweep()

    def _look_at_structures(self) -> None:
        """Scenario 1b: a structure that does not answer for 1.5 s has its channels ended here and started elsewhere."""
        loop = asyncio.get_running_loop()
        self._next_look = loop.call_later(WATCH_S, self._look_at_structures)
        for name, structure in self.structures.items():
            if structure.reachable:
                self._unreachable.pop(name, None)
            elif loop.time() - self._unreachable.setdefault(name, loop.time()) >= OUT_OF_REACH_S:
                self._structure_lost(name)

    def _structure_lost(self, name: str) -> None:
        now = asyncio.get_running_loop().time()
        busy = [c for c in self._care.values() if (c.held is not None or c.carrying is not None) and c.place.structure == name]
        for care in busy:
            log.warning("structure out of reach, channel ends here", structure=name, channel=care.name)
            care.abandon()
        if name != PRIVATE and self.peers is not None and now - self._cut_off.get(name, -OUT_OF_REACH_S) >= OUT_OF_REACH_S:
            self._cut_off[name] = now
            self.spawn(self._ask_cut_off(name), f"cut off from {name}")

    async def _ask_cut_off(self, name: str) -> None:
        """A peer deletes our member key there, so that what we hold in it is void."""
        assert self.peers is not None
        request = peer_pb2.CutOff(structure=name, incarnation=self.structures[name].incarnation)
        for load in self.peers.loads():
            if load.member == self.member or name not in load.structures:
                continue
            try:
                await self.peers.request(load.member, peer_pb2.Request(cut_off=request))
                log.warning("cut off from a structure at our own request", structure=name, by=load.member)
                return
            except (PeerUnreachable, Refusal) as error:
                log.info("cut-off not done", structure=name, by=load.member, error=str(error))

    async def _cut_off_requested(self, asking: str, request: peer_pb2.Request) -> str:
        order = request.cut_off
        if self.members is None or order.structure not in self.structures or order.structure == PRIVATE:
            raise Refusal(Reason.STRUCTURE_NOT_AVAILABLE, f"{self.member} has not joined {order.structure}")
        try:
            async with asyncio.timeout(OUT_OF_REACH_S):
                await self.members.cut_off(order.structure, asking, order.incarnation)
        except CompareFailed:
            return "it was gone already"
        except (Fenced, TimeoutError, StoreError) as error:
            raise Refusal(Reason.STRUCTURE_NOT_AVAILABLE, repr(error)) from error
        return ""

    def spawn(self, work: object, name: str) -> None:
        assert asyncio.iscoroutine(work)
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(_log_failure)


def _log_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        log.error("a task of the channels failed", task=task.get_name(), error=repr(task.exception()), exc_info=task.exception())
