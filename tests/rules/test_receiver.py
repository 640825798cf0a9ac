"""Bind and batches at the receiver: older instances, repeats and reorderings are refused."""

from __future__ import annotations

import pytest

from qsg.pb import channel_pb2, records_pb2
from qsg.rules.batches import BatchBuilder, Loaded
from qsg.rules.definitions import Channel
from qsg.rules.negotiate import offer
from qsg.rules.reasons import Reason, Refusal
from qsg.rules.receiver import BindRefused, Course, Holder, bind, check_names, is_base, record_after
from support.channel_segments import NOW, segment

WRAP = 1000
HOLDER = Holder("R", 5, 6, b"session")
CHANNEL = Channel(name="CH", type="receiver", partner="QSG", sequence_wrap=WRAP)


def request(epoch: int = 1, instance: int = 1, **values: object) -> channel_pb2.Bind:
    return channel_pb2.Bind(channel="CH", sender="QSG", stream=b"s", epoch=epoch, instance=instance, **values)  # type: ignore[arg-type]


def seen(epoch: int, instance: int) -> records_pb2.ReceiverFence:
    return records_pb2.ReceiverFence(epoch=epoch, instance=instance)


def test_the_first_bind_makes_the_record() -> None:
    accepted = bind(request(3, 2), None, None, HOLDER, WRAP)
    fence = accepted.fence
    assert (fence.epoch, fence.instance, fence.member, fence.incarnation, fence.session) == (3, 2, "R", 5, b"session")
    assert accepted.record == records_pb2.Progress() and not accepted.record_changed


@pytest.mark.parametrize("epoch,instance", [(3, 2), (3, 1), (2, 9)])
def test_an_older_or_repeated_bind_is_refused_with_what_was_seen(epoch: int, instance: int) -> None:
    with pytest.raises(BindRefused) as refused:
        bind(request(epoch, instance), seen(3, 2), None, HOLDER, WRAP)
    assert refused.value.reason is Reason.EPOCH_TOO_LOW
    assert (refused.value.epoch_seen, refused.value.instance_seen) == (3, 2)


@pytest.mark.parametrize("epoch,instance", [(3, 3), (4, 0)])
def test_a_newer_bind_takes_the_place(epoch: int, instance: int) -> None:
    assert bind(request(epoch, instance), seen(3, 2), None, HOLDER, WRAP).fence.epoch == epoch


def test_an_adoption_by_another_member_is_counted() -> None:
    first = bind(request(1), None, None, Holder("X", 5, 6, b"a", 100), WRAP).fence
    again = bind(request(2), first, None, Holder("X", 7, 8, b"b", 200), WRAP).fence
    assert again.takeovers == 0 and not again.HasField("takeover")
    moved = bind(request(3), again, None, Holder("Y", 9, 9, b"c", 300), WRAP).fence
    stays = bind(request(4), moved, None, Holder("Y", 9, 9, b"d", 400), WRAP).fence
    for fence in (moved, stays):
        told = fence.takeover
        assert fence.takeovers == 1
        assert (getattr(told, "from"), told.to, told.cause, told.at_ms) == ("X", "Y", "adopted", 300)


def test_a_stream_that_was_bound_before_needs_its_record() -> None:
    with pytest.raises(BindRefused) as refused:
        bind(request(bound_before=True), None, None, HOLDER, WRAP)
    assert refused.value.reason is Reason.NO_RECORD
    assert bind(request(bound_before=True, reset_to=1), None, None, HOLDER, WRAP).record_changed


def test_a_partner_that_knows_less_than_was_confirmed_stops_the_channel_until_reset() -> None:
    record = records_pb2.Progress(sequence=10)
    record.confirmed[0].create_revision = 7
    with pytest.raises(BindRefused) as refused:
        bind(request(2, sequence=11), seen(1, 1), record, HOLDER, WRAP)
    assert refused.value.reason is Reason.SEQUENCE_ERROR
    assert not bind(request(2, sequence=9), seen(1, 1), record, HOLDER, WRAP).record_changed
    reset = bind(request(2, sequence=11, reset_to=1), seen(1, 1), record, HOLDER, WRAP)
    assert reset.record.sequence == 0 and reset.record.confirmed[0].create_revision == 7


def test_being_ahead_is_seen_over_the_wrap() -> None:
    ahead = records_pb2.Progress(sequence=3)
    assert not bind(request(2, sequence=999), seen(1, 1), ahead, HOLDER, WRAP).record_changed
    with pytest.raises(BindRefused):
        bind(request(2, sequence=3), seen(1, 1), records_pb2.Progress(sequence=999), HOLDER, WRAP)


@pytest.mark.parametrize("sequence", [1, 499, 500, 501, 999, 1000])
def test_a_bind_that_knows_of_no_number_is_never_ahead(sequence: int) -> None:
    """A stop with a reset that is still to be told: from the middle of the numbers on it was refused, and taken for a loss of data."""
    record = records_pb2.Progress(sequence=sequence)
    assert bind(request(2, fence_only=True), seen(1, 1), record, HOLDER, WRAP).lost is None
    assert bind(request(2), seen(1, 1), record, HOLDER, WRAP).fence.epoch == 2


def test_a_fence_only_bind_that_is_ahead_raises_the_fence_before_it_is_told() -> None:
    accepted = bind(request(2, sequence=11, fence_only=True), seen(1, 1), records_pb2.Progress(sequence=10), HOLDER, WRAP)
    assert accepted.fence.epoch == 2 and not accepted.record_changed
    assert accepted.lost is not None and accepted.lost.reason is Reason.SEQUENCE_ERROR


