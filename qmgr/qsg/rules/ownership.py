"""Who runs a channel: taking, releasing, handing over and recovering it, as ordered lists of steps.

Owns: every change of a transmission queue's lock and of the owner in the status table, except for stopping and resolving
(`qsg.rules.stopping`). Invariants: at most one live incarnation holds a lock, and only after it raised the epoch in the fence; an entry
that is STOPPED or STOPPING is never taken. The order of the steps is what makes them safe when cut off; each compare names in a comment
the interleaving that it guards against. Does not run anything, and does not decide *where* a channel starts (`qsg.rules.balance`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from qsg.pb import records_pb2 as pb
from qsg.rules import keys, retry, status
from qsg.rules.reasons import Reason, Refusal
from qsg.rules.records import Damaged, read_record
from qsg.rules.steps import Commit, Draw, Me, Place, Sight, Steps, look, record, swap, swap_entry
from qsg.rules.unit import Cell, CompareFailed, Unit
from qsg.store.contract import Compare, Delete, Get, Relation, Target, created_at, get_prefix, nothing_changed_after, unchanged

Cause = Literal["trigger", "request", "command", "own"]
"""Why a channel is to start. "request": its owner asks; "own": this member's own retry, recovery or command goes on."""


@dataclass(slots=True)
class Held:
    """What the taker of a channel holds. The cells are kept up to date by whoever commits with them."""

    place: Place
    entry: Cell
    lock: Cell
    fence: Cell
    progress: Cell
    epoch: int
    stream: bytes
    partner: str
    request: bytes
    """Tells our entry from another taker's."""

    @property
    def intact(self) -> bool:
        return intact(self.lock, self.fence, self.epoch)

    @property
    def named(self) -> bool:
        """Is the entry still ours, as far as this process has seen? It is brought up to date as lock and fence are (`intact`)."""
        entry = status.parse(self.entry.value)
        return entry is not None and entry.request == self.request

    @property
    def fence_record(self) -> pb.SenderFence:
        return read_record(pb.SenderFence, self.fence.value or b"", self.fence.key)

    @property
    def status(self) -> pb.ChannelStatus:
        entry = status.parse(self.entry.value)
        assert entry is not None, "taken, so there is an entry"
        return entry


@dataclass(frozen=True, slots=True)
class Occasion:
    """Why and when a take is tried. `requester`: the member that asked ("" = nobody)."""

    cause: Cause
    now_ms: int
    requester: str = ""
    takeover: pb.Takeover | None = None


def void(member: str, incarnation: int) -> Compare:
    """True once that incarnation's member key is gone."""
    return Compare(keys.member(member), Target.CREATE, Relation.NOT_EQUAL, incarnation)


def intact(lock: Cell, fence: Cell, epoch: int) -> bool:
    """Do lock and fence show what was taken at `epoch`, as far as this process has seen?

    Cells are brought up to date by a compare that failed, and by a commit whose first answer was lost: they may be another's by now."""
    return (
        read_record(pb.SenderFence, fence.value or b"", fence.key).epoch == epoch == read_record(pb.Lock, lock.value or b"", lock.key).epoch
    )


def _committed(structure: str, unit: Unit) -> Steps[bool]:
    """Whether it was. False: what it compares has changed."""
    try:
        yield Commit(structure, unit)
    except (CompareFailed, Refusal):
        return False
    return True


def own_lock(me: Me, place: Place, epoch: int) -> bytes:
    lock = pb.Lock(
        member=me.member, incarnation=me.incarnations[place.structure], initiator=me.initiator, epoch=epoch, channel=place.channel.name
    )
    return record(lock)


# --- take -----------------------------------------------------------------------------------------------------------------------------


