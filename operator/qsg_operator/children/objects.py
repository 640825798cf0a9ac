"""What every child has: whose it is, how it is labelled, how pods may run. A child is a plain object for server-side apply."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qsg_operator import names
from qsg_operator.specs.common import Pods, Scheduling
from qsg_operator.specs.group import QueueSharingGroup
from qsg_operator.specs.manager import QueueManager

Object = dict[str, Any]

USER = 65532
"""Runs everything; the image's own user."""


@dataclass(frozen=True)
class Images:
    """What the operator was told; a spec may say otherwise."""

    qsg: str
    etcd: str
    pull_policy: str = "IfNotPresent"
    pull_secrets: tuple[str, ...] = ()
    """Names of Secrets in the namespace of the pods."""


@dataclass(frozen=True)
class Owner:
    """The resource that children belong to."""

    kind: str
    namespace: str
    name: str
    uid: str
    spec: QueueSharingGroup | QueueManager
    images: Images

    @property
    def base(self) -> str:
        return names.base(self.kind, self.name)

    @property
    def pods(self) -> Pods:
        return self.spec

    @property
    def group(self) -> QueueSharingGroup | None:
        return self.spec if isinstance(self.spec, QueueSharingGroup) else None

    @property
    def replicas(self) -> int:
        return self.spec.members if isinstance(self.spec, QueueSharingGroup) else 1

    @property
    def image(self) -> str:
        return self.spec.image or self.images.qsg

    @property
    def pull_policy(self) -> str:
        return self.spec.image_pull_policy or self.images.pull_policy

    def pull_secrets(self) -> Object:
        """What a pod has of them."""
        found = [one.name for one in self.spec.image_pull_secrets] or list(self.images.pull_secrets)
        return {"imagePullSecrets": [{"name": name} for name in found]} if found else {}

    @property
    def mq_name(self) -> str:
        """GROUP NAME, or LOCAL NAME of a queue manager outside a group."""
        given = self.spec.group_name if isinstance(self.spec, QueueSharingGroup) else self.spec.queue_manager_name
        return given or names.mq_name(self.name)

    def pod(self, ordinal: int) -> str:
        return f"{self.base}-{ordinal}"

    def member(self, ordinal: int) -> str:
        """LOCAL NAME."""
        return names.mq_name(self.pod(ordinal)) if self.group else self.mq_name

    def pod_names(self) -> list[str]:
        return [self.pod(ordinal) for ordinal in range(self.replicas)]

    def reference(self) -> Object:
        return {
            "apiVersion": names.API_VERSION,
            "kind": self.kind,
            "name": self.name,
            "uid": self.uid,
            "controller": True,
            "blockOwnerDeletion": False,
        }

    def labels(self, component: str) -> dict[str, str]:
        return names.labels(self.kind, self.name, component)


def child(owner: Owner, api_version: str, kind: str, name: str, component: str, annotations: Mapping[str, str] | None = None) -> Object:
    metadata: Object = {
        "name": name,
        "namespace": owner.namespace,
        "labels": owner.labels(component),
        "ownerReferences": [owner.reference()],
    }
    if annotations:
        metadata["annotations"] = dict(annotations)
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata}


def headless(owner: Owner, name: str, component: str, ports: Mapping[str, int]) -> Object:
    """Names for single pods, ready or not: who is to be reached at all costs must not wait for a probe."""
    service = child(owner, "v1", "Service", name, component)
    service["spec"] = {
        "clusterIP": "None",
        "publishNotReadyAddresses": True,
        "selector": owner.labels(component),
        "ports": service_ports(ports),
    }
    return service


def service_ports(ports: Mapping[str, int]) -> list[Object]:
    return [{"name": name, "port": number, "targetPort": number, "protocol": "TCP"} for name, number in ports.items()]


def pod_security() -> Object:
    return {
        "runAsNonRoot": True,
        "runAsUser": USER,
        "runAsGroup": USER,
        "fsGroup": USER,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def container_security() -> Object:
    return {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}


def pod_field(name: str, path: str) -> Object:
    """A variable of a container that holds a field of its pod."""
    return {"name": name, "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}}


def variables(given: Mapping[str, str]) -> list[Object]:
    return [{"name": name, "value": value} for name, value in given.items()]


def scheduling(given: Scheduling, selector: Mapping[str, str], *, apart: bool = False) -> Object:
    """Placement of pods. Without constraints of its own they spread over nodes and zones, as far as can be; `apart`: over all nodes that
    take them, or they wait."""
    spread = [dict(one) for one in given.topology_spread_constraints] or [
        _spread("kubernetes.io/hostname", selector, firm=apart),
        _spread("topology.kubernetes.io/zone", selector, firm=False),
    ]
    placed: Object = {"topologySpreadConstraints": spread}
    if given.node_selector:
        placed["nodeSelector"] = given.node_selector
    if given.tolerations:
        placed["tolerations"] = [dict(one) for one in given.tolerations]
    if given.affinity:
        placed["affinity"] = given.affinity
    if given.priority_class_name:
        placed["priorityClassName"] = given.priority_class_name
    return placed


def _spread(over: str, selector: Mapping[str, str], *, firm: bool) -> Object:
    spread: Object = {
        "maxSkew": 1,
        "topologyKey": over,
        "whenUnsatisfiable": "DoNotSchedule" if firm else "ScheduleAnyway",
        "labelSelector": {"matchLabels": dict(selector)},
    }
    # A node that takes none, as that of a control plane, would otherwise count as one that has none yet.
    return spread | {"nodeTaintsPolicy": "Honor"} if firm else spread


def volume_claim(owner: Owner, name: str, component: str, size: str, class_name: str) -> Object:
    spec: Object = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": size}}}
    if class_name:
        spec["storageClassName"] = class_name
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name, "labels": owner.labels(component)},
        "spec": spec,
    }