@pytest.mark.parametrize(
    "change,reason",
    [
        ({"receiver": "OTHER"}, Reason.WRONG_PARTNER),
        ({"sender": "STRANGER"}, Reason.WRONG_PARTNER),
        ({"stream": b""}, Reason.PROTOCOL_ERROR),
    ],
)
def test_names_are_checked(change: dict[str, object], reason: Reason) -> None:
    wrong = request()
    wrong.MergeFrom(channel_pb2.Bind(**change))  # type: ignore[arg-type]
    if "stream" in change:
        wrong.stream = b""
    with pytest.raises(Refusal) as refused:
        check_names(wrong, CHANNEL, "R", "")
    assert refused.value.reason is reason


def test_definition_and_certificate_are_checked() -> None:
    only = CHANNEL.model_copy(update={"allowed_identities": ("qsg.example",)})
    for channel, reason in [
        (None, Reason.UNKNOWN_CHANNEL_NAME),
        (only, Reason.NOT_AUTHORIZED),
        (Channel(name="CH", type="sender", transmission_queue="Q", connection_names=("r:1",)), Reason.CHANNEL_TYPE_ERROR),
    ]:
        with pytest.raises(Refusal) as refused:
            check_names(request(), channel, "R", "other.example")
        assert refused.value.reason is reason
    assert check_names(request(), only, "R", "qsg.example") is only


def batch(number: int, counters: list[int], sequence: int, texts: str = "ab") -> channel_pb2.Batch:
    builder = BatchBuilder(512, 1 << 20)
    for counter in counters:
        builder.add(Loaded(*segment(counter, list(texts), inline=counter % 2 == 0)), NOW)
    return builder.finish(number, f"L{number}", sequence, WRAP).batch


def course(record: records_pb2.Progress | None = None) -> Course:
    return Course.after(record or records_pb2.Progress(), offer(CHANNEL))


def refusal(run: Course, wrong: channel_pb2.Batch) -> Reason:
    before = (run.number, run.sequence, dict(run.positions))
    with pytest.raises(Refusal) as refused:
        run.accept(wrong)
    assert (run.number, run.sequence, run.positions) == before
    return refused.value.reason


def test_batches_in_order_advance_the_record() -> None:
    run = course()
    record = records_pb2.Progress()
    for number, counters in [(1, [1, 2]), (2, [3])]:
        arrivals = run.accept(batch(number, counters, run.sequence))
        record = record_after(record, arrivals, WRAP, luwid=f"L{number}")
    assert (record.sequence, record.messages, record.batches, record.luwid) == (6, 6, 2, "L2")
    assert (record.confirmed[0].create_revision, record.confirmed[0].index) == (103, 1)
    assert course(record).sequence == 6


def test_a_prefix_of_a_batch_has_a_record_of_its_own() -> None:
    arrivals = course().accept(batch(1, [1, 2], 0))
    part = record_after(records_pb2.Progress(), arrivals[:1], WRAP)
    assert (part.sequence, part.luwid, part.confirmed[0].create_revision) == (2, "", 101)
    assert is_base(None, records_pb2.Progress()) and not is_base(part, records_pb2.Progress())


def test_repeated_and_reordered_batches_are_refused() -> None:
    run = course()
    first = batch(1, [1, 2], 0)
    run.accept(first)
    assert refusal(run, first) is Reason.BATCH_OUT_OF_ORDER
    assert refusal(run, batch(3, [3], 4)) is Reason.BATCH_OUT_OF_ORDER
    assert refusal(run, batch(2, [2], 4)) is Reason.BATCH_OUT_OF_ORDER
    assert refusal(run, batch(2, [3], 5)) is Reason.BATCH_OUT_OF_ORDER
    assert len(run.accept(batch(2, [3], 4))) == 1


def test_positions_at_or_below_the_record_are_refused_after_a_new_bind() -> None:
    record = record_after(records_pb2.Progress(), course().accept(batch(1, [1, 2], 0)), WRAP, luwid="L1")
    assert refusal(course(record), batch(1, [2], 4)) is Reason.BATCH_OUT_OF_ORDER
    assert course(record).accept(batch(1, [3], 4))


def test_nonsense_is_a_protocol_error() -> None:
    for spoil in ("header", "bodies", "messages", "place", "entry"):
        wrong = batch(1, [1], 0)
        wire = wrong.segments[0]
        if spoil == "header":
            wire.header = b"\xff\xff"
        elif spoil == "bodies":
            wire.bodies = wire.bodies[:-1]
        elif spoil == "messages":
            wrong.messages = 7
        elif spoil == "place":
            wire.priority = 77
        else:
            header = records_pb2.SegmentHeader.FromString(wire.header)
            header.entries[1].offset = 10_000
            wire.header = header.SerializeToString()
        assert refusal(course(), wrong) is Reason.PROTOCOL_ERROR


def test_a_message_larger_than_agreed_is_refused() -> None:
    run = course()
    run.message_bytes_max = 10
    wrong = batch(1, [1], 0)
    header = records_pb2.SegmentHeader.FromString(wrong.segments[0].header)
    header.entries[0].size = 1_000_000
    wrong.segments[0].header = header.SerializeToString()
    assert refusal(run, wrong) is Reason.MSG_TOO_BIG_FOR_Q_MGR