def take(me: Me, place: Place, occasion: Occasion, draw: Draw, known: Sight | None = None) -> Steps[Held]:
    """Takes a channel for this member: entry STARTING, lock, epoch + 1, open. What follows is the bind.

    `known`: what the asking owner's release left behind (`qsg.rules.handover`), in place of the reads: all is compared by revision.
    Raises `Refusal`: CHANNEL_ALREADY_RUNNING ("already running on X"), CHANNEL_IN_USE, CHANNEL_DISABLED (stopped), OBJECT_IN_USE (an
    application has claimed messages), CHANGED_MEANWHILE (somebody was faster). After a refusal nothing of it is left behind.
    """
    queue_side, admin_side = (known, known) if known and place.together else (yield from sight_of(me, place))
    before = status.parse(admin_side.value(keys.status_out(place.channel.name)))
    check_entry(me, before, occasion, admin_side)
    lock = queue_side.cell(keys.lock(place.queue))
    holder = None if lock.value is None else read_record(pb.Lock, lock.value, lock.key)
    yield from check_holder(me, place, holder, before, occasion, queue_side, admin_side)
    check_claims(place, queue_side)
    fence, progress = queue_side.cell(keys.sender_fence(place.queue)), queue_side.cell(keys.sender_progress(place.queue))
    after = next_fence(place, fence.value, draw)
    entry = admin_side.cell(keys.status_out(place.channel.name))
    request = draw()
    swapped = swap_entry(entry, _starting(me, place, before, occasion, after, request))
    held = Held(place, entry, lock, fence, progress, after.epoch, after.stream, after.partner, request)
    locking = _locking(me, place, held, holder, after, queue_side)
    if place.together:  # one store: the entry and the lock change in one transaction, so nothing can come between them
        locking.changes.append(swapped)
    try:
        yield Commit(place.admin, locking if place.together else Unit("entry starting", changes=[swapped]))
    except CompareFailed as error:
        raise Refusal(Reason.CHANGED_MEANWHILE, str(error)) from error
    if not held.named:  # its first answer was lost, and it was stopped or recovered since: whoever did that goes on
        raise Refusal(Reason.CHANGED_MEANWHILE, f"{place.channel.name} was taken, and changed by another since")
    if place.together:
        return held
    # The fence was read before the entry was swapped, and the lock's transaction compares it: a stop or another take that came between
    # has raised the epoch (C7).
    try:
        yield Commit(place.structure, locking)
    except (CompareFailed, Refusal) as error:
        yield from _put_back(place, entry, before, occasion.now_ms)
        raise Refusal(Reason.CHANGED_MEANWHILE, str(error)) from error
    yield from _still_ours(me, held)
    return held


def sight_of(me: Me, place: Place) -> Steps[tuple[Sight, Sight]]:
    """The queue's side first, then the admin's: a member that the second read does not show was not starting at the first."""
    name = place.channel.name
    there = [
        Get(keys.sender_fence(place.queue)),
        Get(keys.sender_progress(place.queue)),
        Get(keys.lock(place.queue)),
        get_prefix(keys.consumptions(place.queue)),
        get_prefix(keys.MEMBERS),
    ]
    here = [Get(keys.status_out(name)), get_prefix(keys.INITIATORS)]
    if place.together:
        both = yield from look(place.structure, *there, *here)
        return both, both
    queue_side = yield from look(place.structure, *there)
    admin_side = yield from look(place.admin, *here, get_prefix(keys.MEMBERS))
    return queue_side, admin_side


def owner_lives(entry: pb.ChannelStatus, admin_side: Sight) -> bool:
    return admin_side.lives(entry.owner, entry.owner_incarnation)


def check_entry(me: Me, entry: pb.ChannelStatus | None, occasion: Occasion, admin_side: Sight) -> None:
    """May the channel be taken from what its entry says? Raises `Refusal`."""
    if entry is None:
        if occasion.cause == "own":
            raise Refusal(Reason.CHANGED_MEANWHILE, "no longer wanted")
        return
    name = entry.channel
    # A stopped channel moves nothing until a command has made it INITIALIZING: a late start request or trigger finds STOPPED (C7, N5).
    if entry.state == pb.STOPPED:
        raise Refusal(Reason.CHANNEL_DISABLED, f"{name} is stopped: start it by command")
    if entry.state == pb.STOPPING:
        raise Refusal(Reason.CHANNEL_IN_USE, f"{name} is being stopped by {entry.owner}")
    if entry.state in status.HELD:
        initiator_gone = entry.owner == me.member and entry.owner_initiator != me.initiator
        if owner_lives(entry, admin_side) and not initiator_gone:
            raise Refusal(Reason.CHANNEL_ALREADY_RUNNING, f"already running on {entry.owner}")
        raise Refusal(Reason.CHANGED_MEANWHILE, f"{name} is to be recovered from {entry.owner} first")
    if owner_lives(entry, admin_side) and entry.owner != (me.member if occasion.cause == "own" else occasion.requester):
        raise Refusal(Reason.CHANNEL_IN_USE, f"{entry.owner} is starting {name} ({status.name(entry.state).lower()})")


