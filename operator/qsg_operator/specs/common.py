"""What several specs share. Unknown fields are left out: an older operator must read what a newer schema allows."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from pydantic.alias_generators import to_camel

MqName = Annotated[str, StringConstraints(pattern=r"^([A-Za-z0-9._/%]{1,48})?$")]
QueueManagerName = Annotated[str, StringConstraints(pattern=r"^([A-Z0-9._/%]{1,48})?$")]
ObjectName = Annotated[str, StringConstraints(pattern=r"^([a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?)?$")]
Quantity = Annotated[str, StringConstraints(pattern=r"^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti)?$")]
UNITS = {"m": 1e-3, "": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40}
Names = tuple[str, ...]
Free = dict[str, Any]
"""An object of Kubernetes' own API, passed on as it is."""


class Spec(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore", frozen=True)


def bytes_of(quantity: str) -> int:
    number = quantity.rstrip("".join(UNITS))
    return int(float(number) * UNITS[quantity[len(number) :]])


class Reference(Spec):
    name: ObjectName = ""


class Resources(Spec):
    queue_manager: Free = Field(default_factory=lambda: {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "1Gi"}})
    initiator: Free = Field(default_factory=lambda: {"requests": {"cpu": "100m", "memory": "96Mi"}, "limits": {"memory": "512Mi"}})


class Storage(Spec):
    size: Quantity = "1Gi"
    class_name: ObjectName = ""
    """"" = the cluster's default class."""
    when_deleted: Literal["Retain", "Delete"] = "Retain"
    """What becomes of the volumes when the resource is deleted."""


class Scheduling(Spec):
    node_selector: dict[str, str] = Field(default_factory=dict)
    tolerations: tuple[Free, ...] = ()
    affinity: Free = Field(default_factory=dict)
    topology_spread_constraints: tuple[Free, ...] = ()
    """Empty: spread over nodes and zones, as far as can be."""
    priority_class_name: str = ""


class Service(Spec):
    type: Literal["ClusterIP", "NodePort", "LoadBalancer"] = "ClusterIP"
    annotations: dict[str, str] = Field(default_factory=dict)
    load_balancer_class: str = ""
    node_port: int = Field(default=0, ge=0, le=32767)
    """0 = as the cluster gives."""
    external_traffic_policy: Literal["Cluster", "Local"] = "Cluster"


class Tls(Spec):
    """Of channels, peer links and the client API."""

    mode: Literal["Managed", "Secret", "Off"] = "Managed"
    authority_secret: ObjectName = "qsg-ca"
    """Managed: where the operator keeps the authority (made when it is not there); who shares it trusts each other."""
    additional_names: Names = Field(default=(), max_length=32)
    """Managed: host names and addresses for the certificate, beside those of the Services."""
    allowed_clients: Names = Field(default=(), max_length=64)
    """Names in certificates that may use the client API, beside those made here; () = any that the authority has signed."""
    secret_name: ObjectName = ""
    """Secret: a Secret with tls.crt, tls.key and ca.crt, as cert-manager makes it."""


class Pods(Spec):
    """What a group's members and a queue manager outside a group have in common."""

    image: str = ""
    """"" = the operator's default."""
    image_pull_policy: Literal["", "Always", "IfNotPresent", "Never"] = ""
    """"" = the operator's default."""
    image_pull_secrets: tuple[Reference, ...] = ()
    """() = the operator's default."""
    storage: Storage = Storage()
    tls: Tls = Tls()
    resources: Resources = Resources()
    scheduling: Scheduling = Scheduling()
    termination_grace_period_seconds: int = Field(default=60, ge=5, le=3600)
    accept_restored: str = Field(default="", max_length=64)
    """Your word that stores which came back from a snapshot may be used, once for each such word."""


class Settings(Spec):
    """`qsg.rules.definitions.Settings`."""

    dead_letter_queue: MqName = "SYSTEM.DEAD.LETTER.QUEUE"
    default_transmission_queue: MqName = ""
    hop_limit: int = Field(default=16, ge=1, le=255)
    channels_max: int = Field(default=200, ge=1, le=100_000)
