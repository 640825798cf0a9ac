"""When are two states the same? Revisions and random ids stand for themselves only by order and by being the same or not.

Owns the renaming: a state is given as *parts*, each a shape (compared as it is) with the revisions and ids in it (renamed). Revisions of
keys are renamed to their rank among those of their store, revisions at which something was read to the newest key revision that it could
show, ids by their first appearance. Fields that nothing decides on (times, counts of takeovers) are left out.
"""

from __future__ import annotations

import bisect
import hashlib
import marshal
from collections.abc import Hashable, Iterable
from typing import Any, NamedTuple

from google.protobuf.message import Message

from qsg.pb import records_pb2 as pb
from qsg.rules import keys
from qsg.store.contract import KeyValue

ADMIN, QUEUE, SEEN_ADMIN, SEEN_QUEUE, ID = range(5)
"""Kinds of references: revisions of keys of two stores, revisions of reads there, random ids. With one store all are ADMIN's."""

FIELDS: dict[str, int] = {
    "incarnation": QUEUE,
    "create_revision": QUEUE,
    "owner_incarnation": ADMIN,
    "owner_initiator": ADMIN,
    "initiator": ADMIN,
    "stream": ID,
    "request": ID,
    "attempt": ID,
    "session": ID,
    "unit": ID,
}
IGNORED = frozenset(
    {
        "updated_at_ms",
        "started_at_ms",
        "takeover",
        "takeovers",
        "process",
        "detail",
        "luwid",
        "last_luwid",
        "current_luwid",
        "expires_at_ms",
    }
)
RECORDS: list[tuple[bytes, type[Message]]] = [
    (keys.MEMBERS, pb.MemberRecord),
    (keys.INITIATORS, pb.InitiatorRecord),
    (keys.STATUS_OUT, pb.ChannelStatus),
    (keys.STATUS_IN, pb.ChannelStatus),
    (keys.FENCES, pb.SenderFence),
    (keys.PROGRESS, pb.Progress),
    (keys.RECEIVER_FENCES, pb.ReceiverFence),
    (keys.RECEIVER_PROGRESS, pb.Progress),
    (keys.GUARDS, pb.Guard),
    (keys.PRODUCERS, pb.ProducerRecord),
]
QUEUE_RECORDS: dict[bytes, type[Message]] = {
    b"l": pb.Lock,
    b"h": pb.SegmentHeader,
    b"c": pb.Consumption,
    b"n": pb.Totals,
    b"d": pb.QueueState,
}


class Part(NamedTuple):
    shape: int
    """Interned."""
    kinds: tuple[int, ...]
    values: tuple[Any, ...]


_shapes: dict[Hashable, int] = {}
_records: dict[tuple[type[Message], bytes], tuple[Hashable, tuple[int, ...], tuple[Any, ...]]] = {}
_kvs: dict[tuple[KeyValue, int], Part] = {}


def intern(shape: Hashable) -> int:
    return _shapes.setdefault(shape, len(_shapes))


def part(shape: Hashable, kinds: Iterable[int] = (), values: Iterable[Any] = ()) -> Part:
    return Part(intern(shape), tuple(kinds), tuple(values))


def joined(shape: Hashable, parts: Iterable[Part]) -> Part:
    shapes: list[Hashable] = [shape]
    kinds: list[int] = []
    values: list[Any] = []
    for p in parts:
        shapes.append(p.shape)
        kinds += p.kinds
        values += p.values
    return Part(intern(tuple(shapes)), tuple(kinds), tuple(values))


def record_type(key: bytes) -> type[Message] | None:
    for prefix, kind in RECORDS:
        if key.startswith(prefix):
            return kind
    if key.startswith(keys.QUEUES):
        return QUEUE_RECORDS.get(key.split(b"/", 2)[2][:1])
    return None


def record_part(kind: type[Message], value: bytes) -> Part:
    known = _records.get((kind, value))
    if known is None:
        shape: list[Hashable] = [kind.__name__]
        kinds: list[int] = []
        values: list[Any] = []
        _flatten(kind.FromString(value), shape, kinds, values)
        known = _records[kind, value] = (tuple(shape), tuple(kinds), tuple(values))
    return part(*known)


def _flatten(message: Message, shape: list[Hashable], kinds: list[int], values: list[Any]) -> None:
    for field, value in message.ListFields():
        if field.name in IGNORED:
            continue
        shape.append(field.name)
        if field.name in FIELDS and not isinstance(value, Message):
            kinds.append(FIELDS[field.name])
            values.append(value)
        elif isinstance(value, Message):
            _flatten(value, shape, kinds, values)
            shape.append("end")
        elif hasattr(value, "items"):
            for key in sorted(value):
                shape.append(key)
                _flatten_one(value[key], shape, kinds, values)
        elif hasattr(value, "append"):
            for one in value:
                _flatten_one(one, shape, kinds, values)
            shape.append("end")
        else:
            shape.append(value)


def _flatten_one(value: Any, shape: list[Hashable], kinds: list[int], values: list[Any]) -> None:
    if isinstance(value, Message):
        _flatten(value, shape, kinds, values)
        shape.append("end")
    else:
        shape.append(value)


def kv_part(kv: KeyValue, store: int) -> Part:
    """A key with its value. `store`: ADMIN or QUEUE."""
    known = _kvs.get((kv, store))
    if known is None:
        kind = record_type(kv.key)
        inner = part(kv.value) if kind is None or not kv.value else record_part(kind, kv.value)
        known = part((kv.key, inner.shape), (store, store, *inner.kinds), (kv.create_revision, kv.mod_revision, *inner.values))
        _kvs[kv, store] = known
    return known


def seen(store: int) -> int:
    """Kind of a revision at which that store was read."""
    return store + SEEN_ADMIN


_ONE = (ADMIN, ADMIN, SEEN_ADMIN, SEEN_ADMIN, ID)


def digest(parts: Iterable[Part], *, one_store: bool = False) -> bytes:
    """The same for two lists of parts if, and as good as only if, they are the same up to renaming."""
    shapes: list[int] = []
    kinds: list[int] = []
    values: list[Any] = []
    for p in parts:
        shapes.append(p.shape)
        kinds += p.kinds
        values += p.values
    if one_store:
        kinds = [_ONE[kind] for kind in kinds]
    known: list[set[int]] = [{0}, {0}]
    for kind, value in zip(kinds, values, strict=True):
        if kind <= QUEUE:
            known[kind].add(value)
    ordered = [sorted(k) for k in known]
    ranks: list[dict[Any, int]] = [{v: i for i, v in enumerate(o)} for o in ordered]
    ids: dict[Any, int] = {}
    out: list[int] = []
    for kind, value in zip(kinds, values, strict=True):
        if kind <= QUEUE:
            out.append(ranks[kind][value])
        elif kind == ID:
            out.append(ids.setdefault(value, len(ids)))
        else:
            out.append(bisect.bisect_right(ordered[kind - SEEN_ADMIN], value))
    return hashlib.blake2b(marshal.dumps((shapes, out)), digest_size=16).digest()


def forget() -> None:
    """Empties the tables of shapes: between searches."""
    for table in (_shapes, _records, _kvs):
        table.clear()