def check_holder(
    me: Me, place: Place, holder: pb.Lock | None, entry: pb.ChannelStatus | None, occasion: Occasion, queue_side: Sight, admin_side: Sight
) -> Steps[None]:
    """A live holder is left alone, unless the table says that it is none any more; a half-done verdict is finished here (N14)."""
    if holder is None or not queue_side.lives(holder.member, holder.incarnation):
        return
    ours = holder.channel == place.channel.name
    if ours and holder.member == me.member:
        return  # left over from a list that was cut off, or from our dead initiator (N13): its writes compare lock and fence
    victim = half_dead(holder.member, queue_side, admin_side)
    if victim is not None:
        try:
            yield Commit(place.structure, execution(holder.member, victim))
        except CompareFailed:
            pass  # another member was faster
        return
    if ours and entry is not None and (entry.owner != holder.member or occasion.requester == holder.member):
        return  # the table shows another owner, or the holder itself asks: it was cut off between entry and lock, or from the queue
    raise Refusal(Reason.CHANNEL_IN_USE, f"{place.queue} is locked by {holder.channel} on {holder.member}")


def half_dead(member: str, there: Sight, admin_side: Sight) -> int | None:
    """The incarnation in that structure of a member that the admin structure does not show, None when it does.

    Members register in the admin structure first, and `there` was read before it, so that a starting one is not taken for dead.
    """
    key = keys.member(member)
    if there.value(key) is None or admin_side.value(key) is not None:
        return None
    return there.create_revision(key)


def execution(member: str, incarnation: int) -> Unit:
    """Carries a verdict out in one structure: only against that incarnation (H3b), and by a live accuser (our own key is compared)."""
    key = keys.member(member)
    return Unit(f"{member} is dead", compares=[created_at(key, incarnation)], ops=[Delete(key)])


def check_claims(place: Place, queue_side: Sight) -> None:
    """Nothing of the queue may be claimed by a live unit of work: the channel would send past it (H8)."""
    for kv in queue_side.under(keys.consumptions(place.queue)):
        for claim in read_record(pb.Consumption, kv.value, kv.key).claims:
            if queue_side.lives(claim.member, claim.incarnation):
                raise Refusal(Reason.OBJECT_IN_USE, f"an application on {claim.member} has messages of {place.queue} in a unit of work")


def next_fence(place: Place, value: bytes | None, draw: Draw) -> pb.SenderFence:
    """The fence behind a take: epoch + 1, open. A new partner draws a new stream; while open, no other channel or partner may (H2)."""
    channel = place.channel
    before = read_record(pb.SenderFence, value or b"")
    if before.open and before.channel != channel.name:
        raise Refusal(Reason.CHANNEL_IN_USE, f"{place.queue} is in doubt under channel {before.channel}: start or resolve that one")
    other = bool(before.partner and channel.partner and before.partner != channel.partner)
    if before.open and other:
        raise Refusal(Reason.IN_DOUBT, f"{place.queue} is in doubt with {before.partner}, and {channel.name} now goes to {channel.partner}")
    after = pb.SenderFence()
    after.CopyFrom(before)
    if other or not before.stream:
        after.stream = draw()
        after.bound_before = False
    after.epoch = before.epoch + 1
    after.partner = channel.partner or before.partner
    after.channel = channel.name
    after.open = True
    return after


