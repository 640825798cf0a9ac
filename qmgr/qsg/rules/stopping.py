"""Stopping a channel, starting a stopped one, resolving what is in doubt, resetting its sequence number: the commands, as lists of steps.

Owns: the way into STOPPED and out of it. Invariants: a channel becomes STOPPED only when nothing of its old instances can be accepted
any more and nothing is in doubt (N5, P7); only a command leaves STOPPED (C7). A stop is a list that any member carries on: entry
STOPPING; epoch + 1 in the fence and the lock given up; bind at the partner with the raised epoch; delete what its record covers and
close the fence; entry STOPPED. Does not end the running instance: its next write fails, and its supervisor follows the entry.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from qsg.pb import channel_pb2
from qsg.pb import records_pb2 as pb
from qsg.rules import keys, negotiate, retry, status
from qsg.rules.definitions import SEQUENCE_WRAP
from qsg.rules.ownership import owner_lives
from qsg.rules.reasons import Reason, Refusal
from qsg.rules.records import read_record
from qsg.rules.settle import settle
from qsg.rules.steps import (
    Commit,
    Draw,
    FenceAtPartner,
    Me,
    PartnerNotReached,
    Place,
    Sight,
    Steps,
    look,
    record,
    swap,
    swap_entry,
)
from qsg.rules.unit import Cell, CompareFailed, Unit
from qsg.store.contract import Get, get_prefix, unchanged

EPOCH_TRIES = 3
LOST = frozenset({Reason.NO_RECORD, Reason.SEQUENCE_ERROR})
"""The partner has answered and has lost data: it holds no session of an old instance, and what is in doubt stays so until reset or
resolved by hand."""


@dataclass(frozen=True, slots=True)
class StopOrder:
    to: status.State
    """STOPPED or INACTIVE."""
    force: bool
    now_ms: int
    reason: int = 0
    """Of an error that stopped the channel, 0 = by command."""
    detail: str = ""


def _entry_sight(place: Place) -> Steps[Sight]:
    return (yield from look(place.admin, Get(keys.status_out(place.channel.name)), get_prefix(keys.MEMBERS)))


# --- stop -----------------------------------------------------------------------------------------------------------------------------


def ask_stop(me: Me, place: Place, order: StopOrder, draw: Draw, *, mine: bytes = b"", only: str = "") -> Steps[str]:
    """First step of a stop: entry STOPPING. Answers the member that carries it on, "" when the channel is stopped already.

    A quiesce is carried on by a living owner, which lets its batches in flight finish; a force by the member that was asked.
    `only`: the one member that reaches the partner carries it on, as soon as it lives.
    `mine`: an owner stops what it has taken, for an error, and no other's: the request in its entry.
    """
    sight = yield from _entry_sight(place)
    cell = sight.cell(keys.status_out(place.channel.name))
    before = status.parse(cell.value)
    if mine and (before is None or before.request != mine):
        raise Refusal(Reason.CHANNEL_IN_USE, f"{place.channel.name} is another's by now, or stopped")
    if before is None and order.to == pb.INACTIVE:
        raise Refusal(Reason.CHANNEL_NOT_ACTIVE, f"{place.channel.name} is inactive")
    if before is not None and before.state == pb.STOPPED:
        if order.to == pb.INACTIVE:
            yield from _commit_entry(place, cell, None)
        return ""
    carrier = only or me.member
    if not only and before is not None and not order.force and before.state in (*status.HELD, pb.STOPPING) and owner_lives(before, sight):
        carrier = before.owner
    after = _stopping(place, before, order, draw())
    if carrier == me.member:
        after.owner, after.owner_incarnation, after.owner_initiator = me.member, me.incarnations[place.admin], me.initiator
    elif only:
        after.owner, after.owner_incarnation = only, sight.create_revision(keys.member(only))
    yield from _commit_entry(place, cell, after)
    return carrier


def _stopping(place: Place, before: pb.ChannelStatus | None, order: StopOrder, request: bytes) -> pb.ChannelStatus:
    force = order.force or (before is not None and before.state == pb.STOPPING and before.stop_force)
    after = status.altered(before, pb.STOPPING, order.now_ms, stop_to=order.to, stop_force=force, request=request, type=pb.SENDER)
    after.channel, after.transmission_queue = place.channel.name, place.queue
    after.reason, after.detail = order.reason, order.detail
    return after


def _commit_entry(place: Place, cell: Cell, after: pb.ChannelStatus | None) -> Steps[None]:
    try:
        yield Commit(place.admin, Unit("entry", changes=[swap_entry(cell, after)]))
    except CompareFailed as error:
        raise Refusal(Reason.CHANGED_MEANWHILE, str(error)) from error


@dataclass(slots=True)
class _Queue:
    """The queue's side of a stop or a resolve."""

    fence: Cell
    progress: Cell
    lock: Cell
    seen: Sight

    @property
    def record(self) -> pb.SenderFence:
        return read_record(pb.SenderFence, self.fence.value or b"", self.fence.key)

    @property
    def holder(self) -> pb.Lock | None:
        return None if self.lock.value is None else read_record(pb.Lock, self.lock.value, self.lock.key)

    def held_by_other(self, channel: str) -> bool:
        """Another channel runs on this queue, or left it in doubt: nothing there is ours to touch."""
        holder, fence = self.holder, self.record
        alive = holder is not None and self.seen.lives(holder.member, holder.incarnation)
        return (alive and holder is not None and holder.channel != channel) or (fence.open and fence.channel != channel)


