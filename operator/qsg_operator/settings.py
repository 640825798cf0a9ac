"""What the operator is told by its environment, as the chart sets it."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from qsg_operator.children.objects import Images


@dataclass(frozen=True)
class Settings:
    images: Images
    namespace: str
    """The operator's own."""
    identity: str
    """Of this replica."""
    watch: tuple[str, ...] = ()
    """Namespaces; () = all of the cluster."""
    liveness: str = "http://0.0.0.0:8080/healthz"
    metrics_port: int = 8081
    workers: int = 4

    @property
    def lease_namespace(self) -> str:
        """One that is watched: the lease also shows that the watches live."""
        return self.namespace if not self.watch or self.namespace in self.watch else self.watch[0]

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Settings:
        def get(name: str, default: str) -> str:
            return environment.get(f"QSG_OPERATOR_{name}", "") or default

        def names(name: str) -> tuple[str, ...]:
            return tuple(one.strip() for one in get(name, "").split(",") if one.strip())

        images = Images(
            qsg=get("IMAGE", "qsg:latest"),
            etcd=get("ETCD_IMAGE", "quay.io/coreos/etcd:v3.5.21"),
            pull_policy=get("IMAGE_PULL_POLICY", Images.pull_policy),
            pull_secrets=names("IMAGE_PULL_SECRETS"),
        )
        return cls(
            images=images,
            namespace=get("NAMESPACE", "default"),
            identity=get("POD", socket.gethostname()),
            watch=names("WATCH_NAMESPACES"),
            liveness=get("LIVENESS", cls.liveness),
            metrics_port=int(get("METRICS_PORT", str(cls.metrics_port))),
            workers=int(get("WORKERS", str(cls.workers))),
        )
