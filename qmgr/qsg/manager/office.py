"""What the channels of one member share: the shape of a sender as its caretaker sees it, and the services that all of them use."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import structlog

from qsg.manager.peers import PeerLinks
from qsg.manager.steps import Driver
from qsg.manager.table import StatusTable
from qsg.pb import channel_pb2
from qsg.pb import records_pb2 as pb
from qsg.rules import keys, status
from qsg.rules.balance import Load
from qsg.rules.internal import PREFIX
from qsg.rules.ownership import Held
from qsg.rules.reasons import Reason, Refusal
from qsg.rules.steps import Me, Place, swap_entry
from qsg.rules.unit import Cell, CompareFailed, Unit
from qsg.rules.world import World
from qsg.store.contract import Compare, absent

log = structlog.get_logger()


class SenderCounters(Protocol):
    """See `qsg.manager.sending.SenderCounters`."""

    messages: int
    bytes: int
    batches: int
    current_sequence: int
    sequence: int
    current_luwid: str
    luwid: str
    last_message_at_ms: int
    in_doubt: bool
    address: str
    partner: str
    parameters: channel_pb2.Parameters


class Outcome(Protocol):
    """See `qsg.manager.sending.Outcome`."""

    @property
    def kind(self) -> str: ...
    @property
    def reason(self) -> Reason: ...
    @property
    def detail(self) -> str: ...
    @property
    def clean(self) -> bool: ...
    @property
    def last(self) -> Unit | None: ...
    @property
    def epoch_seen(self) -> int: ...


class RunningSender(Protocol):
    """See `qsg.manager.sending.Sender`."""

    @property
    def bound(self) -> asyncio.Event: ...
    @property
    def counters(self) -> SenderCounters: ...
    async def run(self) -> Outcome: ...
    def stop(self, *, force: bool, leave_last: bool = False) -> None: ...
    async def begin_giving(self) -> None: ...
    def end_giving(self) -> None: ...


MakeSender = Callable[[Held, int], RunningSender]
"""(what is held, instance within its epoch) -> a sender that is not running yet."""


@dataclass(frozen=True, slots=True)
class Ended:
    """An outcome that this side has made."""

    kind: str
    reason: Reason = Reason.NONE
    detail: str = ""
    clean: bool = False
    last: Unit | None = None
    epoch_seen: int = 0


@dataclass
class Office:
    """What all channels of this member share."""

    driver: Driver
    world: World
    tables: dict[str, StatusTable]
    """By name of the structure that holds the entries."""
    make_sender: MakeSender
    sender_name: Callable[[Place], str]
    find: Callable[[str], Place | None]
    own_load: Callable[[], Load]
    only_at: Callable[[Place], str]
    """The one member that can run it: an internal channel that leads to its private store. "" = any that reaches what it needs."""
    peers: PeerLinks | None = None
    initiators: str = "admin"
    """Structure that holds `ci/<member>`."""
    drain_until: float = 0.0
    """Loop time until which a draining member looks for others to hand its channels to; 0 = not draining."""

    @property
    def draining(self) -> bool:
        return self.drain_until > 0

    def loads(self) -> list[Load]:
        return self.peers.loads() if self.peers is not None else [self.own_load()]


@dataclass
class Passage:
    """A takeover on its way, for the record of how long it took. `since`: loop time at which the loss was noticed."""

    since: float
    detect_ms: float = 0.0
    claimed: float = 0.0


async def remove_entry(table: StatusTable, channel: str, me: Me, *, log_as: str) -> None:
    """Removes an entry that is ours, and not STOPPED: nobody can do anything for it."""
    cell = await table.structure.cell(keys.status_out(channel))
    entry = status.parse(cell.value)
    if entry is None or entry.state == pb.STOPPED or entry.owner != me.member or pb.INACTIVE not in status.TRANSITIONS[entry.state]:
        return
    await _remove(table, channel, cell, [], log_as)


async def remove_stopped(table: StatusTable, channel: str, me: Me, *, log_as: str) -> None:
    """Removes a STOPPED entry whose channel is not defined any more: its owner does, for it may be defined there alone; or anybody, once
    that is no member. That it is not defined is compared: who has not seen it yet must not set free what was stopped."""
    cell = await table.structure.cell(keys.status_out(channel))
    entry = status.parse(cell.value)
    if entry is None or entry.state != pb.STOPPED:
        return
    compares = [absent(keys.channel_definition(channel))]
    if channel.startswith(PREFIX):
        compares.append(absent(keys.queue_definition(channel)))
    if entry.owner != me.member:
        compares.append(absent(keys.member(entry.owner)))
    await _remove(table, channel, cell, compares, log_as)


async def _remove(table: StatusTable, channel: str, cell: Cell, compares: list[Compare], log_as: str) -> None:
    try:
        await table.structure.commit(Unit("entry removed", compares=compares, changes=[swap_entry(cell, None)]))
        log.info("entry removed", channel=channel, why=log_as)
    except (CompareFailed, Refusal) as error:
        log.info("entry not removed", channel=channel, detail=str(error))
