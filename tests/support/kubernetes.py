"""A Kubernetes cluster for end-to-end tests, as its users have it: kubectl and helm, on the cluster of KUBECONFIG.

What happens to nodes is not Kubernetes' business: `Nodes` powers them off and cuts them off the network by a command named by
QSG_CLUSTER_COMMAND (`node kill|start|cut|heal NAME`, `node exec NAME COMMAND…`).
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Object = dict[str, Any]

HOW_TO = (
    "end-to-end tests need a cluster of several nodes: set KUBECONFIG (with kind: `kind create cluster`, then `kind load docker-image`), "
    "QSG_IMAGE and QSG_ETCD_IMAGE to images that its nodes have, and for the death of nodes QSG_CLUSTER_COMMAND"
)
WAIT_S = 120.0


class CommandFailed(Exception):
    """What a command said on standard error."""


class NotYet(Exception):
    """What is not as it should be."""


def run(command: Sequence[str], *, given: str | None = None, timeout_s: float = WAIT_S) -> str:
    done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=timeout_s, check=False)
    if done.returncode:
        raise CommandFailed(f"{shlex.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def eventually(condition: Callable[[], Any], timeout_s: float = WAIT_S, what: str = "", every_s: float = 0.5) -> Any:
    """What `condition` answers once it is true; a command that fails counts as not yet."""
    until = time.monotonic() + timeout_s
    last: object = None
    while time.monotonic() < until:
        try:
            last = condition()
        except (CommandFailed, NotYet) as error:
            last = error
        else:
            if last:
                return last
        time.sleep(every_s)
    raise AssertionError(f"not within {timeout_s:g} s: {what or condition}; last: {last!r}")


@dataclass(frozen=True, slots=True)
class Namespace:
    name: str

    def kubectl(self, *arguments: str, given: str | None = None, timeout_s: float = WAIT_S) -> str:
        return run(["kubectl", "-n", self.name, *arguments], given=given, timeout_s=timeout_s)

    def apply(self, *objects: Object) -> None:
        self.kubectl("apply", "-f", "-", given="\n---\n".join(json.dumps(one) for one in objects))

    def refused(self, made: Object) -> str:
        """What the API server says against an object."""
        try:
            self.kubectl("apply", "--dry-run=server", "-f", "-", given=json.dumps(made))
        except CommandFailed as error:
            return str(error)
        raise AssertionError(f"{made['kind']} {made['metadata']['name']} was accepted")

    def get(self, kind: str, name: str) -> Object:
        found: Object = json.loads(self.kubectl("get", kind, name, "-o", "json"))
        return found

    def list(self, kind: str, selector: str = "") -> list[Object]:
        found: list[Object] = json.loads(self.kubectl("get", kind, "-l", selector, "-o", "json"))["items"]
        return found

    def wait(self, kind: str, name: str, condition: str = "Ready", status: str = "True", timeout_s: float = WAIT_S) -> None:
        arguments = ["wait", f"--for=condition={condition}={status}", f"{kind}/{name}", f"--timeout={timeout_s:g}s"]
        self.kubectl(*arguments, timeout_s=timeout_s + 10)

    def patch(self, kind: str, name: str, change: Object) -> None:
        self.kubectl("patch", kind, name, "--type=merge", "-p", json.dumps(change))

    def exists(self) -> bool:
        return bool(run(["kubectl", "get", "namespace", self.name, "--ignore-not-found", "-o", "name"]))

    def create(self) -> Namespace:
        """As restricted as can be; what was there under its name is gone before."""
        run(["kubectl", "delete", "namespace", self.name, "--ignore-not-found", "--timeout=120s"], timeout_s=WAIT_S + 10)
        run(["kubectl", "create", "namespace", self.name])
        run(["kubectl", "label", "namespace", self.name, "pod-security.kubernetes.io/enforce=restricted"])
        return self

    def remove(self, within_s: float = WAIT_S) -> None:
        run(["kubectl", "delete", "namespace", self.name, "--ignore-not-found", f"--timeout={within_s:g}s"], timeout_s=within_s + 10)

    def delete(self, kind: str, name: str, *more: str) -> None:
        self.kubectl("delete", kind, name, *more)

    def node_of(self, pod: str) -> str:
        return str(self.get("pod", pod)["spec"].get("nodeName", ""))


def condition(made: Mapping[str, Any], kind: str) -> Object:
    """A condition of an object's status; empty when it is not there."""
    found: list[Object] = [c for c in made.get("status", {}).get("conditions", []) if c["type"] == kind]
    return found[0] if found else {}


def nodes_that_take_pods() -> list[str]:
    found: list[Object] = json.loads(run(["kubectl", "get", "node", "-o", "json"]))["items"]
    closed = ("NoSchedule", "NoExecute")
    return [n["metadata"]["name"] for n in found if not any(t["effect"] in closed for t in n["spec"].get("taints", ()))]


class Nodes:
    def __init__(self) -> None:
        self._command = shlex.split(os.environ.get("QSG_CLUSTER_COMMAND", ""))

    @property
    def can_die(self) -> bool:
        """Whether somebody has said how nodes are killed."""
        return bool(self._command)

    def _node(self, *arguments: str) -> str:
        if not self._command:
            raise AssertionError(HOW_TO)
        return run([*self._command, "node", *arguments])

    def kill(self, node: str) -> None:
        self._node("kill", node)

    def start(self, node: str) -> None:
        self._node("start", node)

    def cut(self, node: str) -> None:
        self._node("cut", node)

    def heal(self, node: str) -> None:
        self._node("heal", node)

    def kill_process(self, node: str, pod_uid: str, words: str) -> None:
        """SIGKILL of the processes of one pod whose command line holds `words`."""
        script = (
            "for p in /proc/[0-9]*; do "
            f'if grep -q "$(echo {pod_uid} | tr - _)\\|{pod_uid}" $p/cgroup 2>/dev/null && tr "\\0" " " < $p/cmdline | grep -q "{words}"; '
            "then kill -9 ${p#/proc/}; fi; done"
        )
        self._node("exec", node, "sh", "-c", script)
