"""Claims of units of work in a store that only this process writes: kept in memory, so that a get in a unit of work writes nothing.

Owns which entries of which segments are claimed, by unit. Invariant: what is claimed here is offered to nobody else in this process, and
nobody else has the store; the unit's commit compares that queue and segment are as they were, as it does with claims that are written.
They end with the incarnation, as written ones do. Does not hold for queues that a channel may send from: who takes such a channel looks
for claims in the store (H8).
"""

from __future__ import annotations


class Claims:
    """`segment`: header key and create revision."""

    def __init__(self) -> None:
        self._held: dict[tuple[bytes, int], dict[bytes, int]] = {}

    def mask(self, segment: tuple[bytes, int]) -> int:
        """Entries that anybody has claimed."""
        mask = 0
        for held in self._held.get(segment, {}).values():
            mask |= held
        return mask

    def claim(self, segment: tuple[bytes, int], unit: bytes, mask: int) -> None:
        held = self._held.setdefault(segment, {})
        held[unit] = held.get(unit, 0) | mask

    def release(self, segment: tuple[bytes, int], unit: bytes) -> None:
        """The unit has ended."""
        held = self._held.get(segment)
        if held is not None and held.pop(unit, 0) and not held:
            del self._held[segment]

    def __len__(self) -> int:
        """Segments of which something is claimed."""
        return len(self._held)
