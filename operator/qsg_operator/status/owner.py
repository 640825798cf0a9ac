"""Status of a QueueSharingGroup and of a QueueManager, and what can be lost now (which the PodDisruptionBudgets follow)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qsg_operator import names
from qsg_operator.children.all import Spare
from qsg_operator.children.objects import Owner
from qsg_operator.children.services import COMPONENT, client_address, partner_address, partner_service
from qsg_operator.children.structures import structures
from qsg_operator.conditions import Condition
from qsg_operator.seen import Seen


@dataclass(frozen=True)
class Pod:
    name: str
    node: str
    ready: bool
    address: str


@dataclass(frozen=True)
class Cluster:
    """What the API server shows of an owner's children."""

    pods: Mapping[str, Pod] = field(default_factory=dict)
    etcd_ready: Mapping[str, int] = field(default_factory=dict)
    """Structure -> members of its managed etcd that are ready."""
    etcd_nodes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Structure -> the node of each of its etcd members that is on one."""
    rolled_out: bool = False
    """Every pod is of the newest template."""


def spare(owner: Owner, cluster: Cluster, seen: Seen) -> Spare:
    """A member can be lost while another, which reaches every structure, can take over; an etcd member while a majority of the others is
    ready."""
    stores = {}
    for one in structures(owner):
        if one.managed is not None:
            stores[one.name] = cluster.etcd_ready.get(one.name, 0) - 1 > one.managed.members // 2
    return Spare(member=seen.connected and len(_whole(owner, seen)) >= 2, stores=stores)


def _whole(owner: Owner, seen: Seen) -> list[str]:
    """Members that could take over any channel."""
    lost = _lost(owner, seen)
    if any(not seen.structures.get(name, False) for name in lost):
        return []
    lacking = {member for members in lost.values() for member in members}
    return [str(line["member"]) for line in seen.able() if line["member"] not in lacking]


def _lost(owner: Owner, seen: Seen) -> dict[str, list[str]]:
    return seen.lost(one.name for one in structures(owner))


def store_condition(owner: Owner, seen: Seen) -> Condition:
    if not seen.connected:
        return Condition("StoreReachable", None, "MembersUnreachable", seen.error)
    lost = _lost(owner, seen)
    if lost:
        told = ", ".join(f"{name} (by {', '.join(members)})" if members else name for name, members in lost.items())
        return Condition("StoreReachable", False, "StructureLost", f"not reached: {told}")
    return Condition("StoreReachable", True, "Reached", "")


def available(owner: Owner, cluster: Cluster, seen: Seen) -> Condition:
    """Whether partners and applications are served now."""
    if not seen.connected:
        ready = sum(pod.ready for pod in cluster.pods.values())
        if ready:
            return Condition(
                "Available", None, "MembersUnreachable", f"{ready} pods are ready, but none answers the operator: {seen.error}"
            )
        return Condition("Available", False, "NoMemberReady", "no member is ready")
    if not seen.able():
        return Condition("Available", False, "NoListener", "no member has a channel initiator now")
    return Condition("Available", True, "Serving", f"{len(seen.able())} of {owner.replicas} members serve")


def redundant(owner: Owner, cluster: Cluster, seen: Seen) -> Condition:
    can = spare(owner, cluster, seen)
    if owner.replicas < 2:
        return Condition("Redundant", False, "SingleMember", "the group has one member only")
    single = [one.name for one in structures(owner) if one.managed is not None and one.managed.members == 1]
    if single:
        return Condition("Redundant", False, "SingleStoreMember", f"one etcd only: {', '.join(single)}")
    if not seen.connected:
        return Condition("Redundant", None, "MembersUnreachable", seen.error)
    if not can.member:
        return Condition("Redundant", False, "NoSpareMember", f"{len(_whole(owner, seen))} members could take over any channel")
    short = sorted(name for name, spare_ in can.stores.items() if not spare_)
    if short:
        return Condition("Redundant", False, "NoSpareStoreMember", f"an etcd member must not be lost now: {', '.join(short)}")
    theirs = sorted(one.name for one in structures(owner) if one.managed is None)
    if theirs:
        text = f"a member can be lost now; what an external etcd can lose is unknown: {', '.join(theirs)}"
        return Condition("Redundant", None, "ExternalStore", text)
    text = "a member and a store member can be lost now"
    crowded = _crowded(owner, cluster)
    if crowded:
        return Condition("Redundant", True, "NodeNotSpare", f"{text}, but not a node with {' or '.join(crowded)}")
    return Condition("Redundant", True, "MemberAndStoreSpare", text)


def _crowded(owner: Owner, cluster: Cluster) -> list[str]:
    """What is together on one node, so that the group stops when that is lost."""
    found = []
    for one in structures(owner):
        if one.managed is not None:
            for node, count in sorted(Counter(cluster.etcd_nodes.get(one.name, ())).items()):
                if one.managed.members - count <= one.managed.members // 2:
                    found.append(f"{count} of {one.managed.members} etcd members of {one.name} ({node})")
    nodes = {pod.node for pod in cluster.pods.values() if pod.node}
    if len(nodes) == 1:
        found.append(f"all members ({nodes.pop()})")
    return found


def ready(owner: Owner, cluster: Cluster, conditions: list[Condition], problem: str) -> Condition:
    if problem:
        return Condition("Ready", False, "ReconcileFailed", problem)
    for condition in conditions:
        if condition.type in ("Available", "StoreReachable") and not condition.ok:
            return Condition("Ready", condition.ok, condition.reason, condition.message)
    missing = owner.replicas - sum(pod.ready for pod in cluster.pods.values())
    if missing > 0:
        return Condition("Ready", False, "MembersMissing", f"{missing} of {owner.replicas} members are not ready")
    if not cluster.rolled_out:
        return Condition("Ready", False, "RollingOut", "members are being replaced by newer ones")
    return Condition("Ready", True, "Serving", "")


def owner_status(
    owner: Owner, cluster: Cluster, seen: Seen, *, channels: int, expires: str, problem: str
) -> tuple[dict[str, Any], list[Condition]]:
    """`channels`: SharedChannels of it. `expires`: of its certificate. `problem`: why children could not be made; "" = they were."""
    found: dict[str, Any] = {
        "image": owner.image,
        "name": owner.mq_name,
        "channels": {"total": channels, "running": seen.running()},
        "client": {"address": client_address(owner)},
    }
    if expires:
        found["certificates"] = {"expires": expires}
    partner = {"service": partner_service(owner)["metadata"]["name"], "address": partner_address(owner)}
    conditions = [available(owner, cluster, seen), store_condition(owner, seen)]
    if owner.group is not None:
        conditions.append(redundant(owner, cluster, seen))
        found |= {
            "portal": partner,
            "replicas": len(cluster.pods),
            "selector": ",".join(f"{key}={value}" for key, value in sorted(owner.labels(COMPONENT).items())),
            "membersReady": f"{sum(pod.ready for pod in cluster.pods.values())}/{owner.replicas}",
            "members": _members(owner, cluster, seen),
        }
    else:
        found["listener"] = partner
        pod = cluster.pods.get(owner.pod(0))
        if pod is not None:
            found |= {"pod": pod.name, "node": pod.node}
        if seen.members:
            found["incarnation"] = seen.members[0]["incarnation"]
    return found, [ready(owner, cluster, conditions, problem), *conditions]


def _members(owner: Owner, cluster: Cluster, seen: Seen) -> list[dict[str, Any]]:
    told = {str(line["member"]): line for line in seen.members}
    found = []
    for name in sorted(set(cluster.pods) | set(owner.pod_names()), key=_ordinal):
        member, pod = names.mq_name(name), cluster.pods.get(name)
        row: dict[str, Any] = {"name": member, "pod": name, "ready": pod is not None and pod.ready}
        if pod is not None and pod.node:
            row["node"] = pod.node
        if member in told:
            line = told[member]
            row |= {"linked": line["linked"], "draining": line["draining"], "channels": line["channels"]}
            if line["incarnation"]:
                row["incarnation"] = line["incarnation"]
        found.append(row)
    return found


def _ordinal(pod: str) -> tuple[int, str]:
    _, _, number = pod.rpartition("-")
    return int(number) if number.isdigit() else 0, pod


def pods_by_member(owner: Owner, cluster: Cluster) -> dict[str, tuple[str, str]]:
    if owner.group is None:
        pod = cluster.pods.get(owner.pod(0))
        return {owner.mq_name: (pod.name, pod.node)} if pod is not None else {}
    return {names.mq_name(pod.name): (pod.name, pod.node) for pod in cluster.pods.values()}
