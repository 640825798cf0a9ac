"""Which certificates an owner needs, and the Secrets that hold them."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass

from qsg_operator import names
from qsg_operator.certificates import Leaf, host_names
from qsg_operator.children.objects import Object, Owner, child
from qsg_operator.children.structures import etcd_pods, structures


@dataclass(frozen=True)
class Wanted:
    """A Secret with a certificate. `authority`: name of the Secret that signs it."""

    secret: str
    authority: str
    leaf: Leaf
    component: str


def authorities(owner: Owner) -> dict[str, bool]:
    """Secrets of authorities that are made when they are not there -> whether they are this owner's alone, and go with it."""
    found: dict[str, bool] = {}
    if owner.pods.tls.mode == "Managed":
        found[owner.pods.tls.authority_secret] = False
    if any(one.managed is not None and one.managed.tls for one in structures(owner)):
        found[names.store_authority(owner.base)] = True
    return found


def wanted(owner: Owner) -> list[Wanted]:
    """The certificate's common name is what `allowedIdentities` of a partner's channel names: the group, or the queue manager."""
    found: list[Wanted] = []
    if owner.pods.tls.mode == "Managed":
        authority = owner.pods.tls.authority_secret
        services = [names.client(owner.base), names.portal(owner.base) if owner.group else names.listener(owner.base)]
        hosts = [
            *(host for service in services for host in host_names(service, owner.namespace)),
            *host_names(names.pods(owner.base), owner.namespace, wildcard=True),
            "localhost",
            "127.0.0.1",
            *owner.pods.tls.additional_names,
        ]
        found.append(Wanted(names.tls(owner.base), authority, Leaf(owner.mq_name, tuple(hosts)), "member"))
        found.append(Wanted(names.client_tls(owner.base), authority, Leaf(client_name(owner)), "member"))
    managed = [one for one in structures(owner) if one.managed is not None and one.managed.tls]
    if managed:
        authority = names.store_authority(owner.base)
        pods = [pod for one in managed for pod in etcd_pods(owner, one)]
        hosts = ["localhost", "127.0.0.1", *(host for pod in pods for host in host_names(pod, owner.namespace))]
        found.append(Wanted(names.store_tls(owner.base), authority, Leaf(f"{owner.base}-store", tuple(hosts)), "store"))
        found.append(Wanted(names.store_client_tls(owner.base), authority, Leaf(f"{owner.base}-store-client"), "store"))
    return found


def client_name(owner: Owner) -> str:
    """In the certificate for applications, which the operator itself uses too."""
    return f"{owner.base}-client"


def server_name(owner: Owner) -> str:
    return names.server_name(owner.base, owner.namespace)


def secret(owner: Owner, name: str, component: str, data: Mapping[str, bytes], *, owned: bool = True) -> Object:
    made = child(owner, "v1", "Secret", name, component)
    if not owned:
        del made["metadata"]["ownerReferences"]
        made["metadata"]["labels"] = {names.APP: "qsg", names.COMPONENT: "authority", names.MANAGED_BY: names.FIELD_MANAGER}
    made["type"] = "kubernetes.io/tls"
    made["data"] = {key: base64.b64encode(value).decode() for key, value in data.items()}
    return made


def decoded(found: Mapping[str, object]) -> dict[str, bytes]:
    """The data of a Secret."""
    data = found.get("data") or {}
    assert isinstance(data, Mapping)
    return {str(key): base64.b64decode(str(value)) for key, value in data.items()}
