"""Idempotent puts: the record of a producer, advanced in the transaction that puts its messages.

Owns `p/<producer>` = (epoch, last number committed, when it may be forgotten, who opened it) in the queue's structure. Invariants: opening
raises the epoch by compare-and-swap and keeps last; who opened it before another did opens it no more; each commit compares the whole
record by its revision, demands its own epoch and last = n - 1, and advances last. So a number is applied once, by whichever member, and a
refused number refuses everything behind it. Not guaranteed: who of two is the newer where the older's opening has not been done when the
other's is; an answer after the record's lifetime: it begins anew with last 0, and an epoch that no earlier connection can have (it starts
at the wall clock, since the record's own count is gone).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from qsg.manager.catalog import swap
from qsg.manager.racing import pause
from qsg.manager.structure import Structure
from qsg.pb import records_pb2 as pb
from qsg.rules import keys
from qsg.rules.reasons import Reason, Refusal
from qsg.rules.records import read_record
from qsg.rules.unit import Cell, Change
from qsg.rules.world import World

LIFETIME_MS = 7 * 24 * 3600 * 1000
OPENERS_MAX, OPENER_BYTES_MAX = 8, 16
"""Remembered in a record, which each put writes. Who is forgotten there is still told apart by its epoch, where it knows one."""
OPEN_S = 30.0
"""How long an opening goes on against members that write the record faster."""
KNOWN_MAX = 10_000
"""Cells kept by one member; the oldest are read again at next use."""

Wanted = Callable[[], bool]
"""Whether who asked is still there."""


def always() -> bool:
    return True


@dataclass(frozen=True, slots=True)
class ProducerNumber:
    """What a commit compares and advances: last = first - 1 at `epoch` becomes first + count - 1."""

    producer: str
    structure: str
    epoch: int
    first: int
    count: int = 1


@dataclass(frozen=True, slots=True)
class ProducerState:
    structure: str
    epoch: int
    last: int
    """Last number committed, 0 = none known."""


class Applied(Refusal):
    """Numbers up to `last` were committed before: nothing of the unit was put again."""

    def __init__(self, last: int) -> None:
        super().__init__(Reason.NONE, f"numbers up to {last} were committed before")
        self.last = last


class Producers:
    """Records of producers as this member last saw them."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._cells: dict[tuple[str, str], Cell] = {}
        self._lifetimes: dict[tuple[str, str], int] = {}

    async def open(
        self,
        structure: Structure,
        producer: str,
        lifetime_ms: int = 0,
        wanted: Wanted = always,
        epoch_max: int = 0,
        opener: bytes = b"",
    ) -> ProducerState:
        """Raises the producer's epoch; older connections are refused from now on.

        `epoch_max`: the highest that may be the asker's own, 0 = any; `opener`: who asks. Raises `Refusal` PRODUCER_FENCED where another
        has opened it since: who comes back, or only asks again, must not shut out a newer connection.
        Raises `Refusal` CONNECTION_BROKEN once it is not `wanted` any more: an opening that a slow store held up, or that is tried again,
        must not shut out the connection that came after its own.
        """
        now_ms = self.world.wall_ms()
        lifetime_ms = lifetime_ms or LIFETIME_MS
        if len(opener) > OPENER_BYTES_MAX:
            raise Refusal(Reason.OPTIONS_ERROR, f"{producer}: an opener has at most {OPENER_BYTES_MAX} bytes")
        opened = pb.ProducerRecord()

        def apply(value: bytes | None) -> bytes:
            if not wanted():
                raise Refusal(Reason.CONNECTION_BROKEN, f"{producer}: the connection that opens it has ended")
            present = read_record(pb.ProducerRecord, value) if value is not None else pb.ProducerRecord()
            if superseded(present, opener, epoch_max):
                raise Refusal(Reason.PRODUCER_FENCED, f"{producer}: another connection has opened it since")
            known = value is not None and present.expires_at_ms > now_ms
            opened.epoch = max(present.epoch + 1, 0 if known else now_ms)
            opened.last = present.last if known else 0
            opened.expires_at_ms = max(present.expires_at_ms, now_ms + lifetime_ms)
            opened.openers[:] = openers(present, opener)
            return opened.SerializeToString()

        await self._swap(structure, keys.producer(producer), apply)
        self._remember(structure.name, producer, Cell(keys.producer(producer)), lifetime_ms)
        return ProducerState(structure.name, opened.epoch, opened.last)

    async def _swap(self, structure: Structure, key: bytes, apply: Callable[[bytes | None], bytes]) -> None:
        """Goes on against an older connection whose puts write the record without a pause: it is the one that is to be shut out."""
        until, losses = 0.0, 0
        while True:
            try:
                await swap(structure, key, apply)
                return
            except Refusal as refusal:
                if refusal.reason is not Reason.CHANGED_MEANWHILE:
                    raise
                now = asyncio.get_running_loop().time()
                until = until or now + OPEN_S
                if now >= until:
                    raise
            losses += 1
            await pause(self.world, losses)

    async def state(self, structure: Structure, producer: str) -> ProducerState:
        """As committed now."""
        cell = await self._cell(structure, producer, anew=True)
        record = read_record(pb.ProducerRecord, cell.value or b"", cell.key)
        return ProducerState(structure.name, record.epoch, record.last)

    async def change(self, structure: Structure, number: ProducerNumber) -> Change:
        """What a unit that carries this number does to the record. Its apply refuses with PRODUCER_FENCED, PRODUCER_GAP or `Applied`."""
        cell = await self._cell(structure, number.producer)
        expires_at_ms = self.world.wall_ms() + self._lifetimes.get((structure.name, number.producer), LIFETIME_MS)

        def apply(value: bytes | None) -> bytes:
            return advance(value, number, expires_at_ms)

        return Change(cell, apply)

    async def _cell(self, structure: Structure, producer: str, *, anew: bool = False) -> Cell:
        cell = self._cells.get((structure.name, producer))
        if cell is None:
            cell = Cell(keys.producer(producer))
            self._remember(structure.name, producer, cell, LIFETIME_MS)
        if anew or not cell.mod_revision:
            await structure.refresh(cell)
        return cell

    def _remember(self, structure: str, producer: str, cell: Cell, lifetime_ms: int) -> None:
        while len(self._cells) >= KNOWN_MAX:
            oldest = next(iter(self._cells))
            del self._cells[oldest]
            self._lifetimes.pop(oldest, None)
        self._cells[structure, producer] = cell
        self._lifetimes[structure, producer] = lifetime_ms


