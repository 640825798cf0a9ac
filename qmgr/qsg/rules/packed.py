"""A transaction made of units, as sent: what it is made of, and what follows from how it ended.

Owns the frame of every transaction of a slot (own member key and guard, compared and advanced; the else branch that reads them), and
blame: which units made a transaction fail. Invariant: only a unit whose own compare or guarded cell did not hold, in the very read that
the failed copy made, is blamed.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from qsg.pb import records_pb2 as pb
from qsg.rules import keys
from qsg.rules.records import Damaged, read_record
from qsg.rules.slots import Guard
from qsg.rules.unit import Cell
from qsg.store.contract import Compare, Get, KeyValue, Op, Put, Relation, Target, TxnResult, created_at, unchanged


@dataclass(frozen=True, slots=True)
class Place:
    """Prefixes of keys where a lane's segments of one queue and priority go."""

    header: bytes
    body: bytes
    lane: bytes
    """Of the lane's own headers."""


@dataclass(slots=True)
class Lane:
    """What one slot of this incarnation remembers from transaction to transaction."""

    member: str
    slot: int
    incarnation: int
    name: str = ""
    guard_key: bytes = b""
    member_key: bytes = b""
    mine: Compare = field(init=False)
    """Our member key is unchanged: in every transaction."""
    reads: tuple[Get, Get] = field(init=False)
    """Of member key and guard: in every else branch."""
    counter: int = 0
    totals: dict[str, Cell] = field(default_factory=dict)
    """By queue. One not there is taken for absent; its compare tells when it is not."""
    places: dict[tuple[str, int], Place] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.name = keys.lane(self.member, self.slot)
        self.guard_key = keys.guard(self.member, self.slot)
        self.member_key = keys.member(self.member)
        self.mine = created_at(self.member_key, self.incarnation)
        self.reads = Get(self.member_key, keys_only=True), Get(self.guard_key)

    def next_suffix(self) -> keys.Suffix:
        self.counter += 1
        return keys.suffix(self.name, self.incarnation, self.counter)

    def place(self, queue: str, priority: int) -> Place:
        place = self.places.get((queue, priority))
        if place is None:
            lane = keys.lane_headers(queue, priority, self.name)
            place = Place(keys.header(queue, priority, b""), keys.body(queue, priority, b""), lane)
            self.places[queue, priority] = place
        return place

    def totals_of(self, queue: str) -> Cell:
        cell = self.totals.get(queue)
        if cell is None:
            cell = self.totals[queue] = Cell(keys.lane_totals(queue, self.name))
        return cell


@dataclass(slots=True)
class Write:
    """What the transaction makes of one key that cells remember."""

    value: bytes | None
    mod_revision: int
    cells: list[Cell]


@dataclass(slots=True)
class Denied:
    index: int
    error: Exception
    tentative: bool
    """It was decided on values that units before it write: true only once they are committed."""


@dataclass(slots=True)
class Packed:
    attempt: bytes
    considered: int
    """How many units were looked at: included or denied. The next transaction begins behind them."""
    included: list[int]
    denied: list[Denied]
    compares: list[Compare]
    ops: list[Op]
    else_ops: list[Get]
    owners: dict[Compare, list[int]]
    """Units by compare; totals compares have none."""
    writes: dict[bytes, Write]
    queues: frozenset[str]
    """Queues put to."""

    def applied(self, revision: int) -> None:
        """Brings the cells up to date: the transaction was applied at `revision`."""
        for key, write in self.writes.items():
            for cell in write.cells:
                if write.value is None:
                    cell.saw(revision, None)
                else:
                    created = cell.create_revision if cell.mod_revision else revision
                    cell.saw(revision, KeyValue(key, write.value, created, revision))

    def learn(self, result: TxnResult) -> None:
        """Brings the cells up to date from what an else branch read."""
        found = self._read(result)
        for key, write in self.writes.items():
            if (key, b"") in found:
                kvs = found[key, b""]
                for cell in write.cells:
                    cell.saw(result.revision, kvs[0] if kvs else None)

    def _read(self, result: TxnResult) -> dict[tuple[bytes, bytes], tuple[KeyValue, ...]]:
        return {(get.key, get.end): result.got(i).kvs for i, get in enumerate(self.else_ops)}

    def blame(self, result: TxnResult) -> dict[int, tuple[bytes, ...]]:
        """Units whose own compares or guarded cells did not hold in a failed copy's else branch -> the keys."""
        found = self._read(result)
        failed: dict[int, list[bytes]] = {}
        for compare, owners in self.owners.items():
            if owners and not holds(compare, found[compare.key, compare.end]):
                for index in owners:
                    failed.setdefault(index, []).append(compare.key)
        return {index: tuple(dict.fromkeys(names)) for index, names in failed.items()}

    def stale_totals(self, result: TxnResult) -> bool:
        """Whether totals were not as remembered (the queue was made anew, or is written for the first time): nobody's fault."""
        found = self._read(result)
        return any(not owners and not holds(compare, found[compare.key, compare.end]) for compare, owners in self.owners.items())


