"""Inbound channels in the shared status table: entries `ti/<channel>/<partner>`, for the view of the whole group and for recovery.

Owns the entries of sessions that end in this member. Invariant: one entry for each channel and partner, whoever serves it, so their number
is bounded by the partners; an entry that another session has replaced is not removed. Not guaranteed: that it is current. It is written
behind the session, which never waits for it (a table out of reach ends no session: scenario 1).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field

import structlog

from qsg.manager.catalog import ADMIN
from qsg.manager.receiving import ReceiverCounters
from qsg.manager.steps import Driver
from qsg.pb import channel_pb2
from qsg.pb import records_pb2 as pb
from qsg.rules import keys, status
from qsg.rules.definitions import PRIVATE
from qsg.rules.reasons import Reason, Refusal
from qsg.rules.records import Damaged
from qsg.rules.steps import swap
from qsg.rules.unit import Cell, CompareFailed, Fenced, OutcomeUnknown, Unit
from qsg.rules.world import World
from qsg.store.contract import StoreError

log = structlog.get_logger()

REPORT_S = 1.0
ATTEMPTS = 3


@dataclass(eq=False)
class Inbound:
    """One inbound session. `state` is RUNNING or PAUSED; counters are brought up to date by whoever runs the session."""

    table: str
    channel: str
    partner: str
    address: str
    stream: bytes
    request: bytes
    started_at_ms: int
    epoch: int = 0
    instance: int = 0
    state: status.State = pb.RUNNING
    messages: int = 0
    bytes: int = 0
    batches: int = 0
    sequence: int = 0
    luwid: str = ""
    last_message_at_ms: int = 0
    takeovers: int = 0
    takeover: pb.Takeover | None = None
    parameters: channel_pb2.Parameters = field(default_factory=channel_pb2.Parameters)
    written: bool = False
    ended: bool = False
    over: asyncio.Event = field(default_factory=asyncio.Event)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def progress(self) -> tuple[object, ...]:
        return self.state, self.messages, self.bytes, self.batches, self.sequence

    def replaced_by(self, entry: pb.ChannelStatus) -> bool:
        """It is of a later session, here or in another member (adoption). Members' clocks do not tell which is later."""
        if entry.stream == self.stream:
            return (entry.epoch, entry.instance) > (self.epoch, self.instance)
        return self.written

    def end(self) -> None:
        self.ended = True
        self.over.set()
        self.changed.set()

    async def news(self, written: tuple[object, ...]) -> None:
        """Returns when the entry is to be written anew, at most once in `REPORT_S`, or when the session has ended."""
        try:
            async with asyncio.timeout(REPORT_S):
                await self.over.wait()
        except TimeoutError:
            while not self.ended and self.progress == written:
                self.changed.clear()
                await self.changed.wait()


