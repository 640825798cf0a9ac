"""Interleavings around reading a queue in the order in which it was committed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from qsg.pb import records_pb2 as pb
from qsg.rules import batches, keys
from qsg.rules.batches import BatchBuilder, Loaded
from qsg.rules.lanes import LaneReader, SegmentAt
from qsg.rules.pack import pack
from qsg.rules.packed import Lane
from qsg.rules.slots import Guard
from qsg.rules.unit import NewMessage, Unit
from qsg.store.contract import Get, GetResult, Limits, Put
from qsg.store.mvcc import Mvcc
from support.channel_segments import NOW, segment


@dataclass
class Queue:
    """Queue Q in a store; each `commit` is one transaction of a lane."""

    store: Mvcc = field(default_factory=Mvcc)
    counters: dict[str, int] = field(default_factory=dict)
    totals: dict[str, pb.Totals] = field(default_factory=dict)

    def commit(self, lane: str, *texts: str) -> None:
        puts = []
        for text in texts:
            counter = self.counters[lane] = self.counters.get(lane, 0) + 1
            suffix = keys.suffix(lane, 7, counter)
            header = pb.SegmentHeader(entries=[pb.Entry(message_id=text.encode())])
            puts.append(Put(keys.header("Q", 0, suffix), header.SerializeToString()))
            totals = self.totals.setdefault(lane, pb.Totals())
            totals.put += 1
            totals.last[0] = suffix
        self.store.apply((), [*puts, Put(keys.lane_totals("Q", lane), self.totals[lane].SerializeToString())], ())

    def read(self, gets: Sequence[Get]) -> tuple[int, list[GetResult]]:
        """All at one revision."""
        result = self.store.apply((), gets, ())
        return result.revision, [result.got(i) for i in range(len(gets))]


def texts(reader: LaneReader) -> list[str]:
    """What may be sent now."""
    ready = reader.ready(0)
    return [ready.popleft().header.entries[0].message_id.decode() for _ in range(len(ready))]


def look(reader: LaneReader, queue: Queue) -> list[str]:
    reader.feed(*queue.read(reader.plan()))
    return texts(reader)


def test_c2b_lanes_that_are_read_one_after_the_other_are_read_at_one_revision() -> None:
    """Lane X is read at revision 100 (empty), lane Y at 105; a message of X made at 103 is sent after 105, but the watermark 105 covers it.
    Wrong: deleted unsent. Prevented: all lanes are read at one revision R, and only positions up to R are used."""
    queue, reader = Queue(), LaneReader("Q")
    queue.commit("X.0", "x1")
    queue.commit("Y.0", "y1")
    sent: list[str] = []
    while len(sent) < 2:
        sent += look(reader, queue)
    plan = reader.plan()
    queue.commit("X.0", "x2")
    queue.commit("Y.0", "y2")

    reader.feed(*queue.read(plan))
    sent += texts(reader)
    for _ in range(3):
        sent += look(reader, queue)

    assert sent == ["x1", "y1", "x2", "y2"]


def test_p3_a_lane_that_is_not_read_yet_holds_the_others_back() -> None:
    """A1@1, B1@2, A2@3; a watch has shown only @1; lane A is read at 3 and A1, A2 are sent; watermark 3 covers B1. Wrong: deleted unsent.
    Prevented: the totals of all lanes are read at the same revision, and a lane that moved bounds what is used."""
    queue, reader = Queue(), LaneReader("Q")
    queue.commit("A.0", "A1")
    first = look(reader, queue)
    plan = reader.plan()
    queue.commit("B.0", "B1")
    queue.commit("A.0", "A2")

    reader.feed(*queue.read(plan))
    second = texts(reader)
    rest = look(reader, queue) + look(reader, queue)

    assert first + second + rest == ["A1", "B1", "A2"]


def test_p4_a_page_that_is_cut_off_bounds_what_is_used() -> None:
    """Lane A has three segments of one transaction, B a later one, and a page holds one. Wrong: B1 is sent, the watermark covers A2, A3.
    Prevented: nothing beyond the end of the shortest page that was cut off."""
    queue, reader = Queue(), LaneReader("Q", page_max=1)
    queue.commit("A.0", "A1", "A2", "A3")
    queue.commit("B.0", "B1")

    sent = [text for _ in range(6) for text in look(reader, queue)]

    assert sent == ["A1", "A2", "A3", "B1"]


def test_p4_a_segments_counter_is_taken_when_it_is_published() -> None:
    """Lane A stages counters 2 and 3 and publishes 3 before 2: 2 lies below the watermark. Wrong: deleted unsent. Prevented: staging takes
    an id of its own; counters are taken in the transaction that publishes, so key order is commit order."""
    lane = Lane("A", 0, 7)

    def published(*units: Unit) -> list[bytes]:
        packed = pack(units, lane, Guard(), b"attempt", Limits())
        return [op.key for op in packed.ops if isinstance(op, Put) and op.key.startswith(keys.headers("Q"))]

    def put(text: str, stage: bytes = b"") -> Unit:
        return Unit(puts=[NewMessage("Q", 0, pb.Entry(message_id=text.encode(), stage=stage), b"" if stage else b"body")])

    staged_first = put("staged long ago", b"stage-1")
    small = put("put meanwhile")
    order = published(small) + published(staged_first)

    assert order == sorted(order)


def test_c3_a_half_sent_segment_keeps_its_place_when_more_is_put() -> None:
    """A half-sent segment is merged with others into a new one; its confirmed part then has a new position. Wrong: duplicate, or loss when
    merged into an older key. Prevented: segments are written once; the partner's record names segment and index."""
    half, bodies = segment(1, list("abcd"))
    more, _ = segment(2, list("ef"))
    builder = BatchBuilder(2, 1 << 20)
    rest = builder.add(Loaded(half, bodies), NOW)
    assert rest is not None
    confirmed = builder.finish(1, "L1", 0, 999).positions[0]

    resumed: list[str] = []
    for one in (half, more):
        piece, left = batches.covered(Loaded(one, b""), confirmed)
        assert (piece is not None) == (one is half)
        assert left is not None
        resumed += [e.message_id.decode().rstrip(".") for e in left.segment.header.entries[left.first :]]

    assert resumed == ["c", "d", "e", "f"]


