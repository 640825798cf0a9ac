"""Changes that somebody asks for, under load: newer image, other configuration, more and fewer members, other certificates, newer chart."""

from __future__ import annotations

import json
import os
import time
from functools import partial

import pytest

from support.cluster_served import CERTIFIED, serial, served
from support.cluster_shop import GROUP, STOPPED, Release, Shop, Traffic, image
from support.kubernetes import NotYet, eventually

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

PLANNED_MS = 250


def rolled_out(shop: Shop, before: str) -> None:
    """The StatefulSet is of another template than `before`, in all its pods."""

    def look() -> bool:
        found = shop.namespace.get("statefulset", GROUP)
        status, wanted = found["status"], found["spec"]["replicas"]
        revision = status.get("updateRevision")
        if revision == before:
            raise NotYet("the template is as before")
        pods = [p["metadata"] for p in shop.namespace.list("pod", f"app.kubernetes.io/component=member,app.kubernetes.io/instance={GROUP}")]
        new = [p["name"] for p in pods if p["labels"]["controller-revision-hash"] == revision]
        if len(new) != wanted or status.get("readyReplicas") != wanted:
            raise NotYet(f"of the newest template: {new}; ready: {status.get('readyReplicas')}")
        return True

    eventually(look, 400, "all pods are of the newest template")


def template(shop: Shop) -> str:
    return str(shop.namespace.get("statefulset", GROUP)["status"]["updateRevision"])


def test_a_rolling_update_of_configuration(shop: Shop, traffic: Traffic) -> None:
    before = template(shop)
    seconds = 6 if shop.group()["spec"]["leaseSeconds"] == 5 else 5
    with traffic.through("rolling update of configuration", PLANNED_MS):
        shop.namespace.patch("queuesharinggroups", GROUP, {"spec": {"leaseSeconds": seconds}})
        rolled_out(shop, before)


def test_a_rolling_update_of_the_image(shop: Shop, traffic: Traffic) -> None:
    """The chart's upgrade, with an image of another name: members of every group follow."""
    newer = os.environ.get("QSG_IMAGE_NEWER", "")
    if not newer:
        pytest.skip("set QSG_IMAGE_NEWER to a second name under which the nodes have the image of QSG_IMAGE")
    before = template(shop)
    there = shop.namespace.get("statefulset", GROUP)["spec"]["template"]["spec"]["containers"][0]["image"]
    other = newer if there == image() else image()
    with traffic.through("rolling update of the image", PLANNED_MS):
        shop.namespace.patch("queuesharinggroups", GROUP, {"spec": {"image": other}})
        rolled_out(shop, before)
    pods = shop.namespace.list("pod", f"app.kubernetes.io/component=member,app.kubernetes.io/instance={GROUP}")
    assert {c["image"] for p in pods for c in p["spec"]["containers"]} == {other}


def test_more_members_and_fewer(shop: Shop, traffic: Traffic) -> None:
    """3, 5, 2, 3, by the scale subresource."""
    with traffic.through("scaled 3, 5, 2, 3", PLANNED_MS):
        for members in (5, 2, 3):
            shop.namespace.kubectl("scale", "queuesharinggroups", GROUP, f"--replicas={members}")
            eventually(partial(_has, shop, members), 240, f"{members} members")
            traffic.moves()


def _has(shop: Shop, members: int) -> bool:
    ready = shop.group()["status"].get("membersReady")
    if ready != f"{members}/{members}" or _pods(shop) != members:
        raise NotYet(f"{ready} are ready, of {_pods(shop)} pods")
    return True


def _pods(shop: Shop) -> int:
    return len(shop.namespace.list("pod", f"app.kubernetes.io/component=member,app.kubernetes.io/instance={GROUP}"))


def test_certificates_are_rotated(shop: Shop, traffic: Traffic) -> None:
    """Made anew by the operator, and served by all, etcd too, without a restart."""
    before = {name: serial(shop, name) for name in CERTIFIED}
    started = _started(shop)
    assert served(shop) == {address: before[name] for name, found in CERTIFIED.items() for address in found}
    with traffic.through("certificates rotated", PLANNED_MS):
        shop.namespace.kubectl("delete", "secret", *CERTIFIED)
        for name in CERTIFIED:
            eventually(partial(_is_new, shop, name, before[name]), 90, f"{name} is new")
        after = {name: serial(shop, name) for name in CERTIFIED}
        # A node looks after the Secrets of a pod once a minute, and at once when the pod is edited.
        shop.namespace.kubectl("annotate", "--overwrite", "pod", "-l", "app.kubernetes.io/name=qsg", f"rotated={int(time.time())}")
        wanted = {address: after[name] for name, found in CERTIFIED.items() for address in found}
        eventually(partial(_is_served, shop, wanted), 150, "the new certificates are served", every_s=5)
        traffic.moves()
    assert _started(shop) == started


def _is_new(shop: Shop, secret: str, before: int) -> bool:
    return serial(shop, secret) != before


def _is_served(shop: Shop, wanted: dict[str, int]) -> bool:
    found = served(shop)
    if found != wanted:
        raise NotYet(f"as before: {sorted(address for address in wanted if found[address] != wanted[address])}")
    return True


def _started(shop: Shop) -> dict[str, int]:
    pods = [p for p in shop.namespace.list("pod") if p["metadata"]["labels"].get("app") != "flow"]
    return {p["metadata"]["uid"]: sum(c["restartCount"] for c in p["status"]["containerStatuses"]) for p in pods}


def test_the_chart_is_upgraded(shop: Shop, traffic: Traffic, release: Release) -> None:
    """Another operator, with other values: nothing of a group is touched."""
    started, before = _started(shop), template(shop)
    operators = release.pods()
    with traffic.through("chart upgraded", PLANNED_MS):
        release.install(workers=str(5 + int(time.time()) % 3), **{"podAnnotations.upgraded": f"at-{int(time.time())}"})
        release.rolled_out()
        eventually(lambda: release.leader() not in ("", *operators), 60, "a new operator leads")
        queue = {"apiVersion": "qsg.dev/v1alpha1", "kind": "SharedQueue", "metadata": {"name": "new"}, "spec": {"group": GROUP}}
        shop.namespace.apply(queue)
        shop.namespace.wait("squeue", "new")  # the new operator works
        shop.namespace.delete("squeue", "new")
    assert _started(shop) == started
    assert template(shop) == before


def test_what_was_stopped_stays_stopped_until_it_is_started(shop: Shop) -> None:
    """All members end at once; the message waits on, and goes once the channel may run."""
    shop.whole()
    shop.namespace.kubectl("delete", "pod", "-l", f"app.kubernetes.io/component=member,app.kubernetes.io/instance={GROUP}", "--wait=false")
    time.sleep(5)
    shop.whole()
    assert depth(shop, "HALTED") == 1
    assert shop.channel(STOPPED)["status"]["state"] == "Stopped"
    shop.namespace.patch("schan", STOPPED, {"spec": {"desiredState": "Running"}})
    shop.namespace.wait("schan", STOPPED, timeout_s=60)
    assert shop.qsg("get", "HALTED", "--wait-ms", "10000", pod="bank-qm-0").strip() == "hello"
    shop.namespace.patch("schan", STOPPED, {"spec": {"desiredState": "Stopped"}})
    eventually(lambda: shop.channel(STOPPED)["status"]["state"] == "Stopped", 60, "it is stopped again")
    shop.qsg("put", "TO.HALTED", "hello")
    assert depth(shop, "HALTED") == 1


def depth(shop: Shop, queue: str) -> int:
    return int(json.loads(shop.qsg("queue", "show", queue, "-o", "json"))["depth"])