class InboundTable:
    """Implements `qsg.manager.receiving.InboundObserver`. What comes through the group portal is shown in the admin structure, what comes
    through the local portal in the private store."""

    def __init__(self, driver: Driver, world: World) -> None:
        self._driver, self._world = driver, world
        self._sessions: dict[tuple[str, str, bytes], list[Inbound]] = {}
        """By channel, partner and stream, oldest first: an adoption begins before the old session has ended."""
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def sessions(self) -> list[Inbound]:
        return [session for sessions in self._sessions.values() for session in sessions]

    def inbound_started(self, channel: str, partner: str, stream: bytes, address: str, portal: str) -> None:
        table = ADMIN if portal == "group" and ADMIN in self._driver.structures else PRIVATE
        session = Inbound(table, channel, partner, address, stream, self._world.id(), self._world.wall_ms())
        self._sessions.setdefault((channel, partner, stream), []).append(session)
        task = asyncio.get_running_loop().create_task(self._keep(session), name=f"status of {channel} from {partner}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def inbound_progress(self, channel: str, partner: str, stream: bytes, counters: ReceiverCounters) -> None:
        for session in self._sessions.get((channel, partner, stream), ())[-1:]:
            session.state = pb.PAUSED if counters.paused else pb.RUNNING
            session.epoch, session.instance, session.parameters = counters.epoch, counters.instance, counters.parameters
            session.messages, session.bytes, session.batches = counters.messages, counters.bytes, counters.batches
            session.sequence, session.luwid, session.last_message_at_ms = counters.sequence, counters.luwid, counters.last_message_at_ms
            session.takeovers, session.takeover = counters.takeovers, counters.takeover
            session.changed.set()

    def inbound_ended(self, channel: str, partner: str, stream: bytes, reason: Reason, detail: str) -> None:
        sessions = self._sessions.get((channel, partner, stream), [])
        if sessions:
            sessions.pop(0).end()
        if not sessions:
            self._sessions.pop((channel, partner, stream), None)

    async def sweep(self, table: str, entries: Iterable[pb.ChannelStatus]) -> None:
        """By level: removes entries of this incarnation that no session stands behind."""
        me = self._driver.me
        live = {session.request for session in self.sessions}
        for entry in entries:
            if (entry.owner, entry.owner_incarnation) == (me.member, me.incarnations[table]) and entry.request not in live:
                await self._remove(table, entry.channel, entry.partner, entry.request)

    async def close(self, *, remove: bool = True) -> None:
        """With `remove` the entries of sessions that end now are removed first, for a second at most."""
        for session in self.sessions:
            session.end()
        self._sessions.clear()
        if remove and self._tasks:
            await asyncio.wait(self._tasks, timeout=REPORT_S)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _keep(self, session: Inbound) -> None:
        """Writes the entry, keeps it up to date, removes it."""
        cell: Cell | None = None
        try:
            while not session.ended:
                written: tuple[object, ...] = session.progress
                try:
                    cell = await self._write(session, cell)
                except StoreError as error:
                    log.info("inbound status not written yet", channel=session.channel, partner=session.partner, error=repr(error))
                    written = ()  # the session goes on without the table, which may come back
                await session.news(written)
            await self._remove(session.table, session.channel, session.partner, session.request)
        except (Fenced, OutcomeUnknown, StoreError, Refusal) as error:
            log.info("inbound status not written", channel=session.channel, partner=session.partner, error=repr(error))

    async def _write(self, session: Inbound, cell: Cell | None) -> Cell | None:
        structure = self._driver.structures[session.table]
        for _ in range(ATTEMPTS):
            cell = cell or await structure.cell(keys.status_in(session.channel, session.partner))
            try:
                before = status.parse(cell.value)
            except Damaged as damaged:
                log.error("an entry of the status table cannot be read, replaced", channel=session.channel, detail=damaged.detail)
                before = None
            if before is not None and before.request != session.request:
                if session.replaced_by(before):
                    return None
                before = None  # of an older session: replaced
            try:
                await structure.commit(Unit("inbound status", changes=[swap(cell, status.image(self._entry(session, before)))]))
            except (CompareFailed, Refusal):
                cell = None
            else:
                session.written = True
                return cell
        return None

    def _entry(self, session: Inbound, before: pb.ChannelStatus | None) -> pb.ChannelStatus:
        me = self._driver.me
        takeover = {} if session.takeover is None else {"takeover": session.takeover}
        return status.altered(
            before,
            session.state if before is not None else pb.RUNNING,
            self._world.wall_ms(),
            channel=session.channel,
            partner=session.partner,
            owner=me.member,
            owner_incarnation=me.incarnations[session.table],
            owner_initiator=me.initiator,
            type=pb.RECEIVER,
            address=session.address,
            epoch=session.epoch,
            instance=session.instance,
            stream=session.stream,
            request=session.request,
            started_at_ms=session.started_at_ms,
            messages=session.messages,
            bytes=session.bytes,
            batches=session.batches,
            last_sequence=session.sequence,
            current_sequence=session.sequence,
            last_luwid=session.luwid,
            last_message_at_ms=session.last_message_at_ms,
            takeovers=session.takeovers,
            batch_messages=session.parameters.batch_messages,
            heartbeat_ms=session.parameters.heartbeat_ms,
            message_bytes_max=session.parameters.message_bytes_max,
            **takeover,
        )

    async def _remove(self, table: str, channel: str, partner: str, request: bytes) -> None:
        structure = self._driver.structures[table]
        for _ in range(ATTEMPTS):
            cell = await structure.cell(keys.status_in(channel, partner))
            before = status.parse(cell.value)
            if before is None or before.request != request:
                return
            try:
                await structure.commit(Unit("inbound ended", changes=[swap(cell, None)]))
            except (CompareFailed, Refusal):
                continue
            return
