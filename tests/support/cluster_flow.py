"""Traffic between two queue managers inside a cluster: a pod that runs `qsg bench flow`, and what it tells."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import Any

from support.kubernetes import CommandFailed, Namespace, Object, eventually

RESTRICTED: Object = {
    "runAsNonRoot": True,
    "runAsUser": 65532,
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}
CERTIFICATES = {"QSG_CA": "ca.crt", "QSG_CERTIFICATE": "tls.crt", "QSG_KEY": "tls.key"}
PAUSE_MS = 50
"""Silences longer than this are told."""


@dataclass(frozen=True, slots=True)
class Road:
    """`name` of the pod; client addresses and queues at both ends."""

    name: str
    connect: str
    put_queue: str
    get_connect: str
    get_queue: str


@dataclass
class Flow:
    """`secret`: with a certificate for applications ("" = no TLS). `node`: where the pod must run ("" = anywhere)."""

    namespace: Namespace
    image: str
    road: Road
    secret: str = ""
    node: str = ""
    rate_per_s: float = 500
    result: dict[str, Any] = field(default_factory=dict)

    def pod(self) -> Object:
        road = self.road
        ends = ["--connect", road.connect, "--put-queue", road.put_queue, "--get-connect", road.get_connect, "--get-queue", road.get_queue]
        container: Object = {
            "name": "flow",
            "image": self.image,
            "imagePullPolicy": "IfNotPresent",
            "command": ["qsg", "bench", "flow", "--json", "--rate", f"{self.rate_per_s:g}", "--pause-ms", str(PAUSE_MS), *ends],
            "securityContext": RESTRICTED,
            "resources": {"requests": {"cpu": "250m"}},  # what measures must not wait for what is measured
        }
        spec: Object = {"restartPolicy": "Never", "automountServiceAccountToken": False, "containers": [container]}
        if self.secret:
            container["env"] = [{"name": name, "value": f"/etc/qsg-tls/{file}"} for name, file in CERTIFICATES.items()]
            container["volumeMounts"] = [{"name": "tls", "mountPath": "/etc/qsg-tls", "readOnly": True}]
            spec["volumes"] = [{"name": "tls", "secret": {"secretName": self.secret}}]
        if self.node:
            spec["nodeName"] = self.node
        return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": road.name, "labels": {"app": "flow"}}, "spec": spec}

    def start(self) -> None:
        self.namespace.apply(self.pod())

    def started(self) -> None:
        eventually(lambda: self.arrived() > 0, what=f"{self.road.name}: the first message arrives", every_s=0.2)

    def last_line(self) -> dict[str, Any]:
        lines = self.namespace.kubectl("logs", self.road.name, "--tail=1").splitlines()
        try:
            found: dict[str, Any] = json.loads(lines[-1]) if lines else {}
        except ValueError as error:
            raise CommandFailed(f"{self.road.name}: {lines[-1]}") from error
        return found

    def arrived(self) -> int:
        line = self.last_line()
        return int(line.get("arrived", line.get("ok", 0)))

    def moves(self, timeout_s: float = 60.0) -> None:
        """What is put from now on arrives."""
        mark = self._acknowledged() + self.rate_per_s
        eventually(lambda: self.arrived() >= mark, timeout_s, f"{self.road.name}: messages move", every_s=0.2)

    def finish(self) -> dict[str, Any]:
        """Ends the traffic, waits for what is on its way, and answers the counts."""
        self.namespace.kubectl("exec", self.road.name, "--", "sh", "-c", "kill -TERM 1")
        self.result = eventually(self._last_words, 180, f"{self.road.name}: drained")
        return self.result

    def _last_words(self) -> dict[str, Any]:
        line = self.last_line()
        return line if "clean" in line else {}

    def _acknowledged(self) -> int:
        """Logs are asked for again when they cannot be had just then."""
        line: list[dict[str, Any]] = eventually(lambda: [self.last_line()], 30, f"{self.road.name}: what it told last", every_s=0.2)
        return int(line[0].get("acknowledged", 0))

    def longest_pause_ms(self, since: float, until: float | None = None) -> float:
        """Of the pauses that overlap a span of the wall clock, seconds; after `finish`. 0: none as long as `PAUSE_MS`."""
        end = time.time() if until is None else until
        found = [p["ms"] for p in self.result["pauses"] if p["until"] >= since and p["until"] - p["ms"] / 1000 <= end]
        return max(found, default=0.0)
