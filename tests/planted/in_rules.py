"""Planted bugs in the rules: what a compare, an order of steps or a record is forgotten for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from planted.patching import Patches
from qsg.pb import records_pb2 as pb
from qsg.rules import batches, keys, lanes, ownership, packed, receiver, slots, status, steps, stopping
from qsg.rules.lanes import Position
from qsg.rules.unit import Change
from qsg.store import contract
from qsg.store.contract import Compare, Relation, Target


def always(key: bytes, end: bytes = b"") -> Compare:
    """A compare that holds whatever is there."""
    return Compare(key, Target.MOD, Relation.GREATER, -1, end)


def blind(change: Change) -> Change:
    """The same after-image, written over whatever is there."""
    after = change.apply(change.cell.value)
    return Change(change.cell, lambda _: after, guarded=False)


def no_fence(patches: Patches) -> None:
    """No fence: the sender's fence `s/` is compared by nobody."""

    def make(unchanged: Any) -> Any:
        return lambda key, revision: always(key) if key.startswith(keys.FENCES) else unchanged(key, revision)

    patches.wrap(contract, "unchanged", make)


def lock_not_compared(patches: Patches) -> None:
    """The lock of a transmission queue is compared by nobody who writes under it."""

    def make(unchanged: Any) -> Any:
        def lenient(key: bytes, revision: int) -> Compare:
            return always(key) if key.startswith(keys.QUEUES) and key.endswith(b"/l") else unchanged(key, revision)

        return lenient

    patches.wrap(contract, "unchanged", make)


def member_key_not_compared(patches: Patches) -> None:
    """A member that was declared dead goes on writing: its transactions do not compare its own key."""

    def make(own: Any) -> Any:
        def lenient(lane: Any, guard: Any) -> Any:
            compares, gets = own(lane, guard)
            return [always(lane.member_key), *compares[1:]], gets

        return lenient

    patches.wrap(packed, "own", make)


def verdict_by_name(patches: Patches) -> None:
    """A verdict names the member and not its incarnation: it kills whoever has just taken the dead one's place."""

    def make(execution: Any) -> Any:
        def by_name(member: str, incarnation: int) -> Any:
            unit = execution(member, incarnation)
            unit.compares.clear()
            return unit

        return by_name

    patches.wrap(ownership, "execution", make)


def ownership_from_a_stale_read(patches: Patches) -> None:
    """An entry of the status table is written over from what was read, not compared and swapped."""
    patches.wrap(steps, "swap_entry", lambda swap_entry: lambda cell, after: blind(swap_entry(cell, after)))


def lock_from_a_stale_read(patches: Patches) -> None:
    """The lock is taken because it was free when it was looked at."""

    def make(locking: Any) -> Any:
        def stale(*arguments: Any) -> Any:
            unit = locking(*arguments)
            unit.changes = [blind(change) for change in unit.changes]
            unit.compares = []
            return unit

        return stale

    patches.wrap(ownership, "_locking", make)


def recovery_not_idempotent(patches: Patches) -> None:
    """Each member that recovers an entry writes it, whoever was faster."""

    def make(recovery: Any) -> Any:
        def again(*arguments: Any) -> Any:
            unit, after = recovery(*arguments)
            unit.compares.clear()
            unit.changes = [blind(change) for change in unit.changes]
            return unit, after

        return again

    patches.wrap(ownership, "recovery", make)


def stopped_lost_at_takeover(patches: Patches) -> None:
    """Who recovers a dead member's channels starts also those that were stopped, or were being stopped."""

    def widen(leftovers: Any) -> Any:
        def all_of_them(me: Any, admin: Any, **options: Any) -> Iterator[Any]:
            yield from leftovers(me, admin, **options)
            for kv in admin.under(keys.STATUS_OUT):
                entry = pb.ChannelStatus.FromString(kv.value)
                if entry.state == pb.STOPPED and not admin.lives(entry.owner, entry.owner_incarnation):
                    dead = ownership.void(entry.owner, entry.owner_incarnation)
                    yield ownership.Leftover(admin.cell(kv.key), entry, "queue manager failed", dead)

        return all_of_them

    def revive(recovery: Any) -> Any:
        def started(me: Any, admin: str, leftover: Any, now_ms: int, detect_ms: float, draw: Any) -> Any:
            if leftover.entry.state in (pb.STOPPING, pb.STOPPED):
                wanted = pb.ChannelStatus.FromString(status.image(leftover.entry))
                wanted.state = pb.RUNNING
                unit, after = recovery(me, admin, _with(leftover, wanted), now_ms, detect_ms, draw)
                unit.changes = [steps.swap(leftover.cell, status.image(after))]
                return unit, after
            return recovery(me, admin, leftover, now_ms, detect_ms, draw)

        return started

    patches.wrap(ownership, "leftovers", widen)
    patches.wrap(ownership, "recovery", revive)