def holds(compare: Compare, kvs: tuple[KeyValue, ...]) -> bool:
    """Whether a compare holds for what was read of its key or range. A missing key has zero revisions; its value never compares."""
    if not kvs:
        if compare.target is Target.VALUE:
            return False
        return _relate(0, compare.relation, compare.operand)
    return all(_relate(_target(kv, compare.target), compare.relation, compare.operand) for kv in kvs)


def _target(kv: KeyValue, target: Target) -> int | bytes:
    match target:
        case Target.CREATE:
            return kv.create_revision
        case Target.MOD:
            return kv.mod_revision
        case Target.VERSION:
            return kv.version
        case Target.LEASE:
            return kv.lease
        case Target.VALUE:
            return kv.value


def _relate(left: int | bytes, relation: Relation, right: int | bytes) -> bool:
    match relation:
        case Relation.EQUAL:
            return left == right
        case Relation.NOT_EQUAL:
            return left != right
        case Relation.LESS:
            return left < right  # type: ignore[operator]
        case Relation.GREATER:
            return left > right  # type: ignore[operator]


def guard_of(result: TxnResult, lane: Lane) -> tuple[Guard, bool]:
    """(guard, member key still ours) from an else branch: its first two reads are these."""
    member, guard = result.got(0).first, result.got(1).first
    ours = member is not None and member.create_revision == lane.incarnation
    return read_guard(guard), ours


DAMAGED = b"damaged"
"""Attempt of a guard that cannot be read: nobody's. It is replaced by its revision, as any other."""


def read_guard(kv: KeyValue | None) -> Guard:
    if kv is None:
        return Guard()
    try:
        record = read_record(pb.Guard, kv.value, kv.key)
    except Damaged:
        return Guard(0, DAMAGED, kv.mod_revision)
    return Guard(record.number, record.attempt, kv.mod_revision)


def own(lane: Lane, guard: Guard) -> tuple[list[Compare], list[Get]]:
    return [lane.mine, unchanged(lane.guard_key, guard.revision)], [*lane.reads]


def guard_put(lane: Lane, guard: Guard, attempt: bytes) -> Put:
    return Put(lane.guard_key, pb.Guard(number=guard.number + 1, attempt=attempt).SerializeToString())


def void(lane: Lane, guard: Guard) -> tuple[list[Compare], list[Op], list[Get]]:
    """A void advance of the slot's guard: (compares, operations, else branch)."""
    compares, gets = own(lane, guard)
    return compares, [guard_put(lane, guard, b"")], gets


def range_get(compare: Compare) -> Get:
    if compare.target is Target.MOD and compare.relation is Relation.LESS:
        assert isinstance(compare.operand, int)
        return Get(compare.key, compare.end, limit=1, keys_only=True, mod_after=compare.operand - 1)
    if compare.target is Target.CREATE and compare.relation is Relation.EQUAL and compare.operand == 0:
        return Get(compare.key, compare.end, limit=1, keys_only=True)
    return Get(compare.key, compare.end, keys_only=compare.target is not Target.VALUE)


def wider(a: Get, b: Get) -> Get:
    """One read that serves two compares of the same key or range."""
    if not a.end:
        return Get(a.key, keys_only=a.keys_only and b.keys_only)
    if a.mod_after and b.mod_after:
        return Get(a.key, a.end, keys_only=True, mod_after=min(a.mod_after, b.mod_after))
    return Get(a.key, a.end, keys_only=a.keys_only and b.keys_only)
