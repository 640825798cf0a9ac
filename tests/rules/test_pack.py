"""Packing: one transaction is its units one after the other, within limits; and who is blamed when it fails."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from qsg.pb import records_pb2 as pb
from qsg.rules import keys, segments
from qsg.rules.pack import pack
from qsg.rules.packed import Lane, Packed, guard_of, holds, void
from qsg.rules.reasons import Reason, Refusal
from qsg.rules.slots import Guard
from qsg.rules.unit import Cell, Change, NewMessage, NewSegment, Taken, Unit
from qsg.store.contract import (
    Compare,
    Delete,
    Get,
    KeyValue,
    Limits,
    Op,
    Put,
    Relation,
    Target,
    TxnResult,
    absent,
    created_at,
    get_prefix,
    nothing_changed_after,
    unchanged,
)
from qsg.store.mvcc import Mvcc, check_limits
from qsg.store.mvcc import holds as store_holds

LIMITS = Limits()


def message(number: int = 0, size: int = 10, queue: str = "Q", priority: int = 0, to: tuple[str, str] | None = None) -> NewMessage:
    name = b"%024d" % number
    stored = pb.Message(message_id=name, payload=b"x" * size).SerializeToString()
    return NewMessage(queue, priority, pb.Entry(message_id=name, payload_size=size), stored, to)


class Member:
    """A member over a store's bare state: packs, applies, learns, and tries the rest again, without any faults."""

    def __init__(self, state: Mvcc, limits: Limits = LIMITS) -> None:
        self.state, self.limits = state, limits
        incarnation = state.apply([], [Put(keys.member("X"), b"")], []).revision
        self.lane = Lane("X", 0, incarnation)
        self.guard = Guard()
        self.attempts = 0
        self.transactions = 0

    def pack(self, units: Sequence[Unit]) -> Packed:
        self.attempts += 1
        return pack(units, self.lane, self.guard, b"%d" % self.attempts, self.limits)

    def send(self, packed: Packed) -> TxnResult:
        check_limits(self.limits, packed.compares, packed.ops, packed.else_ops)
        result = self.state.apply(packed.compares, packed.ops, packed.else_ops)
        self.transactions += 1
        if result.succeeded:
            self.guard = Guard(self.guard.number + 1, packed.attempt, result.revision)
        return result

    def run(self, units: Sequence[Unit], together: bool = True) -> list[str]:
        """What each unit is told."""
        told = [""] * len(units)
        waiting = list(range(len(units)))
        while waiting:
            packed = self.pack([units[i] for i in (waiting if together else waiting[:1])])
            considered, waiting = waiting[: packed.considered], waiting[packed.considered :]
            again = {considered[d.index]: d.error for d in packed.denied if d.tentative}
            told_now = {considered[d.index]: str(d.error) for d in packed.denied if not d.tentative}
            if packed.included:
                result = self.send(packed)
                if result.succeeded:
                    packed.applied(result.revision)
                    told_now |= {considered[i]: "committed" for i in packed.included}
                    told_now |= {i: str(e) for i, e in again.items()}
                else:
                    packed.learn(result)
                    blamed = packed.blame(result)
                    assert blamed or packed.stale_totals(result)
                    told_now |= {considered[i]: "changed" for i in blamed}
            for i, text in told_now.items():
                told[i] = text
            waiting = [i for i in considered if i not in told_now] + waiting
        return told


@pytest.fixture
def member() -> Member:
    return Member(Mvcc())


def headers(member: Member, queue: str = "Q") -> list[tuple[int, pb.SegmentHeader, bytes]]:
    """(priority, header, bodies) of each segment in key order."""
    found = []
    for kv in member.state.read(get_prefix(keys.headers(queue))).kvs:
        priority, suffix = keys.split_segment_key(queue, kv.key)
        header = pb.SegmentHeader.FromString(kv.value)
        body = member.state.read(Get(keys.body(queue, priority, suffix))).first
        found.append((priority, header, body.value if body else header.bodies))
    return found


