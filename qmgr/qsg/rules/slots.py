"""One slot of a committer: what became of its attempt, as a pure state machine.

A slot has at most one transaction (an *attempt*) out. The attempt compares the slot's guard as last known and the member's own key, and
advances the guard to (number + 1, random id of the attempt). Copies of it may be lost, answered, or arrive late.

Invariant: `REFUSED` and `FENCED` are said only when no copy of the attempt was or ever will be applied; `APPLIED` only when one was.
They are proven by one of: the only copy was answered *failed*; the guard has advanced without the attempt's id (a void advance, with an
empty id, is sent for that); one read shows our member key gone and the guard unchanged (a late copy compares that key). Not guaranteed:
that an outcome is ever found while the store is out of reach; and when our key is gone and several others have advanced the guard, all
that can be said is `UNKNOWN`.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Kind(enum.Enum):
    """What to do next."""

    REPEAT = "repeat"
    """Send the identical attempt (or void advance) again."""
    VOID = "void"
    """Send a void advance: a late copy of the attempt may still be under way."""
    APPLIED = "applied"
    REFUSED = "refused"
    """Not applied, and never will be; the parts that failed may be told, the rest tried again in a new attempt."""
    FENCED = "fenced"
    """Not applied, and never will be: our member key is gone."""
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Guard:
    """A guard as read at one revision. `revision` 0 = absent."""

    number: int = 0
    attempt: bytes = b""
    revision: int = 0


@dataclass(frozen=True, slots=True)
class Verdict:
    kind: Kind
    revision: int = 0
    """Where it was applied."""


REPEAT = Verdict(Kind.REPEAT)
VOID = Verdict(Kind.VOID)
REFUSED = Verdict(Kind.REFUSED)
FENCED = Verdict(Kind.FENCED)
UNKNOWN = Verdict(Kind.UNKNOWN)


class Slot:
    """Feed it what happens to each copy, in order; at most one copy is out that the caller still waits for."""

    __slots__ = ("attempt", "guard", "lost", "voiding")

    def __init__(self, guard: Guard) -> None:
        self.guard = guard
        """As settled: what the next attempt compares."""
        self.attempt = b""
        """Id of the attempt that is out, empty when idle."""
        self.lost = 0
        """Copies of it of which nothing is known: each may still be applied."""
        self.voiding = False

    @property
    def next_number(self) -> int:
        return self.guard.number + 1

    def begin(self, attempt: bytes) -> None:
        assert attempt, "an empty id is that of a void advance"
        assert not self.attempt, "one attempt at a time"
        self.attempt, self.lost, self.voiding = attempt, 0, False

    def unavailable(self) -> Verdict:
        """The copy that was out got no answer."""
        if not self.voiding:
            self.lost += 1
        return REPEAT

    def not_applied(self) -> Verdict:
        """The copy that was out was provably not applied, for a passing reason."""
        return REPEAT

    def rejected(self) -> Verdict:
        """The store will not take this transaction (too large): a copy of it that was lost may have been applied before."""
        if self.voiding:
            return REPEAT
        if self.lost:
            self.voiding = True
            return VOID
        return self._settle(REFUSED, self.guard)

    def succeeded(self, revision: int) -> Verdict:
        if self.voiding:
            return self._settle(REFUSED, Guard(self.next_number, b"", revision))
        return self._settle(Verdict(Kind.APPLIED, revision), Guard(self.next_number, self.attempt, revision))

    def failed(self, guard: Guard, ours: bool) -> Verdict:
        """The copy's compares did not hold; its else branch read `guard`, and whether our member key is still ours, at one revision."""
        if not self.lost:
            return self._settle(REFUSED if ours else FENCED, guard)
        if guard.revision == self.guard.revision:
            return self._failed_unchanged(ours)
        return self._advanced(guard, ours)

    def full(self, guard: Guard, ours: bool) -> Verdict:
        """The copy was answered *no space*, which does not say whether it was applied: etcd applies the transaction that fills its quota.
        `guard`, and whether our member key is still ours, were read at one revision behind that answer."""
        if guard.revision != self.guard.revision:
            return self._advanced(guard, ours)
        return self.rejected() if ours else self._settle(FENCED, self.guard)

    def _advanced(self, guard: Guard, ours: bool) -> Verdict:
        if guard.attempt == self.attempt:
            return self._settle(Verdict(Kind.APPLIED, guard.revision), guard)
        if guard.number == self.next_number:
            # Whoever advanced it from where we knew it, it was not our attempt, and ours compares where it was before.
            return self._settle(REFUSED if ours else FENCED, guard)
        return self._settle(UNKNOWN, guard)

    def _failed_unchanged(self, ours: bool) -> Verdict:
        if not ours:
            return self._settle(FENCED, self.guard)
        if self.voiding:
            # A void advance compares nothing but these two. The store contradicts itself, so nothing may be concluded.
            return REPEAT
        self.voiding = True
        return VOID

    def _settle(self, verdict: Verdict, guard: Guard) -> Verdict:
        self.guard, self.attempt, self.lost, self.voiding = guard, b"", 0, False
        return verdict
