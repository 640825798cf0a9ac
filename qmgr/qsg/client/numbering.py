"""Numbers of one producer in one structure: what is in flight, and what became of it. Pure.

A producer's puts carry consecutive numbers; the queue manager commits number n only behind n - 1, so a refusal refuses everything behind
it. Invariant: a number that may still be committed is never given to something else. So after anything but success nothing more is sent
until every frame in flight has its answer; then `settle` says what is done, and what has to be sent again under new numbers.
"""

from __future__ import annotations

import enum
from collections import deque
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")


class Outcome(enum.Enum):
    PENDING = "pending"
    DONE = "done"
    REFUSED = "refused"  # nothing was changed, and for a reason of its own
    GAP = "gap"  # refused because a number before it is missing
    CHANGED = "changed"  # the queue now lies in another structure
    UNKNOWN = "unknown"  # no answer, or "unknown"


class Settlement(enum.Enum):
    """What a producer's record says about frames whose outcome is unknown."""

    KNOWN = "known"
    LOST = "lost"  # the record is another one: lifetime over, or restored
    FOREIGN = "foreign"  # somebody else has opened the producer meanwhile


@dataclass(slots=True)
class Numbered(Generic[T]):
    first: int
    count: int
    value: T
    outcome: Outcome = Outcome.PENDING

    @property
    def last(self) -> int:
        return self.first + self.count - 1


@dataclass(slots=True)
class Window(Generic[T]):
    """`epoch` 0 = not opened. `opens_unanswered`: open requests of ours that may or may not have raised the epoch."""

    epoch: int = 0
    last: int = 0
    opens_unanswered: int = 0
    frames: deque[Numbered[T]] = field(default_factory=deque)

    def opened(self, epoch: int, last: int) -> Settlement:
        """The record was read and its epoch raised, so that nothing of older epochs can be committed any more."""
        known, slack, mine = self.epoch, self.opens_unanswered, max([self.last, *(frame.last for frame in self.frames)])
        confirmed = self.last
        self.epoch, self.last = epoch, last
        if not known:
            return Settlement.KNOWN
        # Raises beyond our own answered one are late open requests of ours, as far as there are such.
        self.opens_unanswered = max(0, slack - max(0, epoch - known - 1))
        if epoch <= known or last < confirmed or (last == 0 and epoch > known + 1 + slack):
            return Settlement.LOST
        if epoch > known + 1 + slack or last > mine:
            return Settlement.FOREIGN
        return Settlement.KNOWN

    def send(self, count: int, value: T) -> Numbered[T]:
        """Takes the next numbers."""
        assert self.epoch, "not opened"
        assert not self.troubled, "settle first"
        first = (self.frames[-1].last if self.frames else self.last) + 1
        frame = Numbered(first, count, value)
        self.frames.append(frame)
        return frame

    def answer(self, frame: Numbered[T], outcome: Outcome) -> list[Numbered[T]]:
        """Records an answer; returns the frames that are now known to be done, in order."""
        frame.outcome = outcome
        done = []
        while self.frames and self.frames[0].outcome is Outcome.DONE:
            done.append(self.frames.popleft())
            self.last = done[-1].last
        return done

    @property
    def troubled(self) -> bool:
        """Something was not done: nothing more may be sent until all is answered and settled."""
        return any(frame.outcome not in (Outcome.PENDING, Outcome.DONE) for frame in self.frames)

    @property
    def quiet(self) -> bool:
        return all(frame.outcome is not Outcome.PENDING for frame in self.frames)

    @property
    def must_ask(self) -> bool:
        """The answers alone do not tell what the record's last number is: open again before `settle`."""
        if not self.frames:
            return False
        outcomes = [frame.outcome for frame in self.frames]
        # Done behind something that is not done, or a gap behind nothing refused: our idea of the record is wrong.
        return Outcome.UNKNOWN in outcomes or Outcome.DONE in outcomes or outcomes[0] is Outcome.GAP

    def settle(self) -> list[Numbered[T]]:
        """Takes all frames out, each now DONE, REFUSED, CHANGED or GAP (= not done, send again).

        `last` as just answered tells of those that are UNKNOWN, and no other: the record may be a new one, that counts from 0.
        """
        assert self.quiet
        frames = list(self.frames)
        self.frames.clear()
        for frame in frames:
            if frame.outcome is Outcome.UNKNOWN:
                frame.outcome = Outcome.DONE if frame.last <= self.last else Outcome.GAP
        return frames