def _queue_side(place: Place) -> Steps[_Queue]:
    fence, progress, lock = keys.sender_fence(place.queue), keys.sender_progress(place.queue), keys.lock(place.queue)
    sight = yield from look(place.structure, Get(fence), Get(progress), Get(lock), get_prefix(keys.MEMBERS))
    return _Queue(sight.cell(fence), sight.cell(progress), sight.cell(lock), sight)


def carry_stop(me: Me, place: Place, now_ms: int, draw: Draw, sender_name: str) -> Steps[bool]:
    """The rest of a stop whose entry is STOPPING under our name. True: done. False: the partner is out of reach, so the entry stays
    STOPPING and says *partner not fenced*; to be repeated. Raises `Refusal` CHANGED_MEANWHILE when somebody else has the entry.
    """
    sight = yield from _entry_sight(place)
    cell = sight.cell(keys.status_out(place.channel.name))
    entry = status.parse(cell.value)
    if entry is None or not _is_ours(me, place, entry):
        raise Refusal(Reason.CHANGED_MEANWHILE, f"{place.channel.name} is not ours to stop")
    queue = yield from _queue_side(place)
    if not queue.held_by_other(place.channel.name):
        was_open, bound_before = queue.record.open, queue.record.bound_before
        try:
            # A take that read the fence before the entry became STOPPING fails from here on (C7), and so does every write of an instance
            # that was paused (N5). What is in doubt stays open until the partner has answered (N1, P7); where it never has, nothing was
            # sent (the sender records its first answer before its first batch).
            if not _raised_before(entry, queue):
                yield from _raise(place, queue, draw, close=not (was_open and bound_before))
            if was_open and bound_before:
                yield from _fence_and_settle(place, queue, draw, sender_name)
        except PartnerNotReached as error:
            if error.reason not in LOST:
                told = {"partner_not_fenced": True, "reason": int(error.reason), "detail": error.detail, "epoch": queue.record.epoch}
                if any(getattr(entry, field) != value for field, value in told.items()):
                    yield from _commit_entry(place, cell, status.altered(entry, pb.STOPPING, now_ms, **told))
                return False
            entry.reason, entry.detail = int(error.reason), error.detail
        except CompareFailed as error:
            raise Refusal(Reason.CHANGED_MEANWHILE, str(error)) from error
    yield from _commit_entry(place, cell, _stopped(entry, now_ms, queue.record))
    return True


