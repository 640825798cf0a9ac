"""What callers hand to a committer: units of work, and the cells (keys) that this process remembers.

A `Unit` is atomic. Several units may share one transaction; each is answered for itself. Everything in it is evaluated when the
transaction is built, in the order in which units were handed in, so that units of one slot see each other's changes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from qsg.pb import records_pb2 as pb
from qsg.store.contract import Compare, KeyValue, Op


@dataclass(slots=True, eq=False)
class Cell:
    """One key as this process last saw it. `mod_revision` 0 = absent. The committer updates it after each outcome."""

    key: bytes
    value: bytes | None = None
    mod_revision: int = 0
    create_revision: int = 0
    seen: int = 0
    """The store was known to be so at this revision; what is older is never put over it."""

    def saw(self, revision: int, kv: KeyValue | None) -> None:
        """Takes over what a read or a commit at `revision` showed (None = absent), unless something newer is known."""
        if revision < max(self.seen, self.mod_revision):
            return
        self.seen = revision
        if kv is None:
            self.value, self.mod_revision, self.create_revision = None, 0, 0
        else:
            self.value, self.mod_revision, self.create_revision = kv.value, kv.mod_revision, kv.create_revision


@dataclass(slots=True)
class Change:
    """A compare-and-swap on a cell: `apply` maps the present value to the next (None = absent).

    `apply` is pure, may be called several times, and may raise `Refusal`, which answers its unit. All changes of one cell in a
    transaction are applied one after the other and written once: the present value may be what another unit has made of it, which the
    compare does not tell (`qsg.rules.steps.swap` refuses it). `guarded` False: no compare of the revision (only for keys that
    nobody else writes).
    """

    cell: Cell
    apply: Callable[[bytes | None], bytes | None]
    guarded: bool = True


@dataclass(slots=True)
class NewMessage:
    """A message to append to a queue. `body` is a serialised `pb.Message` (empty when `entry.stage` is set).

    The packer sets `entry.offset`, `entry.size` and `entry.destination`.
    """

    queue: str
    priority: int
    entry: pb.Entry
    body: bytes
    destination: tuple[str, str] | None = None
    """(queue, queue manager) on a transmission queue."""


@dataclass(slots=True)
class NewSegment:
    """A whole segment to append as it is: header without bodies, and the bodies. Used where a channel's segment all goes one way."""

    queue: str
    priority: int
    header: pb.SegmentHeader
    bodies: bytes
    messages: int
    bytes: int
    """Payload bytes, for the totals."""


@dataclass(slots=True)
class Taken:
    """Messages taken off a queue in this unit, for the totals."""

    queue: str
    messages: int
    bytes: int


@dataclass(slots=True)
class Unit:
    """All or nothing. An empty unit commits at once without a transaction."""

    label: str = ""
    compares: list[Compare] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    puts: list[NewMessage | NewSegment] = field(default_factory=list)
    taken: list[Taken] = field(default_factory=list)
    ops: list[Op] = field(default_factory=list)
    """Further puts and deletes. Puts of one key by several units of a transaction: the last wins."""


@dataclass(frozen=True, slots=True)
class Committed:
    revision: int


class CompareFailed(Exception):
    """This unit's own compares or guarded cells did not hold; nothing of it was applied. Cells are as just read."""

    def __init__(self, keys: tuple[bytes, ...]) -> None:
        super().__init__(f"changed meanwhile: {', '.join(k.decode(errors='replace') for k in keys)}")
        self.keys = keys


class Fenced(Exception):
    """Our member key is gone: another member replaced this incarnation. Nothing of the unit was applied."""


class OutcomeUnknown(Exception):
    """The unit may or may not have been applied (only when the structure is given up while an attempt is out)."""
