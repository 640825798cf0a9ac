"""Settling by a partner's record: exactly what it covers is deleted, also in the middle of a segment, and the fence closes last."""

from __future__ import annotations

import pytest

from qsg.pb import records_pb2 as pb
from qsg.rules import keys
from qsg.rules.settle import PAGE, UNIT_OPS, merged, settle
from qsg.rules.steps import Commit
from qsg.rules.unit import Cell, CompareFailed
from qsg.store.contract import Get, Put, get_prefix
from support.group_model import Model, Walk


def put(model: Model, lane: str, counter: int, count: int, priority: int = 0, *, large: bool = False) -> pb.Position:
    """A segment of `count` messages of 10 bytes; the position of its last. `large`: staged, in a chunk each."""
    suffix = keys.suffix(lane, 1, counter)
    entries = [pb.Entry(message_id=bytes(24), size=20, payload_size=10) for _ in range(count)]
    for index, entry in enumerate(entries if large else []):
        entry.stage, entry.chunks = b"%03d.%03d" % (counter, index), 1
        model.apply("admin", [Put(keys.chunk("XQ", entry.stage, 0), b"chunk")])
    header = pb.SegmentHeader(entries=entries, bodies_size=20 * count)
    result = model.apply(
        "admin",
        [
            Put(keys.header("XQ", priority, suffix), header.SerializeToString()),
            Put(keys.body("XQ", priority, suffix), b"b"),
            Put(keys.lane_totals("XQ", lane), pb.Totals(put=count).SerializeToString()),
        ],
    )
    return pb.Position(create_revision=result.revision, suffix=suffix, index=count - 1)


def opened(model: Model) -> tuple[Cell, Cell]:
    """The fence, open, and the progress."""
    fence = pb.SenderFence(epoch=3, stream=b"s", open=True, bound_before=True)
    revision = model.apply("admin", [Put(keys.sender_fence("XQ"), fence.SerializeToString(deterministic=True))]).revision
    progress = Cell(keys.sender_progress("XQ"))
    progress.saw(revision, model.stores["admin"].read(Get(progress.key)).first)
    return Cell(keys.sender_fence("XQ"), fence.SerializeToString(deterministic=True), revision), progress


def run(model: Model, known: pb.Progress) -> int:
    fence, progress = opened(model)
    deleted = model.run(model.me["X"], settle("admin", "XQ", fence, progress, known))
    assert not model.fence().open and model.fence().epoch == 3
    assert isinstance(deleted, int)
    return deleted


def remaining(model: Model, kind: bytes = b"h/") -> int:
    return len(model.stores["admin"].read(get_prefix(keys.queue("XQ") + kind)).kvs)


def test_the_middle_of_a_segment() -> None:
    """N12: what is gone of a segment is written beside it."""
    model = Model("X", apart=False)
    put(model, "X.0", 1, 2)
    position = put(model, "X.0", 2, 9)
    put(model, "X.0", 3, 1)
    position.index = 4

    assert run(model, pb.Progress(confirmed={0: position}, sequence=7)) == 7
    assert (remaining(model), remaining(model, b"b/"), remaining(model, b"c/")) == (2, 2, 1)
    kv = model.stores["admin"].read(get_prefix(keys.consumptions("XQ"))).kvs[0]
    assert pb.Consumption.FromString(kv.value).gone == bytes([0b11111, 0])
    got = model.stores["admin"].read(Get(keys.lane_totals("XQ", "got.0"))).kvs[0]
    assert pb.Totals.FromString(got.value).got == 7


def test_again_deletes_nothing_more() -> None:
    model = Model("X", apart=False)
    position = put(model, "X.0", 1, 3)
    position.index = 0
    known = pb.Progress(confirmed={0: position})

    assert run(model, known) == 1
    assert run(model, known) == 0
    position.index = 2
    assert run(model, pb.Progress(confirmed={0: position})) == 2
    assert (remaining(model), remaining(model, b"c/")) == (0, 0)


