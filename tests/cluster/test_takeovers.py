"""Deaths inside a node, under load: who owns the channel is killed, and a survivor goes on, with the operator or without it."""

from __future__ import annotations

import time

import pytest

from support.cluster_shop import DEATH_MS, Release, Shop, Traffic
from support.kubernetes import Nodes, eventually

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]


def test_nothing_happens(shop: Shop, traffic: Traffic) -> None:
    """What the machine's own noise is: no figure below means less than this one."""
    before = shop.owner()
    with traffic.through("nothing, for 15 s", 250):
        time.sleep(15)
    assert shop.owner()["epoch"] == before["epoch"], "nobody took the channel over"


@pytest.mark.parametrize("container", ["initiator", "queue-manager"])
def test_a_container_of_the_owner_is_killed(nodes: Nodes, shop: Shop, traffic: Traffic, container: str) -> None:
    before = shop.owner()
    pod = shop.namespace.get("pod", before["pod"])
    words = "run initiator" if container == "initiator" else "run serve"
    with traffic.through(f"{container} killed", DEATH_MS):
        nodes.kill_process(pod["spec"]["nodeName"], pod["metadata"]["uid"], words)
        traffic.moves()
        shop.taken_over(before)


def test_the_pod_of_the_owner_is_deleted_by_force(shop: Shop, traffic: Traffic) -> None:
    before = shop.owner()
    with traffic.through("pod deleted by force", DEATH_MS):
        shop.namespace.delete("pod", before["pod"], "--grace-period=0", "--force")
        traffic.moves()
        shop.taken_over(before)


def test_the_operator_is_not_needed(shop: Shop, traffic: Traffic, release: Release) -> None:
    """The owner's pod dies while the operator is away."""
    before = shop.owner()
    with traffic.through("pod deleted by force, no operator", DEATH_MS):
        release.scale(0)
        shop.namespace.delete("pod", before["pod"], "--grace-period=0", "--force")
        traffic.moves()
        time.sleep(5)
        traffic.moves()  # by now the owner is dead for certain
        release.scale(2)
        shop.taken_over(before)


def test_the_operator_is_killed_during_a_takeover(shop: Shop, traffic: Traffic, release: Release) -> None:
    """The other one goes on with the statuses."""
    before = shop.owner()
    leader = release.leader()
    with traffic.through("pod and operator deleted by force", DEATH_MS):
        shop.namespace.delete("pod", before["pod"], "--grace-period=0", "--force", "--wait=false")
        release.operator.delete("pod", leader, "--grace-period=0", "--force", "--wait=false")
        traffic.moves()
        eventually(lambda: release.leader() not in ("", leader), 60, "another operator leads")
        shop.taken_over(before)