def _locking(me: Me, place: Place, held: Held, holder: pb.Lock | None, after: pb.SenderFence, seen: Sight) -> Unit:
    """The transaction in the queue's structure."""
    unit = Unit("lock", changes=[swap(held.lock, own_lock(me, place, after.epoch)), swap(held.fence, record(after))])
    if holder is not None and not seen.lives(holder.member, holder.incarnation):
        unit.compares.append(void(holder.member, holder.incarnation))
    # A claim made since the read (H8). Gets in flight fail on the fence, which changes here (P5).
    unit.compares.append(nothing_changed_after(keys.consumptions(place.queue), seen.revision))
    before = read_record(pb.SenderFence, held.fence.value or b"", held.fence.key)
    if before.stream != after.stream:
        unit.changes.append(swap(held.progress, record(pb.Progress())))
    else:
        unit.compares.append(unchanged(held.progress.key, held.progress.mod_revision))
    return unit


def _starting(
    me: Me, place: Place, before: pb.ChannelStatus | None, occasion: Occasion, fence: pb.SenderFence, request: bytes
) -> pb.ChannelStatus:
    full = retry.Attempts.full(place.channel.retry)
    left = full if before is None else retry.Attempts(before.short_retries_left, before.long_retries_left)
    after = status.altered(
        before,
        pb.STARTING,
        occasion.now_ms,
        channel=place.channel.name,
        transmission_queue=place.queue,
        partner=fence.partner,
        owner=me.member,
        owner_incarnation=me.incarnations[place.admin],
        owner_initiator=me.initiator,
        type=pb.SENDER,
        epoch=fence.epoch,
        stream=fence.stream,
        instance=1,
        short_retries_left=min(left.short, 0xFFFFFFFF),
        long_retries_left=min(left.long, 0xFFFFFFFF),
        started_at_ms=occasion.now_ms,
        partner_not_fenced=False,
        request=request,
    )
    if occasion.takeover is not None:
        after.takeover.CopyFrom(occasion.takeover)
    return after


def _put_back(place: Place, entry: Cell, before: pb.ChannelStatus | None, now_ms: int) -> Steps[None]:
    """The lock was not had: the entry becomes what it was, so that its owner goes on asking. Only if it still is the one we wrote."""
    after = None if before is None else status.altered(before, before.state, now_ms)
    yield from _committed(place.admin, Unit("entry as before", changes=[swap_entry(entry, after)]))


def _still_ours(me: Me, held: Held) -> Steps[None]:
    """Not exactly the entry that was written? Then it was recovered or stopped between the two transactions: release (C7)."""
    sight = yield from look(held.place.admin, Get(held.entry.key))
    if sight.value(held.entry.key) == held.entry.value and sight.mod_revision(held.entry.key) == held.entry.mod_revision:
        return
    if held.intact:  # not another's, learned from a second answer
        yield from _committed(held.place.structure, unlock(held, clean=False))
    raise Refusal(Reason.CHANGED_MEANWHILE, f"{held.place.channel.name} was taken by another meanwhile")


def raise_epoch(me: Me, held: Held, seen: int) -> Steps[bool]:
    """The partner has seen a higher epoch (C7b): the holder of the lock raises its own above it, and binds again. False: fenced off."""
    if not held.intact:
        return False
    fence = read_record(pb.SenderFence, held.fence.value or b"", held.fence.key)
    fence.epoch = max(fence.epoch, seen) + 1
    changes = [swap(held.fence, record(fence)), swap(held.lock, own_lock(me, held.place, fence.epoch))]
    if not (yield from _committed(held.place.structure, Unit("raise epoch", changes=changes))):
        return False
    held.epoch = fence.epoch
    return True


# --- release --------------------------------------------------------------------------------------------------------------------------


