"""What a state of the ownership model is made of, and what bounds the search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from model.partner import Binding, Deliver, Partner
from model.snapshot import Snapshot
from model.walks import Node, Raised
from qsg.rules.steps import Me
from qsg.store.contract import Compare, Op


@dataclass(frozen=True)
class Bounds:
    """What is searched: how many of each may happen, in any order."""

    name: str
    lists: tuple[tuple[str, int], ...]
    messages: tuple[int, ...] = (1,)
    """Messages of each segment."""
    members: int = 3
    apart: bool = True
    walks: int = 3
    """Lists begun in all."""
    at_once: int = 3
    """Of which so many may lie unfinished."""
    verdicts: int = 0
    joins: int = 0
    initiators: int = 0
    losses: int = 0
    cuts: int = 0
    puts: int = 0
    """Messages put meanwhile, each in a segment of its own."""
    primed: bool = False
    """The channel has run before, and ended idle."""
    half_dead: bool = False
    """Verdicts may reach one structure only."""

    def __str__(self) -> str:
        lists = ", ".join(f"{name} ≤{count}" for name, count in self.lists)
        events = {"verdicts": self.verdicts, "joins": self.joins, "initiators lost": self.initiators}
        events |= {"puts meanwhile": self.puts, "losses at the partner": self.losses, "lists cut off in their process": self.cuts}
        told = ", ".join(f"{what} ≤{count}" for what, count in events.items() if count)
        stores = "two structures" if self.apart else "one structure"
        walks = f"lists ≤{self.walks}, unfinished at once ≤{min(self.at_once, self.walks)}"
        queue = f"messages {sum(self.messages)}{' behind an earlier run' if self.primed else ''}"
        return f"{self.members} members, {stores}, {queue}; {walks}: {lists}; {told or 'pauses only'}"


class Budget(NamedTuple):
    lists: tuple[int, ...]
    walks: int
    verdicts: int
    joins: int
    initiators: int
    losses: int
    cuts: int
    puts: int


@dataclass(frozen=True, slots=True)
class State:
    stores: tuple[Snapshot, ...]
    partner: Partner
    mes: tuple[Me, ...]
    """Of each member, its newest process."""
    budget: Budget
    walks: tuple[tuple[Node, bool], ...] = ()
    """(where it stands, cut off: only the commit that is under way may still be applied)."""
    late: tuple[Deliver | Binding, ...] = ()
    """Given up by the sender, still on their way to R."""
    got: tuple[str, ...] = ()
    put: int = 0
    """Messages put so far."""
    used: int = 0
    """Members that have acted."""
    risky: bool = False
    """Resolved by force: duplicates were accepted."""


class Prepared(NamedTuple):
    """A commit as far as it can be told without the store."""

    store: int
    compares: Sequence[Compare]
    ops: Sequence[Op]
    cells: tuple[bytes, ...]
    refusal: Raised | None
    taken: int
    label: str
