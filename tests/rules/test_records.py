"""Records that cannot be read are refused with their key; all others are read."""

from __future__ import annotations

import pytest

from qsg.pb import records_pb2 as pb
from qsg.rules.packed import DAMAGED, read_guard
from qsg.rules.reasons import Reason
from qsg.rules.records import COUNT_MAX, COUNTERS, Damaged, read_record, stored_message
from qsg.store.contract import KeyValue


def test_a_record_is_read() -> None:
    record = pb.Totals(put=7, last={0: b"x"})
    assert read_record(pb.Totals, record.SerializeToString(), b"q/A/n/X.0") == record


def test_what_cannot_be_read_is_refused_with_its_key() -> None:
    with pytest.raises(Damaged) as refused:
        read_record(pb.SenderFence, b"\xff\xff", b"s/R")
    assert refused.value.reason is Reason.RECORD_DAMAGED
    assert "s/R" in refused.value.detail and "SenderFence" in refused.value.detail


@pytest.mark.parametrize(("kind", "field"), [(kind, field) for kind, fields in COUNTERS.items() for field in fields])
def test_a_counter_that_could_not_be_counted_on_is_damage(kind: str, field: str) -> None:
    made = getattr(pb, kind)
    assert getattr(read_record(made, made(**{field: COUNT_MAX}).SerializeToString()), field) == COUNT_MAX
    with pytest.raises(Damaged, match=field):
        read_record(made, made(**{field: COUNT_MAX + 1}).SerializeToString())


def test_a_state_of_another_version_is_damage() -> None:
    with pytest.raises(Damaged, match="state 99"):
        read_record(pb.ChannelStatus, pb.ChannelStatus(state=99).SerializeToString())  # type: ignore[arg-type]


def test_a_guard_that_cannot_be_read_is_nobodys() -> None:
    guard = read_guard(KeyValue(b"g/X/00", b"\xff", 3, 9))
    assert (guard.attempt, guard.revision) == (DAMAGED, 9)


def test_a_message_lies_where_its_entry_says_or_is_damaged() -> None:
    message = pb.Message(message_id=b"m" * 24, payload=b"abc")
    body = message.SerializeToString()
    entry = pb.Entry(message_id=message.message_id, size=len(body), payload_size=3)
    assert stored_message(entry, body) == message
    for wrong in (b"", body[:-1], b"\xff" * len(body), pb.Message(message_id=b"n" * 24, payload=b"abc").SerializeToString()):
        with pytest.raises(Damaged):
            stored_message(entry, wrong)
