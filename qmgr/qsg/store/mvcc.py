"""The state of an in-memory store: multi-version keys, history until compacted, transactions. No clock, no loop, no faults.

Invariant: `apply` is atomic: it either raises and changes nothing, or applies one branch in (at most) one revision.
Semantics are those of etcd v3, in what surprises too: prefix compares do not see deletions, a missing key compares as zeros and fails
every compare of its value, `count` ignores `limit` and `mod_after`, reads see the earlier writes of their own transaction.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, field

from qsg.store.contract import (
    Compacted,
    Compare,
    Delete,
    Event,
    Get,
    GetResult,
    KeyValue,
    LeaseNotFound,
    Limits,
    NoSpace,
    Op,
    Put,
    Relation,
    StoreError,
    Target,
    TooLarge,
    TxnResult,
)

OVERHEAD = 64
"""Bytes that a stored version costs beside its key and value."""
_NOTHING = KeyValue(b"", b"", 0, 0, 0, 0)


def in_range(key: bytes, start: bytes, end: bytes) -> bool:
    """Does [start, end) hold `key`? `end` empty = only `start`; `end` a zero byte = everything from `start` on."""
    if not end:
        return key == start
    return start <= key and (end == b"\0" or key < end)


def size_of(compares: Sequence[Compare], ops: Sequence[Op]) -> int:
    """Bytes of keys, values and operands."""
    total = 0
    for c in compares:
        total += len(c.key) + len(c.end) + (len(c.operand) if isinstance(c.operand, bytes) else 8)
    for op in ops:
        total += len(op.key) + (len(op.value) if isinstance(op, Put) else len(op.end))
    return total


def holds(compare: Compare, kv: KeyValue) -> bool:
    """Does one key (a missing one: zeros) satisfy the compare?"""
    target = compare.target
    actual: int | bytes
    if target is Target.MOD:
        actual = kv.mod_revision
    elif target is Target.CREATE:
        actual = kv.create_revision
    elif target is Target.VALUE:
        actual = kv.value
    else:
        actual = kv.version if target is Target.VERSION else kv.lease
    operand = compare.operand
    if isinstance(actual, bytes) != isinstance(operand, bytes):
        raise StoreError(f"operand of a compare of {compare.target.value} has the wrong type")
    if compare.relation is Relation.EQUAL:
        return actual == operand
    if compare.relation is Relation.NOT_EQUAL:
        return actual != operand
    if compare.relation is Relation.LESS:
        return actual < operand  # type: ignore[operator]
    return actual > operand  # type: ignore[operator]


def check_limits(limits: Limits, compares: Sequence[Compare], ops: Sequence[Op], else_ops: Sequence[Op]) -> None:
    if len(compares) > limits.compares:
        raise TooLarge(f"{len(compares)} compares, at most {limits.compares}")
    if max(len(ops), len(else_ops)) > limits.operations:
        raise TooLarge(f"{max(len(ops), len(else_ops))} operations, at most {limits.operations}")
    size = size_of(compares, ops) + size_of((), else_ops)
    if size > limits.bytes:
        raise TooLarge(f"{size} bytes, at most {limits.bytes}")


def check_branch(ops: Sequence[Op]) -> None:
    """Refuses what etcd refuses: a key put twice, a key both put and deleted, an empty key."""
    puts: set[bytes] = set()
    deletes: list[Delete] = []
    for op in ops:
        if isinstance(op, Get) and op.key:
            continue
        if isinstance(op, Put):
            if op.key in puts:
                raise StoreError(f"duplicate key given in txn request: {op.key!r}")
            puts.add(op.key)
        elif isinstance(op, Delete):
            deletes.append(op)
        if not op.key and (isinstance(op, Put) or not op.end):
            raise StoreError("key is not provided")
    for op in deletes:
        if any(in_range(key, op.key, op.end) for key in puts) if op.end else op.key in puts:
            raise StoreError(f"a key is put and deleted in one txn request: {op.key!r}")


@dataclass(slots=True)
class _Index:
    """Keys in order."""

    keys: list[bytes] = field(default_factory=list)

    def add(self, key: bytes) -> None:
        bisect.insort(self.keys, key)

    def remove(self, key: bytes) -> None:
        del self.keys[bisect.bisect_left(self.keys, key)]

    def within(self, start: bytes, end: bytes) -> list[bytes]:
        first = bisect.bisect_left(self.keys, start)
        last = len(self.keys) if end == b"\0" else max(first, bisect.bisect_left(self.keys, end))
        return self.keys[first:last]


class Mvcc:
    """One store's state. `leases` maps a lease to the keys attached to it."""

    def __init__(self, *, quota: int = 0) -> None:
        self.revision = 1
        self.compacted = 0
        self.quota = quota
        self.bytes_in_use = 0
        self.leases: dict[int, dict[bytes, None]] = {}
        self._live: dict[bytes, KeyValue] = {}
        self._live_keys = _Index()
        self._history: dict[bytes, list[KeyValue | Event]] = {}
        self._all_keys = _Index()
        self._log_revisions: list[int] = []
        self._log: list[tuple[Event, ...]] = []

    # Reading

    def read(self, get: Get) -> GetResult:
        if get.revision == 0 and not get.end and not get.mod_after and not get.count_only:
            return self._read_key(get)
        if get.revision > self.revision:
            raise StoreError(f"required revision {get.revision} is a future revision")
        if 0 < get.revision < self.compacted:
            raise Compacted(self.compacted)
        if get.revision == 0 and not get.mod_after:
            keys = self._live_keys_in(get.key, get.end)
            count = len(keys)
            more = 0 < get.limit < count
            kvs = [self._live[k] for k in (keys[: get.limit] if more else keys)]
        else:
            kvs = self._range(get.key, get.end, get.revision)
            count = len(kvs)
            kvs = [kv for kv in kvs if kv.mod_revision > get.mod_after]
            more = 0 < get.limit < len(kvs)
            kvs = kvs[: get.limit] if more else kvs
        if get.count_only:
            return GetResult((), count, False, self.revision)
        if get.keys_only:
            kvs = [KeyValue(kv.key, b"", kv.create_revision, kv.mod_revision, kv.version, kv.lease) for kv in kvs]
        return GetResult(tuple(kvs), count, more, self.revision)

    def _read_key(self, get: Get) -> GetResult:
        """One key as it is now: most reads."""
        kv = self._live.get(get.key)
        if kv is None:
            return GetResult((), 0, False, self.revision)
        if get.keys_only:
            kv = KeyValue(kv.key, b"", kv.create_revision, kv.mod_revision, kv.version, kv.lease)
        return GetResult((kv,), 1, False, self.revision)

    def _range(self, key: bytes, end: bytes, revision: int) -> list[KeyValue]:
        if revision == 0:
            return [self._live[k] for k in self._live_keys_in(key, end)]
        # A named revision, even the newest, never sees the writes of a transaction that is being applied.
        found = (self._at(k, revision) for k in (self._all_keys.within(key, end) if end else [key]))
        return [kv for kv in found if kv is not None]

    def _live_keys_in(self, key: bytes, end: bytes) -> list[bytes]:
        if end:
            return self._live_keys.within(key, end)
        return [key] if key in self._live else []

    def _at(self, key: bytes, revision: int) -> KeyValue | None:
        for version in reversed(self._history.get(key, ())):
            if isinstance(version, Event):
                if version.kv.mod_revision <= revision:
                    return None
            elif version.mod_revision <= revision:
                return version
        return None

    def events(self, key: bytes, end: bytes, from_revision: int) -> list[Event]:
        """Events of the range from a revision on, in commit order. Raises `Compacted`."""
        if from_revision < self.compacted:
            raise Compacted(self.compacted)
        first = bisect.bisect_left(self._log_revisions, from_revision)
        if not key and end == b"\0":
            return [e for events in self._log[first:] for e in events]
        return [e for events in self._log[first:] for e in events if in_range(e.kv.key, key, end)]

    # Writing

    def apply(self, compares: Sequence[Compare], ops: Sequence[Op], else_ops: Sequence[Op]) -> TxnResult:
        check_branch(ops)
        check_branch(else_ops)
        succeeded = True
        for compare in compares:
            if not self._compare(compare):
                succeeded = False
                break
        branch = ops if succeeded else else_ops
        self._check_applicable(branch)
        revision = self.revision + 1
        events: list[Event] = []
        results: list[GetResult | None] = []
        for op in branch:
            if isinstance(op, Get):
                results.append(self.read(op))
                continue
            results.append(None)
            if isinstance(op, Put):
                events.append(self._put(op, revision))
            else:
                events += [self._delete(kv, revision) for kv in self._range(op.key, op.end, 0)]
        self._commit(events, revision)
        if events and any(results):  # reads tell the revision that came of it
            results = [None if r is None else GetResult(r.kvs, r.count, r.more, self.revision) for r in results]
        return TxnResult(succeeded, self.revision, tuple(results))

    def _compare(self, compare: Compare) -> bool:
        if not compare.end:
            kv = self._live.get(compare.key)
            if kv is not None:
                return holds(compare, kv)
            return compare.target is not Target.VALUE and holds(compare, _NOTHING)
        kvs = self._range(compare.key, compare.end, 0)
        if not kvs:
            return compare.target is not Target.VALUE and holds(compare, _NOTHING)
        return all(holds(compare, kv) for kv in kvs)

    def _check_applicable(self, branch: Sequence[Op]) -> None:
        cost = 0
        for op in branch:
            if isinstance(op, Put):
                if op.lease and op.lease not in self.leases:
                    raise LeaseNotFound(f"lease {op.lease} is not known")
                cost += len(op.key) + len(op.value) + OVERHEAD
            elif isinstance(op, Get) and op.revision:
                if op.revision > self.revision:
                    raise StoreError(f"required revision {op.revision} is a future revision")
                if op.revision < self.compacted:
                    raise Compacted(self.compacted)
        if self.quota and cost and self.bytes_in_use + cost > self.quota:
            raise NoSpace(f"{self.bytes_in_use} of {self.quota} bytes are in use")

    def _put(self, op: Put, revision: int) -> Event:
        old = self._live.get(op.key)
        if old is None:
            kv = KeyValue(op.key, op.value, revision, revision, 1, op.lease)
            self._live_keys.add(op.key)
        else:
            kv = KeyValue(op.key, op.value, old.create_revision, revision, old.version + 1, op.lease)
            self._detach(old)
        self._live[op.key] = kv
        if op.lease:
            self.leases[op.lease][op.key] = None
        self._remember(kv.key, kv)
        return Event(kv)

    def _delete(self, kv: KeyValue, revision: int) -> Event:
        event = Event(KeyValue(kv.key, b"", 0, revision, 0, 0), deleted=True)
        del self._live[kv.key]
        self._live_keys.remove(kv.key)
        self._detach(kv)
        self._remember(kv.key, event)
        return event

    def _detach(self, kv: KeyValue) -> None:
        if kv.lease in self.leases:
            self.leases[kv.lease].pop(kv.key, None)

    def _remember(self, key: bytes, version: KeyValue | Event) -> None:
        if key not in self._history:
            self._history[key] = []
            self._all_keys.add(key)
        self._history[key].append(version)
        self.bytes_in_use += _size(version)

    def _commit(self, events: list[Event], revision: int) -> None:
        if events:
            self.revision = revision
            self._log_revisions.append(revision)
            self._log.append(tuple(events))

    def grant(self, lease: int) -> None:
        self.leases[lease] = {}

    def revoke(self, lease: int) -> None:
        """Ends a lease and deletes its keys, in one revision."""
        keys = self.leases.pop(lease, None)
        if keys is None:
            raise LeaseNotFound(f"lease {lease} is not known")
        revision = self.revision + 1
        self._commit([self._delete(self._live[k], revision) for k in sorted(keys)], revision)

    def rewind(self, revision: int) -> None:
        """Undoes every commit behind `revision`, as a crash does to what was not synced. Not over compacted history or leases."""
        assert revision >= self.compacted and not self.leases
        while self._log_revisions and self._log_revisions[-1] > revision:
            self._log_revisions.pop()
            for event in reversed(self._log.pop()):
                self._undo(event.kv.key)
        self.revision = revision

    def _undo(self, key: bytes) -> None:
        """Takes the newest version of a key back."""
        versions = self._history[key]
        self.bytes_in_use -= _size(versions.pop())
        before = versions[-1] if versions else None
        if key in self._live:
            del self._live[key]
            self._live_keys.remove(key)
        if isinstance(before, KeyValue):
            self._live[key] = before
            self._live_keys.add(key)
        elif before is None:
            del self._history[key]
            self._all_keys.remove(key)

    def compact(self, revision: int) -> None:
        """Forgets versions that only reads below `revision` could see."""
        if revision > self.revision:
            raise StoreError(f"required revision {revision} is a future revision")
        if revision <= self.compacted:
            raise Compacted(self.compacted)
        self.compacted = revision
        cut = bisect.bisect_left(self._log_revisions, revision)
        touched = {e.kv.key for events in self._log[:cut] for e in events}
        touched.update(e.kv.key for events in self._log[cut : cut + 1] for e in events)
        del self._log_revisions[:cut], self._log[:cut]
        for key in sorted(touched):
            self._compact_key(key, revision)

    def _compact_key(self, key: bytes, revision: int) -> None:
        versions = self._history.get(key, [])
        old = [v for v in versions if _revision(v) <= revision]
        kept = [v for v in versions if _revision(v) > revision]
        if old and not isinstance(old[-1], Event):
            kept.insert(0, old.pop())
        self.bytes_in_use -= sum(_size(v) for v in old)
        if kept:
            self._history[key] = kept
        elif key in self._history:
            del self._history[key]
            self._all_keys.remove(key)


def _revision(version: KeyValue | Event) -> int:
    return version.kv.mod_revision if isinstance(version, Event) else version.mod_revision


def _size(version: KeyValue | Event) -> int:
    kv = version.kv if isinstance(version, Event) else version
    return len(kv.key) + len(kv.value) + OVERHEAD
