"""Segments: built, read, cut and redirected without touching the messages."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from qsg.pb import records_pb2 as pb
from qsg.rules import segments


def build(sizes: list[int], staged: list[bool] | None = None, expiries: list[int] | None = None) -> tuple[pb.SegmentHeader, bytes]:
    """A segment of messages of these stored sizes, entry i to destination i % 3."""
    builder = segments.Builder()
    for i, size in enumerate(sizes):
        is_staged = bool(staged and staged[i])
        entry = pb.Entry(message_id=b"%d" % i, payload_size=size, expires_at_ms=expiries[i] if expiries else 0)
        if is_staged:
            entry.stage, entry.size = b"stage", size
        builder.add(entry, b"" if is_staged else bytes([i % 256]) * size, (f"Q{i % 3}", "R"))
    header, bodies = builder.values()
    return pb.SegmentHeader.FromString(header), bodies


def test_a_small_segment_is_one_value_and_a_large_one_two() -> None:
    small, none = build([10, 20])
    large, bodies = build([3000, 3000])
    assert none == b"" and not segments.needs_bodies(small) and small.bodies_size == 30
    assert segments.needs_bodies(large) and len(bodies) == large.bodies_size == 6000
    assert segments.body_at(small, 1) == b"\1" * 20
    assert segments.body_at(large, 1, bodies) == b"\1" * 3000


def test_the_earliest_expiry_is_kept_and_0_is_never() -> None:
    assert build([1, 1, 1], expiries=[0, 70, 50])[0].earliest_expiry_ms == 50
    assert build([1, 1], expiries=[0, 0])[0].earliest_expiry_ms == 0


def test_a_staged_message_has_no_body_here() -> None:
    header, bodies = build([10, 500, 10], staged=[False, True, False])
    assert [bytes(b) for _, _, b in segments.iterate(header, bodies)] == [b"\0" * 10, b"", b"\2" * 10]
    assert header.entries[1].size == 500
    assert [segments.stored_bytes(header, i) for i in range(3)] == [10, 0, 10]


def test_detached_bodies_can_be_attached_again() -> None:
    header, _ = build([10, 20])
    bare, bodies = segments.detach(header)
    assert bare.bodies == b"" and bodies == header.bodies
    value, apart = segments.attach(bare, bodies)
    assert apart == b"" and pb.SegmentHeader.FromString(value) == header


def test_one_destination_for_all_and_none_for_a_target_queue() -> None:
    header, _ = build([1, 1, 1, 1])
    one = segments.set_destination(header, ("A", "S"))
    assert [e.destination for e in one.entries] == [0] * 4
    assert [(d.queue, d.queue_manager) for d in one.destinations] == [("A", "S")]
    assert len(segments.set_destination(header, None).destinations) == 0
    assert len(header.destinations) == 3


def test_payload_bytes_of_all_or_some() -> None:
    header, _ = build([1, 2, 4, 8])
    assert (segments.payload_bytes(header), segments.payload_bytes(header, [1, 3])) == (15, 10)


@given(st.lists(st.tuples(st.integers(0, 300), st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_a_cut_segment_holds_the_kept_messages_unchanged(messages: list[tuple[int, bool, bool]]) -> None:
    header, bodies = build([m[0] for m in messages], [m[1] for m in messages], [i * 3 % 7 for i in range(len(messages))])
    keep = [i for i, m in enumerate(messages) if m[2]]
    cut, cut_bodies = segments.cut(header, bodies, keep)
    before = [(e, bytes(b)) for _, e, b in segments.iterate(header, bodies)]
    after = [(e, bytes(b)) for _, e, b in segments.iterate(cut, cut_bodies)]
    assert [(e.message_id, b) for e, b in after] == [(before[i][0].message_id, before[i][1]) for i in keep]
    assert [cut.destinations[e.destination] for e, _ in after] == [header.destinations[before[i][0].destination] for i in keep]
    assert cut.earliest_expiry_ms == min((before[i][0].expires_at_ms for i in keep if before[i][0].expires_at_ms), default=0)
    assert cut.bodies_size == len(cut_bodies) == sum(len(b) for _, b in after)


MESSAGES = st.lists(st.tuples(st.integers(0, 3000), st.booleans(), st.sampled_from([0, 5, 9])), min_size=1, max_size=12)


@given(MESSAGES)
def test_what_is_built_is_read_back_wherever_the_bodies_lie(messages: list[tuple[int, bool, int]]) -> None:
    header, bodies = build([m[0] for m in messages], [m[1] for m in messages], [m[2] for m in messages])
    bare, apart = segments.detach(header, bodies)
    value, rest = segments.attach(bare, apart)
    again = pb.SegmentHeader.FromString(value)
    for one, its in ((header, bodies), (bare, apart), (again, rest)):
        found = list(segments.iterate(one, its))
        assert [len(body) for _, _, body in found] == [0 if staged else size for size, staged, _ in messages]
        assert [bytes(body) for _, _, body in found] == [segments.body_at(one, i, its) for i in range(len(messages))]
    assert again.earliest_expiry_ms == min((m[2] for m in messages if m[2]), default=0)
    assert segments.payload_bytes(again) == sum(m[0] for m in messages)


@given(MESSAGES, st.data())
def test_a_cut_of_a_cut_is_the_cut_of_what_both_keep(messages: list[tuple[int, bool, int]], data: st.DataObject) -> None:
    header, bodies = build([m[0] for m in messages], [m[1] for m in messages], [m[2] for m in messages])
    first = sorted(data.draw(st.sets(st.integers(0, len(messages) - 1), min_size=1)))
    second = sorted(data.draw(st.sets(st.integers(0, len(first) - 1), min_size=1)))
    once, once_bodies = segments.cut(header, bodies, first)
    twice, twice_bodies = segments.cut(once, once_bodies, second)
    straight, straight_bodies = segments.cut(header, bodies, [first[i] for i in second])
    assert twice_bodies == straight_bodies and twice.bodies_size == straight.bodies_size == len(twice_bodies)
    assert [e.message_id for e in twice.entries] == [e.message_id for e in straight.entries]

    def whither(one: pb.SegmentHeader) -> list[str]:
        return [one.destinations[e.destination].queue for e in one.entries]

    assert whither(twice) == whither(straight) == [f"Q{first[i] % 3}" for i in second]
    assert twice.earliest_expiry_ms == straight.earliest_expiry_ms