def superseded(record: pb.ProducerRecord, opener: bytes, epoch_max: int) -> bool:
    """Whether another has opened the producer since `opener` did."""
    if opener and opener in record.openers:
        return record.openers[-1] != opener
    # What names nobody, or is asked for by nobody, was written or sent by an older version. With last 0 it may have begun anew, for the
    # asker itself.
    return bool(epoch_max) and record.epoch > epoch_max and bool(record.last or (opener and record.openers))


def openers(record: pb.ProducerRecord, opener: bytes) -> list[bytes]:
    """Those of the record after it was opened once more."""
    return [*(known for known in record.openers if known != opener), opener][-OPENERS_MAX:]


def advance(value: bytes | None, number: ProducerNumber, expires_at_ms: int) -> bytes:
    """The record after a commit of `number`."""
    record = read_record(pb.ProducerRecord, value or b"")
    if record.epoch > number.epoch:
        raise Refusal(Reason.PRODUCER_FENCED, f"{number.producer}: epoch {record.epoch} has replaced {number.epoch}")
    if record.epoch < number.epoch:  # nobody else: who asks opens it again
        raise Refusal(Reason.PRODUCER_GAP, f"{number.producer}: the record of epoch {number.epoch} is gone")
    if number.first <= record.last:
        raise Applied(record.last)
    if number.first != record.last + 1:
        raise Refusal(Reason.PRODUCER_GAP, f"{number.producer}: {number.first} follows {record.last}")
    record.last = number.first + number.count - 1
    record.expires_at_ms = max(record.expires_at_ms, expires_at_ms)
    return record.SerializeToString()
