"""Where to start a channel: MQ's load-balanced start (patent: "a suitable queue manager selected using workload balancing techniques").

Owns: the choice among members by what their beats say. MQ's order: (a) able to (an initiator is joined, the structure is reached, not
draining, a channel is free), (b) lowest load in percent, (c) most headroom. Ties are broken by a hash of channel and member, the same
for whoever chooses, so that channels spread and several choosers agree.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Load:
    member: str
    channels: int
    """Active channels."""
    channels_max: int
    initiator: bool
    draining: bool = False
    structures: frozenset[str] = field(default_factory=frozenset)
    """Reached now."""


def able(load: Load, needs: Collection[str]) -> bool:
    """Can it run another channel that needs the structures `needs`?"""
    return load.initiator and not load.draining and not full(load) and load.structures.issuperset(needs)


def full(load: Load) -> bool:
    return load.channels >= load.channels_max


def ranked(loads: Iterable[Load], channel: str, needs: Collection[str], *, exclude: Collection[str] = ()) -> list[str]:
    """The members that can run `channel`, best first."""
    candidates = [load for load in loads if load.member not in exclude and able(load, needs)]
    return [load.member for load in sorted(candidates, key=lambda load: _rank(load, channel))]


def choose(loads: Iterable[Load], channel: str, needs: Collection[str], *, exclude: Collection[str] = ()) -> str | None:
    """The best member for `channel`, or None: nobody can run it now."""
    candidates = ranked(loads, channel, needs, exclude=exclude)
    return candidates[0] if candidates else None


def _rank(load: Load, channel: str) -> tuple[float, int, bytes]:
    percent = 100 * load.channels / load.channels_max
    tie = hashlib.blake2b(f"{channel}\0{load.member}".encode(), digest_size=8).digest()
    return percent, load.channels - load.channels_max, tie