def pass_stop(me: Me, place: Place, to: str, now_ms: int) -> Steps[bool]:
    """A stop that is ours to carry, and cannot be carried on here, is given to a member that can; False: it does not live, or the stop is
    not ours. What is in doubt stays so: of the queue nothing is touched."""
    sight = yield from _entry_sight(place)
    cell = sight.cell(keys.status_out(place.channel.name))
    entry, incarnation = status.parse(cell.value), sight.create_revision(keys.member(to))
    if entry is None or not _is_ours(me, place, entry) or not incarnation:
        return False
    yield from _commit_entry(place, cell, status.altered(entry, pb.STOPPING, now_ms, owner=to, owner_incarnation=incarnation))
    return True


def _is_ours(me: Me, place: Place, entry: pb.ChannelStatus) -> bool:
    """To carry on."""
    return entry.state == pb.STOPPING and (entry.owner, entry.owner_incarnation) == (me.member, me.incarnations[place.admin])


def _raised_before(entry: pb.ChannelStatus, queue: _Queue) -> bool:
    """An earlier attempt of this stop has raised the epoch, and no owner has been there since: it need not rise each time. By who resolves
    it may have been raised above: he must not be outrun while the partner keeps him waiting."""
    return entry.partner_not_fenced and entry.epoch <= queue.record.epoch and queue.lock.value is None and queue.record.open


def _stopped(entry: pb.ChannelStatus, now_ms: int, fence: pb.SenderFence) -> pb.ChannelStatus | None:
    in_doubt = fence.open and fence.channel == entry.channel
    if entry.stop_to == pb.INACTIVE and not in_doubt:
        return None
    after = status.altered(entry, pb.STOPPED, now_ms, partner_not_fenced=False, in_doubt=in_doubt, epoch=fence.epoch)
    if entry.partner_not_fenced and not in_doubt:
        after.reason, after.detail = 0, ""  # it was only why the partner could not be fenced
    return after


def _raise(place: Place, queue: _Queue, draw: Draw, *, close: bool, above: int = 0) -> Steps[None]:
    """Epoch + 1, lock given up, comparing both. The fence is the only key that a stop must swap and batches do not rewrite (P10)."""
    fence = queue.record
    fence.epoch = max(fence.epoch, above) + 1
    if not fence.stream:
        fence.stream, fence.partner, fence.channel = draw(), place.channel.partner, place.channel.name
    if close:
        fence.open = False
    changes = [swap(queue.fence, record(fence))]
    unit = Unit("fence for a stop", changes=changes)
    if queue.lock.value is not None:
        changes.append(swap(queue.lock, None))
    else:
        unit.compares.append(unchanged(queue.lock.key, 0))
    yield Commit(place.structure, unit)
    if queue.fence.value != record(fence):  # its first answer was lost: another stop, or an owner, has raised it since
        raise CompareFailed((queue.fence.key,))


def _fence_and_settle(place: Place, queue: _Queue, draw: Draw, sender_name: str) -> Steps[int]:
    """Bind with the raised epoch, so that nothing of the old instance is accepted any more; then settle by the partner's record."""
    for attempt in range(EPOCH_TRIES):
        try:
            bound: channel_pb2.Bound = yield FenceAtPartner(place.channel, _bind(place, queue, sender_name))
        except PartnerNotReached as error:
            if error.epoch_seen < queue.record.epoch or attempt == EPOCH_TRIES - 1:
                raise
            yield from _raise(place, queue, draw, close=False, above=error.epoch_seen)
        else:
            # Batches that were confirmed before have moved the progress since it was read.
            sight = yield from look(place.structure, Get(queue.progress.key))
            return (yield from settle(place.structure, place.queue, queue.fence, sight.cell(queue.progress.key), bound.record))
    raise AssertionError("unreachable")


def _bind(place: Place, queue: _Queue, sender_name: str) -> channel_pb2.Bind:
    fence, progress = queue.record, read_record(pb.Progress, queue.progress.value or b"", queue.progress.key)
    return channel_pb2.Bind(
        channel=place.channel.name,
        sender=sender_name,
        receiver=fence.partner,
        stream=fence.stream,
        epoch=fence.epoch,
        instance=1,
        bound_before=fence.bound_before,
        sequence=0 if progress.reset_to else progress.sequence,
        parameters=negotiate.offer(place.channel),
        fence_only=True,
    )