def unlock(held: Held, *, clean: bool, last: Unit | None = None) -> Unit:
    """Gives the lock up, comparing lock and fence. `clean`: all is confirmed behind a bind at the current epoch, so the fence is closed
    and applications may use the queue; otherwise it stays open, and what is beyond confirmed is in doubt (N1).

    `last` deletes what is confirmed and not yet deleted: in the same transaction, so that a closed fence never shows it (N1)."""
    unit = Unit("unlock", changes=[swap(held.lock, None)])
    if last is not None:
        unit.changes += last.changes
        unit.taken += last.taken
        unit.ops += last.ops
    if clean:
        fence = read_record(pb.SenderFence, held.fence.value or b"", held.fence.key)
        fence.open = False
        unit.changes.append(swap(held.fence, record(fence)))
    else:
        unit.compares.append(unchanged(held.fence.key, held.fence.mod_revision))
    return unit


Alter = Callable[[pb.ChannelStatus], pb.ChannelStatus | None]
"""Before-image of an entry that we own -> after-image."""


def release(held: Held, alter: Alter, *, clean: bool, extra: tuple[Compare, ...] = (), last: Unit | None = None) -> Steps[bool]:
    """Lock first, entry behind it; with one store in one transaction. `extra` compares belong to the entry's change, `last` is what the
    sender has left to delete.

    Answers whether the entry became what `alter` says. False: it was changed by somebody else (a stop, a recovery), who goes on.
    Cut off between the two, the entry still names us and is recovered, or found again by ourselves.
    """
    if held.place.together and held.intact and held.named:
        unit = unlock(held, clean=clean, last=last)
        unit.changes.append(swap_entry(held.entry, alter(held.status)))
        unit.compares += extra
        if (yield from _committed(held.place.structure, unit)):
            return True
        # The entry or the lock has changed: what is still ours is given up alone.
    if held.intact:  # Not done: fenced off by another instance or a stop, and there is nothing to give up.
        yield from _committed(held.place.structure, unlock(held, clean=clean, last=last))
    return (yield from alter_entry(held, alter, extra))


def alter_entry(held: Held, alter: Alter, extra: tuple[Compare, ...] = ()) -> Steps[bool]:
    """Compare-and-swap of our entry; False: it is not ours any more."""
    if not held.named:
        return False
    unit = Unit("entry", changes=[swap_entry(held.entry, alter(held.status))], compares=list(extra))
    return (yield from _committed(held.place.admin, unit))


def release_idle(held: Held) -> Steps[bool]:
    """Ends an idle channel, only in a transaction that compares its doorbells unchanged (H6, N17: by prefix).

    False: a message has come, or the entry was changed; nothing was released and the channel goes on. Entry INACTIVE = removed.
    """
    doorbells = keys.totals(held.place.queue)
    sight = yield from look(held.place.structure, get_prefix(doorbells))
    totals = [read_record(pb.Totals, kv.value, kv.key) for kv in sight.under(doorbells)]
    if sum(t.put - t.got for t in totals) > 0 or not held.intact or not held.named:
        return False
    unit = unlock(held, clean=True)
    unit.compares.append(nothing_changed_after(doorbells, sight.revision))
    gone = swap_entry(held.entry, None)
    if held.place.together:
        unit.changes.append(gone)
    if not (yield from _committed(held.place.structure, unit)):
        return False
    if not held.place.together:  # not done: a stop or a recovery goes on with it
        yield from _committed(held.place.admin, Unit("entry inactive", changes=[gone]))
    return True


# --- recover --------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Leftover:
    """An entry of the status table that its owner cannot look after any more."""

    cell: Cell
    entry: pb.ChannelStatus
    cause: str
    compare: Compare
    """Holds only while the owner is as lost as it was when we looked."""


