"""A store as a value: a transaction makes another one. What `qsg.store.mvcc` is, without history, watches and leases.

Owns no semantics of its own: compares and blame are `qsg.store.mvcc`'s, and `test_snapshot` holds the two against each other.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, field

from qsg.store.contract import Compare, Delete, Get, GetResult, KeyValue, Op, Put, Target, TxnResult
from qsg.store.mvcc import check_branch, holds

_NOTHING = KeyValue(b"", b"", 0, 0, 0, 0)


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """Keys and values at one revision. Never changed."""

    revision: int = 1
    kvs: dict[bytes, KeyValue] = field(default_factory=dict)
    order: tuple[bytes, ...] = ()

    def get(self, key: bytes) -> KeyValue | None:
        return self.kvs.get(key)

    def under(self, prefix: bytes) -> list[KeyValue]:
        first = bisect.bisect_left(self.order, prefix)
        found = []
        for key in self.order[first:]:
            if not key.startswith(prefix):
                break
            found.append(self.kvs[key])
        return found

    def _range(self, key: bytes, end: bytes) -> list[KeyValue]:
        if not end:
            kv = self.kvs.get(key)
            return [] if kv is None else [kv]
        first = bisect.bisect_left(self.order, key)
        last = len(self.order) if end == b"\0" else bisect.bisect_left(self.order, end)
        return [self.kvs[k] for k in self.order[first:last]]

    def read(self, get: Get) -> GetResult:
        assert not get.revision, "no history is kept"
        kvs = self._range(get.key, get.end)
        count = len(kvs)
        if get.mod_after:
            kvs = [kv for kv in kvs if kv.mod_revision > get.mod_after]
        more = 0 < get.limit < len(kvs)
        kvs = kvs[: get.limit] if more else kvs
        if get.count_only:
            return GetResult((), count, False, self.revision)
        if get.keys_only:
            kvs = [KeyValue(kv.key, b"", kv.create_revision, kv.mod_revision, kv.version, kv.lease) for kv in kvs]
        return GetResult(tuple(kvs), count, more, self.revision)

    def holds(self, compare: Compare) -> bool:
        kvs = self._range(compare.key, compare.end)
        if not kvs:
            return compare.target is not Target.VALUE and holds(compare, _NOTHING)
        return all(holds(compare, kv) for kv in kvs)

    def txn(self, compares: Sequence[Compare], ops: Sequence[Op], else_ops: Sequence[Op] = ()) -> tuple[Snapshot, TxnResult]:
        """The store behind it, and its answer. A branch reads or writes, not both."""
        succeeded = all(self.holds(c) for c in compares)
        branch = ops if succeeded else else_ops
        check_branch(branch)
        reads = [op for op in branch if isinstance(op, Get)]
        if reads:
            assert len(reads) == len(branch), "a branch reads or writes"
            return self, TxnResult(succeeded, self.revision, tuple(self.read(get) for get in reads))
        after = self._write(branch)
        return after, TxnResult(succeeded, after.revision, (None,) * len(branch))

    def _write(self, branch: Sequence[Op]) -> Snapshot:
        kvs, revision, changed = dict(self.kvs), self.revision + 1, False
        for op in branch:
            if isinstance(op, Put):
                old = kvs.get(op.key)
                created, version = (revision, 1) if old is None else (old.create_revision, old.version + 1)
                kvs[op.key] = KeyValue(op.key, op.value, created, revision, version, op.lease)
                changed = True
            elif isinstance(op, Delete):
                for kv in self._range(op.key, op.end):
                    changed = kvs.pop(kv.key, None) is not None or changed
        if not changed:
            return self
        return Snapshot(revision, kvs, tuple(sorted(kvs)) if kvs.keys() != self.kvs.keys() else self.order)
