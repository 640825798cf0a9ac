"""A planned move: the owner of a channel gives it to another member, or releases it and tells that one what it left behind.

Invariants: a gift is one transaction that compares all that a take and a release compare: both members' keys, the lock and fence that the
giver holds, its entry as it wrote it, and that the receiver's initiator is the one joined. From then on the receiver is the owner, whether
it hears of it or not: an entry of ours that no task looks after is recovered like one whose start was cut off. Who gives may go on sending
until the partner has accepted the receiver's bind: the fence is open all the while, the partner's record stays the only watermark, and it
accepts nothing of the giver behind that bind. It deletes nothing more.
Does not guarantee that there is anything to give or to tell: without it the taker takes, and reads.
"""

from __future__ import annotations

from dataclasses import replace

from qsg.pb import records_pb2 as pb
from qsg.rules import keys, status
from qsg.rules.ownership import Held, own_lock
from qsg.rules.reasons import Reason, Refusal
from qsg.rules.records import read_record
from qsg.rules.steps import Commit, Me, Place, Sight, Steps, look, record, swap, swap_entry
from qsg.rules.unit import Cell, CompareFailed, Unit
from qsg.store.contract import Get, KeyValue, created_at, unchanged


def left_behind(held: Held) -> Sight | None:
    """Entry, lock, fence and progress behind a clean release in one store; None: there was none.

    Claims need no reading: none was there when the channel was taken, and while the fence was open nobody could claim (H8). One that was
    made since is newer than this revision, which the taker compares.
    """
    revision = held.entry.mod_revision
    if not held.place.together or held.lock.value is not None or held.fence.mod_revision != revision:
        return None  # not one transaction that unlocked, closed the fence and changed the entry
    return _sight(revision, held.entry, held.fence, held.progress)


def _sight(revision: int, *cells: Cell) -> Sight:
    return Sight(revision, {c.key: KeyValue(c.key, c.value, c.create_revision, c.mod_revision) for c in cells if c.value is not None})


# --- give -----------------------------------------------------------------------------------------------------------------------------


def receiver(held: Held, member: str) -> Steps[Me | None]:
    """How that member's records name it now; None when it cannot be given the channel."""
    if not held.place.together:
        return None
    key, joined = keys.member(member), keys.initiator(member)
    sight = yield from look(held.place.admin, Get(key), Get(joined))
    initiator = read_record(pb.InitiatorRecord, sight.value(joined) or b"", joined)
    incarnation = sight.create_revision(key)
    if not incarnation or initiator.incarnation != incarnation or not initiator.process:
        return None
    return Me(member, {held.place.admin: incarnation}, sight.mod_revision(joined))


def give(held: Held, to: Me, request: bytes, now_ms: int, takeover: pb.Takeover | None = None) -> Steps[Sight | None]:
    """Makes `to` the owner: lock, fence and entry as if it had taken the channel, in one transaction. None: not done, `held` is as it was.

    Answers what it is to be told (`given`). Everything that the channel has under way stays in doubt, for its bind to settle.
    """
    entry = status.parse(held.entry.value)
    if not held.place.together or entry is None or not held.intact or entry.request != held.request or entry.state != pb.RUNNING:
        return None
    fence = read_record(pb.SenderFence, held.fence.value or b"", held.fence.key)
    fence.epoch = held.epoch + 1
    incarnation = to.incarnations[held.place.admin]
    after = status.altered(
        entry,
        pb.STARTING,
        now_ms,
        owner=to.member,
        owner_incarnation=incarnation,
        owner_initiator=to.initiator,
        epoch=fence.epoch,
        instance=1,
        started_at_ms=now_ms,
        request=request,
    )
    if takeover is not None:
        after.takeover.CopyFrom(takeover)
    # Copies: what the giver holds stays as it was, so that nothing it writes from now on holds.
    lock, opened, mine = replace(held.lock), replace(held.fence), replace(held.entry)
    unit = Unit(
        "hand over", changes=[swap(lock, own_lock(to, held.place, fence.epoch)), swap(opened, record(fence)), swap_entry(mine, after)]
    )
    # A receiver that has ended, or whose initiator has, would never know that it was given anything (H5).
    unit.compares = [created_at(keys.member(to.member), incarnation), unchanged(keys.initiator(to.member), to.initiator)]
    unit.compares.append(unchanged(held.progress.key, held.progress.mod_revision))
    try:
        yield Commit(held.place.structure, unit)
    except (CompareFailed, Refusal):
        return None
    return _sight(mine.mod_revision, mine, lock, opened, held.progress)


def given(me: Me, place: Place, told: Sight) -> Held:
    """What the receiver holds, from what it was told. Raises `Refusal` CHANGED_MEANWHILE when that is not ours.

    However late: all that is written compares lock and fence by revision, and the partner accepts each (epoch, instance) once.
    """
    entry = told.cell(keys.status_out(place.channel.name))
    lock, fence = told.cell(keys.lock(place.queue)), told.cell(keys.sender_fence(place.queue))
    after = status.parse(entry.value)
    opened = read_record(pb.SenderFence, fence.value or b"", fence.key)
    mine = after is not None and (after.owner, after.owner_incarnation, after.owner_initiator, after.state) == (
        me.member,
        me.incarnations.get(place.admin, 0),
        me.initiator,
        pb.STARTING,
    )
    if not mine or after is None or not me.initiator or lock.value != own_lock(me, place, opened.epoch) or after.epoch != opened.epoch:
        raise Refusal(Reason.CHANGED_MEANWHILE, f"{place.channel.name} was not given to this incarnation of {me.member}")
    progress = told.cell(keys.sender_progress(place.queue))
    return Held(place, entry, lock, fence, progress, opened.epoch, opened.stream, opened.partner, after.request)


def is_gift(me: Me, place: Place, told: Sight | None) -> bool:
    """Whether what a start request tells is a gift, and not what a release left behind."""
    entry = None if told is None else status.parse(told.value(keys.status_out(place.channel.name)))
    return entry is not None and entry.state == pb.STARTING and entry.owner == me.member