# --- start ----------------------------------------------------------------------------------------------------------------------------


def command_start(me: Me, place: Place, now_ms: int, draw: Draw) -> Steps[None]:
    """START CHANNEL: entry INITIALIZING under our name, with all retries; then start requests as for any channel that is wanted.

    The only way out of STOPPED. It is an entry and not a flag in a start request, so that a request that arrives late starts nothing.
    """
    sight = yield from _entry_sight(place)
    cell = sight.cell(keys.status_out(place.channel.name))
    before = status.parse(cell.value)
    if before is not None and before.state in status.HELD:
        if owner_lives(before, sight):
            raise Refusal(Reason.CHANNEL_ALREADY_RUNNING, f"already running on {before.owner}")
        raise Refusal(Reason.CHANGED_MEANWHILE, f"{before.channel} is being recovered from {before.owner}")
    if before is not None and before.state == pb.STOPPING:
        raise Refusal(Reason.CHANNEL_IN_USE, f"{before.channel} is being stopped by {before.owner}")
    full = retry.Attempts.full(place.channel.retry)
    after = status.altered(
        before,
        pb.INITIALIZING,
        now_ms,
        channel=place.channel.name,
        transmission_queue=place.queue,
        partner=place.channel.partner or (before.partner if before is not None else ""),
        type=pb.SENDER,
        owner=me.member,
        owner_incarnation=me.incarnations[place.admin],
        owner_initiator=me.initiator,
        short_retries_left=full.short,
        long_retries_left=full.long,
        reason=0,
        detail="",
        request=draw(),
    )
    yield from _commit_entry(place, cell, after)


# --- resolve and reset ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Resolution:
    """`known`: for a commit, the record that the partner's status showed, and its stream."""

    action: Literal["commit", "backout"]
    force: bool = False
    known: pb.Progress | None = None
    stream: bytes = b""


@dataclass(frozen=True, slots=True)
class Resolved:
    deleted: int
    risk: str
    """What may have gone wrong because the partner could not be fenced; "" = nothing."""


def resolve(me: Me, place: Place, resolution: Resolution, draw: Draw, sender_name: str) -> Steps[Resolved]:
    """RESOLVE CHANNEL, for a partner that is gone for good. The partner is asked first: once it answers, its record has settled the
    queue, and resolving by hand is refused. While it cannot be fenced, `force` is needed.
    """
    name = place.channel.name
    sight = yield from _entry_sight(place)
    entry = status.parse(sight.value(keys.status_out(name)))
    if entry is not None and entry.state not in (pb.STOPPED, pb.STOPPING):
        raise Refusal(Reason.CHANNEL_IN_USE, f"{name} is {status.name(entry.state).lower()} on {entry.owner}: stop it first")
    queue = yield from _queue_side(place)
    fence = queue.record
    if not fence.open:
        raise Refusal(Reason.NOT_IN_DOUBT, f"nothing of {place.queue} is in doubt")
    if queue.held_by_other(name):
        raise Refusal(Reason.CHANNEL_IN_USE, f"{place.queue} belongs to channel {fence.channel}")
    if queue.holder is not None and queue.seen.lives(queue.holder.member, queue.holder.incarnation):
        raise Refusal(Reason.CHANNEL_IN_USE, f"{place.queue} is locked by {queue.holder.member}")
    check_known(resolution, fence)
    try:
        yield from _raise(place, queue, draw, close=False)
        risk = ""
        if fence.bound_before:
            risk = yield from _ask_partner(place, queue, draw, sender_name, resolution)
        if resolution.action == "commit":
            assert resolution.known is not None, "checked"
            deleted = yield from settle(place.structure, place.queue, queue.fence, queue.progress, resolution.known)
        else:
            deleted = yield from _close(place, queue)
    except CompareFailed as error:
        raise Refusal(Reason.CHANGED_MEANWHILE, str(error)) from error
    return Resolved(deleted, risk)


