"""QueueSharingGroup."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from qsg_operator.specs.channel import Tuning
from qsg_operator.specs.common import Free, ObjectName, Pods, QueueManagerName, Scheduling, Service, Settings, Spec, Storage, bytes_of

QUOTA_BYTES_MIN = 67_108_864
LOG_BYTES = 536_870_912
"""What etcd's log takes of its volume: up to six files of 64 MB, and its own snapshots."""


class ManagedStore(Spec):
    """An etcd of the group's own."""

    members: Literal[1, 3] = 3
    image: str = ""
    """"" = the operator's default."""
    storage: Storage = Storage(size="8Gi")
    resources: Free = Field(default_factory=lambda: {"requests": {"cpu": "100m", "memory": "256Mi"}, "limits": {"memory": "2Gi"}})
    quota_bytes: int = Field(default=3_221_225_472, ge=QUOTA_BYTES_MIN, le=17_179_869_184)
    """The default leaves room for a second copy on the default's volume: while it is defragmented, or takes the leader's snapshot."""
    tls: bool = True
    scheduling: Scheduling = Scheduling()

    @property
    def quota_fits(self) -> int:
        """The quota, bytes: no more than the volume holds, since an etcd whose disk is full ends, while one at its quota answers."""
        return min(self.quota_bytes, max(QUOTA_BYTES_MIN, bytes_of(self.storage.size) - LOG_BYTES))


class ExternalStore(Spec):
    endpoints: tuple[str, ...] = Field(default=(), min_length=1, max_length=9)
    """host:port"""
    tls_secret: ObjectName = ""
    """ca.crt, and tls.crt with tls.key where etcd asks for a certificate; "" = no TLS."""
    auth_secret: ObjectName = ""
    """user and password; "" = none."""
    quota_bytes: int = Field(default=0, ge=0, le=1_099_511_627_776)
    """As etcd was given it, where it is older than 3.6 and does not tell; puts are refused before it is reached."""


class StoreBase(Spec):
    managed: ManagedStore | None = None
    external: ExternalStore | None = None


class Structure(StoreBase):
    """A further structure, beside "admin"."""

    name: str = Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,18}[a-z0-9])?$")


class Store(StoreBase):
    """The admin structure, and further ones."""

    structures: tuple[Structure, ...] = Field(default=(), max_length=8)


def _store() -> Store:
    return Store(managed=ManagedStore())


class QueueSharingGroup(Pods):
    group_name: QueueManagerName = ""
    """"" = the resource's name in upper case, with dots."""
    members: int = Field(default=3, ge=1, le=32)
    store: Store = Field(default_factory=_store)
    portal: Service = Service()
    settings: Settings = Settings()
    channel_defaults: Tuning = Tuning()
    lease_seconds: int = Field(default=5, ge=2, le=60)
    """After how long a member that nobody can see is dead for certain; the others see most deaths sooner."""

    def model_post_init(self, context: Any) -> None:
        if self.store.managed is None and self.store.external is None:
            raise ValueError("store: managed or external is needed")