def _with(leftover: Any, entry: pb.ChannelStatus) -> Any:
    cell = steps.Sight().cell(leftover.cell.key)
    cell.value = status.image(entry)
    return ownership.Leftover(cell, entry, leftover.cause, leftover.compare)


def stopped_without_the_partner(patches: Patches) -> None:
    """A stop closes the fence without asking the partner what it has: neither fenced there nor settled here."""

    def make(_: Any) -> Any:
        def unasked(place: Any, queue: Any, *_: Any) -> Any:
            return (yield from stopping._close(place, queue))

        return unasked

    patches.wrap(stopping, "_fence_and_settle", make)


def doorbells_not_compared(patches: Patches) -> None:
    """An idle channel unlocks, and a lock is taken, without comparing that nothing new lies under the prefix that was read empty."""

    def make(nothing_changed_after: Any) -> Any:
        def lenient(prefix: bytes, revision: int) -> Compare:
            compare = nothing_changed_after(prefix, revision)
            return always(compare.key, compare.end)

        return lenient

    patches.wrap(contract, "nothing_changed_after", make)


def blind_repeat(patches: Patches) -> None:
    """A transaction that got no answer counts as not applied, and is built and sent anew."""

    def make(_: Any) -> Any:
        return lambda self: self._settle(slots.REFUSED, self.guard)

    patches.wrap(slots.Slot, "unavailable", make)


def failed_copy_is_the_end(patches: Patches) -> None:
    """A failed copy is taken for the end of its attempt, though an earlier copy may still be applied."""

    def make(failed: Any) -> Any:
        def hasty(self: Any, guard: Any, ours: bool) -> Any:
            self.lost = 0 if guard.revision == self.guard.revision else self.lost
            return failed(self, guard, ours)

        return hasty

    patches.wrap(slots.Slot, "failed", make)


def guard_by_number(patches: Patches) -> None:
    """The guard's number, not the id of the attempt, is taken for proof that the attempt was applied."""

    def make(failed: Any) -> Any:
        def numbered(self: Any, guard: Any, ours: bool) -> Any:
            if self.lost and guard.number == self.next_number:
                return self._settle(slots.Verdict(slots.Kind.APPLIED, guard.revision), guard)
            return failed(self, guard, ours)

        return numbered

    patches.wrap(slots.Slot, "failed", make)


def record_without_epoch(patches: Patches) -> None:
    """The partner's record knows no epoch: whoever binds last is served, be it an instance of long ago."""

    def make(bind: Any) -> Any:
        def any_epoch(request: Any, fence: Any, *rest: Any) -> Any:
            if fence is not None:
                fence = pb.ReceiverFence.FromString(fence.SerializeToString())
                fence.epoch = fence.instance = 0
            return bind(request, fence, *rest)

        return any_epoch

    patches.wrap(receiver, "bind", make)


def positions_not_checked(patches: Patches) -> None:
    """The receiver takes what lies at or below its record, as long as its numbers are in a row."""

    def make(accept: Any) -> Any:
        def any_position(self: Any, batch: Any) -> Any:
            self.positions = {}
            return accept(self, batch)

        return any_position

    patches.wrap(receiver.Course, "accept", make)


def resync_one_too_few(patches: Patches) -> None:
    """Resynchronisation off by one: the last message that the partner has is taken for one that it has not."""

    def make(covered: Any) -> Any:
        def short(loaded: Any, position: Any) -> Any:
            if position is not None:
                position = Position(position.create_revision, position.suffix, position.index - 1)
            return covered(loaded, position)

        return short

    patches.wrap(batches, "covered", make)


def resync_one_too_many(patches: Patches) -> None:
    """Resynchronisation off by one: the first message that the partner has not is taken for one that it has."""

    def make(covered: Any) -> Any:
        def long(loaded: Any, position: Any) -> Any:
            if position is not None:
                position = Position(position.create_revision, position.suffix, position.index + 1)
            return covered(loaded, position)

        return long

    patches.wrap(batches, "covered", make)


def lanes_each_for_itself(patches: Patches) -> None:
    """What was read of one lane is sent though another lane, not read yet, may hold something older."""

    def make(_: Any) -> Any:
        def release(self: Any, priority: int) -> None:
            for lane in self._lanes[priority].values():
                self.ready(priority).extend(lane.waiting)
                lane.waiting.clear()

        return release

    patches.wrap(lanes.LaneReader, "_release", make)
