"""Inbound channels in the shared status table: entries `ti/<channel>/<partner>`, for the view of the whole group and for recovery.

Owns the entries of sessions that end in this member. Invariant: one entry for each channel and partner, whoever serves it, so their number
is bounded by the partners; an entry that another session has replaced is not removed. Not guaranteed: that it is current. It is written
behind the session, which never waits for it (a table out of reach ends no session: scenario 1).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from qsg.manager.steps import Driver
from qsg.pb import records_pb2 as pb
from qsg.rules import keys, status
from qsg.rules.reasons import Refusal
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
    epoch: int
    instance: int
    request: bytes
    started_at_ms: int
    state: status.State = pb.RUNNING
    messages: int = 0
    bytes: int = 0
    batches: int = 0
    sequence: int = 0
    luwid: str = ""
    last_message_at_ms: int = 0
    ended: bool = False

    @property
    def progress(self) -> tuple[object, ...]:
        return self.state, self.messages, self.bytes, self.batches, self.sequence


class InboundTable:
    """`on_change` tells how many inbound sessions there are, for the load."""

    def __init__(self, driver: Driver, world: World, on_change: Callable[[], None] = lambda: None) -> None:
        self.sessions: set[Inbound] = set()
        self._driver, self._world, self._on_change = driver, world, on_change
        self._tasks: set[asyncio.Task[None]] = set()

    def started(self, table: str, channel: str, partner: str, address: str, stream: bytes, epoch: int, instance: int) -> Inbound:
        """A session was bound; `table` is the structure that holds the entry (the admin structure, or "private")."""
        now = self._world.wall_ms()
        session = Inbound(table, channel, partner, address, stream, epoch, instance, self._world.id(), now)
        self.sessions.add(session)
        task = asyncio.get_running_loop().create_task(self._keep(session), name=f"status of {channel} from {partner}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._on_change()
        return session

    def ended(self, session: Inbound) -> None:
        session.ended = True
        self.sessions.discard(session)
        self._on_change()

    async def close(self, *, remove: bool = True) -> None:
        """With `remove` the entries of sessions that end now are removed first, for a second at most."""
        for session in list(self.sessions):
            self.ended(session)
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
                cell = await self._write(session, cell)
                written = session.progress
                pause = 0.0
                while not session.ended and (session.progress == written or pause < REPORT_S):
                    await asyncio.sleep(REPORT_S / 10)
                    pause += REPORT_S / 10
            await self._remove(session)
        except (Fenced, OutcomeUnknown, StoreError) as error:
            log.info("inbound status not written", channel=session.channel, partner=session.partner, error=repr(error))

    async def _write(self, session: Inbound, cell: Cell | None) -> Cell | None:
        structure = self._driver.structures[session.table]
        for _ in range(ATTEMPTS):
            fresh = cell is None
            cell = cell or await structure.cell(keys.status_in(session.channel, session.partner))
            before = status.parse(cell.value)
            if before is not None and before.request != session.request:
                if not fresh and before.started_at_ms >= session.started_at_ms:
                    return cell  # replaced by a later session, here or in another member (adoption)
                before = None  # of an older session: replaced
            try:
                await structure.commit(Unit("inbound status", changes=[swap(cell, status.image(self._entry(session, before)))]))
            except (CompareFailed, Refusal):
                cell = None
            else:
                return cell
        return cell

    def _entry(self, session: Inbound, before: pb.ChannelStatus | None) -> pb.ChannelStatus:
        me = self._driver.me
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
        )

    async def _remove(self, session: Inbound) -> None:
        structure = self._driver.structures[session.table]
        for _ in range(ATTEMPTS):
            cell = await structure.cell(keys.status_in(session.channel, session.partner))
            before = status.parse(cell.value)
            if before is None or before.request != session.request:
                return
            try:
                await structure.commit(Unit("inbound ended", changes=[swap(cell, None)]))
            except (CompareFailed, Refusal):
                continue
            return
