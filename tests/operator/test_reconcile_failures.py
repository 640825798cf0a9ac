"""Whatever call fails, and whenever: the next rounds make everything as it should be, and nothing twice."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime
from typing import Any

import pytest

from qsg_operator import names
from qsg_operator.api import ApiError
from qsg_operator.cache import Cache
from qsg_operator.certificates import BadSecret
from qsg_operator.reconcile.children import Conflict
from qsg_operator.reconcile.context import Context
from qsg_operator.reconcile.reconciler import Reconciler
from support.fake_cluster import NAMESPACE, FakeApi, FakeMembers
from support.owners import IMAGES
from support.reconciled import CHANNEL, QUEUE, World
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


async def made_worse(w: World) -> None:
    """The next reconcile fails, in a world where a member and an etcd member have just been lost."""
    w.api.pods_run("orders-store", 2, etcd=True)
    w.members.serve(["ORDERS.0"])
    with contextlib.suppress(Exception):
        await w()


async def test_budgets_follow_what_can_be_lost_also_where_certificates_cannot_be_had() -> None:
    w = await World().up()
    await w()
    for name in ("orders", "orders-store"):
        assert w.api.of("PodDisruptionBudget")[name]["spec"]["maxUnavailable"] == 1
    w.api.failing = lambda verb, kind, name: LOST_ANSWER if kind == "Secret" else None
    for state in w.reconciler._targets.values():
        state.full_at = float("-inf")
    w.api.calls.clear()
    await made_worse(w)
    for name in ("orders", "orders-store"):
        assert w.api.of("PodDisruptionBudget")[name]["spec"]["maxUnavailable"] == 0
    assert ("apply", "StatefulSet", "orders") not in w.api.calls


@pytest.mark.parametrize("spec", [{"tls": {"additionalNames": ["münchen.example"]}}, {}])
async def test_an_authority_that_has_ended_or_a_name_that_is_none_is_said_and_holds_up_nothing(spec: dict[str, Any]) -> None:
    w = await World().up()
    await w()
    w.api.user_applies(names.QUEUE_SHARING_GROUP, "orders", spec)
    if not spec:
        w.reconciler._context.now = lambda: datetime(2040, 1, 1, tzinfo=UTC)
        for state in w.reconciler._targets.values():
            state.full_at = float("-inf")
    w.api.user_applies(QUEUE, "in", {"group": "orders"})
    await made_worse(w)
    assert w.api.condition(names.QUEUE_SHARING_GROUP, "orders") == ("False", "ReconcileFailed")
    assert w.api.condition(QUEUE, "in") == ("True", "Defined")
    assert w.api.of("PodDisruptionBudget")["orders"]["spec"]["maxUnavailable"] == 0


@pytest.mark.parametrize("text", ['{"id": "1", "verb": ["start"]}', "[" * 100_000])
async def test_an_operation_of_any_shape_is_refused_and_holds_up_nobody(text: str) -> None:
    w = await World().up()
    w.api.user_applies(CHANNEL, "orders-to-bank", SENDER, annotations={names.OPERATION: text})
    for _ in range(2):
        await w()
    assert w.api.status(CHANNEL, "orders-to-bank")["lastOperation"]["state"] == "Failed"


@pytest.mark.parametrize("of", [names.QUEUE_SHARING_GROUP, ""])
async def test_a_resource_that_is_not_understood_holds_up_nobody(of: str) -> None:
    """Of a newer schema: the definitions of resources are the cluster's, operators come and go."""
    w = await World().up()
    w.api.user_applies(QUEUE, "in", {"group": "orders"})
    odd = w.api.user_applies(QUEUE, "odd", {"group": "orders"}, creationTimestamp="2020-01-01T00:00:00Z")
    w.api._store({**odd, "spec": {**odd["spec"], "type": "Stream"}})
    if not of:
        w.api.user_deletes(names.QUEUE_SHARING_GROUP, "orders")
    await w()
    await w()
    if of:
        assert w.api.condition(QUEUE, "odd") == w.api.condition(QUEUE, "odd", "Valid") == ("False", "Refused")
        assert w.api.condition(QUEUE, "in") == ("True", "Defined")
        assert w.api.condition(of, "orders") == ("True", "Serving")
    else:
        assert w.api.condition(QUEUE, "in") == ("False", "TargetNotFound")


