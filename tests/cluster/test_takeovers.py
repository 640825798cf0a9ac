"""Deaths under load: who owns the channel is killed, in every way that Kubernetes has, and a survivor goes on."""

from __future__ import annotations

import time

import pytest

from support.cluster_flow import Flow
from support.kubernetes import Namespace, Nodes, Object, condition, eventually

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

CHANNEL = "orders-to-bank"


def owner(shop: Namespace) -> Object:
    """The owner of the channel, as its status says: member, pod, node, since, epoch."""
    found: Object = eventually(lambda: shop.get("schan", CHANNEL).get("status", {}).get("owner", {}), what="the channel has an owner")
    return found


def whole(shop: Namespace) -> None:
    """Every member and store is back, and the channel runs."""
    eventually(
        lambda: condition(shop.get("queuesharinggroups", "orders"), "Redundant").get("status") == "True", 240, "the group is redundant"
    )
    eventually(lambda: condition(shop.get("schan", CHANNEL), "Ready").get("status") == "True", 120, "the channel is Ready")


def test_the_pod_of_the_owner_is_deleted_by_force(release: Namespace, traffic: tuple[Flow, Flow]) -> None:
    whole(release)
    before = owner(release)
    began = time.time()
    release.delete("pod", before["pod"], "--grace-period=0", "--force")
    traffic[0].moves()
    eventually(lambda: owner(release)["member"] != before["member"] or owner(release)["epoch"] > before["epoch"], 30, "another owner")
    whole(release)
    traffic[0].finish()
    assert traffic[0].longest_pause_ms(began) < 4_000
    print(f"pod deleted by force: {traffic[0].longest_pause_ms(began):.0f} ms")  # noqa: T201


@pytest.mark.parametrize("container", ["initiator", "queue-manager"])
def test_a_container_of_the_owner_is_killed(release: Namespace, traffic: tuple[Flow, Flow], container: str) -> None:
    whole(release)
    before = owner(release)
    pod = release.get("pod", before["pod"])
    words = "run initiator" if container == "initiator" else "run serve"
    began = time.time()
    Nodes().kill_process(pod["spec"]["nodeName"], pod["metadata"]["uid"], words)
    traffic[0].moves()
    eventually(lambda: owner(release)["epoch"] > before["epoch"], 30, "the channel was taken over")
    whole(release)
    traffic[0].finish()
    print(f"{container} killed: {traffic[0].longest_pause_ms(began):.0f} ms")  # noqa: T201
    assert traffic[0].longest_pause_ms(began) < 4_000


def test_the_operator_is_not_needed(release: Namespace, traffic: tuple[Flow, Flow]) -> None:
    """The owner's pod dies while the operator is away."""
    whole(release)
    before = owner(release)
    system = Namespace("qsg-system")
    name = system.list("deployment")[0]["metadata"]["name"]
    system.kubectl("scale", "deployment", name, "--replicas=0")
    eventually(lambda: not system.list("pod"), 90, "the operator is gone")
    release.delete("pod", before["pod"], "--grace-period=0", "--force")
    traffic[0].moves()
    system.kubectl("scale", "deployment", name, "--replicas=1")
    eventually(lambda: owner(release)["member"] != before["member"], 90, "the status says who has the channel now")
    whole(release)


def test_a_planned_restart_hands_over(release: Namespace, traffic: tuple[Flow, Flow]) -> None:
    whole(release)
    began = time.time()
    release.kubectl("rollout", "restart", "statefulset", "orders")
    release.kubectl("rollout", "status", "statefulset", "orders", "--timeout=300s", timeout_s=310)
    traffic[0].moves()
    whole(release)
    traffic[0].finish()
    print(f"rolling restart: {traffic[0].longest_pause_ms(began):.0f} ms")  # noqa: T201
    assert traffic[0].longest_pause_ms(began) < 4_000


def test_stopped_stays_stopped(release: Namespace) -> None:
    whole(release)
    release.patch("schan", CHANNEL, {"spec": {"desiredState": "Stopped"}})
    eventually(lambda: release.get("schan", CHANNEL)["status"].get("state") == "Stopped", 30, "the channel is stopped")
    release.delete("pod", "-l", "app.kubernetes.io/component=member,app.kubernetes.io/instance=orders", "--wait=false")
    time.sleep(10)
    eventually(
        lambda: condition(release.get("queuesharinggroups", "orders"), "Available").get("status") == "True", 240, "the group is back"
    )
    assert release.get("schan", CHANNEL)["status"]["state"] == "Stopped"
    release.patch("schan", CHANNEL, {"spec": {"desiredState": "Running"}})
    whole(release)
