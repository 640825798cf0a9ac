"""What lists of steps are made of: reads, commits and a bind at the partner, yielded by generators and carried out by a driver.

A list of steps (`qsg.rules.ownership`, `stopping`, `settle`) is a generator that yields a `Step` and is sent its result, or has an
exception thrown in: `CompareFailed`, `Fenced`, `Refusal` for a `Commit`, `PartnerNotReached` for a `FenceAtPartner`. It must be safe to
cut a list off behind any step, for ever, and to run any other list next: that is how a member dies.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from qsg.pb import channel_pb2
from qsg.pb import records_pb2 as pb
from qsg.rules import keys, status
from qsg.rules.definitions import Channel
from qsg.rules.reasons import Reason, Refusal
from qsg.rules.unit import Cell, Change, Unit
from qsg.store.contract import Get, GetResult, KeyValue


@dataclass(frozen=True, slots=True)
class Read:
    """One transaction at one revision; answered by `(revision, [GetResult, ...])`."""

    structure: str
    gets: tuple[Get, ...]


@dataclass(frozen=True, slots=True)
class Commit:
    """One unit of work, which also compares this member's own key there; answered by `Committed`."""

    structure: str
    unit: Unit


@dataclass(frozen=True, slots=True)
class FenceAtPartner:
    """Bind at the partner with a raised epoch, take its record, close; answered by `channel_pb2.Bound`."""

    channel: Channel
    bind: channel_pb2.Bind


Step = Read | Commit | FenceAtPartner
T = TypeVar("T")
Steps = Generator[Step, Any, T]


class PartnerNotReached(Exception):
    """No bound session: the partner is out of reach, or refused. `epoch_seen` above 0: it has seen a higher epoch."""

    def __init__(self, reason: Reason, detail: str = "", epoch_seen: int = 0) -> None:
        super().__init__(f"{reason.name}: {detail}")
        self.reason = reason
        self.detail = detail
        self.epoch_seen = epoch_seen


@dataclass(frozen=True, slots=True)
class Me:
    """This member, as its records name it."""

    member: str
    incarnations: Mapping[str, int]
    """By structure: create revision of our member key there."""
    initiator: int = 0
    """Incarnation of the joined initiator, 0 = none."""


@dataclass(frozen=True, slots=True)
class Place:
    """A sender channel and where its records lie: its entry in `admin`, its queue, lock, fence and progress in `structure`.

    For a private channel both are the private store.
    """

    channel: Channel
    admin: str
    structure: str

    @property
    def queue(self) -> str:
        return self.channel.transmission_queue

    @property
    def together(self) -> bool:
        """One store holds both, so one unit changes both."""
        return self.admin == self.structure


@dataclass(slots=True)
class Sight:
    """What one read showed: cells by key, and the members and initiators that were there."""

    revision: int = 0
    kvs: dict[bytes, KeyValue] = field(default_factory=dict)
    mod_overrides: dict[bytes, int] = field(default_factory=dict)
    """Revisions known from elsewhere, for keys that were not read."""

    def cell(self, key: bytes) -> Cell:
        cell = Cell(key)
        kv = self.kvs.get(key)
        cell.saw(max(self.revision, kv.mod_revision if kv is not None else 0), kv)
        return cell

    def value(self, key: bytes) -> bytes | None:
        kv = self.kvs.get(key)
        return None if kv is None else kv.value

    def create_revision(self, key: bytes) -> int:
        kv = self.kvs.get(key)
        return 0 if kv is None else kv.create_revision

    def mod_revision(self, key: bytes) -> int:
        kv = self.kvs.get(key)
        return self.mod_overrides.get(key, 0 if kv is None else kv.mod_revision)

    def under(self, prefix: bytes) -> list[KeyValue]:
        return [kv for key, kv in self.kvs.items() if key.startswith(prefix)]

    def lives(self, member: str, incarnation: int) -> bool:
        """Is that incarnation registered? Once it is not, it never is again."""
        return incarnation != 0 and self.create_revision(keys.member(member)) == incarnation


def look(structure: str, *gets: Get) -> Steps[Sight]:
    """Reads into one `Sight`."""
    answer: tuple[int, Sequence[GetResult]] = yield Read(structure, gets)
    revision, results = answer
    return Sight(revision, {kv.key: kv for result in results for kv in result.kvs})


def swap(cell: Cell, after: bytes | None) -> Change:
    """Compare-and-swap from the cell's value as it is now (the before-image) to `after` (None = no entry).

    The cell is brought up to date when a compare fails; a second attempt must not take that for its own before-image.
    """
    before = cell.value

    def apply(value: bytes | None) -> bytes | None:
        if value != before:
            raise Refusal(Reason.CHANGED_MEANWHILE, cell.key.decode(errors="replace"))
        return after

    return Change(cell, apply)


def record(message: Any) -> bytes:
    """A record as it is stored."""
    value: bytes = message.SerializeToString(deterministic=True)
    return value


def swap_entry(cell: Cell, after: pb.ChannelStatus | None) -> Change:
    """Compare-and-swap of an entry of the status table, along an arrow of the state diagram."""
    status.check(status.state_of(status.parse(cell.value)), status.state_of(after))
    return swap(cell, None if after is None else status.image(after))


Draw = Callable[[], bytes]
"""Draws a random id."""
