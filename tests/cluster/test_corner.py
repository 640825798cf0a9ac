"""An operator for one namespace, and in it a group with stores and certificates of the user's own, whose partner goes for good.

Meanwhile the other release watches the shop's namespace only. The tests go on from each other.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from functools import partial

import pytest

from support.cluster_corner import ADMIN, BACK, BUSY, DEPOT, GROUP, OUT, etcd, group, made, rest, secrets, users
from support.cluster_operations import asked
from support.cluster_shop import GROUP as ORDERS
from support.cluster_shop import Figures, Release, Shop
from support.kubernetes import Namespace, condition, eventually, run

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]

SENDERS, RECEIVERS = (OUT, f"{BACK}-at-depot"), (f"{OUT}-at-depot", BACK)


@pytest.fixture(scope="module")
def corner(shop: Shop, release: Release) -> Iterator[Namespace]:
    """Nobody's yet: the release that was there has eyes for the shop only, until the end."""
    namespace = Namespace("qsg-e2e-corner").create()
    own = Release(namespace, "corner")
    namespace.apply(*secrets(namespace.name), *etcd(ADMIN, secret_name="etcd-server"), *etcd(BUSY))
    release.install(watchNamespaces=f"{{{shop.namespace.name}}}")
    try:
        yield namespace
    finally:
        own.uninstall()
        run(["kubectl", "delete", "namespace", namespace.name, "--wait=false"])
        # Whoever held it has lost its rights before it could give it back: nobody need wait for that here.
        release.operator.delete("lease", "qsg-operator", "--ignore-not-found")
        release.install()
        release.rolled_out()
        eventually(release.leader, 60, "an operator of all namespaces leads again")


def test_an_operator_sees_what_it_is_told_to_watch_and_no_more(corner: Namespace, shop: Shop, release: Release) -> None:
    for name in (ADMIN, BUSY):
        corner.wait("pod", name)
    users(corner)
    release.rolled_out()
    corner.apply(group(corner.name))
    shop.namespace.apply(made("SharedQueue", "narrow", group=ORDERS))
    shop.namespace.wait("squeue", "narrow", timeout_s=60)
    shop.namespace.delete("squeue", "narrow")
    assert corner.get("queuesharinggroups", GROUP)["status"]["observedGeneration"] == -1
    asking = (f"list schan -n {shop.namespace.name}", f"list schan -n {corner.name}", "list schan -A")
    assert [may(release, question) for question in asking] == ["yes", "no", "no"]


def may(release: Release, question: str) -> str:
    """Whether the operator's account may do so."""
    account = f"system:serviceaccount:{release.operator.name}:{release.deployment}"
    return run(["sh", "-c", f"kubectl auth can-i {question} --as={account} || true"]).strip()


def test_a_group_comes_up_with_what_its_user_brings(corner: Namespace, figures: Figures) -> None:
    began = time.monotonic()
    Release(corner, "corner").install(watchNamespaces=f"{{{corner.name}}}", replicas="1", **{"crds.enabled": "false"})
    corner.apply(*rest())
    for name in (*SENDERS, *RECEIVERS):
        corner.wait("schan", name, timeout_s=180)
    corner.wait("queuesharinggroups", GROUP)
    figures.add("operator of one namespace, external stores: to Ready", f"{time.monotonic() - began:.0f} s", "60 s")
    found = corner.get("queuesharinggroups", GROUP)
    assert condition(found, "Available")["status"] == condition(found, "StoreReachable")["status"] == "True"
    redundant = eventually(lambda: _unknown(corner), 60, "what an external etcd can lose is unknown")
    assert redundant == "a member can be lost now; what an external etcd can lose is unknown: admin, busy"
    assert corner.get("pdb", GROUP)["spec"]["maxUnavailable"] == 1
    assert not [name for name in corner.kubectl("get", "statefulset,secret", "-o", "name").split() if "store" in name or "qsg-ca" in name]


def _unknown(corner: Namespace) -> str:
    found = condition(corner.get("queuesharinggroups", GROUP), "Redundant")
    return str(found["message"]) if (found["status"], found["reason"]) == ("Unknown", "ExternalStore") else ""


