"""Holds what a sender forgets against what its partner has, in the instant in which it forgets it.

Invariant 1 at its root: what is confirmed on a transmission queue, and what is deleted from one that is in a channel's hands, is covered by
the partner's record of the stream, and that record would survive a crash of the partner. Messages that expire are deleted unsent; what an
application takes it takes from a queue that is not open. And the other way round: when a queue's fence is closed, so that applications may
get from it, nothing is on it that the partner's record covers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from qsg.pb import records_pb2 as pb
from qsg.rules import keys
from qsg.rules.batches import bits
from qsg.store.contract import Event, KeyValue
from simulation.disk import DiskServer
from support.histories import Place, StoreHistory, place_of

if TYPE_CHECKING:
    from simulation.landscape import Landscape


KEPT = 200
"""Records of one stream: more than are ever on their way to a disk."""


class Confirmations:
    def __init__(self, land: Landscape, histories: Mapping[str, StoreHistory]) -> None:
        self._land, self._histories = land, histories
        self._segments: dict[tuple[str, bytes], KeyValue] = {}
        self._gone: dict[tuple[str, bytes], int] = {}
        """(store, key of a consumption record) -> bits of the entries that are gone."""
        self._open: set[tuple[str, bytes]] = set()
        """(store, key of a fence)."""
        self._records: dict[tuple[str, bytes], list[tuple[int, bytes]]] = {}
        """(store, stream) -> (revision, record), the newest last."""

    def saw(self, store: str, events: Sequence[Event]) -> list[str]:
        """One revision of one store, after its history has seen it."""
        history, wrong = self._histories[store], []
        for event in events:
            if event.kv.key.startswith(keys.RECEIVER_PROGRESS):
                stream = bytes.fromhex(event.kv.key[len(keys.RECEIVER_PROGRESS) :].decode())
                records = self._records.setdefault((store, stream), [])
                records.append((event.kv.mod_revision, event.kv.value))
                del records[:-KEPT]
        for queue in history.confirmed:
            ours = history.queues[queue]
            for priority, place in ours.confirmed.items():
                if lack := self._lacks(ours.fence.stream, priority, place):
                    wrong.append(f"{queue} has {place} of priority {priority} confirmed, and {lack}")
        for event in events:
            if event.kv.key.startswith(keys.QUEUES):
                wrong += self._segment(store, history, event)
        for event in events:
            if event.kv.key.startswith(keys.FENCES):
                wrong += self._fence(store, event)
        return wrong

    def _fence(self, store: str, event: Event) -> list[str]:
        """Behind what the same revision deletes."""
        fence = pb.SenderFence.FromString(event.kv.value)
        if fence.open:
            self._open.add((store, event.kv.key))
            return []
        if (store, event.kv.key) not in self._open:
            return []
        self._open.remove((store, event.kv.key))
        queue = keys.unname(event.kv.key[len(keys.FENCES) :])
        record = next((records[-1][1] for (_, stream), records in self._records.items() if stream == fence.stream and records), b"")
        confirmed = pb.Progress.FromString(record).confirmed
        for (where, key), kv in self._segments.items():
            if where != store or not key.startswith(keys.headers(queue)):
                continue
            priority, suffix = keys.split_segment_key(queue, key)
            gone = self._gone.get((store, keys.consumption(queue, priority, bytes(suffix))), 0)
            first = next(n for n in range(2**20) if not gone >> n & 1)
            if priority in confirmed and (kv.create_revision, bytes(suffix), first) <= place_of(confirmed[priority]):
                return [f"{queue} is given to applications, and {key.decode()} is on it, which the partner has"]
        return []

    def _segment(self, store: str, history: StoreHistory, event: Event) -> list[str]:
        name, _, rest = event.kv.key[len(keys.QUEUES) :].partition(b"/")
        self._on_queue(store, event.kv)
        if not rest.startswith(b"h/") or not event.deleted:
            return []
        segment = self._segments.pop((store, event.kv.key), None)
        ownership = history.queues.get(keys.unname(name))
        if segment is None or ownership is None or not ownership.fence.open:
            return []
        priority, suffix = keys.split_segment_key(ownership.queue, segment.key)
        lack = self._lacks(ownership.fence.stream, priority, (segment.create_revision, bytes(suffix), 0))
        if not lack or any(entry.expires_at_ms for entry in pb.SegmentHeader.FromString(segment.value).entries):
            return []
        return [f"{segment.key.decode()} is deleted, and {lack}"]

    def _on_queue(self, store: str, kv: KeyValue) -> None:
        """A header, or what is gone of its entries."""
        kind = kv.key[len(keys.QUEUES) :].partition(b"/")[2][:2]
        if kind == b"h/" and kv.value:
            self._segments[store, kv.key] = kv
        elif kind == b"c/":
            self._gone[store, kv.key] = bits(pb.Consumption.FromString(kv.value).gone)

    def _lacks(self, stream: bytes, priority: int, place: Place) -> str:
        """What is wrong with the partner's record, "" when it covers the place for good."""
        name, records = next(((s, r) for (s, of), r in self._records.items() if of == stream), ("", []))
        synced = next((value for revision, value in reversed(records) if self._is_synced(name, revision)), None)
        if synced is None:
            return "no partner has a record of its stream"
        confirmed = pb.Progress.FromString(synced).confirmed
        if priority in confirmed and place_of(confirmed[priority]) >= place:
            return ""
        return f"the partner's record in {name}, as far as it is synced, does not cover that"

    def _is_synced(self, store: str, revision: int) -> bool:
        server = self._land.stores()[store]
        return not isinstance(server, DiskServer) or server.is_synced(revision, asyncio.get_running_loop().time())

    def crashed(self, store: str, revision: int, left: Sequence[KeyValue]) -> None:
        """What the store had behind `revision` is gone, and what was deleted behind it is back."""
        for known in (self._segments, self._gone):
            for where in [where for where in known if where[0] == store]:
                del known[where]
        self._open = {where for where in self._open if where[0] != store}
        for kv in left:
            if kv.key.startswith(keys.FENCES) and pb.SenderFence.FromString(kv.value).open:
                self._open.add((store, kv.key))
            elif kv.key.startswith(keys.QUEUES):
                self._on_queue(store, kv)
        for (name, _), records in self._records.items():
            if name == store:
                records[:] = [record for record in records if record[0] <= revision]