def test_n12_what_is_left_of_a_half_confirmed_segment_is_exactly_what_was_not_confirmed() -> None:
    """Half of a segment was confirmed, the queue is unlocked, an application gets the rest and more. Wrong: duplicate. Prevented: a delete
    that covers part of a segment writes its consumption record in the same transaction."""
    half, bodies = segment(1, list("abcd"))
    piece, _ = batches.covered(Loaded(half, bodies), half.position(1))
    assert piece is not None

    settled = batches.settle("XQ", [piece])

    (written,) = [op for op in settled.ops if isinstance(op, Put)]
    assert written.key == keys.consumption("XQ", 0, half.suffix)
    assert pb.Consumption.FromString(written.value).gone == bytes([0b0011])
    assert settled.messages == 2 and not any(isinstance(op, Put) is False for op in settled.ops)


def test_c3_positions_of_merged_lanes_compare_as_they_were_committed() -> None:
    """Two segments of one transaction, in two lanes, and one of a later transaction: their positions compare in commit order, so that one
    watermark covers exactly what was sent before it. (What C3 rests on.)"""
    places: list[SegmentAt] = [
        segment(1, ["a"], revision=10, lane="A.0")[0],
        segment(1, ["b"], revision=10, lane="B.0")[0],
        segment(2, ["c"], revision=11, lane="A.0")[0],
    ]
    watermark = places[1].position(0)

    assert [one.position(0) <= watermark for one in places] == [True, True, False]
