"""Watches every commit of every store while a seed runs, and counts what is left when it has drained.

Owns invariants 3, 4, 5, 7 and 8, and the root of 1 (`simulation.confirmed`). Sees a commit in the instant in which it is made, so that what
one store shows can be held against what another shows at the same time. Does not see what a disk loses in a crash: after one it begins with
what is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from qsg.pb import records_pb2 as pb
from qsg.rules import keys, status
from qsg.store.contract import Event, Get
from qsg.store.memory import MemoryServer
from simulation.confirmed import Confirmations
from simulation.promises import Promises
from simulation.tally import ORDERED_QUEUES
from support.histories import StoreHistory

if TYPE_CHECKING:
    from simulation.landscape import Landscape


TARGETS = tuple(keys.headers(queue) for queue in sorted(ORDERED_QUEUES))


class Observer:
    def __init__(self, land: Landscape, senders: dict[str, str]) -> None:
        """`senders`: channel -> the store that has its status entry."""
        self.land, self.senders = land, senders
        self.histories: dict[str, StoreHistory] = {}
        self.confirmations = Confirmations(land, self.histories)
        self.promises = Promises(land)
        for name, server in land.stores().items():
            self._watch(name, server)

    def _watch(self, name: str, server: MemoryServer) -> None:
        self.histories[name] = StoreHistory()

        def committed(events: Sequence[Event]) -> None:
            if events[0].kv.mod_revision == events[-1].kv.mod_revision:
                self._saw(name, events)
                return
            for _, group in groupby(events, key=lambda e: e.kv.mod_revision):
                self._saw(name, list(group))

        server.on_commit = committed

    def crashed(self, name: str, server: MemoryServer) -> None:
        """A disk lost what was not synced: what is left is the new beginning."""
        self.land.tally.rewound(name, server.state.revision)
        left = server.state.read(Get(b"\0", b"\0")).kvs
        self.confirmations.crashed(name, server.state.revision, left)
        self.promises.crashed(name, left)
        self.histories[name] = history = StoreHistory()
        for kv in left:
            history.saw([Event(kv)])

    def owner(self, channel: str) -> str:
        """The member of the group that runs a channel, at whichever end."""
        if self.senders[channel] == "admin":
            entry = self.histories["admin"].table.entries.get(keys.status_out(channel))
            return entry.owner if entry is not None else ""
        fences = [r.fence for name in self.land.structures for r in self.histories[name].receivers.values() if r.fence.channel == channel]
        return fences[-1].member if fences else ""

    def _saw(self, store: str, events: Sequence[Event]) -> None:
        history = self.histories[store]
        for wrong in history.saw(events):
            self.land.violation(f"{store}: {wrong}")
        for channel in history.moved:
            self._moves(channel, "its receiver took messages")
        for queue in history.confirmed:
            self._moves(history.queues[queue].fence.channel, f"messages of {queue} were confirmed")
        for wrong in self.confirmations.saw(store, events):
            self.land.violation(f"{store}: {wrong}")
        for wrong in self.promises.saw(store, events):
            self.land.violation(f"{store}: {wrong}")
        for event in events:
            if event.kv.key.startswith(TARGETS) and not event.deleted and event.kv.version == 1:
                self._published(store, event)
        if self.land.tracing:
            self._show(store, events)

    def _published(self, store: str, event: Event) -> None:
        queue = event.kv.key.split(b"/", 2)[1].decode()
        for entry in pb.SegmentHeader.FromString(event.kv.value).entries:
            self.land.tally.published(store, event.kv.mod_revision, queue, entry.message_id)

    def _moves(self, channel: str, what: str) -> None:
        store = self.senders.get(channel)
        if store is not None and self.histories[store].table.state(channel) == pb.STOPPED:
            self.land.violation(f"{channel} is STOPPED, and {what}")

    def _show(self, store: str, events: Sequence[Event]) -> None:
        for event in events:
            kv = event.kv
            if kv.key.startswith((keys.STATUS_OUT, keys.STATUS_IN)):
                entry = pb.ChannelStatus.FromString(kv.value)
                shown = "INACTIVE" if event.deleted else f"{status.name(entry.state)} on {entry.owner}, epoch {entry.epoch} {entry.detail}"
            elif kv.key.startswith(keys.MEMBERS):
                shown = "gone" if event.deleted else f"incarnation {kv.create_revision}"
            elif kv.key.endswith(b"/l"):
                lock = pb.Lock.FromString(kv.value)
                shown = "unlocked" if event.deleted else f"locked by {lock.member} {lock.incarnation}, epoch {lock.epoch}"
            elif kv.key.startswith(keys.RECEIVER_FENCES):
                fence = pb.ReceiverFence.FromString(kv.value)
                shown = f"{fence.channel} bound by {fence.member}, epoch {fence.epoch} instance {fence.instance}"
            else:
                continue
            self.land.trace(store, f"{kv.key.decode()[:40]} {shown} @{kv.mod_revision}")

    # At the end

    def standing(self) -> dict[str, int]:
        """Incarnations of members and epochs of transmission queues: while nothing fails these stay."""
        found: dict[str, int] = {}
        for name, history in self.histories.items():
            found |= {f"{name}: incarnation of {member}": number for member, number in history.live.items()}
            found |= {f"{name}: epoch of {q.queue}": q.fence.epoch for q in history.queues.values() if q.lock is not None}
        return found

    def check_drained(self) -> None:
        """Invariants 6 and 7, once everything has arrived."""
        for channel, store in self.senders.items():
            state = self.histories[store].table.state(channel)
            if state not in (pb.RUNNING, pb.INACTIVE):
                self.land.violation(f"{channel} is {status.name(state)} after everything was mended")
            elif state == pb.RUNNING:
                self._check_lock(self.histories[store].table.entries[keys.status_out(channel)], store)
        for name, server in self.land.stores().items():
            self._check_keys(name, server)

    def _check_lock(self, entry: pb.ChannelStatus, store: str) -> None:
        """Who runs a channel holds its queue, in whichever structure that is."""
        for name in self.land.structures if store in self.land.structures else (store,):
            ownership = self.histories[name].queues.get(entry.transmission_queue)
            lock = ownership.lock if ownership is not None else None
            if lock is not None and (lock.member, lock.epoch) == (entry.owner, entry.epoch):
                return
        self.land.violation(f"{entry.channel} runs on {entry.owner}, epoch {entry.epoch}, without its lock")

    def _check_keys(self, name: str, server: MemoryServer) -> None:
        group = not name.startswith("private")
        live = self.histories[name].live
        expected = 3 if group else 1
        if len(live) != expected:
            self.land.violation(f"{name}: {len(live)} members, not {expected}: {sorted(live)}")
        for kv in server.state.read(Get(keys.QUEUES, keys.QUEUES[:-1] + b"0")).kvs:
            queue, _, kind = kv.key[len(keys.QUEUES) :].partition(b"/")
            if kind.startswith((b"h/", b"b/", b"c/", b"x/", b"y/")):
                self.land.violation(f"{name}: left behind: {kv.key.decode()}")
            elif kind == b"l":
                lock = pb.Lock.FromString(kv.value)
                if live.get(lock.member) != lock.incarnation:
                    self.land.violation(f"{name}: {queue.decode()} is still locked by {lock.member} {lock.incarnation}, which is gone")
        for key, entry in self.histories[name].table.entries.items():
            if live.get(entry.owner) != entry.owner_incarnation:
                self.land.violation(f"{name}: {key.decode()} is still owned by {entry.owner} {entry.owner_incarnation}, which is gone")
