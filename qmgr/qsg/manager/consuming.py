"""Segments as one member consumes them, and the units that claim, take and give back their messages.

Owns `Segment`: a segment with this member's view of its consumption record. Invariant: one `Segment` object per segment and process
(`Segments`), so that every unit's changes of a record go through one cell and see each other. Every unit made here compares that the
segment exists, that the queue is as opened, and on a transmission queue that no channel holds it (`Guarded`); a claim of a dead
incarnation is dropped only together with a compare that it is dead.
"""

from __future__ import annotations

import weakref
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from qsg.manager import large
from qsg.manager.claims import Claims
from qsg.manager.queue_store import Opened
from qsg.pb import records_pb2 as pb
from qsg.rules import consume, keys
from qsg.rules.consume import Claimer, Holder
from qsg.rules.lanes import SegmentAt
from qsg.rules.reasons import Reason, Refusal
from qsg.rules.records import read_record
from qsg.rules.unit import Cell, Change, Taken, Unit
from qsg.store.contract import Compare, Get, GetResult, KeyValue, unchanged


class Segment:
    """One segment of a queue; `cell` is its consumption record."""

    __slots__ = (
        "__weakref__",
        "_free",
        "_free_for",
        "at",
        "body",
        "cell",
        "checked",
        "claims",
        "count",
        "entries",
        "gone",
        "key",
        "quiet_until",
    )

    def __init__(self, queue: str, at: SegmentAt, claims: Claims | None = None) -> None:
        self.at = at
        self.claims = claims
        """In memory; None: its claims are in its record."""
        self.key = keys.header(queue, at.priority, at.suffix), at.create_revision
        self.entries = at.header.entries
        self.count = len(self.entries)
        self.cell = Cell(keys.consumption(queue, at.priority, at.suffix))
        self.checked = False
        """Its record was read; else it is taken for untouched."""
        self.gone = False
        """It is not in the store any more."""
        self.body: bytes | None = at.header.bodies if at.bodies_inline else None
        self.quiet_until = 0.0
        """Left alone until then (loop time), so that two members do not race for ever."""
        self._free_for: tuple[int, Collection[Holder]] | None = None
        self._free = 0

    def free(self, live: Collection[Holder]) -> int:
        """Bitmap of the entries that may be taken, given the living incarnations."""
        if self.gone:
            return 0
        known = self._free_for
        if known is None or known[0] != self.cell.mod_revision or known[1] is not live:
            record = consume.parse(self.cell.value)
            self._free = consume.free_mask(record, self.count, consume.void_holders(record, live))
            self._free_for = self.cell.mod_revision, live
        return self._free & ~self.claims.mask(self.key) if self.claims is not None else self._free

    def settle(self) -> None:
        """After a unit that took entries was committed: the record goes with the segment."""
        self.gone = self.gone or self.cell.value is None

    def entry(self, index: int) -> pb.Entry:
        return self.entries[index]

    def backouts(self) -> Mapping[int, int]:
        return consume.parse(self.cell.value).backouts


class Segments:
    """The segments of one queue that anybody in this process holds."""

    def __init__(self, queue: str, claims: Claims | None = None) -> None:
        self.queue = queue
        self.claims = claims
        self._known: weakref.WeakValueDictionary[tuple[int, bytes], Segment] = weakref.WeakValueDictionary()

    def at(self, at: SegmentAt) -> Segment:
        key = at.priority, bytes(at.suffix)
        known = self._known.get(key)
        if known is None or known.at.create_revision != at.create_revision:
            known = self._known[key] = Segment(self.queue, at, self.claims)
        return known

    def __iter__(self) -> Iterator[Segment]:
        return iter(list(self._known.values()))


