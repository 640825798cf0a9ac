"""Children: what users and the queue managers' own configuration ask of them, and goldens that show every change of them in a review."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from qsg.process.config import MemberConfig
from qsg_operator import names
from qsg_operator.children import etcd
from qsg_operator.children.all import Spare, children
from qsg_operator.children.config import member_config
from qsg_operator.children.objects import Images, Object, Owner, container_security, pod_security
from qsg_operator.children.structures import endpoints, structures
from qsg_operator.settings import Settings
from support.owners import group, manager

GOLDEN = Path(__file__).parent / "golden"
EXTERNAL = {"external": {"endpoints": ["etcd.example:2379"], "tlsSecret": "etcd-tls", "authSecret": "etcd-user"}}
OWNERS = {
    "group": group(),
    "queue-manager": manager(),
    "group-external": group(store=EXTERNAL, tls={"mode": "Secret", "secretName": "from-cert-manager"}, members=1, image="other:2"),
    "group-structures": group(
        store={"managed": {"members": 1, "tls": False}, "structures": [{"name": "fast", "managed": {}}, {"name": "far", **EXTERNAL}]},
        portal={"type": "LoadBalancer", "annotations": {"a": "b"}, "loadBalancerClass": "c", "nodePort": 31000},
        imagePullSecrets=[{"name": "pull"}],
        scheduling={"nodeSelector": {"disk": "ssd"}, "tolerations": [{"operator": "Exists"}], "priorityClassName": "high"},
        tls={"mode": "Off"},
    ),
}


def named(owner: Owner, spare: Spare | None = None) -> dict[tuple[str, str], Object]:
    return {(child["kind"], child["metadata"]["name"]): child for child in children(owner, spare or Spare())}


def pods(owner: Owner) -> Iterator[Object]:
    for (kind, _), child in named(owner).items():
        if kind == "StatefulSet":
            yield child["spec"]["template"]["spec"]


@pytest.mark.parametrize("case", ["group", "queue-manager"])
def test_children_are_as_the_golden_file_says(case: str) -> None:
    """`UPDATE_GOLDEN=1` writes the files anew: look at the difference."""
    path = GOLDEN / f"{case}.yaml"
    text = yaml.safe_dump_all(children(OWNERS[case], Spare(member=True)), sort_keys=False)
    if os.environ.get("UPDATE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert path.read_text() == text


def test_who_may_connect_is_in_the_members_configuration() -> None:
    def names_of(owner: Owner) -> tuple[tuple[str, ...], tuple[str, ...]]:
        tls = MemberConfig.model_validate(member_config(owner, 0)).tls
        assert tls is not None
        return tls.peers, tls.clients

    assert names_of(group()) == (("ORDERS",), ())
    assert names_of(group(tls={"allowedClients": ["app"]})) == (("ORDERS",), ("ORDERS", "orders-client", "app"))
    assert names_of(manager(tls={"allowedClients": ["app"]})) == ((), ("BANK", "bank-qm-client", "app"))
    assert names_of(group(tls={"mode": "Secret", "secretName": "s", "allowedClients": ["app"]})) == ((), ("app",))


@pytest.mark.parametrize("case", OWNERS)
def test_every_child_is_owned_and_labelled(case: str) -> None:
    owner = OWNERS[case]
    found = named(owner)
    assert len(found) == len(children(owner, Spare()))
    for (_, name), child in found.items():
        assert len(name) <= 52, "a StatefulSet's pods and their labels need room"
        meta = child["metadata"]
        assert meta["namespace"] == owner.namespace
        (reference,) = meta["ownerReferences"]
        assert (reference["kind"], reference["name"], reference["uid"], reference["controller"]) == (
            owner.kind,
            owner.name,
            owner.uid,
            True,
        )
        assert reference["blockOwnerDeletion"] is False, "a deletion never waits for a child"
        assert "finalizers" not in meta
        assert meta["labels"][names.INSTANCE] == owner.name


@pytest.mark.parametrize("case", OWNERS)
def test_pods_meet_the_restricted_standard(case: str) -> None:
    for pod in pods(OWNERS[case]):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        assert all(set(volume) - {"name"} <= {"configMap", "secret", "emptyDir"} for volume in pod["volumes"])
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["resources"]["requests"]
            declared = {volume["name"] for volume in pod["volumes"]} | {"data"}
            assert {mount["name"] for mount in container["volumeMounts"]} <= declared


@pytest.mark.parametrize("case", OWNERS)
def test_services_and_budgets_select_the_pods_of_a_stateful_set(case: str) -> None:
    found = named(OWNERS[case])
    labels = [c["spec"]["template"]["metadata"]["labels"] for (kind, _), c in found.items() if kind == "StatefulSet"]
    for (kind, name), child in found.items():
        if kind in ("Service", "PodDisruptionBudget"):
            selector = dict(child["spec"]["selector"] if kind == "Service" else child["spec"]["selector"]["matchLabels"])
            pod = selector.pop("statefulset.kubernetes.io/pod-name", name)
            assert labels.count(selector) == 1, name
            assert pod == name, "a Service of one pod is called as it"


def test_a_store_does_not_crowd_on_a_node_when_others_take_it() -> None:
    """Where a node of a control plane takes no pods, or all pods are on the one node there is, it comes up all the same."""
    found = named(group())

    def firm(name: str) -> list[tuple[str, str]]:
        spread = found["StatefulSet", name]["spec"]["template"]["spec"]["topologySpreadConstraints"]
        return [(s["topologyKey"], s["nodeTaintsPolicy"]) for s in spread if s["whenUnsatisfiable"] == "DoNotSchedule"]

    assert firm("orders-store") == [("kubernetes.io/hostname", "Honor")]
    assert firm("orders") == [], "a member anywhere is better than none"
    own = [{"maxSkew": 2, "topologyKey": "rack", "whenUnsatisfiable": "ScheduleAnyway"}]
    asked = group(store={"managed": {"scheduling": {"topologySpreadConstraints": own}}})
    assert named(asked)["StatefulSet", "orders-store"]["spec"]["template"]["spec"]["topologySpreadConstraints"] == own


@pytest.mark.parametrize("case", OWNERS)
def test_members_understand_their_configuration(case: str) -> None:
    owner = OWNERS[case]
    data = named(owner)["ConfigMap", names.config(owner.base)]["data"]
    assert sorted(data) == sorted(f"{pod}.yaml" for pod in owner.pod_names())
    for ordinal, pod in enumerate(owner.pod_names()):
        config = MemberConfig.model_validate(yaml.safe_load(data[f"{pod}.yaml"]))
        assert config.member == owner.member(ordinal)
        assert config.advertise == "$(POD_IP):1416"
        assert config.tls is None or config.tls.server_name == f"{owner.base}-client.{owner.namespace}.svc"
        assert bool(config.group) == (owner.group is not None)
        assert (config.tls is None) == (owner.pods.tls.mode == "Off")
        assert config.initiator_linger_s < owner.pods.termination_grace_period_seconds


def test_every_mounted_file_that_the_configuration_names_is_mounted() -> None:
    for owner in OWNERS.values():
        text = yaml.safe_dump(yaml.safe_load(named(owner)["ConfigMap", names.config(owner.base)]["data"][f"{owner.pod(0)}.yaml"]))
        (queue_manager, _) = named(owner)["StatefulSet", owner.base]["spec"]["template"]["spec"]["containers"]
        places = [mount["mountPath"] for mount in queue_manager["volumeMounts"]]
        for line in text.splitlines():
            value = line.partition(": ")[2]
            if value.startswith("/"):
                assert any(value.startswith(place) for place in places), value


def template(owner: Owner) -> Any:
    return named(owner)["StatefulSet", owner.base]["spec"]["template"]


def test_adding_members_does_not_roll_those_that_are_there() -> None:
    assert template(group(members=3)) == template(group(members=5))


def test_a_change_of_what_members_read_rolls_them() -> None:
    assert template(group()) != template(group(leaseSeconds=9))
    assert template(group()) != template(group(tls={"mode": "Off"}))


def test_a_group_and_a_queue_manager_of_one_name_do_not_meet() -> None:
    ours, theirs = (named(owner) for owner in (group("same"), manager("same")))
    assert not set(ours) & set(theirs)
    selectors = [found["StatefulSet", name]["spec"]["selector"]["matchLabels"] for found, name in ((ours, "same"), (theirs, "same-qm"))]
    assert selectors[0] != selectors[1]


@pytest.mark.parametrize(("members", "spare", "allowed"), [(3, True, 1), (3, False, 0), (1, False, 1)])
def test_the_budget_follows_what_can_be_lost(members: int, spare: bool, allowed: int) -> None:
    budget = named(group(members=members), Spare(member=spare))["PodDisruptionBudget", "orders"]
    assert budget["spec"]["maxUnavailable"] == allowed
    assert budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


@pytest.mark.parametrize(("members", "spare", "allowed"), [(3, True, 1), (3, False, 0), (1, False, 1)])
def test_the_budget_of_a_store_follows_what_can_be_lost(members: int, spare: bool, allowed: int) -> None:
    owner = group(store={"managed": {"members": members}})
    budget = named(owner, Spare(stores={"admin": spare}))["PodDisruptionBudget", "orders-store"]
    assert budget["spec"]["maxUnavailable"] == allowed


def test_probes_ask_nothing_that_depends_on_the_store() -> None:
    for pod in pods(group()):
        for container in pod["containers"]:
            if container["name"] != "etcd":
                assert container["livenessProbe"]["httpGet"]["path"] == "/livez"
            else:
                assert "serializable=true" in container["livenessProbe"]["httpGet"]["path"], "an etcd without a leader is alive"


def test_an_external_store_makes_no_etcd_and_no_password_goes_into_a_config_map() -> None:
    owner = OWNERS["group-external"]
    assert [name for kind, name in named(owner) if kind == "StatefulSet"] == ["orders"]
    config = yaml.safe_load(named(owner)["ConfigMap", "orders-config"]["data"]["orders-0.yaml"])
    assert config["structures"]["admin"]["credentials"] == "/etc/qsg/credentials/admin"


@pytest.mark.parametrize("case", OWNERS)
def test_the_name_of_each_etcd_member_is_there_before_its_pod(case: str) -> None:
    """A name that is asked for before it has an address is unknown for as long as DNS remembers that: peers that do not find each other
    elect nobody when the leader dies, and members of the group lose a store member that is back at another address."""
    owner = OWNERS[case]
    made = children(owner, Spare())
    for structure in structures(owner):
        if structure.managed is None:
            continue
        (at,) = (
            n
            for n, one in enumerate(made)
            if one["kind"] == "StatefulSet" and one["metadata"]["name"] == names.store(owner.base, structure.name)
        )
        before = {one["metadata"]["name"]: one["spec"] for one in made[:at] if one["kind"] == "Service"}
        assert before[made[at]["spec"]["serviceName"]]["clusterIP"] == "None"
        hosts = [endpoint.removesuffix(f".{owner.namespace}.svc:2379") for endpoint in endpoints(owner, structure)]
        assert hosts == [f"{made[at]['metadata']['name']}-{n}" for n in range(structure.managed.members)]
        (peers,) = (flag for flag in etcd.arguments(owner, structure) if flag.startswith("--initial-cluster="))
        for host in hosts:
            assert before[host]["publishNotReadyAddresses"] is True, "etcd is ready when it has found its peers, not before"
            assert "clusterIP" not in before[host], "an address that stays"
            assert {port["port"] for port in before[host]["ports"]} == {2379, 2380}
            assert f"//{host}.{owner.namespace}.svc:2380" in peers


def test_the_restore_in_the_documentation_fits_the_etcd_that_is_made() -> None:
    docs = Path(__file__).parents[2] / "docs"
    (line,) = [line for line in (docs / "kubernetes.md").read_text().splitlines() if "sed -e" in line]
    script = line.partition("|")[0].replace("$n", "1").split()
    text = subprocess.run(script, cwd=docs.parent, capture_output=True, text=True, check=True).stdout
    pod = yaml.safe_load(text)
    owner = group()
    (structure,) = structures(owner)
    made = etcd.stateful_set(owner, structure)
    wanted = {flag.partition("=")[0]: flag.replace("$(POD_NAME)", "orders-store-1") for flag in etcd.arguments(owner, structure)}
    (container,) = pod["spec"]["containers"]
    for name in ("--data-dir", "--name", "--initial-cluster", "--initial-advertise-peer-urls"):
        assert wanted[name] in container["command"]
    assert container["image"] == Settings.from_environment({}).images.etcd
    assert pod["spec"]["securityContext"] == pod_security()
    for one in (container, *pod["spec"]["initContainers"]):
        assert one["securityContext"] == container_security()
        assert one["volumeMounts"] == [{"name": "data", "mountPath": etcd.DATA}]
    claim = made["spec"]["volumeClaimTemplates"][0]["metadata"]["name"]
    assert pod["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"] == f"{claim}-orders-store-1"


def test_members_know_the_quota_of_their_stores() -> None:
    """etcd 3.5 does not tell it: without it nothing would be refused until etcd raises its alarm."""
    external = {"external": {"endpoints": ["e:2379"], "quotaBytes": 5 << 30}}
    owner = group(store={"managed": {"quotaBytes": 2 << 30}, "structures": [{"name": "far", **external}]})
    found = MemberConfig.model_validate(member_config(owner, 0)).structures
    assert {name: one.quota_bytes for name, one in found.items()} == {"admin": 2 << 30, "far": 5 << 30}
    assert MemberConfig.model_validate(member_config(group(store=EXTERNAL), 0)).structures["admin"].quota_bytes == 0


@pytest.mark.parametrize(
    ("size", "asked", "given"),
    [
        ("8Gi", 3 << 30, 3 << 30),
        ("8Gi", 8 << 30, (15 << 30) // 2),
        ("1G", 3 << 30, 10**9 - (1 << 29)),
        ("1.5Gi", 3 << 30, 1 << 30),
        ("100Mi", 3 << 30, 1 << 26),
    ],
)
def test_an_etcd_reaches_its_quota_before_its_volume_is_full(size: str, asked: int, given: int) -> None:
    """At its quota it still answers, and what compaction frees is used again; without a disk it ends."""
    owner = group(store={"managed": {"quotaBytes": asked, "storage": {"size": size}}})
    assert f"--quota-backend-bytes={given}" in etcd.arguments(owner, next(iter(structures(owner))))
    assert MemberConfig.model_validate(member_config(owner, 0)).structures["admin"].quota_bytes == given


def test_images_are_pulled_as_the_operator_was_told_unless_the_spec_says_otherwise() -> None:
    told = Images("qsg:1", "etcd:1", pull_policy="Always", pull_secrets=("theirs", "too"))
    for owner, policy, secrets in (
        (group(), "Always", ["theirs", "too"]),
        (manager(), "Always", ["theirs", "too"]),
        (group(imagePullPolicy="Never", imagePullSecrets=[{"name": "mine"}]), "Never", ["mine"]),
    ):
        for pod in pods(replace(owner, images=told)):
            assert [one["name"] for one in pod["imagePullSecrets"]] == secrets
            assert {one["imagePullPolicy"] for one in pod["containers"]} == {policy}
    for pod in pods(group()):
        assert "imagePullSecrets" not in pod and {one["imagePullPolicy"] for one in pod["containers"]} == {"IfNotPresent"}