def test_lanes_and_priorities_each_up_to_their_own_position() -> None:
    model = Model("X", apart=False)
    first = put(model, "X.0", 1, 1)
    second = put(model, "Y.0", 1, 1)
    put(model, "X.0", 2, 1)
    high = put(model, "X.0", 1, 2, priority=9)
    put(model, "Y.1", 5, 1, priority=5)

    assert first.create_revision < second.create_revision
    assert run(model, pb.Progress(confirmed={0: second, 9: high})) == 4
    assert remaining(model) == 2


def test_many_segments_take_several_units() -> None:
    model = Model("X", apart=False)
    for counter in range(3 * PAGE):
        last = put(model, "X.0", counter, 1)

    assert run(model, pb.Progress(confirmed={0: last})) == 3 * PAGE
    assert remaining(model) == remaining(model, b"b/") == 0


@pytest.mark.parametrize(("segments", "each"), [(24, 4), (2, 125), (1, 69), (1, 70), (3, 69)])
def test_large_messages_count_in_what_one_unit_takes(segments: int, each: int) -> None:
    model = Model("X", apart=False)
    put(model, "X.0", 0, 1)
    for counter in range(1, segments + 1):
        last = put(model, "X.0", counter, each, large=True)
    fence, progress = opened(model)
    walk = Walk(model, model.me["X"], settle("admin", "XQ", fence, progress, pb.Progress(confirmed={0: last})))
    while not walk.done:
        if isinstance(walk._next, Commit):
            assert len(walk._next.unit.ops) + len(walk._next.unit.changes) <= UNIT_OPS
        walk.step()
    assert walk.result == 1 + segments * each
    assert all(remaining(model, kind) == 0 for kind in (b"h/", b"b/", b"c/", b"x/"))


def test_cut_off_behind_each_unit_it_is_carried_on_and_the_fence_closes_last() -> None:
    for cut in range(1, 100):
        model = Model("X", "Y", apart=False)
        for counter in range(3 * PAGE):
            last = put(model, "X.0", counter, 1)
        fence, progress = opened(model)
        known = pb.Progress(confirmed={0: last})
        walk = Walk(model, model.me["X"], settle("admin", "XQ", fence, progress, known))
        while not walk.done and walk.taken < cut:
            walk.step()
        assert model.fence().open or not remaining(model)
        if walk.done:
            assert cut > 3
            return
        model.kill("X")
        left = remaining(model)

        fence.saw(10**6, model.stores["admin"].read(Get(fence.key)).first)
        progress.saw(10**6, model.stores["admin"].read(Get(progress.key)).first)
        assert model.run(model.me["Y"], settle("admin", "XQ", fence, progress, known)) == left
        assert not model.fence().open and remaining(model) == 0
    raise AssertionError("it does not end")


def test_a_fence_that_rises_meanwhile_ends_it() -> None:
    model = Model("X", apart=False)
    position = put(model, "X.0", 1, 1)
    fence, progress = opened(model)
    walk = Walk(model, model.me["X"], settle("admin", "XQ", fence, progress, pb.Progress(confirmed={0: position})))
    model.apply("admin", [Put(fence.key, pb.SenderFence(epoch=4, open=True).SerializeToString())])
    while not walk.done:
        walk.step()

    assert isinstance(walk.error, CompareFailed) and remaining(model) == 1


@pytest.mark.parametrize("before", [None, pb.Progress(messages=5, reset_to=9, sequence=4)])
def test_our_totals_and_a_pending_reset_survive(before: pb.Progress | None) -> None:
    after = merged(None if before is None else before.SerializeToString(), pb.Progress(sequence=8, luwid="L", messages=99))
    assert (after.sequence, after.luwid) == (8, "L")
    assert (after.messages, after.reset_to) == ((5, 9) if before is not None else (0, 0))
