"""Configuration of the members: one file for each pod in one ConfigMap, as `qsg.process.config.MemberConfig` reads it."""

from __future__ import annotations

import hashlib
import json

import yaml

from qsg_operator import names
from qsg_operator.children import certificates, structures
from qsg_operator.children.objects import Object, Owner, child

FOLDER = "/etc/qsg/config"
TLS_MOUNT = "/etc/qsg/tls"
DATA_MOUNT = "/var/lib/qsg"
RUN_MOUNT = "/run/qsg"
EVERYWHERE = "0.0.0.0"
LINGER_BELOW_S = 5
"""The initiator ends so much before the pod is killed."""


def tls_secret(owner: Owner) -> str:
    """ "" = no TLS."""
    match owner.pods.tls.mode:
        case "Off":
            return ""
        case "Secret":
            return owner.pods.tls.secret_name
    return names.tls(owner.base)


def member_config(owner: Owner, ordinal: int) -> Object:
    config: Object = {
        "member": owner.member(ordinal),
        "data": DATA_MOUNT,
        "socket": f"{RUN_MOUNT}/socket",
        "address": f"{EVERYWHERE}:{names.CLIENT_PORT}",
        # Not a name: that of a pod that is back leads to its old address until caches of DNS forget it.
        "advertise": f"$(POD_IP):{names.CLIENT_PORT}",
        "local_listener": f"{EVERYWHERE}:{names.LOCAL_PORT}",
        "monitor": f"{EVERYWHERE}:{names.HEALTH_PORT}",
        "initiator_monitor": f"{EVERYWHERE}:{names.INITIATOR_HEALTH_PORT}",
        "initiator_linger_s": max(0, owner.pods.termination_grace_period_seconds - LINGER_BELOW_S),
    }
    if owner.pods.accept_restored:
        config["accept_restored"] = owner.pods.accept_restored
    if owner.group is not None:
        config |= {
            "group": owner.mq_name,
            "group_listener": f"{EVERYWHERE}:{names.PORTAL_PORT}",
            "lease_ttl_s": owner.group.lease_seconds,
            "structures": {one.name: structures.config(owner, one) for one in structures.structures(owner)},
        }
    else:
        config["private_quota_bytes"] = getattr(owner.spec, "quota_bytes", 0)
    if tls_secret(owner):
        config["tls"] = {"ca": f"{TLS_MOUNT}/ca.crt", "certificate": f"{TLS_MOUNT}/tls.crt", "key": f"{TLS_MOUNT}/tls.key"}
        config["tls"] |= {"server_name": certificates.server_name(owner), **_names(owner)}
    return config


def _names(owner: Owner) -> Object:
    """In certificates: of whom members take for a member, and of who may use the client API."""
    managed, found = owner.pods.tls.mode == "Managed", {}
    if managed and owner.group is not None:
        found["peers"] = [owner.mq_name]
    if owner.pods.tls.allowed_clients:
        own = [owner.mq_name, certificates.client_name(owner)] if managed else []
        found["clients"] = [*own, *owner.pods.tls.allowed_clients]
    return found


def config_map(owner: Owner) -> Object:
    made = child(owner, "v1", "ConfigMap", names.config(owner.base), "member")
    made["data"] = {f"{owner.pod(n)}.yaml": yaml.safe_dump(member_config(owner, n), sort_keys=False) for n in range(owner.replicas)}
    return made


def config_hash(owner: Owner) -> str:
    """Of what all members' files have in common: it changes when the running ones must read theirs again, not when members are added."""
    text = json.dumps(member_config(owner, 0), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
