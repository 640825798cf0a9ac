"""The operator put together: who is asked for when something changes, who works, and when the process is of no use."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from qsg_operator import leader, names, runtime
from qsg_operator.api import ApiError, Object
from qsg_operator.cache import Cache, Key
from qsg_operator.metrics import Metrics
from qsg_operator.reconcile.reconciler import Reconciler
from qsg_operator.runtime import Runtime, target_of
from qsg_operator.settings import Settings
from support.fake_cluster import NAMESPACE, FakeApi
from support.owners import IMAGES
from support.shared import SENDER


class Listing(FakeApi):
    async def list(self, kind: str, namespace: str = "", selector: str = "") -> list[Object]:
        self._call("list", kind, selector)
        return [one for (k, place, _), one in self.objects.items() if k == kind and (not namespace or place == namespace)]


def made(**settings: Any) -> tuple[Runtime, Listing, CollectorRegistry]:
    registry, api = CollectorRegistry(), Listing(Cache())
    one = Runtime(Settings(IMAGES, NAMESPACE, "operator-0", **settings), api, Metrics(registry))
    return one, api, registry


def resource(kind: str, name: str, spec: dict[str, Any] | None = None, **meta: Any) -> Object:
    whole = {"namespace": NAMESPACE, "name": name, "uid": name, "resourceVersion": "1"} | meta
    return {"kind": kind, "metadata": whole, "spec": spec or {}}


@pytest.mark.parametrize(
    ("found", "key"),
    [
        (resource(names.QUEUE_SHARING_GROUP, "orders"), (names.QUEUE_SHARING_GROUP, NAMESPACE, "orders")),
        (resource(names.SHARED_CHANNEL, "c", SENDER), (names.QUEUE_SHARING_GROUP, NAMESPACE, "orders")),
        (resource(names.SHARED_QUEUE, "q", {"queueManager": "bank"}), (names.QUEUE_MANAGER, NAMESPACE, "bank")),
        (
            resource("Pod", "orders-0", labels={names.OWNER_KIND: names.QUEUE_SHARING_GROUP, names.INSTANCE: "orders"}),
            (names.QUEUE_SHARING_GROUP, NAMESPACE, "orders"),
        ),
        (resource("Pod", "somebody-elses"), None),
    ],
)
async def test_a_change_asks_for_the_group_or_queue_manager_it_belongs_to(found: Object, key: Key | None) -> None:
    one, _, _ = made()
    asked: list[Key] = []
    one.queue.add = lambda key, delay_s=0.0: asked.append(key)  # type: ignore[method-assign]
    one.observed(found, deleted=False)
    assert asked == ([key] if key else [])
    assert target_of(resource(names.SHARED_QUEUE, "q")) is None


async def test_nothing_is_reconciled_before_everything_was_listed_or_without_the_lease() -> None:
    one, api, _ = made()
    api.objects[names.QUEUE_SHARING_GROUP, NAMESPACE, "orders"] = resource(names.QUEUE_SHARING_GROUP, "orders")
    await one._work((names.QUEUE_SHARING_GROUP, NAMESPACE, "orders"))
    one._listed.add("")
    await one._work((names.QUEUE_SHARING_GROUP, NAMESPACE, "orders"))
    assert api.calls == []


class Working(Reconciler):
    """Does not come to an end by itself."""

    def __init__(self) -> None:
        self.begun, self.ends, self.closed = asyncio.Event(), 0, asyncio.Event()

    async def __call__(self, key: Key) -> None:
        self.begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.ends += 1

    async def close(self) -> None:
        self.closed.set()


async def test_what_is_under_way_ends_with_the_lease() -> None:
    """Who was cut off while it wrote would else write on, over what the next one has written."""
    one, _, registry = made()
    working = one._reconciler = Working()
    one._listed.add("")
    one.leader._set(True)
    work = asyncio.get_running_loop().create_task(one._work((names.QUEUE_SHARING_GROUP, NAMESPACE, "orders")))
    await working.begun.wait()
    one.leader._set(False)
    await work
    await working.closed.wait()
    assert working.ends == 1 and one._reconciler is not working
    labels = {"kind": names.QUEUE_SHARING_GROUP, "result": "ended"}
    assert registry.get_sample_value("qsg_operator_reconcile_total", labels) == 1


async def test_it_runs_takes_the_lease_and_makes_what_was_asked_for() -> None:
    one, api, registry = made()
    api.cache = one.cache
    api.user_applies(names.QUEUE_SHARING_GROUP, "orders", {})
    task = asyncio.get_running_loop().create_task(one.run())
    async with asyncio.timeout(10):
        while "orders" not in api.of("StatefulSet"):  # noqa: ASYNC110  the API server in memory has no event
            await asyncio.sleep(0.02)
    assert api.of("Lease")[leader.NAME]["spec"]["holderIdentity"] == "operator-0"
    assert registry.get_sample_value("qsg_operator_leading") == 1
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert api.of("Lease")[leader.NAME]["spec"]["holderIdentity"] == "", "given back"


async def test_children_are_listed_by_label_and_only_where_they_are_watched() -> None:
    one, api, _ = made(watch=("a", "b"))
    await one._list()
    lists = [(kind, selector) for verb, kind, selector in api.calls if verb == "list"]
    assert len(lists) == 2 * len((*runtime.RESOURCES, *runtime.CHILDREN))
    assert all((selector == runtime.OURS) == (kind in runtime.CHILDREN) for kind, selector in lists)


async def test_a_namespace_that_cannot_be_listed_holds_up_no_other() -> None:
    """It was deleted, and the operator's rights in it: every start from then on would find nothing to do."""

    class Gone(Listing):
        async def list(self, kind: str, namespace: str = "", selector: str = "") -> list[Object]:
            if namespace == "gone":
                raise ApiError(403, "forbidden")
            return await super().list(kind, namespace, selector)

    api = Gone(Cache())
    one = Runtime(Settings(IMAGES, NAMESPACE, "operator-0", watch=("gone", NAMESPACE)), api, Metrics(CollectorRegistry()))
    working = one._reconciler = Working()
    one.leader.leading = True
    api.user_applies(names.QUEUE_SHARING_GROUP, "orders", {})
    with pytest.raises(ApiError, match="forbidden"):
        await one._list()
    assert one.cache.get(names.QUEUE_SHARING_GROUP, NAMESPACE, "orders") is not None
    await one._work((names.QUEUE_SHARING_GROUP, "gone", "orders"))
    assert not working.begun.is_set(), "nothing is known there"
    work = asyncio.get_running_loop().create_task(one._work((names.QUEUE_SHARING_GROUP, NAMESPACE, "orders")))
    async with asyncio.timeout(5):
        await working.begun.wait()
    one.leader._set(False)
    await work


