"""A managed etcd: StatefulSet and Services of one structure.

Settings are those of docs/decisions/0010 and the measurements: small raft log (values are large), short election inside one site, periodic
compaction as a safety net, in batches that free their pages soon (docs/decisions/0025). The cluster's members never change, so
`initial-cluster-state` is *new* at every start: who has data takes no notice of it, and who has lost it ends, as its peers know it; only
while it is added anew, by hand, a ConfigMap says *existing* (docs/kubernetes.md, "A lost volume"). Each member has a Service of its own, so
that its name and address are there before its pod, and stay when the pod moves (docs/decisions/0029).
"""

from __future__ import annotations

from qsg_operator import names
from qsg_operator.children.objects import (
    Object,
    Owner,
    child,
    container_security,
    headless,
    pod_field,
    pod_security,
    scheduling,
    service_ports,
    variables,
    volume_claim,
)
from qsg_operator.children.structures import StructureOf, component, etcd_pods
from qsg_operator.specs.group import ManagedStore

DATA = "/var/lib/etcd"
PORTS = {"client": names.ETCD_CLIENT_PORT, "peer": names.ETCD_PEER_PORT}
SERVER_TLS, CLIENT_TLS = "/etc/etcd/server", "/etc/etcd/client"
INITIAL_CLUSTER_STATE = "ETCD_INITIAL_CLUSTER_STATE"
"""Variable of etcd, whose own default is *new*."""
FOUND_S = 5
"""Until then nodes may lead to a pod that is back by its old address; and its clients and peers have to connect to it anew."""
SETTINGS = (
    "--snapshot-count=1000",
    "--experimental-snapshot-catchup-entries=250",
    "--heartbeat-interval=50",
    "--election-timeout=500",
    "--auto-compaction-mode=periodic",
    "--auto-compaction-retention=1m",
    "--experimental-compaction-batch-limit=100",
    "--strict-reconfig-check=true",
)


def services(owner: Owner, structure: StructureOf) -> list[Object]:
    """The StatefulSet's own, which nobody asks for an address, and one for each member."""
    part = component(structure.name)
    set_of_pods = headless(owner, names.pods(names.store(owner.base, structure.name)), part, PORTS | {"health": names.ETCD_HEALTH_PORT})
    return [set_of_pods, *(_service_of(owner, part, pod) for pod in etcd_pods(owner, structure))]


def _service_of(owner: Owner, part: str, pod: str) -> Object:
    """An address even while the pod is not ready: it is ready when it has found its peers."""
    made = child(owner, "v1", "Service", pod, part)
    made["spec"] = {
        "type": "ClusterIP",
        "publishNotReadyAddresses": True,
        "selector": {**owner.labels(part), "statefulset.kubernetes.io/pod-name": pod},
        "ports": service_ports(PORTS),
    }
    return made


def stateful_set(owner: Owner, structure: StructureOf, trust: str = "") -> Object:
    store = structure.managed
    assert store is not None
    name, part = names.store(owner.base, structure.name), component(structure.name)
    made = child(owner, "apps/v1", "StatefulSet", name, part)
    selector = owner.labels(part)
    meta: Object = {"labels": selector} | ({"annotations": {names.TRUST_HASH: trust}} if trust and store.tls else {})
    made["spec"] = {
        "replicas": store.members,
        "serviceName": names.pods(name),
        "podManagementPolicy": "Parallel",
        "minReadySeconds": FOUND_S,
        "selector": {"matchLabels": selector},
        "updateStrategy": {"type": "RollingUpdate"},
        "persistentVolumeClaimRetentionPolicy": {"whenDeleted": store.storage.when_deleted, "whenScaled": "Retain"},
        "template": {"metadata": meta, "spec": _pod(owner, structure)},
        "volumeClaimTemplates": [volume_claim(owner, "data", part, store.storage.size, store.storage.class_name)],
    }
    return made


def _pod(owner: Owner, structure: StructureOf) -> Object:
    store = structure.managed
    assert store is not None
    return {
        "containers": [_container(owner, structure)],
        "volumes": _volumes(owner) if store.tls else [],
        "securityContext": pod_security(),
        "terminationGracePeriodSeconds": 30,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        # A node with a majority of them would be one whose loss stops the group.
        **scheduling(store.scheduling, owner.labels(component(structure.name)), apart=True),
        **owner.pull_secrets(),
    }