def test_messages_of_several_units_share_a_segment_in_order(member: Member) -> None:
    units = [Unit(puts=[message(i), message(i + 100, priority=4)]) for i in range(5)]
    assert member.run(units) == ["committed"] * 5
    assert member.transactions == 1
    (low, header, bodies), (high, other, _) = headers(member)
    assert (low, high) == (0, 4)
    assert [int(e.message_id) for e in header.entries] == [0, 1, 2, 3, 4]
    assert [int(e.message_id) for e in other.entries] == [100, 101, 102, 103, 104]
    stored = [pb.Message.FromString(bytes(body)) for _, _, body in segments.iterate(header, bodies)]
    assert [int(m.message_id) for m in stored] == [0, 1, 2, 3, 4]


def test_small_bodies_lie_in_the_header_and_large_ones_apart(member: Member) -> None:
    member.run([Unit(puts=[message(1, 100)]), Unit(puts=[message(2, 5000, queue="L")])])
    assert headers(member)[0][1].bodies
    ((_, large, bodies),) = headers(member, "L")
    assert not large.bodies and large.bodies_size == len(bodies) > 5000


def test_a_segment_is_closed_at_its_size_and_its_number_of_entries(member: Member) -> None:
    member.run([Unit(puts=[message(i, 100_000) for i in range(5)]), Unit(puts=[message(i, 1, queue="N") for i in range(1100)])])
    assert [len(h.entries) for _, h, _ in headers(member)] == [2, 2, 1]
    assert [len(h.entries) for _, h, _ in headers(member, "N")] == [segments.ENTRIES_MAX, 1100 - segments.ENTRIES_MAX]


def test_a_segment_handed_in_whole_keeps_its_place_among_messages(member: Member) -> None:
    whole = pb.SegmentHeader(entries=[pb.Entry(message_id=b"%024d" % 2, size=3)], bodies_size=3)
    member.run([Unit(puts=[message(1), NewSegment("Q", 0, whole, b"abc", 1, 3), message(3)])])
    assert [int(h.entries[0].message_id) for _, h, _ in headers(member)] == [1, 2, 3]
    assert headers(member)[1][2] == b"abc"


def test_destinations_are_named_once_and_messages_without_one_lie_apart(member: Member) -> None:
    puts: list[NewMessage | NewSegment] = [message(1, to=("A", "R")), message(2, to=("B", "R")), message(3, to=("A", "R")), message(4)]
    member.run([Unit(puts=puts)])
    (_, directed, _), (_, plain, _) = headers(member)
    assert [(d.queue, d.queue_manager) for d in directed.destinations] == [("A", "R"), ("B", "R")]
    assert [e.destination for e in directed.entries] == [0, 1, 0]
    assert len(plain.destinations) == 0


def test_totals_count_what_this_lane_put_and_took(member: Member) -> None:
    member.run([Unit(puts=[message(1, 10), message(2, 20, priority=9)])])
    member.run([Unit(taken=[Taken("Q", 1, 10)])])
    kv = member.state.read(Get(keys.lane_totals("Q", "X.0"))).first
    assert kv is not None
    totals = pb.Totals.FromString(kv.value)
    assert (totals.put, totals.put_bytes, totals.got, totals.got_bytes) == (2, 30, 1, 10)
    assert dict(totals.last) == {0: keys.suffix("X.0", member.lane.incarnation, 1), 9: keys.suffix("X.0", member.lane.incarnation, 2)}


def test_counters_are_never_taken_twice(member: Member) -> None:
    """Interleaving P4: a counter is taken when its segment is published; what failed leaves a hole."""
    failing = Unit(compares=[absent(keys.member("X"))], puts=[message(1)])
    assert member.run([failing, Unit(puts=[message(2)])]) == ["changed", "committed"]
    ((_, header, _),) = headers(member)
    assert int(header.entries[0].message_id) == 2
    (kv,) = member.state.read(get_prefix(keys.headers("Q"))).kvs
    assert kv.key.endswith(b"%020x" % 2)