def test_a_message_goes_each_way(corner: Namespace) -> None:
    qsg(corner, "edge-0", "put", "GOODS", "a parcel")
    assert qsg(corner, "depot-qm-0", "get", "GOODS", "--wait-ms", "20000") == "a parcel"
    qsg(corner, "depot-qm-0", "put", "NOTES", "thanks")
    assert qsg(corner, "edge-1", "get", "NOTES", "--wait-ms", "20000") == "thanks"


def test_who_may_use_a_channel_is_told_by_the_names_in_certificates(corner: Namespace) -> None:
    receiver = f"{OUT}-at-depot"
    corner.patch("schan", receiver, {"spec": {"allowedIdentities": ["SOMEBODY"]}})
    eventually(lambda: "SOMEBODY" in qsg(corner, "depot-qm-0", "channel", "show", "EDGE.TO.DEPOT", "-o", "json"), 30, "it is taken live")
    stopped(corner)
    corner.patch("schan", OUT, {"spec": {"desiredState": "Running"}})
    eventually(lambda: "'EDGE' is not allowed" in condition(corner.get("schan", OUT), "Ready")["message"], 60, "it says that it may not")
    assert condition(corner.get("schan", OUT), "Ready")["reason"] == "Retrying"
    corner.patch("schan", receiver, {"spec": {"allowedIdentities": ["SOMEBODY", "EDGE"]}})
    corner.wait("schan", OUT, timeout_s=60)


def test_a_reset_counts_at_both_ends_from_the_next_start_on(corner: Namespace) -> None:
    stopped(corner)
    assert asked(corner, OUT, "reset", sequence=700)[0] == "Succeeded"
    corner.patch("schan", OUT, {"spec": {"desiredState": "Running"}})
    corner.wait("schan", OUT, timeout_s=60)
    qsg(corner, "edge-0", "put", "GOODS", "number 700")
    assert qsg(corner, "depot-qm-0", "get", "GOODS", "--wait-ms", "20000") == "number 700"
    for pod in ("edge-1", "depot-qm-0"):
        eventually(partial(_counts, corner, pod), 30, f"{pod} counts from there")


def _counts(corner: Namespace, pod: str) -> bool:
    (line,) = json.loads(qsg(corner, pod, "channel", "status", "EDGE.TO.DEPOT", "-o", "json"))
    return bool(line["last_sequence"] == 700)


def test_a_partner_that_is_gone_for_good_is_resolved_by_force(corner: Namespace) -> None:
    """What was in doubt can be sent again then; the channel stops as it was told."""
    corner.delete("qm", DEPOT)
    eventually(lambda: "depot-qm-0" not in corner.kubectl("get", "pod", "-o", "name"), 60, "the partner is gone")
    qsg(corner, "edge-0", "put", "GOODS", "to nobody")
    corner.patch("schan", OUT, {"spec": {"desiredState": "Stopped"}})
    corner.wait("schan", OUT, "Stalled", timeout_s=60)
    assert condition(corner.get("schan", OUT), "Stalled")["reason"] == "PartnerNotFenced"
    state, message = asked(corner, OUT, "resolve", action="backout")
    assert state == "Failed" and "use force to accept that" in message
    state, message = asked(corner, OUT, "resolve", action="backout", force=True)
    assert state == "Succeeded" and "DEPOT is not fenced" in message
    eventually(lambda: corner.get("schan", OUT)["status"]["state"] == "Stopped", 60, "it is stopped")
    assert json.loads(qsg(corner, "edge-1", "queue", "show", "DEPOT", "-o", "json"))["depth"] == 1, "what was not sent waits on"


def stopped(corner: Namespace) -> None:
    corner.patch("schan", OUT, {"spec": {"desiredState": "Stopped"}})
    eventually(lambda: corner.get("schan", OUT)["status"]["state"] == "Stopped", 60, "the channel is stopped")


def qsg(corner: Namespace, pod: str, *arguments: str) -> str:
    return corner.kubectl("exec", "-i", pod, "-c", "queue-manager", "--", "qsg", *arguments).strip()
