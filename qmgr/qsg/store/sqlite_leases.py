"""Time of leases in a SQLite store: which lease runs out when, by the event loop's clock.

Invariant: a lease ends only in `tick`, and only if the loop has been running since it was last renewed: after a stall (and at opening)
every lease has its full time to live again, so that a store that was stopped for a while does not declare everybody dead.
"""

from __future__ import annotations

from dataclasses import dataclass

from qsg.store.contract import LeaseNotFound

TICK_S = 0.25
STALL_S = 1.0


@dataclass(slots=True)
class Lease:
    ttl_s: int
    deadline: float


class Leases:
    """`now` is loop time in seconds."""

    def __init__(self) -> None:
        self._leases: dict[int, Lease] = {}
        self._ticked: float | None = None

    def __contains__(self, lease: int) -> bool:
        return lease in self._leases

    def add(self, lease: int, ttl_s: int, now: float) -> None:
        self._leases[lease] = Lease(ttl_s, now + ttl_s)

    def remove(self, lease: int) -> None:
        self._leases.pop(lease, None)

    def renew(self, lease: int, now: float) -> int:
        """Full time to live from now on; returns it."""
        entry = self._get(lease)
        entry.deadline = now + entry.ttl_s
        return entry.ttl_s

    def remaining(self, lease: int, now: float) -> tuple[int, float]:
        """Time to live as granted, and what is left."""
        entry = self._get(lease)
        return entry.ttl_s, max(0.0, entry.deadline - now)

    def ids(self) -> list[int]:
        return sorted(self._leases)

    def tick(self, now: float) -> list[int]:
        """To be called every `TICK_S`; returns the leases that have run out, which are forgotten here."""
        stalled = self._ticked is None or now - self._ticked > STALL_S
        self._ticked = now
        if stalled:
            for entry in self._leases.values():
                entry.deadline = now + entry.ttl_s
            return []
        expired = [lease for lease, entry in self._leases.items() if entry.deadline <= now]
        for lease in expired:
            del self._leases[lease]
        return expired

    def _get(self, lease: int) -> Lease:
        entry = self._leases.get(lease)
        if entry is None:
            raise LeaseNotFound(f"lease {lease} is not known")
        return entry
