"""A slot's verdicts against every order in which copies can be lost, answered, late or overtaken (a search over a small model)."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest

from qsg.rules.slots import FENCED, REFUSED, REPEAT, UNKNOWN, VOID, Guard, Kind, Slot, Verdict

A = b"attempt-a"
START = Guard(5, b"before", 50)


def out(*lost: str) -> Slot:
    """A slot whose attempt A is out, after `lost` copies of it without an answer."""
    slot = Slot(START)
    slot.begin(A)
    for _ in lost:
        assert slot.unavailable() == REPEAT
    return slot


@pytest.mark.parametrize(
    ("lost", "guard", "ours", "verdict"),
    [
        (0, START, True, REFUSED),
        (0, START, False, FENCED),
        (0, Guard(9, b"other", 90), False, FENCED),
        (1, START, True, VOID),
        (1, START, False, FENCED),
        (1, Guard(6, A, 60), True, Verdict(Kind.APPLIED, 60)),
        (1, Guard(6, A, 60), False, Verdict(Kind.APPLIED, 60)),
        (1, Guard(6, b"next incarnation", 60), False, FENCED),
        (1, Guard(7, b"next incarnation", 60), False, UNKNOWN),
        (1, Guard(), False, UNKNOWN),
    ],
)
def test_a_failed_copy(lost: int, guard: Guard, ours: bool, verdict: Verdict) -> None:
    assert out(*("x" * lost)).failed(guard, ours) == verdict


@pytest.mark.parametrize(
    ("guard", "ours", "verdict"),
    [
        (START, True, REPEAT),
        (START, False, FENCED),
        (Guard(6, b"", 60), True, REFUSED),
        (Guard(6, A, 60), True, Verdict(Kind.APPLIED, 60)),
        (Guard(6, b"", 60), False, FENCED),
        (Guard(8, b"z", 60), False, UNKNOWN),
    ],
)
def test_a_failed_void_advance(guard: Guard, ours: bool, verdict: Verdict) -> None:
    slot = out("lost")
    assert slot.failed(START, True) == VOID
    assert slot.unavailable() == REPEAT
    assert slot.failed(guard, ours) == verdict


def test_success_advances_the_guard() -> None:
    slot = out()
    assert slot.succeeded(77) == Verdict(Kind.APPLIED, 77)
    assert slot.guard == Guard(6, A, 77)


def test_a_void_advance_that_succeeds_proves_the_attempt_void() -> None:
    slot = out("lost")
    assert slot.rejected() == VOID
    assert slot.succeeded(78) == REFUSED
    assert slot.guard == Guard(6, b"", 78)


def test_a_transaction_that_the_store_will_not_take_is_refused_at_once_when_no_copy_was_lost() -> None:
    assert out().rejected() == REFUSED


# The search


@dataclass(frozen=True)
class Copy:
    """A transaction as sent: what it compares of the guard, and the id it puts there."""

    attempt: bytes
    guard_revision: int
    guard_number: int
    data: bool
    """It compares that the data key is absent; a void advance does not."""


@dataclass(frozen=True)
class World:
    guard: Guard = START
    data: bool = False
    """A key that comes and goes, which each attempt compares absent."""
    joined: int = 0
    """Later incarnations' transactions in this slot; 0 = ours lives."""
    flying: frozenset[tuple[Copy, int]] = frozenset()
    applied: tuple[bytes, ...] = ()

    def arrive(self, sent: Copy) -> tuple[World, bool]:
        holds = not self.joined and self.guard.revision == sent.guard_revision and not (sent.data and self.data)
        if not holds:
            return self, False
        guard = Guard(sent.guard_number + 1, sent.attempt, self.guard.revision + 1)
        return replace(self, guard=guard, applied=(*self.applied, sent.attempt)), True


@dataclass(frozen=True)
class Node:
    world: World
    slot: tuple[Guard, bytes, int, bool]
    sent: int = 0
    told: tuple[tuple[bytes, Kind], ...] = ()


SENDS = 5