def _container(owner: Owner, structure: StructureOf) -> Object:
    store = structure.managed
    assert store is not None

    def probe(path: str, **times: int) -> Object:
        return {"httpGet": {"path": path, "port": names.ETCD_HEALTH_PORT, "scheme": "HTTP"}, **times}

    mounts = [{"name": "data", "mountPath": DATA}]
    if store.tls:
        mounts += [{"name": "server", "mountPath": SERVER_TLS}, {"name": "client", "mountPath": CLIENT_TLS}]
    return {
        "name": "etcd",
        "image": store.image or owner.images.etcd,
        "imagePullPolicy": owner.pull_policy,
        "command": ["etcd", *arguments(owner, structure)],
        "env": [
            pod_field("POD_NAME", "metadata.name"),
            _replaced(names.store(owner.base, structure.name)),
            *_etcdctl(store),
        ],
        "ports": [
            {"name": "client", "containerPort": names.ETCD_CLIENT_PORT, "protocol": "TCP"},
            {"name": "peer", "containerPort": names.ETCD_PEER_PORT, "protocol": "TCP"},
            {"name": "health", "containerPort": names.ETCD_HEALTH_PORT, "protocol": "TCP"},
        ],
        "resources": store.resources,
        "securityContext": container_security(),
        "startupProbe": probe("/health?serializable=true", periodSeconds=1, timeoutSeconds=3, failureThreshold=300),
        "livenessProbe": probe("/health?exclude=NOSPACE&serializable=true", periodSeconds=10, timeoutSeconds=5, failureThreshold=6),
        "readinessProbe": probe("/health?exclude=NOSPACE", periodSeconds=5, timeoutSeconds=5, failureThreshold=3),
        "volumeMounts": mounts,
    }


def _replaced(name: str) -> Object:
    """There only while somebody replaces a member."""
    key = {"name": f"{name}-replace", "key": "initial-cluster-state", "optional": True}
    return {"name": INITIAL_CLUSTER_STATE, "valueFrom": {"configMapKeyRef": key}}


def _etcdctl(store: ManagedStore) -> list[Object]:
    """So that `etcdctl ...` in this container speaks to its etcd."""
    found = {"ETCDCTL_ENDPOINTS": f"{'https' if store.tls else 'http'}://127.0.0.1:{names.ETCD_CLIENT_PORT}"}
    if store.tls:
        files = {"ETCDCTL_CACERT": "ca.crt", "ETCDCTL_CERT": "tls.crt", "ETCDCTL_KEY": "tls.key"}
        found |= {name: f"{CLIENT_TLS}/{file}" for name, file in files.items()}
    return variables(found)


def arguments(owner: Owner, structure: StructureOf) -> list[str]:
    store = structure.managed
    assert store is not None
    scheme, domain = "https" if store.tls else "http", f"{owner.namespace}.svc"
    cluster = ",".join(f"{pod}={scheme}://{pod}.{domain}:{names.ETCD_PEER_PORT}" for pod in etcd_pods(owner, structure))
    found = [
        "--name=$(POD_NAME)",
        f"--data-dir={DATA}/data",
        f"--listen-client-urls={scheme}://0.0.0.0:{names.ETCD_CLIENT_PORT}",
        f"--advertise-client-urls={scheme}://$(POD_NAME).{domain}:{names.ETCD_CLIENT_PORT}",
        f"--listen-peer-urls={scheme}://0.0.0.0:{names.ETCD_PEER_PORT}",
        f"--initial-advertise-peer-urls={scheme}://$(POD_NAME).{domain}:{names.ETCD_PEER_PORT}",
        f"--listen-metrics-urls=http://0.0.0.0:{names.ETCD_HEALTH_PORT}",
        f"--initial-cluster={cluster}",
        f"--initial-cluster-token={owner.uid}",
        f"--quota-backend-bytes={store.quota_fits}",
        *SETTINGS,
    ]
    if store.tls:
        found += [
            f"--cert-file={SERVER_TLS}/tls.crt",
            f"--key-file={SERVER_TLS}/tls.key",
            f"--trusted-ca-file={SERVER_TLS}/ca.crt",
            "--client-cert-auth=true",
            f"--peer-cert-file={SERVER_TLS}/tls.crt",
            f"--peer-key-file={SERVER_TLS}/tls.key",
            f"--peer-trusted-ca-file={SERVER_TLS}/ca.crt",
            "--peer-client-cert-auth=true",
            # etcd compares a client's address with the host names in its certificate, by a DNS that still knows the old address after a
            # pod is back. The client certificate has none.
            f"--peer-client-cert-file={CLIENT_TLS}/tls.crt",
            f"--peer-client-key-file={CLIENT_TLS}/tls.key",
        ]
    return found


def _volumes(owner: Owner) -> list[Object]:
    return [
        {"name": "server", "secret": {"secretName": names.store_tls(owner.base), "defaultMode": 0o440}},
        {"name": "client", "secret": {"secretName": names.store_client_tls(owner.base), "defaultMode": 0o440}},
    ]