@dataclass(slots=True, eq=False)
class Guarded:
    """A queue as an application may take messages from it: as opened, get enabled, and not in a channel's hands."""

    opened: Opened
    fence_revision: int = 0

    @property
    def transmission(self) -> bool:
        return self.opened.definition.usage == "transmission"

    def gets(self) -> list[Get]:
        return [Get(keys.sender_fence(self.opened.name))] if self.transmission else []

    def read(self, result: GetResult) -> None:
        """Takes in the fence of a transmission queue. Raises `Refusal` while a channel may have sent what is on the queue."""
        kv = result.first
        if kv is not None and read_record(pb.SenderFence, kv.value, kv.key).open:
            raise Refusal(Reason.OBJECT_IN_USE, f"{self.opened.name}: a channel sends from it")
        self.fence_revision = kv.mod_revision if kv is not None else 0

    def compares(self) -> list[Compare]:
        fence = [unchanged(keys.sender_fence(self.opened.name), self.fence_revision)] if self.transmission else []
        return [self.opened.same(), *fence]


def live_holders(members: Iterable[KeyValue]) -> frozenset[Holder]:
    """Living incarnations from the member keys."""
    return frozenset((keys.unname(kv.key[len(keys.MEMBERS) :]), kv.create_revision) for kv in members)


def claim_unit(guarded: Guarded, parts: Mapping[Segment, int], claimer: Claimer, live: Collection[Holder]) -> Unit:
    """Claims entries (bitmaps by segment) for a unit of work."""
    unit = Unit(f"claim {guarded.opened.name}", compares=guarded.compares())
    for segment, mask in parts.items():
        void = _voids(segment, live)
        _compare(unit, guarded, segment, void)
        apply = consume.claim_change(claimer, mask, segment.count, void)
        unit.changes.append(Change(segment.cell, apply))
    return unit


def take(
    unit: Unit, guarded: Guarded, parts: Mapping[Segment, int], live: Collection[Holder] = (), *, claimer: Claimer | None = None
) -> None:
    """Adds to a unit that entries are gone: free ones, or (with `claimer`) those that a unit of work has claimed."""
    queue = guarded.opened.name
    unit.compares.extend(c for c in guarded.compares() if c not in unit.compares)
    messages = size = 0
    for segment, mask in parts.items():
        if segment.claims is not None:
            claimer = None  # nobody else is offered what is claimed
        void = _voids(segment, live) if claimer is None else frozenset()
        _compare(unit, guarded, segment, void)
        last = consume.is_last(consume.parse(segment.cell.value), mask, segment.count)
        apply = consume.gone_change(mask, segment.count, last=last, claimer=claimer, void=void)
        unit.changes.append(Change(segment.cell, apply))
        if last:
            at = segment.at
            unit.ops.extend(consume.deletes(queue, at.priority, at.suffix, bodies_inline=at.bodies_inline))
        for index in consume.iterate(mask):
            entry = segment.entries[index]
            size += entry.payload_size
            if entry.stage:
                unit.ops.extend(large.removal(queue, entry))
        messages += mask.bit_count()
    unit.taken.append(Taken(queue, messages, size))


def release_unit(guarded: Guarded, segment: Segment, mask: int, claimer: Claimer, *, backed_out: bool) -> Unit:
    """Gives claimed entries back. The totals are rewritten with it: that rings for those who wait.

    Claims in memory end with their unit: nothing is written when nothing is counted.
    """
    if segment.claims is not None and not backed_out:
        return Unit(f"release {guarded.opened.name}")
    unit = Unit(f"release {guarded.opened.name}", compares=[guarded.opened.same()], taken=[Taken(guarded.opened.name, 0, 0)])
    _compare(unit, guarded, segment, frozenset())
    unit.changes.append(returned(segment, mask, claimer, backed_out=backed_out))
    return unit


def returned(segment: Segment, mask: int, claimer: Claimer, *, backed_out: bool) -> Change:
    """What giving entries back does to the record: of claims in memory it has only the count."""
    in_memory = segment.claims is not None
    return Change(segment.cell, consume.count_change(mask) if in_memory else consume.release_change(claimer, mask, backed_out=backed_out))


def _voids(segment: Segment, live: Collection[Holder]) -> frozenset[Holder]:
    return consume.void_holders(consume.parse(segment.cell.value), live)


def _compare(unit: Unit, guarded: Guarded, segment: Segment, void: Collection[Holder]) -> None:
    at = segment.at
    unit.compares.append(consume.exists(guarded.opened.name, at.priority, at.suffix, at.create_revision))
    unit.compares.extend(c for c in consume.dead_compares(sorted(void)) if c not in unit.compares)
