"""What goes into a batch, when it ends, and what a confirmation of it deletes."""

from __future__ import annotations

from collections import deque

from hypothesis import given
from hypothesis import strategies as st

from qsg.manager.flight import Flight
from qsg.pb import records_pb2 as pb
from qsg.rules import keys, segments
from qsg.rules.batches import PIECES_MAX, BatchBuilder, Built, Loaded, Piece, covered, ends, settle
from qsg.rules.lanes import Position
from qsg.store.contract import Delete, Put
from support.channel_segments import NOW, segment

WRAP = 999_999_999


def finish(builder: BatchBuilder, sequence: int = 0) -> Built:
    return builder.finish(1, "X.7.1.1", sequence, WRAP)


def texts(built: Built) -> list[str]:
    found = []
    for wire in built.batch.segments:
        header = pb.SegmentHeader.FromString(wire.header)
        found += [pb.Message.FromString(bytes(body)).payload.decode().strip() for _, _, body in segments.iterate(header, wire.bodies)]
    return found


def test_a_record_of_what_was_backed_out_is_deleted_with_its_segment() -> None:
    """Found by simulation: an application got from the transmission queue and backed out before the channel took it."""
    at, bodies = segment(1, ["a", "b"])
    builder = BatchBuilder(512, 1 << 20)
    assert builder.add(Loaded(at, bodies, recorded=True), NOW) is None
    record = Delete(keys.consumption("Q", 0, at.suffix))
    assert record in settle("Q", finish(builder).pieces).ops
    covered_piece, _ = covered(Loaded(at, bodies, recorded=True), Position(104, b"", 0))
    assert covered_piece is not None and record in settle("Q", [covered_piece]).ops


def test_whole_segments_pass_through() -> None:
    builder = BatchBuilder(512, 1 << 20)
    for counter in (1, 2):
        at, bodies = segment(counter, [f"{counter}a", f"{counter}b"], inline=counter == 1)
        assert builder.add(Loaded(at, bodies), NOW) is None
    built = finish(builder, sequence=10)
    assert texts(built) == ["1a", "1b", "2a", "2b"]
    assert (built.batch.first_sequence, built.batch.messages, built.last_sequence) == (11, 4, 14)
    assert [not pb.SegmentHeader.FromString(w.header).bodies for w in built.batch.segments] == [True, True]
    assert built.positions == {0: Position(102, keys.suffix("X.0", 7, 2), 1)}


def test_a_batch_ends_at_its_messages_and_the_rest_goes_on() -> None:
    at, bodies = segment(1, list("abcde"), inline=False)
    builder = BatchBuilder(2, 1 << 20)
    rest = builder.add(Loaded(at, bodies), NOW)
    first = finish(builder)
    assert builder.full and rest is not None and rest.first == 2
    assert texts(first) == ["a", "b"]
    assert first.positions[0].index == 1
    builder = BatchBuilder(3, 1 << 20)
    assert builder.add(rest, NOW) is None
    second = finish(builder)
    assert texts(second) == ["c", "d", "e"]
    assert (second.batch.segments[0].first_index, second.batch.segments[0].last_index) == (2, 4)


def test_a_segment_that_would_not_fit_begins_the_next_batch_whole() -> None:
    builder = BatchBuilder(3, 1 << 20)
    assert builder.add(Loaded(*segment(1, ["a", "b"])), NOW) is None
    loaded = Loaded(*segment(2, ["c", "d"]))
    assert builder.add(loaded, NOW) is loaded
    assert builder.full


def test_a_message_larger_than_the_batch_goes_alone() -> None:
    builder = BatchBuilder(10, 100)
    rest = builder.add(Loaded(*segment(1, ["a", "b"], size=500)), NOW)
    assert rest is not None and rest.first == 1
    assert texts(finish(builder)) == ["a"]


def test_expired_and_consumed_messages_are_settled_but_not_sent() -> None:
    at, bodies = segment(1, list("abcd"), expired=(1,), inline=False)
    builder = BatchBuilder(10, 1 << 20)
    assert builder.add(Loaded(at, bodies, gone=0b1000), NOW) is None
    built = finish(builder)
    assert texts(built) == ["a", "c"]
    assert list(built.batch.segments[0].indexes) == [0, 2]
    assert built.batch.segments[0].last_index == 3
    settlement = settle("Q", built.pieces)
    assert settlement.messages == 3
    assert not Loaded(*segment(2, ["x"], expired=(0,))).wants_bodies(NOW)


def test_what_has_expired_is_settled_by_batches_of_a_bounded_size() -> None:
    """Behind a partner that was away for long there may be a million of them, and one batch under way while they are read."""
    segments_of_one = [Loaded(*segment(counter, ["a"], expired=(0,))) for counter in range(1, 3000)]
    builder, taken = BatchBuilder(512, 1 << 20), 0
    for loaded in segments_of_one:
        if builder.full:
            break
        assert builder.add(loaded, NOW) is None
        taken += 1
    built = finish(builder)
    assert taken == len(built.batch.segments) == PIECES_MAX and built.messages == 0

    more = BatchBuilder(9_999, 1 << 20)
    for counter in range(1, 2000):
        more.add(Loaded(*segment(counter, ["a"])), NOW)
    assert not more.full


