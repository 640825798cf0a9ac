"""What the API server refuses, with which words; and what a channel says that has nobody at the other end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from support.cluster_shop import GROUP, Shop
from support.kubernetes import CommandFailed, Object

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

SENDER = {"group": "g", "type": "Sender", "transmissionQueue": "X", "connectionNames": ["x:1414"]}
RECEIVER = {"group": "g", "type": "Receiver"}
MANAGED = {"members": 3}
EXTERNAL = {"endpoints": ["etcd:2379"]}
FURTHER: Object = {"name": "fast", "external": EXTERNAL}


def made(kind: str, name: str = "one", **spec: Any) -> Object:
    return {"apiVersion": "qsg.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec}


def channel(**changes: Any) -> Object:
    return made("SharedChannel", **{**SENDER, **changes})


def receiver(**changes: Any) -> Object:
    return made("SharedChannel", **{**RECEIVER, **changes})


def queue(**spec: Any) -> Object:
    return made("SharedQueue", **{"group": "g", **spec})


def group(**spec: Any) -> Object:
    return made("QueueSharingGroup", **spec)


MISTAKES = [
    (channel(queueManager="q"), "exactly one of group and queueManager is needed"),
    (channel(group=""), "exactly one of group and queueManager is needed"),
    (channel(transmissionQueue=""), "a Sender needs transmissionQueue"),
    (channel(connectionNames=[]), "a Sender needs at least one of connectionNames"),
    (channel(connectionNames=["nohost"]), "spec.connectionNames[0]"),
    (channel(allowedIdentities=["X"]), "structure and allowedIdentities are for a Receiver only"),
    (channel(type="Server"), 'supported values: "Sender", "Receiver"'),
    (channel(desiredState="Paused"), 'supported values: "Running", "Stopped"'),
    (channel(heartbeatMs=2000, silenceMs=1000), "heartbeatMs must be below silenceMs"),
    (channel(batch={"messages": 0}), "spec.batch.messages"),
    (channel(batchSize=1), 'unknown field "spec.batchSize"'),
    (receiver(transmissionQueue="X"), "transmissionQueue and connectionNames are for a Sender only"),
    (receiver(desiredState="Stopped"), "a Receiver runs when its partner does"),
    (made("SharedChannel", "a" * 49, **SENDER), "so channelName is needed"),
    (queue(type="Alias"), "an Alias needs target"),
    (queue(target="X"), "target is for an Alias only"),
    (queue(type="Remote", remoteQueue="X"), "a Remote queue needs remoteQueueManager or transmissionQueue"),
    (queue(remoteQueue="X"), "are for a Remote queue only"),
    (queue(backoutQueue="X"), "backoutQueue needs backoutThreshold above 0"),
    (queue(group="", queueManager="q", structure="app1"), "has the structure private only"),
    (group(members=0), "spec.members"),
    (group(members=33), "spec.members"),
    (group(groupName="lower"), "spec.groupName"),
    (group(store={"managed": {"members": 2}}), "spec.store.managed.members"),
    (group(store={"managed": MANAGED, "external": EXTERNAL}), "exactly one of managed and external is needed"),
    (group(store={"managed": MANAGED, "structures": [{"name": "admin", "managed": MANAGED}]}), "admin and private are names of structures"),
    (group(portal={"nodePort": 30000}), "nodePort is for types NodePort and LoadBalancer only"),
    (group(tls={"mode": "Secret"}), "mode Secret needs secretName"),
    (made("QueueSharingGroup", "a.b"), "the name must not contain dots"),
    (made("QueueSharingGroup", "a" * 41), "the name must have at most 40 characters"),
    (made("QueueManager", "a.b"), "the name must not contain dots"),
]


@pytest.mark.parametrize(("mistake", "told"), MISTAKES, ids=[told[:40] for _, told in MISTAKES])
def test_a_mistake_is_refused(shop: Shop, mistake: Object, told: str) -> None:
    assert told in shop.namespace.refused(mistake)


CHANGES = [
    ("schan", "orders-to-bank", {"group": "other"}, "group cannot be changed"),
    ("schan", "orders-to-bank", {"type": "Receiver"}, "type cannot be changed"),
    ("schan", "orders-to-bank", {"channelName": "OTHER"}, "channelName cannot be changed"),
    ("squeue", "payments-at-bank", {"queueName": "OTHER"}, "queueName cannot be changed"),
    ("squeue", "bank", {"structure": "app1"}, "structure cannot be changed"),
    ("queuesharinggroups", "orders", {"groupName": "OTHER"}, "groupName cannot be changed"),
    ("queuesharinggroups", "orders", {"store": {"managed": {"members": 1}}}, "members of a managed store cannot be changed"),
    ("queuesharinggroups", "orders", {"store": {"managed": None, "external": EXTERNAL}}, "cannot be exchanged for each other"),
    ("qm", "bank", {"queueManagerName": "OTHER"}, "queueManagerName cannot be changed"),
]


@pytest.mark.parametrize(("kind", "name", "change", "told"), CHANGES, ids=[told for *_, told in CHANGES])
def test_a_change_that_cannot_be_is_refused(shop: Shop, kind: str, name: str, change: Object, told: str) -> None:
    with pytest.raises(CommandFailed, match=told):
        shop.namespace.patch(kind, name, {"spec": change})


@pytest.fixture
def further(shop: Shop) -> Iterator[str]:
    """A group with a further structure, whose stores nobody answers for."""
    spec = {"members": 1, "storage": {"whenDeleted": "Delete"}, "store": {"external": EXTERNAL, "structures": [FURTHER]}}
    shop.namespace.apply(made("QueueSharingGroup", "further", **spec))
    yield "further"
    shop.namespace.delete("queuesharinggroups", "further")


@pytest.mark.parametrize(
    ("structures", "told"),
    [
        ([{"name": "fast", "managed": MANAGED}], "cannot be exchanged for each other"),
        ([{**FURTHER, "managed": MANAGED}], "exactly one of managed and external is needed"),
        ([{**FURTHER, "name": "other"}], "a structure cannot be removed"),
    ],
)
def test_a_further_structure_stays_what_it_is(shop: Shop, further: str, structures: list[Object], told: str) -> None:
    with pytest.raises(CommandFailed, match=told):
        shop.namespace.patch("queuesharinggroups", further, {"spec": {"store": {"structures": structures}}})


@pytest.fixture
def nobody(shop: Shop) -> Iterator[str]:
    """A channel to an address where nothing listens."""
    spec = {**SENDER, "group": GROUP, "transmissionQueue": "NOBODY", "connectionNames": ["bank-qm-0.bank-qm-pods:9"]}
    shop.namespace.apply(
        made("SharedQueue", "to-nobody", group=GROUP, queueName="NOBODY", type="Transmission"), made("SharedChannel", "to-nobody", **spec)
    )
    yield "to-nobody"
    shop.namespace.delete("schan,squeue", "to-nobody")


def test_a_channel_to_nobody_is_not_ready_and_says_why(shop: Shop, nobody: str) -> None:
    shop.namespace.wait("schan", nobody, "Valid", timeout_s=60)
    with pytest.raises(CommandFailed, match="timed out"):
        shop.namespace.wait("schan", nobody, timeout_s=20)
    told = shop.namespace.kubectl("describe", "schan", nobody)
    print(told)  # noqa: T201
    assert "Retrying" in told
    assert "bank-qm-0.bank-qm-pods:9" in told.split("Events:")[0].split("Conditions:")[1]
    assert "Retrying" in told.split("Events:")[1], "an Event tells it too"