def leftovers(me: Me, admin: Sight, *, running: Iterable[str] = (), pinned: Callable[[str], bool] = lambda _: False) -> Iterator[Leftover]:
    """Entries to recover, from one sight of `t/`, `ti/`, `m/` and `ci/` (patent: "a list of all the entries for the channel instances
    the failed channel initiator was managing"; "confirmed that the failed channel initiator is still inactive").

    `running`: channels that a task of this process looks after. `pinned`: channels that stay with their member (fixed-shared).
    """
    mine = set(running)
    for kv in sorted((*admin.under(keys.STATUS_OUT), *admin.under(keys.STATUS_IN)), key=lambda kv: kv.key):
        try:
            entry = read_record(pb.ChannelStatus, kv.value, kv.key)
        except Damaged:
            continue  # told where it is read for itself; the others must not wait for it
        if entry.state == pb.STOPPED:
            continue  # stays as it is: only a command starts it
        if not admin.lives(entry.owner, entry.owner_incarnation):
            if entry.owner == me.member or not pinned(entry.channel):
                yield Leftover(admin.cell(kv.key), entry, "queue manager failed", void(entry.owner, entry.owner_incarnation))
        elif entry.owner == me.member and kv.key.startswith(keys.STATUS_OUT) and entry.channel not in mine:
            initiator = keys.initiator(me.member)
            cause = "channel initiator failed" if entry.owner_initiator != me.initiator else "owner forgot it"
            # The list of what a dead initiator ran is of use only while no other has joined.
            yield Leftover(admin.cell(kv.key), entry, cause, unchanged(initiator, admin.mod_revision(initiator)))


def recovery(me: Me, admin: str, leftover: Leftover, now_ms: int, detect_ms: float, draw: Draw) -> tuple[Unit, pb.ChannelStatus | None]:
    """The unit that takes one entry over, and its after-image (None: removed).

    Inbound entries are removed, so that the partner's new session finds nothing in its way; outbound ones that were running or trying
    become RECOVERING under our name; a stop is carried on. Of several members one wins by compare-and-swap (patent, scenario 4).
    """
    unit = Unit(f"recover {leftover.entry.channel}", compares=[leftover.compare])
    if leftover.cell.key.startswith(keys.STATUS_IN):
        unit.changes.append(swap(leftover.cell, None))
        return unit, None
    before = leftover.entry
    takeover = pb.Takeover(to=me.member, cause=leftover.cause, at_ms=now_ms, detect_ms=detect_ms)
    setattr(takeover, "from", before.owner)  # "from" is a word of Python
    after = status.altered(
        before,
        pb.STOPPING if before.state == pb.STOPPING else pb.RECOVERING,
        now_ms,
        owner=me.member,
        owner_incarnation=me.incarnations[admin],
        owner_initiator=me.initiator,
        request=draw(),
        takeover=takeover,
        takeovers=before.takeovers + 1,
    )
    unit.changes.append(swap_entry(leftover.cell, after))
    return unit, after


def recover(me: Me, admin: str, leftover: Leftover, now_ms: int, detect_ms: float, draw: Draw) -> Steps[bool]:
    """Recovers one entry; False: another member was faster, or the owner is back."""
    unit, _ = recovery(me, admin, leftover, now_ms, detect_ms, draw)
    return (yield from _committed(admin, unit))


def release_own_lock(me: Me, place: Place, leftover: Cell) -> Steps[bool]:
    """Gives up a lock that this incarnation holds and no task of it uses: left over from a list that was cut off, or from a dead
    initiator (N13: our member key keeps it valid). Compares lock and fence.

    `leftover`: the entry, as it was found. It is looked at behind the lock: a take writes the entry before the lock, or with it, so while
    it is unchanged the lock is of nobody who has taken the channel since, be it another task of ours."""
    lock_key, fence_key = keys.lock(place.queue), keys.sender_fence(place.queue)
    sight = yield from look(place.structure, Get(lock_key), Get(fence_key))
    cell = sight.cell(lock_key)
    holder = read_record(pb.Lock, cell.value or b"", cell.key)
    ours = (me.member, me.incarnations[place.structure], place.channel.name)  # another channel of ours may run on this queue
    if (holder.member, holder.incarnation, holder.channel) != ours:
        return False
    behind = yield from look(place.admin, Get(leftover.key))
    if behind.mod_revision(leftover.key) != leftover.mod_revision:
        return False
    unit = Unit("unlock what nobody uses", changes=[swap(cell, None)], compares=[unchanged(fence_key, sight.mod_revision(fence_key))])
    return (yield from _committed(place.structure, unit))