def test_when_a_batch_ends() -> None:
    builder = BatchBuilder(10, 1 << 20)
    assert not ends(builder, queue_empty=True, waited_ms=99, interval_ms=0, stopping=True)
    builder.add(Loaded(*segment(1, ["a"])), NOW)
    assert ends(builder, queue_empty=True, waited_ms=0, interval_ms=0, stopping=False)
    assert not ends(builder, queue_empty=False, waited_ms=5, interval_ms=0, stopping=False)
    assert not ends(builder, queue_empty=True, waited_ms=5, interval_ms=10, stopping=False)
    assert ends(builder, queue_empty=True, waited_ms=5, interval_ms=10, stopping=True)


def test_settling_deletes_ranges_per_lane_and_writes_what_is_left_of_a_segment() -> None:
    one, _ = segment(1, ["a", "b"], inline=False)
    two, _ = segment(2, ["c", "d"])
    three, _ = segment(3, ["e", "f", "g"])
    settlement = settle("Q", [Piece(one, 0, 1), Piece(two, 0, 1), Piece(three, 0, 1)])
    assert (settlement.messages, settlement.bytes) == (6, 6)
    header, body, record = settlement.ops
    assert header == Delete(keys.header("Q", 0, one.suffix), keys.header("Q", 0, two.suffix) + b"\0")
    assert body == Delete(keys.body("Q", 0, one.suffix), keys.body("Q", 0, two.suffix) + b"\0")
    assert isinstance(record, Put) and record.key == keys.consumption("Q", 0, three.suffix)
    assert pb.Consumption.FromString(record.value).gone == b"\x03"
    rest = settle("Q", [Piece(three, 2, 2)])
    assert (rest.messages, rest.ops) == (1, [Delete(keys.header("Q", 0, three.suffix)), Delete(keys.consumption("Q", 0, three.suffix))])


def test_no_deleted_range_covers_a_key_that_is_written() -> None:
    one, _ = segment(1, ["a", "b"])
    settlement = settle("Q", [Piece(one, 0, 0), Piece(one, 1, 1)])
    assert not any(isinstance(op, Put) for op in settlement.ops)


def test_chunks_of_a_large_message_go_with_its_segment() -> None:
    one, _ = segment(1, ["a"])
    one.header.entries[0].stage = b"\x01"
    assert Delete(b"q/Q/x/01/", b"q/Q/x/010") in settle("Q", [Piece(one, 0, 0)]).ops


def test_chunks_go_with_the_piece_that_settles_their_message() -> None:
    """Who ends the segment in another way than the channel deletes no chunks of what is gone."""
    one, _ = segment(1, ["a", "b", "c"])
    for index, entry in enumerate(one.header.entries):
        entry.stage = bytes([index + 1])
    chunks = [Delete(b"q/Q/x/0%d/" % i, b"q/Q/x/0%d0" % i) for i in (1, 2, 3)]
    assert settle("Q", [Piece(one, 0, 1)]).ops[:-1] == chunks[:2]
    assert [op for op in settle("Q", [Piece(one, 2, 2)]).ops if op in chunks] == chunks[2:]
    assert [op for op in settle("Q", [Piece(one, 0, 1), Piece(one, 2, 2)]).ops if op in chunks] == chunks
    assert [op for op in settle("Q", [Piece(one, 0, 2, gone=0b11)]).ops if op in chunks] == chunks, "an older version left them"


def test_a_piece_of_many_large_messages_is_settled_by_several_units() -> None:
    one, _ = segment(1, ["a"] * 125)
    for index, entry in enumerate(one.header.entries):
        entry.stage = bytes([index + 1])
    small, _ = segment(2, ["b"])
    flight = Flight(settle=deque([Piece(one, 0, 124, recorded=True), Piece(small, 0, 0)]))
    units = []
    while flight.settle:
        pieces, _ = flight.next_to_settle()
        units.append(settle("Q", pieces))
    assert [unit.messages for unit in units] == [60, 60, 6]
    assert max(len(unit.ops) for unit in units) < 100
    assert Delete(keys.consumption("Q", 0, one.suffix), keys.consumption("Q", 0, small.suffix) + b"\0") in units[-1].ops


def test_what_the_partners_record_covers() -> None:
    at, bodies = segment(3, list("abc"))
    loaded = Loaded(at, bodies)
    assert covered(loaded, None) == (None, loaded)
    assert covered(loaded, Position(102, b"~", 9)) == (None, loaded)
    assert covered(loaded, Position(104, b"", 0)) == (Piece(at, 0, 2), None)
    piece, rest = covered(loaded, at.position(1))
    assert piece == Piece(at, 0, 1) and rest is not None and rest.first == 2


@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(1, 7), st.integers(60, 2000))
def test_successive_batches_settle_every_position_once_and_in_order(sizes: list[int], messages_max: int, bytes_max: int) -> None:
    waiting = [Loaded(*segment(n, [f"{n}.{i}" for i in range(count)])) for n, count in enumerate(sizes)]
    sent: list[str] = []
    settled: list[tuple[bytes, int]] = []
    sequence = 0
    while waiting:
        builder = BatchBuilder(messages_max, bytes_max)
        while waiting and not builder.full:
            rest = builder.add(waiting.pop(0), NOW)
            if rest is not None:
                waiting.insert(0, rest)
        built = finish(builder, sequence)
        assert 1 <= built.messages <= messages_max
        assert built.batch.first_sequence == sequence + 1
        sequence = built.last_sequence
        sent += texts(built)
        settled += [(p.segment.suffix, i) for p in built.pieces for i in range(p.first, p.last + 1)]
    assert sent == [f"{n}.{i}" for n, count in enumerate(sizes) for i in range(count)]
    assert settled == [(keys.suffix("X.0", 7, n), i) for n, count in enumerate(sizes) for i in range(count)]
