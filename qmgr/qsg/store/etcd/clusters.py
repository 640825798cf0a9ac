"""Which etcd cluster each endpoint of a structure belongs to, as its answers say. Pure.

Endpoints of two clusters under one structure would let its members share queues over different stores. Invariant: of two clusters at
most one is used, by everybody who has heard the same: that of more than half of all endpoints. (A cluster without half of its members does
nothing anyway.) While no cluster has so many, none is used. Not guaranteed: that a store whose endpoints *all* speak of another cluster
than before is noticed here: its revision tells that, as after a restore.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Generic, TypeVar

E = TypeVar("E")


class Clusters(Generic[E]):
    def __init__(self, endpoints: Sequence[E]) -> None:
        self.said: dict[E, int] = {}
        """The cluster that an endpoint's last answer was of."""
        self.used = 0
        """The cluster that counts; 0 = none is known yet, or there is none."""
        self._endpoints = endpoints

    def heard(self, endpoint: E, cluster: int) -> bool:
        """An answer has come; 0 = it does not say. False: it is not to be used, being of another cluster, or of another than before."""
        if not cluster:
            return True
        before = self.said.get(endpoint, cluster)
        if self.said.get(endpoint) != cluster:
            self.said[endpoint] = cluster
            most, count = Counter(self.said.values()).most_common(1)[0]
            self.used = most if count == len(self.said) or 2 * count > len(self._endpoints) else 0
        return before == cluster == self.used

    @property
    def divided(self) -> bool:
        """No cluster may be used."""
        return bool(self.said) and not self.used

    @property
    def complete(self) -> bool:
        """All have answered, and are of one cluster."""
        return len(self.said) == len(self._endpoints) and len(set(self.said.values())) == 1

    def foreign(self, endpoint: E) -> bool:
        return self.said.get(endpoint, self.used) != self.used

    @property
    def by_cluster(self) -> dict[int, list[E]]:
        found: dict[int, list[E]] = {}
        for endpoint, cluster in self.said.items():
            found.setdefault(cluster, []).append(endpoint)
        return found