async def test_a_new_leader_that_cannot_have_certificates_says_so() -> None:
    """It has no way to members, and would wait for ever for what they say."""
    w = await World().up()
    await w()
    w.api.user_deletes("Secret", "qsg-ca")
    w.api._store({"kind": "Secret", "metadata": {"namespace": NAMESPACE, "name": "qsg-ca"}, "data": {"tls.crt": "bm9uZQ=="}})

    def never_reached(name: str, changed: Any) -> FakeMembers:
        made = FakeMembers(name, changed)
        made.verdict = False
        return made

    w.reconciler = Reconciler(Context(w.api, w.cache, IMAGES, "operator-1"), lambda key: None, never_reached)
    assert w.api.condition(names.QUEUE_SHARING_GROUP, "orders") == ("True", "Serving")
    with pytest.raises(BadSecret, match="qsg-ca"):
        await w()
    assert w.api.condition(names.QUEUE_SHARING_GROUP, "orders") == ("False", "ReconcileFailed")


async def test_the_authority_of_a_store_in_use_is_not_made_anew() -> None:
    """Members of etcd that run trust the one before alone, and one that is started trusts the new one alone: it would wait for ever."""
    w = await World().up()
    before = w.api.objects["Secret", NAMESPACE, "orders-store-tls"]
    w.api.user_deletes("Secret", "orders-store-ca")
    for state in w.reconciler._targets.values():
        state.full_at = float("-inf")
    with pytest.raises(BadSecret, match="orders-store-ca is gone"):
        await w()
    assert w.api.objects["Secret", NAMESPACE, "orders-store-tls"] == before and "orders-store-ca" not in w.api.of("Secret")
    assert w.api.condition(names.QUEUE_SHARING_GROUP, "orders") == ("False", "ReconcileFailed")
    w.api.user_deletes("Secret", "orders-store-tls")
    await w()
    assert {"orders-store-ca", "orders-store-tls"} <= set(w.api.of("Secret"))
    assert w.api.condition(names.QUEUE_SHARING_GROUP, "orders") == ("True", "Serving")


async def test_a_group_of_the_name_of_a_member_is_refused() -> None:
    w = World()
    w.api.user_applies(names.QUEUE_SHARING_GROUP, "orders", {"groupName": "ORDERS.0"})
    await w()
    assert w.api.condition(names.QUEUE_SHARING_GROUP, "orders") == ("False", "InvalidSpec") and not w.api.of("StatefulSet")
    w.api.user_deletes(names.QUEUE_SHARING_GROUP, "orders")
    w.api.user_applies(names.QUEUE_SHARING_GROUP, "orders", {"groupName": "ORDERS.3"})
    await w()
    assert w.api.of("StatefulSet")


async def test_an_operation_is_not_begun_again_where_its_channel_is_not_understood_any_more() -> None:
    w = await World().up()
    made = w.api.user_applies(CHANNEL, "orders-to-bank", SENDER, annotations={names.OPERATION: '{"id": "1", "verb": "ping"}'})
    await w()
    w.api._store({**made, "spec": {**made["spec"], "disposition": "Elsewhere"}})
    for _ in range(3):
        await w()
    assert w.members.commands.count(("ping", "ORDERS.TO.BANK")) == 1
    assert w.api.condition(CHANNEL, "orders-to-bank") == ("False", "Refused")


async def test_a_store_whose_pods_cannot_have_its_name_is_told_and_holds_up_nothing() -> None:
    """The API server takes the StatefulSet, and makes no pod of it."""
    w = World()
    name, structure = "o" * 36, {"name": "f" * 10, "managed": {}}
    w.api.user_applies(names.QUEUE_SHARING_GROUP, name, {"store": {"managed": {}, "structures": [structure]}})
    with pytest.raises(Conflict, match="more than 52 characters"):
        await w((names.QUEUE_SHARING_GROUP, NAMESPACE, name))
    assert w.api.condition(names.QUEUE_SHARING_GROUP, name) == ("False", "ReconcileFailed")
    assert {name, f"{name}-store"} <= set(w.api.of("StatefulSet"))
    long = w.api.of("StatefulSet")[f"{name}-store-{structure['name']}"]
    w.api._store({**long, "status": {"replicas": 3}})  # one that knows how
    await w((names.QUEUE_SHARING_GROUP, NAMESPACE, name))