def check_known(resolution: Resolution, fence: pb.SenderFence) -> None:
    """A commit goes exactly as far as the partner's record of this very stream (N2)."""
    if resolution.action == "backout":
        return
    if resolution.known is None:
        raise Refusal(Reason.OPTIONS_ERROR, "commit needs the record that the partner's status shows")
    if resolution.stream != fence.stream:
        raise Refusal(Reason.OPTIONS_ERROR, "that record belongs to another stream")


def _ask_partner(place: Place, queue: _Queue, draw: Draw, sender_name: str, resolution: Resolution) -> Steps[str]:
    try:
        deleted = yield from _fence_and_settle(place, queue, draw, sender_name)
    except PartnerNotReached as error:
        partner, detail = queue.record.partner or "the partner", error.detail or error.reason.name
        if error.reason in LOST:
            risk = f"{partner} has lost data ({detail}): messages of {place.queue} that it has received may be delivered twice"
        else:
            risk = (
                f"{partner} is not fenced ({detail}): "
                f"messages of {place.queue} that it has received, or still receives from an old instance, may be delivered twice"
            )
        if not resolution.force:
            raise Refusal(Reason.IN_DOUBT, f"{risk}; use force to accept that") from error
        return risk
    raise Refusal(Reason.NOT_IN_DOUBT, f"the partner has answered: its record has settled {place.queue}, {deleted} messages deleted")


def _close(place: Place, queue: _Queue) -> Steps[int]:
    closed = queue.record
    closed.open = False
    yield Commit(place.structure, Unit("resolve backout", changes=[swap(queue.fence, record(closed))]))
    return 0


def reset_sender(me: Me, place: Place, number: int) -> Steps[None]:
    """RESET CHANNEL SEQNUM on a sender: here now, at the partner with the next bind. Numbers only, never positions (M6)."""
    check_number(number)
    queue = yield from _queue_side(place)
    if queue.holder is not None and queue.seen.lives(queue.holder.member, queue.holder.incarnation):
        raise Refusal(Reason.CHANNEL_IN_USE, f"{place.channel.name} is running on {queue.holder.member}: stop it first")
    progress = read_record(pb.Progress, queue.progress.value or b"", queue.progress.key)
    progress.sequence, progress.reset_to = number - 1, number
    compares = [unchanged(queue.lock.key, queue.lock.mod_revision), unchanged(queue.fence.key, queue.fence.mod_revision)]
    try:
        yield Commit(place.structure, Unit("reset", changes=[swap(queue.progress, record(progress))], compares=compares))
    except CompareFailed as error:
        raise Refusal(Reason.CHANGED_MEANWHILE, str(error)) from error


def reset_receiver(structure: str, channel: str, number: int) -> Steps[int]:
    """RESET CHANNEL SEQNUM on a receiver: its records of that channel, here only. Answers how many streams were reset."""
    check_number(number)
    sight = yield from look(structure, get_prefix(keys.RECEIVER_FENCES))
    count = 0
    for kv in sight.under(keys.RECEIVER_FENCES):
        if read_record(pb.ReceiverFence, kv.value, kv.key).channel != channel:
            continue
        key = keys.RECEIVER_PROGRESS + kv.key[len(keys.RECEIVER_FENCES) :]
        cell = (yield from look(structure, Get(key))).cell(key)
        progress = read_record(pb.Progress, cell.value or b"", cell.key)
        progress.sequence = number - 1
        unit = Unit("reset", changes=[swap(cell, record(progress))], compares=[unchanged(kv.key, kv.mod_revision)])
        try:
            yield Commit(structure, unit)
        except CompareFailed as error:
            raise Refusal(Reason.CHANNEL_IN_USE, f"{channel} is moving messages: stop it first") from error
        count += 1
    return count


def check_number(number: int) -> None:
    if not 1 <= number <= SEQUENCE_WRAP:
        raise Refusal(Reason.OPTIONS_ERROR, f"sequence number {number} is not in 1..{SEQUENCE_WRAP}")
