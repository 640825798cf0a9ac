"""The store contract: one small transactional key-value interface that everything durable goes through.

Keys are bytes in order. Every key has a create revision, a modification revision, a version and possibly a lease; a store has one
monotonic revision. Semantics are etcd v3's (a missing key compares as zero revisions, zero version and an empty value).
Implementations: `qsg.store.etcd`, `qsg.store.sqlite`, `qsg.store.memory`; one conformance suite runs against all of them.
"""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar, dataclass_transform

T = TypeVar("T")


@dataclass_transform(frozen_default=True)
def _value(cls: type[T]) -> type[T]:
    """A value: nobody changes it (the type checker sees to that; at run time a frozen class takes four times as long to make)."""
    return dataclass(slots=True, unsafe_hash="__hash__" not in cls.__dict__)(cls)


class StoreError(Exception):
    """Something the store refused or could not do."""


class Unavailable(StoreError):
    """No answer. A write may or may not have been applied; a read can be repeated."""


class NotApplied(StoreError):
    """Provably not applied (connection refused, no leader, too many requests): the same call may be repeated."""


class NoSpace(StoreError):
    """The store's quota or disk is full. A write may have been applied all the same: etcd applies the one that fills its quota."""


class TooLarge(StoreError):
    """More operations or bytes than the store takes in one transaction; not applied."""


class LeaseNotFound(StoreError):
    """The lease has expired or was revoked; not applied."""


class Compacted(StoreError):
    """The revision asked for is gone; `revision` is the oldest still there (0 = unknown)."""

    def __init__(self, revision: int) -> None:
        super().__init__(f"compacted up to revision {revision}")
        self.revision = revision


@_value
class KeyValue:
    key: bytes
    value: bytes
    create_revision: int
    mod_revision: int
    version: int = 1
    lease: int = 0


class Target(enum.Enum):
    CREATE = "create"
    MOD = "mod"
    VERSION = "version"
    VALUE = "value"
    LEASE = "lease"

    __hash__ = object.__hash__  # compares are keys of dictionaries: not by name, which takes long


class Relation(enum.Enum):
    EQUAL = "="
    NOT_EQUAL = "!="
    LESS = "<"
    GREATER = ">"

    __hash__ = object.__hash__


@_value
class Compare:
    """A condition on `key`, or with `end` on every existing key in [key, end)."""

    key: bytes
    target: Target
    relation: Relation
    operand: int | bytes
    end: bytes = b""

    def __hash__(self) -> int:
        return hash((self.key, self.operand))  # of five fields it takes twice as long, and transactions are built by these


@_value
class Put:
    key: bytes
    value: bytes
    lease: int = 0


@_value
class Delete:
    """Deletes `key`, or with `end` every key in [key, end)."""

    key: bytes
    end: bytes = b""


@_value
class Get:
    """Reads `key`, or with `end` the keys in [key, end) in key order.

    `limit` 0 = all. `revision` 0 = now. `mod_after` keeps only keys whose modification revision is greater. `near`: a state that lags
    a little behind the newest commit will do (a whole one all the same), which a cluster's member answers without asking the others; in
    a transaction it has effect when all of it are such reads.
    """

    key: bytes
    end: bytes = b""
    limit: int = 0
    revision: int = 0
    keys_only: bool = False
    count_only: bool = False
    mod_after: int = 0
    near: bool = False


Op = Put | Delete | Get


@_value
class GetResult:
    kvs: tuple[KeyValue, ...]
    count: int = 0
    """Keys in the range, whatever the limit."""
    more: bool = False
    revision: int = 0
    """The store's revision when it answered."""

    @property
    def first(self) -> KeyValue | None:
        return self.kvs[0] if self.kvs else None


@_value
class TxnResult:
    succeeded: bool
    revision: int
    results: tuple[GetResult | None, ...]
    """One per operation of the branch taken; None for puts and deletes."""

    def got(self, index: int) -> GetResult:
        result = self.results[index]
        assert result is not None, "not a read"
        return result


@_value
class Event:
    """`kv.value` is empty and `kv.mod_revision` the revision of the deletion when `deleted`."""

    kv: KeyValue
    deleted: bool = False


@_value
class WatchBatch:
    """All events of the range up to and including `revision`, in commit order (empty: only progress)."""

    revision: int
    events: tuple[Event, ...]


@_value
class StoreStatus:
    revision: int
    bytes_in_use: int
    bytes_quota: int
    """0 = no quota."""
    version: str = ""
    leader: str = ""


@_value
class Limits:
    """What one transaction may hold."""

    operations: int = 128
    compares: int = 128
    bytes: int = 1_500_000


class Store(Protocol):
    limits: Limits

    async def txn(
        self, compares: Sequence[Compare], ops: Sequence[Op], else_ops: Sequence[Op] = (), *, timeout_s: float | None = None
    ) -> TxnResult:
        """Atomic, and durable when it returns. Never repeated blindly: raises `Unavailable` when the outcome is unknown.

        `timeout_s` bounds this one attempt (default 0.4).
        """
        ...

    async def get(self, get: Get) -> GetResult:
        """A linearizable read; repeated inside until `Unavailable` after about 5 s."""
        ...

    def watch(self, key: bytes, end: bytes, from_revision: int) -> AsyncIterator[WatchBatch]:
        """Events of [key, end) from `from_revision` on, each once and in order, resumed inside over broken connections.

        Raises `Compacted` when history is gone. Closing the iterator ends the watch.
        """
        ...

    async def grant(self, ttl_s: int) -> int:
        """A new lease's id."""
        ...

    async def keep_alive(self, lease: int) -> float:
        """Renews once; seconds to live from the moment it was sent. Raises `LeaseNotFound`."""
        ...

    async def revoke(self, lease: int) -> None: ...

    async def compact(self, revision: int) -> None: ...

    async def status(self) -> StoreStatus: ...

    async def close(self) -> None: ...


def prefix_end(prefix: bytes) -> bytes:
    """The first key behind all keys that begin with `prefix`."""
    for i in range(len(prefix) - 1, -1, -1):
        if prefix[i] < 0xFF:
            return prefix[:i] + bytes([prefix[i] + 1])
    return b"\0"


def absent(key: bytes) -> Compare:
    return Compare(key, Target.CREATE, Relation.EQUAL, 0)


def unchanged(key: bytes, mod_revision: int) -> Compare:
    """True while `key` is as it was read (mod_revision 0 = was absent)."""
    return Compare(key, Target.MOD, Relation.EQUAL, mod_revision)


def created_at(key: bytes, create_revision: int) -> Compare:
    return Compare(key, Target.CREATE, Relation.EQUAL, create_revision)


def nothing_changed_after(prefix: bytes, revision: int) -> Compare:
    """True while no key under `prefix` was written after `revision`. Deletions are not seen (etcd)."""
    return Compare(prefix, Target.MOD, Relation.LESS, revision + 1, prefix_end(prefix))


def get_prefix(prefix: bytes, *, limit: int = 0, revision: int = 0, keys_only: bool = False) -> Get:
    return Get(prefix, prefix_end(prefix), limit=limit, revision=revision, keys_only=keys_only)
