"""Units of work -> one transaction.

Owns how a slot's transaction is built: compares (own member key, guard, totals, those of the units), operations, and an else branch that
reads every compared key. Invariants: the transaction is equal to its units applied one after the other in the order given (a unit that
compares what an earlier one writes waits for the next transaction); it is within the store's limits; a unit that is refused leaves no
trace in it; segment counters are taken here, at publishing, and never twice. Not guaranteed: that every unit given is in it; the caller
brings the rest again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from qsg.pb import records_pb2 as pb
from qsg.rules import keys, segments
from qsg.rules.packed import Denied, Lane, Packed, Write, guard_put, own, range_get, wider
from qsg.rules.reasons import Reason, Refusal
from qsg.rules.records import read_record
from qsg.rules.slots import Guard
from qsg.rules.unit import Change, NewMessage, NewSegment, Taken, Unit
from qsg.store.contract import Compare, Delete, Get, Limits, Op, Put, Target, unchanged

OVERHEAD = 48
"""Bytes allowed for the frame of one compare or operation, beyond keys and values."""
ENTRY_OVERHEAD = 96
"""Bytes allowed for an index entry, beyond ids and destination."""


def pack(units: Iterable[Unit], lane: Lane, guard: Guard, attempt: bytes, limits: Limits) -> Packed:
    """One transaction of as many of `units`, in order, as fit."""
    builder = _Builder(lane, guard, limits)
    considered = 0
    for index, unit in enumerate(units):
        if not builder.add(index, unit):
            break
        considered += 1
    return builder.finish(attempt, considered)


@dataclass(slots=True)
class _Cost:
    compares: int = 0
    reads: int = 0
    ops: int = 0
    bytes: int = 0

    def add(self, other: _Cost) -> None:
        self.compares += other.compares
        self.reads += other.reads
        self.ops += other.ops
        self.bytes += other.bytes

    def leaves_room(self, other: _Cost, limits: Limits) -> bool:
        return (
            self.ops + other.ops <= limits.operations
            and self.reads + other.reads <= limits.operations
            and self.compares + other.compares <= limits.compares
            and self.bytes + other.bytes <= limits.bytes
        )


class _Stop(Exception):
    """The unit has to wait for the next transaction."""


@dataclass(slots=True)
class _Trial:
    """What one unit would add."""

    cost: _Cost = field(default_factory=_Cost)
    compares: dict[Compare, None] = field(default_factory=dict)
    reads: dict[tuple[bytes, bytes], None] = field(default_factory=dict)
    values: dict[bytes, Write] = field(default_factory=dict)
    raw: dict[bytes, Op] = field(default_factory=dict)
    ranges: list[Delete] = field(default_factory=list)
    open: dict[tuple[str, int], tuple[int, int, bool]] = field(default_factory=dict)
    """(queue, priority) -> entries, bytes and kind of the segment that would be open."""
    queues: dict[str, None] = field(default_factory=dict)
    tentative: bool = False


class _Sums:
    __slots__ = ("got", "got_bytes", "last", "put", "put_bytes")

    def __init__(self) -> None:
        self.put = self.put_bytes = self.got = self.got_bytes = 0
        self.last: dict[int, bytes] = {}


class _Builder:
    def __init__(self, lane: Lane, guard: Guard, limits: Limits) -> None:
        self.lane, self.guard, self.limits = lane, guard, limits
        self.included: list[int] = []
        self.denied: list[Denied] = []
        self.owners: dict[Compare, list[int]] = {}
        self.reads: dict[tuple[bytes, bytes], None] = {}
        self.writes: dict[bytes, Write] = {}
        self.raw: dict[bytes, Op] = {}
        self.ranges: list[Delete] = []
        self.published: list[tuple[str, int, segments.Builder | NewSegment]] = []
        self.open: dict[tuple[str, int], tuple[segments.Builder, bool]] = {}
        self.sums: dict[str, _Sums] = {}
        self.marks: set[bytes] = set()
        """Keys that segments and totals touch, for later units' compares; a lane's headers stand for those it will get."""
        own = 2 * (len(lane.member_key) + len(lane.guard_key)) + 5 * OVERHEAD + len(lane.guard_key) + 64
        self.cost = _Cost(2, 2, 1, own)

    # One unit

    def add(self, index: int, unit: Unit) -> bool:
        """False: not looked at, it belongs into the next transaction."""
        trial = _Trial()
        try:
            self._try_compares(unit, trial)
            self._try_changes(unit, trial)
            self._try_raw(unit, trial)
            self._try_puts(unit, trial)
        except _Stop:
            return False
        except Exception as error:  # of the unit's own code: told to its caller
            self.denied.append(Denied(index, error, trial.tentative))
            return True
        if not self.cost.leaves_room(trial.cost, self.limits):
            if self.included:
                return False
            self.denied.append(Denied(index, Refusal(Reason.SYNCPOINT_LIMIT_REACHED, "more than one transaction holds"), False))
            return True
        self._merge(index, unit, trial)
        return True

    def _try_compare(self, compare: Compare, trial: _Trial) -> None:
        before = len(trial.compares)
        trial.compares[compare] = None
        if len(trial.compares) == before or compare in self.owners:
            return
        trial.cost.compares += 1
        trial.cost.bytes += OVERHEAD + len(compare.key) + len(compare.end)
        where = compare.key, compare.end
        if where not in self.reads and where not in trial.reads:
            trial.reads[where] = None
            trial.cost.reads += 1
            trial.cost.bytes += OVERHEAD + len(compare.key) + len(compare.end)

    def _try_compares(self, unit: Unit, trial: _Trial) -> None:
        for compare in unit.compares:
            if self.included and self._written(compare.key, compare.end):
                raise _Stop
            self._try_compare(compare, trial)

    def _written(self, key: bytes, end: bytes = b"") -> bool:
        """Whether units before this one write in [key, end)."""
        if end:
            if any(_inside(k, key, end) for written in (self.writes, self.raw, self.marks) for k in written):
                return True
            return any(_inside(d.key, key, end) or _inside(key, d.key, d.end) for d in self.ranges)
        return key in self.writes or key in self.raw or key in self.marks or self._in_deleted_range(key)

    def _in_deleted_range(self, key: bytes) -> bool:
        return any(_inside(key, d.key, d.end) for d in self.ranges)

    def _try_changes(self, unit: Unit, trial: _Trial) -> None:
        for change in unit.changes:
            cell, key = change.cell, change.cell.key
            write = trial.values.get(key)
            if write is None:
                write = self._begin_write(change, trial)
            if all(c is not cell for c in write.cells):
                write.cells.append(cell)
            write.value = change.apply(write.value)
            if write.value is not None:
                trial.cost.bytes += len(write.value)
            if change.guarded:
                self._try_compare(unchanged(key, cell.mod_revision), trial)

    def _begin_write(self, change: Change, trial: _Trial) -> Write:
        cell, key = change.cell, change.cell.key
        before = self.writes.get(key)
        if before is not None:
            if before.mod_revision != cell.mod_revision:
                raise _Stop  # one of the two is out of date: let the store say which
            trial.tentative = True
            write = Write(before.value, before.mod_revision, list(before.cells))
        else:
            if self.included and self._written(key):
                raise _Stop
            write = Write(cell.value, cell.mod_revision, [])
            trial.cost.ops += 1
            trial.cost.bytes += OVERHEAD + len(key)
        trial.values[key] = write
        return write

    def _try_raw(self, unit: Unit, trial: _Trial) -> None:
        for op in unit.ops:
            if isinstance(op, Get):
                raise ValueError("a unit holds puts and deletes")
            trial.cost.bytes += OVERHEAD + len(op.key)
            if isinstance(op, Delete) and op.end:
                if any(_inside(k, op.key, op.end) for written in (self.writes, self.raw, self.marks) for k in written):
                    raise _Stop
                if any(_inside(k, op.key, op.end) for k in (*trial.values, *trial.raw)):
                    raise ValueError(f"a write inside a deleted range: {op.key!r}")
                trial.ranges.append(op)
                trial.cost.ops += 1
                continue
            if op.key in self.writes or op.key in self.marks or (isinstance(op, Put) and self._in_deleted_range(op.key)):
                raise _Stop
            if op.key in trial.values or (isinstance(op, Put) and any(_inside(op.key, d.key, d.end) for d in trial.ranges)):
                raise ValueError(f"two writes of one key: {op.key!r}")
            if op.key not in self.raw and op.key not in trial.raw:
                trial.cost.ops += 1
            if isinstance(op, Put):
                trial.cost.bytes += len(op.value)
            trial.raw[op.key] = op

    def _try_puts(self, unit: Unit, trial: _Trial) -> None:
        place: tuple[str, int] | None = None
        for put in unit.puts:
            if place != (put.queue, put.priority):
                place = put.queue, put.priority
                self._try_place(*place, trial)
            if isinstance(put, NewSegment):
                trial.open[place] = (segments.ENTRIES_MAX, 0, False)
                trial.cost.ops += 2
                trial.cost.bytes += put.header.ByteSize() + len(put.bodies) + 2 * (OVERHEAD + 128 + 3 * len(put.queue))
            else:
                self._try_message(put, place, trial)
        for taken in unit.taken:
            self._try_queue(taken.queue, trial)

    def _try_place(self, queue: str, priority: int, trial: _Trial) -> None:
        if self.ranges and self._in_deleted_range(self.lane.place(queue, priority).lane):
            raise _Stop
        if trial.ranges and any(_inside(keys.headers(queue), d.key, d.end) for d in trial.ranges):
            raise ValueError(f"a put to a queue that the same unit clears: {queue}")
        self._try_queue(queue, trial)

    def _try_message(self, put: NewMessage, place: tuple[str, int], trial: _Trial) -> None:
        directed, size, entry = put.destination is not None, len(put.body), put.entry
        state = trial.open.get(place)
        if state is None and place in self.open:
            builder, kind = self.open[place]
            state = len(builder.entries), builder.size, kind
        if state is None or not _fits(*state, size, directed):
            trial.cost.ops += 2
            trial.cost.bytes += 2 * (OVERHEAD + 128 + 3 * len(put.queue))
            state = 0, 0, directed
        trial.open[place] = (state[0] + 1, state[1] + size, directed)
        trial.cost.bytes += size + ENTRY_OVERHEAD + len(entry.stage) + len(entry.message_id) + len(entry.correlation_id)
        if put.destination is not None:
            trial.cost.bytes += 16 + 3 * (len(put.destination[0]) + len(put.destination[1]))

    def _try_queue(self, queue: str, trial: _Trial) -> None:
        """Totals of a queue touched: a compare, a read and a put, once."""
        if queue in self.sums or queue in trial.queues:
            return
        cell = self.lane.totals_of(queue)
        if self._written(cell.key):
            raise _Stop
        read_record(pb.Totals, cell.value or b"", cell.key)  # what cannot be counted on is told to its units, before anything is built
        trial.queues[queue] = None
        self._try_compare(unchanged(cell.key, cell.mod_revision), trial)
        trial.cost.ops += 1
        trial.cost.bytes += OVERHEAD + len(cell.key) + 64 + 10 * (len(self.lane.name) + 48)

    # Merging

    def _merge(self, index: int, unit: Unit, trial: _Trial) -> None:
        self.included.append(index)
        self.cost.add(trial.cost)
        totals = {self.lane.totals_of(q).key for q in trial.queues}
        for compare in trial.compares:
            owners = self.owners.setdefault(compare, [])
            if compare.key not in totals:
                owners.append(index)
        self.reads.update(trial.reads)
        self.writes.update(trial.values)
        self.raw.update(trial.raw)
        self.ranges.extend(trial.ranges)
        for put in unit.puts:
            self._publish(put)
        for taken in unit.taken:
            self._take(taken)

    def _sums(self, queue: str) -> _Sums:
        sums = self.sums.get(queue)
        if sums is None:
            sums = self.sums[queue] = _Sums()
            self.marks.add(self.lane.totals_of(queue).key)
        return sums

    def _publish(self, put: NewMessage | NewSegment) -> None:
        sums, place = self._sums(put.queue), (put.queue, put.priority)
        if isinstance(put, NewSegment):
            self.open.pop(place, None)
            self._new_segment(put.queue, put.priority, put)
            sums.put += put.messages
            sums.put_bytes += put.bytes
            return
        directed = put.destination is not None
        found = self.open.get(place)
        if found is None or not _fits(len(found[0].entries), found[0].size, found[1], len(put.body), directed):
            found = self.open[place] = (segments.Builder(), directed)
            self._new_segment(put.queue, put.priority, found[0])
        found[0].add(put.entry, put.body, put.destination)
        sums.put += 1
        sums.put_bytes += put.entry.payload_size

    def _new_segment(self, queue: str, priority: int, segment: segments.Builder | NewSegment) -> None:
        self.published.append((queue, priority, segment))
        self.marks.add(self.lane.place(queue, priority).lane)

    def _take(self, taken: Taken) -> None:
        sums = self._sums(taken.queue)
        sums.got += taken.messages
        sums.got_bytes += taken.bytes

    # The transaction

    def finish(self, attempt: bytes, considered: int) -> Packed:
        compares, else_ops = own(self.lane, self.guard)
        ops: list[Op] = [guard_put(self.lane, self.guard, attempt)]
        if self.included:
            self._segment_ops(ops)
            self._totals_writes()
            for key, write in self.writes.items():
                ops.append(Delete(key) if write.value is None else Put(key, write.value))
            ops.extend(self._raw_ops())
            compares.extend(self.owners)
            else_ops.extend(self._else_gets())
        put_to = frozenset(queue for queue, _, _ in self.published)
        return Packed(attempt, considered, self.included, self.denied, compares, ops, else_ops, self.owners, self.writes, put_to)

    def _segment_ops(self, ops: list[Op]) -> None:
        for queue, priority, segment in self.published:
            suffix = self.lane.next_suffix()
            header, bodies = segment.values() if isinstance(segment, segments.Builder) else segments.attach(segment.header, segment.bodies)
            place = self.lane.place(queue, priority)
            ops.append(Put(place.header + suffix, header))
            if bodies:
                ops.append(Put(place.body + suffix, bodies))
            self.sums[queue].last[priority] = suffix

    def _totals_writes(self) -> None:
        for queue, sums in self.sums.items():
            cell = self.lane.totals_of(queue)
            totals = read_record(pb.Totals, cell.value or b"", cell.key)
            totals.put += sums.put
            totals.put_bytes += sums.put_bytes
            totals.got += sums.got
            totals.got_bytes += sums.got_bytes
            for priority, suffix in sums.last.items():
                totals.last[priority] = suffix
            self.writes[cell.key] = Write(totals.SerializeToString(deterministic=True), cell.mod_revision, [cell])

    def _raw_ops(self) -> list[Op]:
        singles = [op for op in self.raw.values() if isinstance(op, Put) or not self._in_deleted_range(op.key)]
        return [*self.ranges, *singles]

    def _else_gets(self) -> list[Get]:
        """A read for each compared key or range: with the value where a cell wants it, of a range only what breaks the compare."""
        valued = {c.key for c in self.owners if c.target is Target.VALUE}
        gets: dict[tuple[bytes, bytes], Get] = {}
        for compare in self.owners:
            where = compare.key, compare.end
            wants_value = compare.key in self.writes or compare.key in valued
            get = range_get(compare) if compare.end else Get(compare.key, keys_only=not wants_value)
            gets[where] = get if where not in gets else wider(gets[where], get)
        return list(gets.values())


def _inside(key: bytes, start: bytes, end: bytes) -> bool:
    """Whether [start, end) holds `key`; an end of one zero byte is beyond all keys."""
    return start <= key and (key < end or end == b"\0")


def _fits(entries: int, size: int, kind: bool, more: int, directed: bool) -> bool:
    return kind == directed and entries < segments.ENTRIES_MAX and size + more <= segments.BODIES_MAX
