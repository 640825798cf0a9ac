"""What a bind changes at the sender's end: the partner's record becomes our progress, and the fence remembers that there was a bind.

Decides, and writes nothing: `sending` commits the unit. Invariant: what the partner's record covers is never sent again, and a partner
whose record is behind what it once confirmed is never sent to (patent: resynchronisation of a channel; exactly once by watermark).
"""

from __future__ import annotations

from qsg.manager.flight import progress_bound
from qsg.manager.grants import Grant
from qsg.manager.link import SessionFailed
from qsg.pb import channel_pb2, records_pb2
from qsg.rules.lanes import Position
from qsg.rules.ownership import intact
from qsg.rules.reasons import Reason
from qsg.rules.records import read_record
from qsg.rules.unit import Change, CompareFailed, Unit
from qsg.store.contract import Compare, unchanged


def ours(grant: Grant) -> list[Compare]:
    """Lock and fence are as we hold them: part of every unit. Raises `CompareFailed` when they are known not to be."""
    if not intact(grant.lock, grant.fence, grant.epoch):
        raise CompareFailed((grant.lock.key, grant.fence.key))
    return [unchanged(c.key, c.mod_revision) for c in (grant.lock, grant.fence)]


def bound_unit(grant: Grant, bound: channel_pb2.Bound) -> tuple[Unit, bool, int]:
    """(the unit, whether it has to be committed before anything is sent, how many sequence numbers the record is ahead of our progress).

    Without changes there is nothing to commit. Raises `SessionFailed` SEQUENCE_ERROR: the partner has lost data.
    """
    before = read_record(records_pb2.Progress, grant.progress.value or b"", grant.progress.key)
    _check_record(before, bound.record)
    unit = Unit("bound", compares=ours(grant))
    if progress_bound(before, bound.record) != before:
        unit.changes.append(Change(grant.progress, lambda present: _bound(present, bound.record)))
    fence = read_record(records_pb2.SenderFence, grant.fence.value or b"", grant.fence.key)
    first = not fence.bound_before
    if first:
        fence.bound_before = True
        raised = fence.SerializeToString(deterministic=True)
        unit.changes.append(Change(grant.fence, lambda _: raised))
    # The next bind must not take a partner that has lost our record for one that never had it.
    at_once = first or bool(before.reset_to)
    return unit, at_once, (bound.record.sequence - before.sequence) % bound.parameters.sequence_wrap


def _bound(present: bytes | None, record: records_pb2.Progress) -> bytes:
    """Of the progress as it is when this is committed: a delete of the instance before may be out, with its totals."""
    return progress_bound(read_record(records_pb2.Progress, present or b""), record).SerializeToString(deterministic=True)


def _check_record(before: records_pb2.Progress, record: records_pb2.Progress) -> None:
    """A partner that knows less than it confirmed has lost data: the channel stops until it is reset."""
    if before.reset_to:
        return
    for priority, position in before.confirmed.items():
        if Position.of(record.confirmed[priority] if priority in record.confirmed else records_pb2.Position()) < Position.of(position):
            raise SessionFailed(Reason.SEQUENCE_ERROR, f"the partner's record of priority {priority} is behind what it confirmed")
