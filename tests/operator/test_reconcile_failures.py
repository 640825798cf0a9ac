"""Whatever call fails, and whenever: the next rounds make everything as it should be, and nothing twice."""

from __future__ import annotations

import contextlib
from typing import Any

from qsg_operator import names
from qsg_operator.api import ApiError
from qsg_operator.cache import Cache
from qsg_operator.reconcile.context import Context
from qsg_operator.reconcile.reconciler import Reconciler
from support.fake_cluster import NAMESPACE, FakeApi, FakeMembers
from support.owners import IMAGES
from support.shared import SENDER

KEY = names.QUEUE_SHARING_GROUP, NAMESPACE, "orders"
LOST_ANSWER = ApiError(0, "no answer")


async def life(fails: int) -> tuple[FakeApi, FakeMembers, int]:
    """A group with a channel from nothing to Ready; the API call of number `fails` is not answered."""
    cache = Cache()
    api = FakeApi(cache)
    made: list[FakeMembers] = []

    def members(name: str, changed: Any) -> FakeMembers:
        made.append(FakeMembers(name, changed))
        return made[-1]

    reconcile = Reconciler(Context(api, cache, IMAGES, "operator-0"), lambda key: None, members)
    count = 0

    def failing(verb: str, kind: str, name: str) -> ApiError | None:
        nonlocal count
        count += 1
        return LOST_ANSWER if count == fails else None

    api.failing = failing
    api.user_applies(names.QUEUE_SHARING_GROUP, "orders", {"store": {"managed": {"members": 1}}, "tls": {"mode": "Off"}})
    api.user_applies(names.SHARED_CHANNEL, "orders-to-bank", SENDER)
    for _ in range(2):
        with contextlib.suppress(ApiError):
            await reconcile(KEY)
    api.pods_run("orders-store", 1, etcd=True)
    api.pods_run("orders", 3)
    made[0].serve(["ORDERS.0", "ORDERS.1", "ORDERS.2"])
    for _ in range(4):
        with contextlib.suppress(ApiError):
            await reconcile(KEY)
    return api, made[0], count


async def test_any_call_that_fails_once_is_made_up_for() -> None:
    whole, _, calls = await life(0)
    wanted = {key for key in whole.objects if key[0] != "Event"}
    assert calls > 30
    for number in range(1, calls + 1):
        api, members, _ = await life(number)
        assert {key for key in api.objects if key[0] != "Event"} == wanted, number
        assert api.condition(names.QUEUE_SHARING_GROUP, "orders")[0] == "True", number
        assert api.condition(names.SHARED_CHANNEL, "orders-to-bank") == ("True", "Running"), number
        assert members.commands.count(("start", "ORDERS.TO.BANK")) == 1, number