class Search:
    """Every reachable state: the driver sends copies, the adversary loses, delays and reorders them and moves the other keys."""

    def __init__(self, kind: type[Slot] = Slot) -> None:
        self.kind = kind
        self.wrong: list[tuple[Node, str]] = []
        self.seen: set[Node] = set()

    def run(self) -> None:
        first = self.kind(START)
        first.begin(b"a1")
        todo = [Node(World(), self.freeze(first))]
        while todo:
            node = todo.pop()
            if node in self.seen:
                continue
            self.seen.add(node)
            self.check(node)
            todo.extend(self.steps(node))

    @staticmethod
    def freeze(slot: Slot) -> tuple[Guard, bytes, int, bool]:
        return slot.guard, slot.attempt, slot.lost, slot.voiding

    def thaw(self, frozen: tuple[Guard, bytes, int, bool]) -> Slot:
        slot = self.kind(frozen[0])
        slot.attempt, slot.lost, slot.voiding = frozen[1:]
        return slot

    def check(self, node: Node) -> None:
        for attempt, kind in node.told:
            times = node.world.applied.count(attempt)
            if kind is Kind.APPLIED and times != 1:
                self.wrong.append((node, f"{attempt!r} told applied, {times} times applied"))
            if kind in (Kind.REFUSED, Kind.FENCED) and times:
                self.wrong.append((node, f"{attempt!r} told {kind.value}, but applied"))
            if kind is Kind.UNKNOWN and node.world.joined < 2:
                self.wrong.append((node, f"{attempt!r} told unknown needlessly"))

    def steps(self, node: Node) -> Iterator[Node]:
        for moved in self.moves(node.world):
            yield replace(node, world=moved)
        if node.slot[1] and node.sent < SENDS:
            yield from self.send(node)

    @staticmethod
    def moves(world: World) -> Iterator[World]:
        """What others do meanwhile, and copies that arrive late."""
        yield replace(world, data=not world.data)
        if world.joined < 2:
            guard = Guard(world.guard.number + 1, b"joined", world.guard.revision + 1) if world.joined else world.guard
            # The first step: our key is deleted, nobody has joined yet. Then one joins and commits.
            yield replace(world, joined=world.joined + 1, guard=guard)
        elif world.joined < 4:
            guard = Guard(world.guard.number + 1, b"joined", world.guard.revision + 1)
            yield replace(world, joined=world.joined + 1, guard=guard)
        for late in world.flying:
            landed, _ = world.arrive(late[0])
            yield replace(landed, flying=world.flying - {late})

    def send(self, node: Node) -> Iterator[Node]:
        guard, attempt, _, voiding = node.slot
        sent = Copy(b"" if voiding else attempt, guard.revision, guard.number, not voiding)
        world = node.world
        landed, holds = world.arrive(sent)
        slot = self.thaw(node.slot)
        verdict = slot.succeeded(landed.guard.revision) if holds else slot.failed(world.guard, not world.joined)
        yield self.told(node, landed, slot, verdict)
        for after in (landed, world, replace(world, flying=world.flying | {(sent, node.sent)})):  # answer lost, copy lost, copy late
            slot = self.thaw(node.slot)
            yield self.told(node, after, slot, slot.unavailable())
        slot = self.thaw(node.slot)
        yield self.told(node, world, slot, slot.not_applied())
        slot = self.thaw(node.slot)
        yield self.told(node, world, slot, slot.rejected())
        for after in (landed, world):  # the store says that it is full, and has applied it or not; the guard is read later
            for late in (after, *self.moves(after)):
                slot = self.thaw(node.slot)
                yield self.told(node, late, slot, slot.full(late.guard, not late.joined))

    def told(self, node: Node, world: World, slot: Slot, verdict: Verdict) -> Node:
        attempt, told = node.slot[1], node.told
        if verdict.kind in (Kind.APPLIED, Kind.REFUSED, Kind.FENCED, Kind.UNKNOWN):
            told = (*told, (attempt, verdict.kind))
            slot = copy.copy(slot)
            if verdict.kind in (Kind.APPLIED, Kind.REFUSED) and len(told) < 2:
                slot.begin(b"a2")
        return Node(world, self.freeze(slot), node.sent + 1, told)


def test_no_order_of_copies_makes_a_slot_tell_a_lie() -> None:
    search = Search()
    search.run()
    assert len(search.seen) > 10_000
    assert search.wrong == []


class HastySlot(Slot):
    """Planted bug (interleaving C1, P1): a failed copy is taken for the attempt's end."""

    def failed(self, guard: Guard, ours: bool) -> Verdict:
        self.lost = 0 if guard.revision == self.guard.revision else self.lost
        return super().failed(guard, ours)


class NumberedSlot(Slot):
    """Planted bug (interleaving N6): the guard's number is taken for proof that the attempt was applied."""

    def failed(self, guard: Guard, ours: bool) -> Verdict:
        if self.lost and guard.number == self.next_number:
            return self._settle(Verdict(Kind.APPLIED, guard.revision), guard)
        return super().failed(guard, ours)


class RashSlot(Slot):
    """Planted bug: what the store rejects is refused, though an earlier copy was lost."""

    def rejected(self) -> Verdict:
        return self._settle(REFUSED, self.guard)


class TrustfulSlot(Slot):
    """Planted bug: *no space* is taken for proof that nothing was applied."""

    def full(self, guard: Guard, ours: bool) -> Verdict:
        return self.rejected()


class CertainSlot(Slot):
    """Planted bug: a guard that others have advanced twice is taken for proof that the attempt was not applied."""

    def failed(self, guard: Guard, ours: bool) -> Verdict:
        verdict = super().failed(guard, ours)
        return FENCED if verdict == UNKNOWN else verdict


@pytest.mark.parametrize("kind", [HastySlot, NumberedSlot, RashSlot, TrustfulSlot, CertainSlot])
def test_the_search_finds_planted_bugs(kind: type[Slot]) -> None:
    search = Search(kind)
    search.run()
    assert search.wrong