async def test_a_watch_that_tells_nothing_is_a_problem() -> None:
    one, api, _ = made()
    assert one.problem() == ""
    api.objects["Pod", NAMESPACE, "p"] = resource("Pod", "p", resourceVersion="7")
    await one._list()
    assert one.problem() == ""
    await one._list()
    assert "Pod" in one.problem()
    one.observed(resource("Pod", "p", resourceVersion="7"), deleted=False)
    await one._list()
    assert one.problem() == ""


async def test_a_lease_that_is_renewed_and_never_told_of_is_a_problem() -> None:
    one, _, _ = made()
    now = asyncio.get_running_loop().time()
    one.leader.renewed_at = now
    one._lease_told_at = now - runtime.LEASE_SILENT_S - 1
    assert "lease" in one.problem()
    one.observed(resource("Lease", leader.NAME), deleted=False)
    assert one.problem() == ""


async def test_an_api_server_that_is_away_is_no_reason_to_start_afresh() -> None:
    """Neither is a renewal that is long ago, nor a list that fails."""
    one, _, _ = made()
    one.leader.renewed_at = asyncio.get_running_loop().time() - 1_000
    one._lease_told_at = one.leader.renewed_at - 1_000
    assert one.problem() == ""


async def test_definitions_that_are_missing_are_a_problem_after_a_while() -> None:
    one, api, _ = made()
    api.failing = lambda verb, kind, name: ApiError(404, "no such kind")
    listing = asyncio.get_running_loop().create_task(one._listing())
    await asyncio.sleep(0.05)
    assert one.problem() == "" and one._missing_since is not None
    one._missing_since -= runtime.MISSING_S + 1
    assert "not defined" in one.problem()
    listing.cancel()


async def test_metrics_say_what_conditions_say() -> None:
    one, api, registry = made()
    api.cache = one.cache
    api.user_applies(names.QUEUE_SHARING_GROUP, "orders", {})
    conditions = [{"type": "Ready", "status": "True"}, {"type": "Redundant", "status": "Unknown"}, {"type": "Available", "status": "True"}]
    status = {"conditions": conditions, "certificates": {"expires": "2026-11-25T12:00:00Z"}}
    version = api.objects[names.QUEUE_SHARING_GROUP, NAMESPACE, "orders"]["metadata"]["resourceVersion"]
    await api.apply_status(names.QUEUE_SHARING_GROUP, NAMESPACE, "orders", status, version)
    one._count()
    labels = {"kind": names.QUEUE_SHARING_GROUP, "namespace": NAMESPACE, "name": "orders"}
    assert registry.get_sample_value("qsg_operator_condition", labels | {"type": "Ready"}) == 1
    assert registry.get_sample_value("qsg_operator_condition", labels | {"type": "Redundant"}) == -1
    assert registry.get_sample_value("qsg_operator_certificate_expiry_timestamp_seconds", labels) == 1_795_608_000
    assert registry.get_sample_value("qsg_operator_resources", {"kind": names.QUEUE_SHARING_GROUP}) == 1
    api.user_deletes(names.QUEUE_SHARING_GROUP, "orders")
    one._count()
    assert registry.get_sample_value("qsg_operator_condition", labels | {"type": "Ready"}) is None
    one.observed(resource("Pod", "p"), deleted=False)
    told = registry.get_sample_value("qsg_operator_watch_last_event_timestamp_seconds", {"kind": "Pod"})
    assert told is not None and abs(told - time.time()) < 60
