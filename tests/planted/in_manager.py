"""Planted bugs in the services: what is done too early, never, twice, or by the wrong clock."""

from __future__ import annotations

import asyncio
from typing import Any

from planted.patching import Patches
from qsg.manager import backout, committer, consuming, inflow, peers, producers, sending
from qsg.pb import channel_pb2
from qsg.pb import records_pb2 as pb
from qsg.rules import consume
from qsg.rules.unit import Committed, Unit
from qsg.store import follow


def acknowledged_before_the_commit(patches: Patches) -> None:
    """A put is acknowledged when it is handed to the store, not when it is there."""

    def make(commit: Any) -> Any:
        async def hasty(self: Any, unit: Unit, **options: Any) -> Committed:
            if not unit.puts or self.is_fenced:
                committed: Committed = await commit(self, unit, **options)
                return committed
            background = asyncio.get_running_loop().create_task(commit(self, unit, **options))
            background.add_done_callback(lambda task: task.cancelled() or task.exception())
            return Committed(self.revision)

        return hasty

    patches.wrap(committer.Committer, "commit", make)


def confirmed_before_the_commit(patches: Patches) -> None:
    """A batch is confirmed when it has come in, not when it is stored."""

    def early(batch: Any) -> Any:
        async def confirm_first(self: Any, one: channel_pb2.Batch) -> None:
            sequence = self._course.sequence + one.messages
            early = channel_pb2.Confirm(number=one.number, luwid=one.luwid, sequence=sequence)
            await self._session.send(channel_pb2.FRAME_CONFIRM, early)
            await batch(self, one)

        return confirm_first

    def silent(_: Any) -> Any:
        async def nothing(self: Any, confirm: channel_pb2.Confirm) -> None:
            return

        return nothing

    patches.wrap(inflow.Inflow, "_batch", early)
    patches.wrap(inflow.Inflow, "_send_confirm", silent)


def record_apart_from_its_batch(patches: Patches) -> None:
    """The receiver's record is written in a transaction of its own, behind the messages."""

    def make(unit_of: Any) -> Any:
        async def apart(self: Any, pending: Any) -> Unit:
            unit: Unit = await unit_of(self, pending)
            record = Unit("record", compares=self._ours(), changes=[unit.changes.pop()])
            later = asyncio.get_running_loop().call_later(0.05, lambda: _start(self._structure.commit(record)))
            assert later is not None
            return unit

        return apart

    patches.wrap(inflow.Inflow, "_unit", make)


def _start(work: Any) -> None:
    task = asyncio.get_running_loop().create_task(work)
    task.add_done_callback(lambda done: done.cancelled() or done.exception())


def deleted_before_the_confirm(patches: Patches) -> None:
    """A batch is deleted from the transmission queue when it is sent."""

    def make(send_batch: Any) -> Any:
        async def and_delete(self: Any, session: Any, builder: Any) -> None:
            await send_batch(self, session, builder)
            if self._flight.sent:
                built = self._flight.sent[-1]
                self._flight.settle.extend(built.pieces)
                built.pieces = []
                self._to_settle.set()

        return and_delete

    patches.wrap(sending.Sender, "_send_batch", make)


def watch_from_the_wrong_revision(patches: Patches) -> None:
    """A live copy watches from one revision too late: what was committed right behind its list is never seen."""

    def make(watch: Any) -> Any:
        async def late(self: Any) -> None:
            self.revision += 1
            await watch(self)

        return late

    patches.wrap(follow.Follower, "_watch", make)


def lease_by_wall_clock(patches: Patches) -> None:
    """How long a peer was silent is measured by the wall clock, which can be set, and looked at often."""

    def make(look: Any) -> Any:
        def by_wall(self: Any) -> None:
            ahead = self._world.wall_ms() / 1000 - asyncio.get_running_loop().time()
            stepped = ahead - self.__dict__.setdefault("planted_ahead", ahead)
            self.planted_ahead = ahead
            if stepped > 0.5:
                for link in self._links.values():
                    link.heard_at -= stepped
            self._closely = True
            look(self)
            self._look_after(peers.LOOK_S)

        return by_wall

    patches.wrap(peers.PeerLinks, "_look", make)


def claims_not_released(patches: Patches) -> None:
    """A unit of work that is backed out keeps its claims."""

    def make(_: Any) -> Any:
        async def keep(*arguments: Any, **options: Any) -> None:
            return

        return keep

    patches.wrap(backout, "give_back", make)


def claims_of_the_dead_kept(patches: Patches) -> None:
    """What a dead member had claimed stays claimed."""
    patches.wrap(consume, "void_holders", lambda _: lambda record, live: frozenset())


def gets_do_not_compare_the_fence(patches: Patches) -> None:
    """Applications get from a transmission queue that a channel has in its hands."""
    patches.wrap(consuming.Guarded, "compares", lambda _: lambda self: [self.opened.same()])
    patches.wrap(consuming.Guarded, "read", lambda _: lambda self, result: None)


def producer_epoch_ignored(patches: Patches) -> None:
    """A put of an earlier connection of its producer is taken."""

    def make(advance: Any) -> Any:
        def any_epoch(value: bytes | None, number: Any, expires_at_ms: int) -> bytes:
            record = pb.ProducerRecord.FromString(value or b"")
            same = producers.ProducerNumber(number.producer, number.structure, record.epoch, number.first, number.count)
            advanced: bytes = advance(value, same, expires_at_ms)
            return advanced

        return any_epoch

    patches.wrap(producers, "advance", make)


def producer_gap_ignored(patches: Patches) -> None:
    """A number is taken though the one before it was refused."""

    def make(advance: Any) -> Any:
        def any_gap(value: bytes | None, number: Any, expires_at_ms: int) -> bytes:
            record = pb.ProducerRecord.FromString(value or b"")
            if number.first > record.last + 1:
                record.last = number.first - 1
                value = record.SerializeToString()
            advanced: bytes = advance(value, number, expires_at_ms)
            return advanced

        return any_gap

    patches.wrap(producers, "advance", make)
