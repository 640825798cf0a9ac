"""A cluster in memory with a group, for tests of the reconcile."""

from __future__ import annotations

from typing import Any

from qsg_operator import names
from qsg_operator.cache import Cache
from qsg_operator.reconcile.context import Context
from qsg_operator.reconcile.reconciler import Reconciler
from support.fake_cluster import NAMESPACE, FakeApi, FakeMembers
from support.owners import IMAGES

GROUP = names.QUEUE_SHARING_GROUP, NAMESPACE, "orders"
CHANNEL, QUEUE = names.SHARED_CHANNEL, names.SHARED_QUEUE


class World:
    """A cluster with a group `orders`, whose members answer."""

    def __init__(self) -> None:
        self.cache = Cache()
        self.api = FakeApi(self.cache)
        self.made: list[FakeMembers] = []
        self.reconciler = Reconciler(Context(self.api, self.cache, IMAGES, "operator-0"), lambda key: None, self._make)

    def _make(self, name: str, changed: Any) -> FakeMembers:
        self.made.append(FakeMembers(name, changed))
        return self.made[-1]

    @property
    def members(self) -> FakeMembers:
        return self.made[-1]

    async def __call__(self, key: tuple[str, str, str] = GROUP) -> None:
        await self.reconciler(key)

    async def up(self) -> World:
        self.api.user_applies(names.QUEUE_SHARING_GROUP, "orders", {})
        await self()
        self.api.pods_run("orders-store", 3, etcd=True)
        self.api.pods_run("orders", 3)
        self.members.serve(["ORDERS.0", "ORDERS.1", "ORDERS.2"])
        await self()
        return self
