"""The StatefulSet of the members: two containers of one image, queue manager and channel initiator, with a socket between them.

All start at once and serve at once; none is special. A pod that is told to end hands its channels over by itself: the queue manager ends
on SIGTERM, and its initiator serves on until then, within the grace period.
"""

from __future__ import annotations

from qsg_operator import names
from qsg_operator.children import config, structures
from qsg_operator.children.objects import (
    Object,
    Owner,
    child,
    container_security,
    pod_field,
    pod_security,
    scheduling,
    variables,
    volume_claim,
)
from qsg_operator.children.services import COMPONENT

SETTLED_S = 5
"""A member that has just begun to serve is joined by its initiator and linked to its peers within this: then it can take channels over."""


def stateful_set(owner: Owner) -> Object:
    made = child(owner, "apps/v1", "StatefulSet", owner.base, COMPONENT)
    selector = owner.labels(COMPONENT)
    retention = owner.pods.storage.when_deleted
    made["spec"] = {
        "replicas": owner.replicas,
        "serviceName": names.pods(owner.base),
        "podManagementPolicy": "Parallel",
        "minReadySeconds": SETTLED_S,
        "selector": {"matchLabels": selector},
        "updateStrategy": {"type": "RollingUpdate"},
        "persistentVolumeClaimRetentionPolicy": {"whenDeleted": retention, "whenScaled": "Retain"},
        "template": {
            "metadata": {"labels": selector, "annotations": {names.CONFIG_HASH: config.config_hash(owner)}},
            "spec": _pod(owner),
        },
        "volumeClaimTemplates": [volume_claim(owner, "data", COMPONENT, owner.pods.storage.size, owner.pods.storage.class_name)],
    }
    return made


def _pod(owner: Owner) -> Object:
    return {
        "containers": [_queue_manager(owner), _initiator(owner)],
        "volumes": _volumes(owner),
        "securityContext": pod_security(),
        "terminationGracePeriodSeconds": owner.pods.termination_grace_period_seconds,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        **scheduling(owner.pods.scheduling, owner.labels(COMPONENT)),
        **owner.pull_secrets(),
    }


def _container(owner: Owner, name: str, command: str, health_port: int) -> Object:
    def probe(path: str, **times: int) -> Object:
        return {"httpGet": {"path": path, "port": health_port, "scheme": "HTTP"}, **times}

    return {
        "name": name,
        "image": owner.image,
        "imagePullPolicy": owner.pull_policy,
        "command": ["qsg", command, "--config", f"{config.FOLDER}/$(POD_NAME).yaml"],
        "env": [pod_field("POD_NAME", "metadata.name"), pod_field("POD_IP", "status.podIP")],
        "securityContext": container_security(),
        # A queue manager that waits for its store at the start is alive: the startup probe gives it five minutes, then it starts again.
        "startupProbe": probe("/livez", periodSeconds=1, timeoutSeconds=3, failureThreshold=300),
        "livenessProbe": probe("/livez", periodSeconds=10, timeoutSeconds=5, failureThreshold=3),
        "readinessProbe": probe("/readyz", periodSeconds=2, timeoutSeconds=3, failureThreshold=3),
    }


def _queue_manager(owner: Owner) -> Object:
    container = _container(owner, "queue-manager", "serve", names.HEALTH_PORT)
    container["env"] += _command_line(owner)
    container["resources"] = owner.pods.resources.queue_manager
    container["ports"] = [
        {"name": "client", "containerPort": names.CLIENT_PORT, "protocol": "TCP"},
        {"name": "health", "containerPort": names.HEALTH_PORT, "protocol": "TCP"},
    ]
    container["volumeMounts"] = [{"name": "data", "mountPath": config.DATA_MOUNT}, *_mounts(owner), *structures.mounts(owner)]
    return container


def _command_line(owner: Owner) -> list[Object]:
    """So that `qsg ...` in this container speaks to its queue manager."""
    found = {"QSG_CONNECT": f"localhost:{names.CLIENT_PORT}", "QSG_CONFIG": f"{config.FOLDER}/$(POD_NAME).yaml"}
    if config.tls_secret(owner):
        files = {"QSG_CA": "ca.crt", "QSG_CERTIFICATE": "tls.crt", "QSG_KEY": "tls.key"}
        found |= {name: f"{config.TLS_MOUNT}/{file}" for name, file in files.items()}
    return variables(found)


def _initiator(owner: Owner) -> Object:
    container = _container(owner, "initiator", "initiator", names.INITIATOR_HEALTH_PORT)
    container["resources"] = owner.pods.resources.initiator
    ports = {"listener": names.LOCAL_PORT, "portal": names.PORTAL_PORT}
    if owner.group is None:
        del ports["portal"]
    ports["health-init"] = names.INITIATOR_HEALTH_PORT
    container["ports"] = [{"name": name, "containerPort": port, "protocol": "TCP"} for name, port in ports.items()]
    container["volumeMounts"] = _mounts(owner)
    return container


def _mounts(owner: Owner) -> list[Object]:
    """What both containers need."""
    found: list[Object] = [
        {"name": "config", "mountPath": config.FOLDER, "readOnly": True},
        {"name": "run", "mountPath": config.RUN_MOUNT},
        {"name": "tmp", "mountPath": "/tmp"},
    ]
    if config.tls_secret(owner):
        found.append({"name": "tls", "mountPath": config.TLS_MOUNT, "readOnly": True})
    return found


def _volumes(owner: Owner) -> list[Object]:
    found: list[Object] = [
        {"name": "config", "configMap": {"name": names.config(owner.base), "defaultMode": 0o444}},
        {"name": "run", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
        {"name": "tmp", "emptyDir": {"sizeLimit": "64Mi"}},
    ]
    if config.tls_secret(owner):
        found.append({"name": "tls", "secret": {"secretName": config.tls_secret(owner), "defaultMode": 0o440}})
    return [*found, *structures.volumes(owner)]
