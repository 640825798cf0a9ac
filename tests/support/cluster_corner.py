"""A corner of the cluster beside the shop: a group `edge` and a queue manager `depot`, with what users bring themselves.

Certificates of an authority of theirs, with no more names than docs/kubernetes.md asks for; and two etcds, one that asks for certificates
(`admin`), one that asks for a password (`busy`, a further structure). Nothing of it outlives its pods.
"""

from __future__ import annotations

import base64
import os
from datetime import UTC, datetime

from qsg_operator.authority import new_authority
from qsg_operator.certificates import CA, CERTIFICATE, KEY, Leaf, issued
from support.cluster_flow import RESTRICTED
from support.kubernetes import Namespace, Object

GROUP, DEPOT = "edge", "depot"
OUT, BACK = "edge-to-depot", "depot-to-edge"
ADMIN, BUSY = "admin-etcd", "busy-etcd"
PASSWORD = "tell-nobody"
VOLUME = {"storage": {"size": "1Gi", "whenDeleted": "Delete"}, "terminationGracePeriodSeconds": 20}
QUOTA = {"quotaBytes": 2_147_483_648}


def leaves(namespace: str) -> dict[str, Leaf]:
    """Secret -> what its certificate says."""

    def of_pods(base: str, *services: str) -> tuple[str, ...]:
        return (f"*.{base}-pods.{namespace}.svc", f"{base}-client.{namespace}.svc", *services, "localhost")

    return {
        "edge-certificate": Leaf("EDGE", of_pods("edge", "edge-portal")),
        "depot-certificate": Leaf("DEPOT", of_pods("depot-qm", "depot-qm-listener")),
        "etcd-server": Leaf("etcd", (f"{ADMIN}.{namespace}.svc", "localhost")),
        "etcd-certificate": Leaf("edge-store"),
    }


def secrets(namespace: str) -> list[Object]:
    now = datetime.now(UTC)
    authority = new_authority("the user's own", now)
    found = [secret(name, "kubernetes.io/tls", issued(leaf, None, authority, now)) for name, leaf in leaves(namespace).items()]
    return [*found, secret("etcd-user", "Opaque", {"user": b"qsg", "password": PASSWORD.encode()})]


def secret(name: str, kind: str, data: dict[str, bytes]) -> Object:
    text = {key: base64.b64encode(value).decode() for key, value in data.items()}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "type": kind, "data": text}


def etcd(name: str, *, secret_name: str = "") -> list[Object]:
    """A pod and its Service. `secret_name`: its certificate; "" = no TLS."""
    scheme = "https" if secret_name else "http"
    arguments = [
        "--data-dir=/data/etcd",
        f"--listen-client-urls={scheme}://0.0.0.0:2379",
        f"--advertise-client-urls={scheme}://{name}:2379",
    ]
    mounts, volumes = [{"name": "data", "mountPath": "/data"}], [{"name": "data", "emptyDir": {}}]
    if secret_name:
        files = {"cert-file": CERTIFICATE, "key-file": KEY, "trusted-ca-file": CA}
        arguments += ["--client-cert-auth=true", *(f"--{option}=/tls/{file}" for option, file in files.items())]
        mounts += [{"name": "tls", "mountPath": "/tls"}]
        volumes += [{"name": "tls", "secret": {"secretName": secret_name}}]
    container: Object = {
        "name": "etcd",
        "image": os.environ.get("QSG_ETCD_IMAGE", "localhost/etcd:3.5"),
        "imagePullPolicy": "IfNotPresent",
        "command": ["etcd", *arguments],
        "securityContext": RESTRICTED,
        "readinessProbe": {"tcpSocket": {"port": 2379}, "periodSeconds": 1},
        "volumeMounts": mounts,
    }
    labels = {"app": name}
    spec: Object = {"automountServiceAccountToken": False, "containers": [container], "volumes": volumes}
    service: Object = {"selector": labels, "ports": [{"port": 2379}]}
    return [
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels}, "spec": spec},
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": service},
    ]


def users(namespace: Namespace) -> None:
    """The one that asks for a password knows one that may not do everything."""
    commands = (
        f"user add root:{PASSWORD}", "user grant-role root root", f"user add qsg:{PASSWORD}", "role add qsg",
        "role grant-permission qsg --prefix=true readwrite ''", "user grant-role qsg qsg", "auth enable",
    )  # fmt: skip
    namespace.kubectl("exec", BUSY, "--", "sh", "-euc", "\n".join(f"etcdctl {command}" for command in commands))


def group(namespace: str) -> Object:
    busy = {"endpoints": [f"{BUSY}.{namespace}.svc:2379"], "authSecret": "etcd-user", **QUOTA}
    admin = {"endpoints": [f"{ADMIN}.{namespace}.svc:2379"], "tlsSecret": "etcd-certificate", **QUOTA}
    store = {"external": admin, "structures": [{"name": "busy", "external": busy}]}
    return made("QueueSharingGroup", GROUP, members=2, store=store, tls={"mode": "Secret", "secretName": "edge-certificate"}, **VOLUME)


def rest() -> list[Object]:
    """The queue manager; and a channel each way, from the admin structure and into the busy one."""
    there = {"remoteQueueManager": "DEPOT", "transmissionQueue": "DEPOT"}
    back = {"remoteQueueManager": "EDGE", "transmissionQueue": "EDGE"}
    out = {"type": "Sender", "transmissionQueue": "DEPOT", "connectionNames": ["depot-qm-listener:1414"], "partner": "DEPOT"}
    home = {"type": "Sender", "transmissionQueue": "EDGE", "connectionNames": ["edge-portal:1415"], "partner": "EDGE"}
    inbound = {"type": "Receiver"}
    return [
        made("QueueManager", DEPOT, tls={"mode": "Secret", "secretName": "depot-certificate"}, **VOLUME),
        made("SharedQueue", "depot", group=GROUP, type="Transmission"),
        made("SharedQueue", "goods", group=GROUP, type="Remote", remoteQueue="GOODS", **there),
        made("SharedQueue", "goods-at-depot", queueManager=DEPOT, queueName="GOODS"),
        made("SharedQueue", "edge-at-depot", queueManager=DEPOT, queueName="EDGE", type="Transmission"),
        made("SharedQueue", "notes-at-depot", queueManager=DEPOT, queueName="NOTES", type="Remote", remoteQueue="NOTES", **back),
        made("SharedQueue", "notes", group=GROUP, structure="busy"),
        made("SharedChannel", OUT, group=GROUP, **out),
        made(
            "SharedChannel", f"{OUT}-at-depot", queueManager=DEPOT, channelName="EDGE.TO.DEPOT", type="Receiver", allowedIdentities=["EDGE"]
        ),
        made("SharedChannel", f"{BACK}-at-depot", queueManager=DEPOT, channelName="DEPOT.TO.EDGE", **home),
        made("SharedChannel", BACK, group=GROUP, structure="busy", **inbound, allowedIdentities=["DEPOT"]),
    ]


def made(kind: str, name: str, **spec: object) -> Object:
    return {"apiVersion": "qsg.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec}
