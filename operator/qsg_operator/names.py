"""Names: API group, kinds, labels, ports, and what the children of a resource are called, so that no two modules spell one differently."""

from __future__ import annotations

GROUP = "qsg.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"

QUEUE_SHARING_GROUP = "QueueSharingGroup"
SHARED_CHANNEL = "SharedChannel"
SHARED_QUEUE = "SharedQueue"
QUEUE_MANAGER = "QueueManager"
PLURALS = {
    QUEUE_SHARING_GROUP: "queuesharinggroups",
    SHARED_CHANNEL: "sharedchannels",
    SHARED_QUEUE: "sharedqueues",
    QUEUE_MANAGER: "queuemanagers",
}

FIELD_MANAGER = "qsg-operator"
OPERATION = f"{GROUP}/operation"
"""Annotation on a SharedChannel: an operation to be carried out once, e.g. `{"id": "1", "verb": "reset", "sequence": 1}`."""
CONFIG_HASH = f"{GROUP}/config-hash"
"""Annotation on pods: a change of it rolls them."""

RENEW = f"{GROUP}/renew"
"""Annotation on the Secret of an authority: a time; one that was made before is renewed."""
TRUST_HASH = f"{GROUP}/trust-hash"
"""Annotation on etcd's pods, which read whom to trust at their start only."""

MANAGED_BY = "app.kubernetes.io/managed-by"
APP = "app.kubernetes.io/name"
INSTANCE = "app.kubernetes.io/instance"
COMPONENT = "app.kubernetes.io/component"
OWNER_KIND = f"{GROUP}/kind"

LOCAL_PORT, PORTAL_PORT, CLIENT_PORT, HEALTH_PORT, INITIATOR_HEALTH_PORT = 1414, 1415, 1416, 1417, 1418
ETCD_CLIENT_PORT, ETCD_PEER_PORT, ETCD_HEALTH_PORT = 2379, 2380, 2381

ADMIN_STRUCTURE = "admin"
PRIVATE_STRUCTURE = "private"


def mq_name(name: str) -> str:
    """`bank-a` -> `BANK.A`: the name of a queue manager, queue or channel that comes from the name of its resource."""
    return name.upper().replace("-", ".")


def labels(kind: str, name: str, component: str) -> dict[str, str]:
    """Of a child; also what selects pods, so it never changes."""
    return {
        APP: "qsg",
        INSTANCE: name,
        COMPONENT: component,
        MANAGED_BY: FIELD_MANAGER,
        OWNER_KIND: kind,
    }


def base(kind: str, name: str) -> str:
    """What the names of all children begin with: a group and a queue manager of one name do not meet."""
    return f"{name}-qm" if kind == QUEUE_MANAGER else name


def pods(owner: str) -> str:
    """Headless Service of the members; of a StatefulSet of etcd as well."""
    return f"{owner}-pods"


def portal(owner: str) -> str:
    return f"{owner}-portal"


def listener(owner: str) -> str:
    """Service of a queue manager outside any group, for its partners."""
    return f"{owner}-listener"


def client(owner: str) -> str:
    return f"{owner}-client"


def server_name(owner: str, namespace: str) -> str:
    """A name that every member's certificate has: what a client that connects by address checks it against."""
    return f"{client(owner)}.{namespace}.svc"


def config(owner: str) -> str:
    return f"{owner}-config"


def store(owner: str, structure: str) -> str:
    """StatefulSet of a managed etcd. Its pods, and the Service of each, are called so with their number."""
    return f"{owner}-store" if structure == ADMIN_STRUCTURE else f"{owner}-store-{structure}"


def store_authority(owner: str) -> str:
    return f"{owner}-store-ca"


def store_tls(owner: str) -> str:
    """Secret of the etcd members' certificate."""
    return f"{owner}-store-tls"


def store_client_tls(owner: str) -> str:
    """Secret of the certificate with which members reach their etcd."""
    return f"{owner}-store-client-tls"


def tls(owner: str) -> str:
    """Secret of the members' certificate: channels, peer links, client API."""
    return f"{owner}-tls"


def client_tls(owner: str) -> str:
    """Secret with a certificate for applications."""
    return f"{owner}-client-tls"
