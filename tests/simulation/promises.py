"""What single commits promise, beside what `support.histories` judges: each is looked at in its instant, in one store.

A member that has just joined, and lives, is declared dead by nobody: a verdict is of the incarnation that was accused. One that was told to
stop is none of these: it leaves the structures that it reaches, and the others end what is left of it in the rest. A channel that ends
because nothing is left to send leaves nothing on its queue (seen only where one transaction writes both its lock and its entry), but for
what the same transaction put there. A channel that is STOPPED stays so until a command starts it, or makes it inactive.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from qsg.pb import records_pb2 as pb
from qsg.rules import keys, status
from qsg.store.contract import Event, KeyValue, get_prefix

if TYPE_CHECKING:
    from simulation.landscape import Landscape

YOUNG_S = 1.4
"""Less than the silence that counts, and than any lease."""


class Promises:
    def __init__(self, land: Landscape) -> None:
        self._land = land
        self._joined: dict[tuple[str, bytes], tuple[float, str]] = {}
        """(store, member key) -> (when, random id of the process)."""
        self._entries: dict[tuple[str, bytes], pb.ChannelStatus] = {}
        self._stopped_at: dict[tuple[str, bytes], float] = {}

    def saw(self, store: str, events: Sequence[Event]) -> Iterator[str]:
        """One revision of one store."""
        for event in events:
            if event.kv.key.startswith(keys.STATUS_OUT):
                yield from self._status(store, events, event)
            elif not event.kv.key.startswith(keys.MEMBERS):
                continue
            elif event.deleted:
                yield from self._dead(store, events, event.kv.key)
            else:
                process = pb.MemberRecord.FromString(event.kv.value).process
                self._joined[store, event.kv.key] = self._land.loop.time(), process

    def crashed(self, store: str, left: Sequence[KeyValue]) -> None:
        """A disk lost what was not synced: its entries are what is left."""
        self._entries = {key: entry for key, entry in self._entries.items() if key[0] != store}
        for kv in left:
            if kv.key.startswith(keys.STATUS_OUT):
                self._entries[store, kv.key] = pb.ChannelStatus.FromString(kv.value)
                self._stopped_at.setdefault((store, kv.key), 0.0)

    def _status(self, store: str, events: Sequence[Event], event: Event) -> Iterator[str]:
        """A running channel that is given up together with its entry has come to its end: nothing is left to send."""
        key = (store, event.kv.key)
        before = self._entries.pop(key, None)
        after = pb.INACTIVE if event.deleted else pb.ChannelStatus.FromString(event.kv.value).state
        if after == pb.STOPPED and (before is None or before.state != pb.STOPPED):
            self._stopped_at[key] = self._land.loop.time()
        elif after != pb.STOPPED and before is not None and before.state == pb.STOPPED:
            channel = before.channel
            if not self._land.releasing[channel] and self._land.released.get(channel, -1.0) < self._stopped_at[key]:
                yield f"{channel} was STOPPED, and is {status.name(after)} though no command was given since"
        if not event.deleted:
            self._entries[key] = pb.ChannelStatus.FromString(event.kv.value)
        elif before is not None and before.state == pb.RUNNING and not self._land.pods[before.owner].is_stopping:
            queue = before.transmission_queue
            put_with_it = any(e.kv.key.startswith(keys.totals(queue)) for e in events)  # and triggers it anew
            if not put_with_it and any(e.deleted and e.kv.key == keys.lock(queue) for e in events):
                found = self._land.stores()[store].state.read(get_prefix(keys.totals(queue))).kvs
                totals = [pb.Totals.FromString(kv.value) for kv in found]
                if left := sum(t.put - t.got for t in totals):
                    yield f"{before.channel} ends idle while {left} messages wait on {queue}"

    def _dead(self, store: str, events: Sequence[Event], key: bytes) -> Iterator[str]:
        member = keys.unname(key[len(keys.MEMBERS) :])
        judges = {keys.unname(e.kv.key[len(keys.GUARDS) :].partition(b"/")[0]) for e in events if e.kv.key.startswith(keys.GUARDS)}
        joined, process = self._joined.pop((store, key), (0.0, ""))
        pod, age_s = self._land.pods[member], self._land.loop.time() - joined
        lives = pod.manager_process is not None and not pod.manager_process.paused and pod.number == process and not pod.is_stopping
        if judges - {member} and lives and age_s < YOUNG_S:
            yield f"{member}, which joined {age_s:.3f} s ago and lives, is declared dead by {', '.join(judges)}"
