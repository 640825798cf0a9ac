"""Everything deleted in every order, with the operator and without it: nothing hangs, and nothing is left that should not be."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from support.cluster_shop import Figures, Release, Traffic
from support.kubernetes import Namespace, NotYet, Object, eventually

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

NAMES = ("qsg-e2e-group", "qsg-e2e-channels", "qsg-e2e-whole", "qsg-e2e-alone", "qsg-e2e-chart")
KINDS = "queuesharinggroups,schan,squeue,qm"
WITHIN_S, PLANNED_MS = 90.0, 250
VOLUME = {"storage": {"size": "1Gi", "whenDeleted": "Delete"}}
QUICK = {**VOLUME, "terminationGracePeriodSeconds": 20}
"""Kubernetes looks again at a namespace that ends after half of that."""


def small() -> list[Object]:
    """A group of two with one etcd, and a channel to a queue manager outside; their volumes go with them."""
    kinds = {"apiVersion": "qsg.dev/v1alpha1"}
    sender = {"group": "g", "type": "Sender", "transmissionQueue": "XMIT", "connectionNames": ["p-qm-listener:1414"]}
    made = [
        ("QueueSharingGroup", "g", {"members": 2, "store": {"managed": {"members": 1, **VOLUME}}, **QUICK}),
        ("QueueManager", "p", QUICK),
        ("SharedQueue", "xmit", {"group": "g", "type": "Transmission"}),
        ("SharedChannel", "g-to-p", sender),
        ("SharedChannel", "g-to-p-at-p", {"queueManager": "p", "channelName": "G.TO.P", "type": "Receiver"}),
    ]
    return [{**kinds, "kind": kind, "metadata": {"name": name}, "spec": spec} for kind, name, spec in made]


@pytest.fixture(scope="module")
def namespaces(shop: object, release: Release) -> Iterator[dict[str, Namespace]]:
    """Each with the same small group in it, at work."""
    found = {name: Namespace(name).create() for name in NAMES}
    for one in found.values():
        one.apply(*small())
    for one in found.values():
        one.wait("schan", "g-to-p", timeout_s=240)
    yield found
    for one in found.values():
        one.remove()


def gone(one: Namespace, kinds: str = f"{KINDS},statefulset,pod,service,configmap,poddisruptionbudget,secret,pvc") -> None:
    """Nothing of the product is left, but for what other namespaces may trust."""

    def look() -> bool:
        names = one.kubectl("get", kinds, "-o", "name").split()
        left = [name for name in names if name not in ("configmap/kube-root-ca.crt", "secret/qsg-ca")]
        if left:
            raise NotYet(f"still there: {left}")
        return True

    eventually(look, WITHIN_S, f"everything in {one.name} is gone")


def test_the_group_first(namespaces: dict[str, Namespace], figures: Figures) -> None:
    one, began = namespaces["qsg-e2e-group"], time.monotonic()
    one.delete("queuesharinggroups", "g", "--timeout=60s")
    eventually(lambda: _ready(one, "schan", "g-to-p")["reason"] == "TargetNotFound", 60, "the channel says that its group is gone")
    one.delete("qm", "p", "--timeout=60s")
    one.delete("schan,squeue", "--all", "--timeout=30s")
    gone(one)
    figures.add("deleted, group first", f"{time.monotonic() - began:.0f} s", f"{WITHIN_S:g} s")


def test_channels_first(namespaces: dict[str, Namespace], figures: Figures) -> None:
    """Their definitions go from the group too."""
    one, began = namespaces["qsg-e2e-channels"], time.monotonic()
    assert _channels(one, "g-0") and _channels(one, "p-qm-0")
    one.delete("schan,squeue", "--all", "--timeout=30s")
    eventually(lambda: not _channels(one, "g-0"), 60, "the group has no channel any more")
    eventually(lambda: not _channels(one, "p-qm-0"), 60, "the partner has none")
    one.delete("queuesharinggroups,qm", "--all", "--timeout=60s")
    gone(one)
    figures.add("deleted, channels first", f"{time.monotonic() - began:.0f} s", f"{WITHIN_S:g} s")


def test_the_namespace_at_once(namespaces: dict[str, Namespace], figures: Figures) -> None:
    began = time.monotonic()
    one = namespaces["qsg-e2e-whole"]
    one.remove(WITHIN_S)
    assert not one.exists()
    figures.add("deleted, namespace at once", f"{time.monotonic() - began:.0f} s", f"{WITHIN_S:g} s")


def test_without_the_operator(namespaces: dict[str, Namespace], release: Release, figures: Figures) -> None:
    """Resources go at once; what belongs to them goes with them, by Kubernetes alone."""
    one = namespaces["qsg-e2e-alone"]
    release.scale(0)
    try:
        began = time.monotonic()
        one.delete(KINDS, "--all", "--timeout=30s")
        gone(one)
        figures.add("deleted, without the operator", f"{time.monotonic() - began:.0f} s", f"{WITHIN_S:g} s")
    finally:
        release.scale(2)


def test_the_chart_first(namespaces: dict[str, Namespace], release: Release, figures: Figures, traffic: Traffic) -> None:
    """Messages go on without it, resources stay, and a new release goes on with them; a namespace goes in between."""
    one = namespaces["qsg-e2e-chart"]
    with traffic.through("chart uninstalled and installed", PLANNED_MS):
        release.uninstall()
        try:
            assert one.get("queuesharinggroups", "g")["spec"]["members"] == 2
            assert "g-to-p" in one.kubectl("get", "schan", "-o", "name")
            began = time.monotonic()
            one.remove(WITHIN_S)
            figures.add("deleted, chart first", f"{time.monotonic() - began:.0f} s", f"{WITHIN_S:g} s")
        finally:
            release.install()
            release.rolled_out()
        eventually(release.leader, 60, "an operator leads again")


def _ready(one: Namespace, kind: str, name: str) -> Object:
    found: list[Object] = [c for c in one.get(kind, name)["status"]["conditions"] if c["type"] == "Ready"]
    return found[0]


def _channels(one: Namespace, pod: str) -> str:
    return one.kubectl("exec", pod, "-c", "queue-manager", "--", "qsg", "channel", "list", "-o", "json").strip().strip("[] \n")
