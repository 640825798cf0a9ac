"""Nodes that die, are cut off, or are drained, and the store's members, under load."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.cluster_shop import DEATH_MS, ROOT, STORES, Shop, Traffic
from support.kubernetes import Nodes, eventually, run

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

NODE_MS, PLANNED_MS = 4_000, 250


@pytest.fixture
def victim(shop: Shop, traffic: Traffic) -> Iterator[str]:
    """The owner's node, which is not the bank's, nor one whose loss is more than the store can bear."""
    shop.spread()
    node = shop.owner_away_from_bank()["node"]
    yield node
    run(["kubectl", "uncordon", node])


LOSSES = {"node killed": (Nodes.kill, Nodes.start), "node cut off and healed": (Nodes.cut, Nodes.heal)}


@pytest.mark.parametrize("loss", LOSSES)
def test_the_node_of_the_owner_is_lost_and_comes_back(nodes: Nodes, shop: Shop, victim: str, traffic: Traffic, loss: str) -> None:
    lose, restore = LOSSES[loss]
    before = shop.owner()
    with traffic.through(loss, NODE_MS):
        lose(nodes, victim)
        try:
            traffic.moves()
            shop.taken_over(before)
        finally:
            restore(nodes, victim)
        traffic.moves()


def test_the_leader_of_the_store_is_killed(shop: Shop, traffic: Traffic) -> None:
    traffic.through_an_election("etcd's leader deleted by force")


def test_the_store_is_defragmented(shop: Shop, traffic: Traffic) -> None:
    """As docs/kubernetes.md says: one member at a time, which answers nobody meanwhile, the leader last."""
    leader = shop.store_leader()
    with traffic.through("etcd defragmented, one after the other", DEATH_MS):
        for pod in (*(one for one in STORES if one != leader), leader):
            assert "Finished defragmenting etcd member" in shop.namespace.kubectl("exec", pod, "--", "etcdctl", "defrag")
            traffic.moves()


def written() -> list[str]:
    """What docs/kubernetes.md has one do about a lost volume."""
    section = (ROOT / "docs/kubernetes.md").read_text().partition("### A lost volume")[2].partition("\n### ")[0]
    return section.split("```\n")[1].splitlines()


def test_a_volume_of_the_store_is_lost(shop: Shop, traffic: Traffic) -> None:
    """Its member is refused as it was, and let in as a new one."""
    lost, space = STORES[1], shop.namespace.name

    def typed(command: str) -> str:
        found = run(
            ["bash", "-c", command.replace("kubectl ", f"kubectl -n {space} ").replace(".shop.svc", f".{space}.svc")], timeout_s=620
        )
        return str(found)

    def refused(why: str) -> bool:
        return why in typed(f"kubectl logs pod/{lost} --tail=20 || true")

    hold, *deletions, members, remove, add, go, ready, done = written()
    assert all(line.startswith("kubectl delete ") for line in deletions), deletions
    with traffic.through("a volume of the store lost, its member replaced", DEATH_MS):
        for command in deletions:
            typed(command)
        eventually(lambda: refused("has already been bootstrapped"), 120, "the member is refused on its empty volume")
        for command in (hold, *deletions):
            typed(command)
        eventually(lambda: refused("for ETCD_INITIAL_CLUSTER_STATE"), 120, "the member leaves its new volume alone")
        (number,) = (line.partition(",")[0] for line in typed(members).splitlines() if lost in line)
        for command in (remove.replace("8e9e05c52164694d", number), add, go, ready, done):
            typed(command)
        traffic.moves()
    statuses = typed(f"kubectl exec {lost} -- etcdctl endpoint health --cluster 2>&1")
    assert statuses.count("is healthy") == len(STORES), statuses
    shop.whole()


def test_the_node_of_the_owner_is_drained(shop: Shop, victim: str, traffic: Traffic) -> None:
    before = shop.owner()
    with traffic.through("node drained", PLANNED_MS):
        arguments = ["--ignore-daemonsets", "--delete-emptydir-data", "--timeout=240s"]
        run(["kubectl", "drain", victim, *arguments], timeout_s=250)
        traffic.moves()
        shop.taken_over(before)
        pods = [p["metadata"]["name"] for p in shop.namespace.list("pod") if p["spec"].get("nodeName") == victim]
        assert not pods
        run(["kubectl", "uncordon", victim])
        eventually(lambda: shop.namespace.get("pod", before["pod"])["status"]["phase"] == "Running", what="the member is back")
    shop.spread()
