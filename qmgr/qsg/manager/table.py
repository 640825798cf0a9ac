"""The shared channel status table as a member sees it: live copies of its entries, and of who is registered to own them.

Owns the followers of `t/` and `ti/` in one structure (the group's admin structure, or the private store for private channels). What it
shows may be old: it serves to notice and to find before-images; every change is a compare-and-swap.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

import structlog

from qsg.manager.structure import Structure
from qsg.pb import records_pb2 as pb
from qsg.rules import keys
from qsg.rules.records import Damaged, read_record
from qsg.rules.steps import Sight
from qsg.store.contract import Event, Get, KeyValue
from qsg.store.follow import Follower

log = structlog.get_logger()

Listener = Callable[[str, pb.ChannelStatus | None, int], None]
"""(channel, its entry now; None = inactive, revision of the change), outbound entries only."""


class StatusTable:
    def __init__(self, structure: Structure) -> None:
        self.structure = structure
        self.on_change: list[Listener] = []
        self._out = structure.follow(keys.STATUS_OUT)
        self._in = structure.follow(keys.STATUS_IN)
        self._members = structure.follow(keys.MEMBERS)
        self.revision = 0
        """Of the newest change of an entry, a deletion too, that the copies show."""
        self._waiting: dict[asyncio.Event, None] = {}
        """Woken in the order in which they came: a set's own order differs from process to process."""

    async def start(self) -> None:
        self._out.add_listener(self._changed)
        for follower in (self._out, self._in):
            follower.add_listener(self._note)
        await asyncio.gather(*(f.ready() for f in self._followers))

    async def close(self) -> None:
        for follower in self._followers:
            await follower.close()

    @property
    def _followers(self) -> tuple[Follower, ...]:
        return self._out, self._in, self._members

    def entry(self, channel: str) -> pb.ChannelStatus | None:
        kv = self._out.items.get(keys.status_out(channel))
        return None if kv is None else _readable(kv)

    def has(self, channel: str) -> bool:
        return keys.status_out(channel) in self._out.items

    def registered(self, member: str) -> bool:
        return keys.member(member) in self._members.items

    def outbound(self) -> list[pb.ChannelStatus]:
        return _all_readable(self._out.items.values())

    def inbound(self) -> list[pb.ChannelStatus]:
        return _all_readable(self._in.items.values())

    def entries(self) -> list[pb.ChannelStatus]:
        """All, outbound first."""
        return _all_readable(kv for f in (self._out, self._in) for _, kv in sorted(f.items.items()))

    def sight(self, gone: dict[str, int], initiator: tuple[bytes, int]) -> Sight:
        """What recovery looks at, without asking the store. `gone`: member -> newest incarnation that is known to be dead, whether or not
        the copy shows it yet. `initiator`: our `ci/` key and its revision."""
        sight = Sight(min(f.revision for f in self._followers))
        for follower in self._followers:
            sight.kvs.update(follower.items)
        for member, incarnation in gone.items():
            if sight.create_revision(keys.member(member)) <= incarnation:
                sight.kvs.pop(keys.member(member), None)
        sight.mod_overrides[initiator[0]] = initiator[1]
        return sight

    async def read(self, channel: str) -> pb.ChannelStatus | None:
        """The entry as it is in the store now."""
        _, (result,) = await self.structure.read(Get(keys.status_out(channel)))
        return None if result.first is None else read_record(pb.ChannelStatus, result.first.value, result.first.key)

    async def later_than(self, revision: int, timeout_s: float) -> bool:
        """Waits until an entry has changed after `revision`; False when none has in time."""
        changed = asyncio.Event()
        self._waiting[changed] = None
        try:
            async with asyncio.timeout(timeout_s):
                while self.revision <= revision:
                    changed.clear()
                    await changed.wait()
        except TimeoutError:
            return False
        finally:
            del self._waiting[changed]
        return True

    def later(self, revision: int) -> list[pb.ChannelStatus]:
        """Entries that were written after `revision`."""
        kvs = [kv for f in (self._out, self._in) for kv in f.items.values() if kv.mod_revision > revision]
        return _all_readable(sorted(kvs, key=lambda kv: kv.key))

    def _note(self, events: list[Event]) -> None:
        self.revision = max(self.revision, *(event.kv.mod_revision for event in events)) if events else self.revision
        for changed in self._waiting:
            changed.set()

    def _changed(self, events: list[Event]) -> None:
        for event in events:
            channel = keys.unname(event.kv.key[len(keys.STATUS_OUT) :])
            entry = None if event.deleted else _readable(event.kv)
            if entry is None and not event.deleted:
                continue  # whoever changes it next is told; a running channel goes on
            for listener in list(self.on_change):
                listener(channel, entry, event.kv.mod_revision)


def _readable(kv: KeyValue) -> pb.ChannelStatus | None:
    """None for an entry that cannot be read: the others must not wait for it."""
    try:
        return read_record(pb.ChannelStatus, kv.value, kv.key)
    except Damaged as damaged:
        log.error("an entry of the status table cannot be read", detail=damaged.detail)
        return None


def _all_readable(kvs: Iterable[KeyValue]) -> list[pb.ChannelStatus]:
    return [entry for kv in kvs if (entry := _readable(kv)) is not None]
