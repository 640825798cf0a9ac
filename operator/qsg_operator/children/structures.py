"""The structures of a group: which there are, how members reach each, and where its certificates are mounted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from qsg_operator import names
from qsg_operator.children.objects import Object, Owner
from qsg_operator.specs.group import ExternalStore, ManagedStore

MOUNT = "/etc/qsg/stores"
CREDENTIALS = "/etc/qsg/credentials"


@dataclass(frozen=True)
class StructureOf:
    name: str
    managed: ManagedStore | None
    external: ExternalStore | None


def structures(owner: Owner) -> Iterator[StructureOf]:
    """The admin structure first."""
    if owner.group is not None:
        store = owner.group.store
        yield StructureOf(names.ADMIN_STRUCTURE, store.managed, store.external)
        for one in store.structures:
            yield StructureOf(one.name, one.managed, one.external)


def component(structure: str) -> str:
    return "store" if structure == names.ADMIN_STRUCTURE else f"store-{structure}"


def etcd_pods(owner: Owner, structure: StructureOf) -> list[str]:
    """Each has a Service of its name."""
    assert structure.managed is not None
    return [f"{names.store(owner.base, structure.name)}-{n}" for n in range(structure.managed.members)]


def endpoints(owner: Owner, structure: StructureOf) -> list[str]:
    if structure.managed is None:
        assert structure.external is not None
        return list(structure.external.endpoints)
    return [f"{pod}.{owner.namespace}.svc:{names.ETCD_CLIENT_PORT}" for pod in etcd_pods(owner, structure)]


def tls_secret(owner: Owner, structure: StructureOf) -> str:
    """ "" = no TLS."""
    if structure.managed is not None:
        return names.store_client_tls(owner.base) if structure.managed.tls else ""
    return structure.external.tls_secret if structure.external else ""


def config(owner: Owner, structure: StructureOf) -> Object:
    """The entry of a member's configuration."""
    found: Object = {"endpoints": endpoints(owner, structure)}
    if tls_secret(owner, structure):
        folder = f"{MOUNT}/{structure.name}"
        found |= {"ca": f"{folder}/ca.crt", "certificate": f"{folder}/tls.crt", "key": f"{folder}/tls.key"}
    if structure.external is not None and structure.external.auth_secret:
        found["credentials"] = f"{CREDENTIALS}/{structure.name}"
    if structure.managed is not None:
        found["quota_bytes"] = structure.managed.quota_fits
    elif structure.external is not None and structure.external.quota_bytes:
        found["quota_bytes"] = structure.external.quota_bytes
    return found


def volumes(owner: Owner) -> list[Object]:
    return [{"name": name, "secret": {"secretName": secret, "defaultMode": 0o440}} for name, secret, _ in _secrets(owner)]


def mounts(owner: Owner) -> list[Object]:
    return [{"name": name, "mountPath": path, "readOnly": True} for name, _, path in _secrets(owner)]


def _secrets(owner: Owner) -> Iterator[tuple[str, str, str]]:
    """(volume, Secret, where)."""
    for one in structures(owner):
        if tls_secret(owner, one):
            yield f"store-{one.name}", tls_secret(owner, one), f"{MOUNT}/{one.name}"
        if one.external is not None and one.external.auth_secret:
            yield f"credentials-{one.name}", one.external.auth_secret, f"{CREDENTIALS}/{one.name}"