def test_a_unit_alone_beyond_the_limits_is_refused_and_others_go_on(member: Member) -> None:
    big = Unit(ops=[Put(b"k%d" % i, b"") for i in range(130)])
    heavy = Unit(puts=[message(9, 200_000) for _ in range(9)])
    told = member.run([Unit(puts=[message(1)]), big, heavy, Unit(puts=[message(2)])])
    assert [Reason.SYNCPOINT_LIMIT_REACHED.name in t for t in told] == [False, True, True, False]
    assert told[0] == told[3] == "committed"


def test_many_units_become_several_transactions_within_the_limits(member: Member) -> None:
    units = [Unit(compares=[absent(b"c%d" % i)], changes=[Change(Cell(b"k%d" % i), lambda _: b"v" * 100)]) for i in range(300)]
    assert member.run(units) == ["committed"] * 300
    assert 300 / 64 < member.transactions < 8


@pytest.mark.parametrize("size", [100, 9_000, 60_000])
def test_what_is_packed_is_within_bytes(size: int) -> None:
    """`Member.send` checks every transaction against the limits as a store does."""
    member = Member(Mvcc(), Limits(bytes=300_000))
    assert set(member.run([Unit(puts=[message(i, size)]) for i in range(3_000_000 // size // 4)])) == {"committed"}
    assert member.transactions >= 3


def test_a_doorbell_compared_by_prefix_sees_an_earlier_unit_of_the_same_transaction(member: Member) -> None:
    """Interleaving H6: an idle channel closes while a message is put by the same member."""
    member.run([Unit(puts=[message(1)])])
    idle = Unit(compares=[nothing_changed_after(keys.totals("Q"), member.state.revision)], ops=[Put(b"closed", b"")])
    assert member.run([Unit(puts=[message(2)]), idle]) == ["committed", "changed"]
    assert member.state.read(Get(b"closed")).first is None


def test_a_put_after_the_deletion_of_its_queue_waits_for_its_compare_to_fail(member: Member) -> None:
    """Interleaving P8, within one member."""
    d = keys.queue_state("Q")
    revision = member.state.apply([], [Put(d, b"")], []).revision
    prefix = get_prefix(keys.queue("Q"))
    gone = Unit(ops=[Delete(prefix.key, prefix.end)])
    put = Unit(compares=[unchanged(d, revision)], puts=[message(1)])
    assert member.run([put, gone, put]) == ["committed", "committed", "changed"]
    assert member.state.read(prefix).kvs == ()


def test_a_prefix_compare_is_blamed_only_when_something_new_is_there(member: Member) -> None:
    revision = member.state.apply([], [Put(b"c/1", b""), Put(b"d/1", b"")], []).revision
    member.state.apply([], [Put(b"c/2", b"")], [])
    claims = Unit(compares=[nothing_changed_after(b"c/", revision)], ops=[Put(b"a", b"")])
    others = Unit(compares=[nothing_changed_after(b"d/", revision)], ops=[Put(b"b", b"")])
    empty = Unit(compares=[Compare(b"c/", Target.CREATE, Relation.EQUAL, 0, b"c0")], ops=[Put(b"e", b"")])
    assert member.run([claims, others, empty]) == ["changed", "committed", "changed"]


def test_a_stale_cell_is_blamed_and_brought_up_to_date(member: Member) -> None:
    cell, other = Cell(b"c"), Cell(b"o")
    revision = member.state.apply([], [Put(b"c", b"theirs")], []).revision
    units = [Unit(changes=[Change(cell, lambda _: b"mine")]), Unit(changes=[Change(other, lambda _: b"fine")])]
    assert member.run(units) == ["changed", "committed"]
    assert (cell.value, cell.mod_revision, cell.create_revision) == (b"theirs", revision, revision)
    assert member.run(units[:1]) == ["committed"]
    assert (cell.value, cell.create_revision) == (b"mine", revision)


def test_what_is_newer_in_a_cell_is_not_put_back() -> None:
    cell = Cell(b"c")
    cell.saw(10, KeyValue(b"c", b"new", 5, 9))
    cell.saw(9, None)
    assert cell.value == b"new"
    cell.saw(11, None)
    assert cell.value is None and cell.mod_revision == 0


def test_a_cell_changed_to_nothing_is_deleted(member: Member) -> None:
    cell = Cell(b"c")
    assert member.run([Unit(changes=[Change(cell, lambda _: b"1")]), Unit(changes=[Change(cell, lambda _: None)])]) == ["committed"] * 2
    assert member.state.read(Get(b"c")).first is None
    assert cell.value is None and cell.mod_revision == 0


def test_two_cells_of_one_key_that_differ_are_not_merged(member: Member) -> None:
    current, stale = Cell(b"c"), Cell(b"c", b"old", 1, 1)
    units = [
        Unit(changes=[Change(current, lambda old: (old or b"") + b"1")]),
        Unit(changes=[Change(stale, lambda old: (old or b"") + b"2")]),
    ]
    assert member.run(units) == ["committed", "changed"]
    assert stale.value == b"1"


def test_a_refusal_that_rests_on_a_unit_that_fails_is_taken_back(member: Member) -> None:
    cell = Cell(b"c")
    failing = Unit(compares=[absent(keys.member("X"))], changes=[Change(cell, lambda _: b"1")])
    refusing = Unit(changes=[Change(cell, _apply("refuse-if-set", b"2"))])
    assert member.run([failing, refusing]) == ["changed", "committed"]
    assert member.run([Unit(), refusing])[1] == str(Refusal(Reason.PRODUCER_GAP))


def test_own_key_and_guard_are_compared_and_read(member: Member) -> None:
    packed = member.pack([Unit(ops=[Put(b"k", b"")])])
    member.state.apply([], [Delete(keys.member("X"))], [])
    result = member.send(packed)
    assert not result.succeeded
    assert guard_of(result, member.lane) == (Guard(), False)


def test_a_void_advance_makes_the_attempt_fail_for_good(member: Member) -> None:
    packed = member.pack([Unit(ops=[Put(b"k", b"")])])
    result = member.state.apply(*void(member.lane, member.guard))
    assert result.succeeded
    late = member.send(packed)
    assert not late.succeeded
    assert guard_of(late, member.lane) == (Guard(1, b"", result.revision), True)


@pytest.mark.parametrize(
    ("compare", "found", "expected"),
    [
        (absent(b"k"), (), True),
        (absent(b"k"), (KeyValue(b"k", b"", 3, 4),), False),
        (created_at(b"k", 3), (KeyValue(b"k", b"", 3, 4),), True),
        (Compare(b"k", Target.CREATE, Relation.NOT_EQUAL, 3), (), True),
        (Compare(b"k", Target.VALUE, Relation.EQUAL, b"v"), (KeyValue(b"k", b"v", 3, 4),), True),
        (Compare(b"k", Target.VALUE, Relation.NOT_EQUAL, b"v"), (), False),
        (Compare(b"k", Target.VERSION, Relation.GREATER, 1), (KeyValue(b"k", b"v", 3, 4, 2),), True),
        (Compare(b"k", Target.LEASE, Relation.EQUAL, 0), (KeyValue(b"k", b"v", 3, 4, 2, 9),), False),
    ],
)
def test_a_compare_judged_by_what_was_read(compare: Compare, found: tuple[KeyValue, ...], expected: bool) -> None:
    assert holds(compare, found) is expected


# Units in any mix: together they do what they do one by one

NAMES = [b"a", b"b", b"q/Q/c/1", b"q/Q/d"]


def _apply(kind: str, text: bytes) -> Callable[[bytes | None], bytes | None]:
    def apply(old: bytes | None) -> bytes | None:
        if kind == "refuse-if-set" and old:
            raise Refusal(Reason.PRODUCER_GAP)
        return None if kind == "delete" else (old or b"") + text

    return apply


@dataclass
class Recipe:
    compares: list[tuple[str, bytes]]
    changes: list[tuple[str, bytes]]
    ops: list[tuple[str, bytes]]
    puts: list[int]
    """Priorities."""
    taken: list[str]


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    name = st.sampled_from(NAMES)
    return Recipe(
        draw(st.lists(st.tuples(st.sampled_from(["absent", "unchanged", "prefix", "doorbell"]), name), max_size=2)),
        draw(st.lists(st.tuples(st.sampled_from(["append", "delete", "refuse-if-set"]), name), max_size=2)),
        draw(st.lists(st.tuples(st.sampled_from(["put", "delete", "range"]), name), max_size=2)),
        draw(st.lists(st.sampled_from([0, 1]), max_size=2)),
        draw(st.lists(st.just("Q"), max_size=1)),
    )


def build(index: int, recipe: Recipe, cells: dict[bytes, Cell], revisions: dict[bytes, int], start: int) -> Unit:
    unit = Unit(str(index))
    for kind, name in recipe.compares:
        made = {
            "absent": absent(name),
            "unchanged": unchanged(name, revisions[name]),
            "prefix": nothing_changed_after(name[:1], start),
            "doorbell": nothing_changed_after(keys.totals("Q"), start),
        }
        unit.compares.append(made[kind])
    for kind, name in recipe.changes:
        unit.changes.append(Change(cells[name], _apply(kind, b"%d." % index)))
    for kind, name in recipe.ops:
        op: dict[str, Op] = {"put": Put(name, b"%d" % index), "delete": Delete(name), "range": Delete(name, name + b"~")}
        unit.ops.append(op[kind])
    unit.puts.extend(message(index * 10 + i, priority=p) for i, p in enumerate(recipe.puts))
    unit.taken.extend(Taken("Q", 1, 10) for _ in recipe.taken)
    return unit


class Model:
    """What the units mean one after the other, without transactions: values, and which keys were written since the start."""

    def __init__(self, present: list[bool], stale: list[bool]) -> None:
        self.data = {name: b"start" for name, there in zip(NAMES, present, strict=True) if there}
        self.initially = set(self.data)
        self.written: set[bytes] = set()
        self.suspect = {name for name, there, old in zip(NAMES, present, stale, strict=True) if there and old}
        """Keys of which the cell may be out of date."""
        self.suspect_at_first = frozenset(self.suspect)
        self.messages: tuple[list[int], list[int]] = ([], [])
        self.taken = 0

    def holds(self, kind: str, name: bytes) -> bool:
        if kind == "absent":
            return name not in self.data
        if kind == "unchanged":
            return name in self.data and name not in self.written if name in self.initially else name not in self.data
        counted = bool(self.taken or self.messages[0] or self.messages[1])
        if kind == "doorbell":
            return not counted
        return not any(k in self.written and k.startswith(name[:1]) for k in self.data) and not (counted and name[:1] == b"q")

    def changed(self, index: int, recipe: Recipe) -> dict[bytes, bytes | None]:
        """Values after the unit's changes; raises `Refusal`."""
        values: dict[bytes, bytes | None] = {}
        for kind, name in recipe.changes:
            values[name] = _apply(kind, b"%d." % index)(values.get(name, self.data.get(name)))
        return values

    def write(self, name: bytes, value: bytes | None) -> None:
        self.written.add(name)
        if value is None:
            self.data.pop(name, None)
        else:
            self.data[name] = value

    def commit(self, index: int, recipe: Recipe) -> None:
        assert all(self.holds(kind, name) for kind, name in recipe.compares)
        for name, value in self.changed(index, recipe).items():
            self.write(name, value)
            self.suspect.discard(name)
        for kind, name in recipe.ops:
            self.write(name, b"%d" % index if kind == "put" else None)
            self.suspect.add(name)
        for i, priority in enumerate(recipe.puts):
            self.messages[priority].append(index * 10 + i)
        self.taken += len(recipe.taken)

    def may_refuse(self, index: int, recipe: Recipe) -> bool:
        if any(name in self.suspect for _, name in recipe.changes):
            return True
        try:
            self.changed(index, recipe)
        except Refusal:
            return True
        return False

    def may_have_changed(self, recipe: Recipe) -> bool:
        # A unit may be told so by the first transaction, and one before it be tried again and committed behind that.
        stale = any(name in self.suspect | self.suspect_at_first for _, name in recipe.changes)
        return stale or not all(self.holds(kind, name) for kind, name in recipe.compares)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(recipes(), min_size=2, max_size=6),
    st.lists(st.booleans(), min_size=4, max_size=4),
    st.lists(st.booleans(), min_size=4, max_size=4),
)
@example(
    [
        Recipe([], [], [], [], []),
        Recipe([], [("append", b"a"), ("append", b"q/Q/c/1")], [], [], []),
        Recipe([], [("append", b"a"), ("refuse-if-set", b"q/Q/c/1")], [], [], []),
        Recipe([], [("append", b"a")], [], [], []),
    ],
    [True, False, False, False],
    [True, False, False, False],
)
def test_together_is_one_after_the_other(recipe: list[Recipe], present: list[bool], stale: list[bool]) -> None:
    state = Mvcc()
    member = Member(state)
    revisions, cells = {}, {}
    for name, there, old in zip(NAMES, present, stale, strict=True):
        cells[name] = Cell(name)
        revisions[name] = state.apply([], [Put(name, b"start")], []).revision if there else 0
        if there and not old:
            cells[name].saw(state.revision, state.read(Get(name)).first)
    told = member.run([build(i, r, cells, revisions, state.revision) for i, r in enumerate(recipe)])

    model = Model(present, stale)
    for index, (text, unit) in enumerate(zip(told, recipe, strict=True)):
        if text == "committed":
            model.commit(index, unit)
        elif text == "changed":
            assert model.may_have_changed(unit)
        elif Reason.PRODUCER_GAP.name in text:
            assert model.may_refuse(index, unit)
        else:
            assert "write" in text and len(unit.changes) + len(unit.ops) > 1
    assert {name: kv.value for name in NAMES if (kv := state.read(Get(name)).first)} == model.data
    found: tuple[list[int], list[int]] = ([], [])
    for priority, header, _ in headers(member):
        found[priority].extend(int(e.message_id) for e in header.entries)
    assert found == model.messages
    kv = state.read(Get(keys.lane_totals("Q", "X.0"))).first
    sums = pb.Totals.FromString(kv.value) if kv else pb.Totals()
    assert (sums.put, sums.got) == (sum(map(len, found)), model.taken)


@given(
    st.sampled_from(list(Target)),
    st.sampled_from(list(Relation)),
    st.integers(0, 3),
    st.one_of(
        st.none(), st.builds(KeyValue, st.just(b"k"), st.sampled_from([b"", b"a", b"b"]), *[st.integers(1, 3)] * 3, st.integers(0, 3))
    ),
)
def test_a_compare_is_judged_as_a_store_judges_it(target: Target, relation: Relation, number: int, kv: KeyValue | None) -> None:
    operand: int | bytes = number if target is not Target.VALUE else [b"", b"a", b"b", b"c"][number]
    compare = Compare(b"k", target, relation, operand)
    if kv is None and target is Target.VALUE:
        assert not holds(compare, ())
    else:
        assert holds(compare, () if kv is None else (kv,)) == store_holds(compare, kv or KeyValue(b"k", b"", 0, 0, 0))
