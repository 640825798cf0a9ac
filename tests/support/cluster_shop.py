"""The chart's examples on a cluster: a group `orders` of three, a queue manager `bank`, a channel each way; and traffic over them.

Beside them a channel that is stopped, with a message that waits: whatever is done to the rest, it stays so.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.cluster_flow import PAUSE_MS, Flow, Road
from support.kubernetes import HOW_TO, CommandFailed, Namespace, NotYet, Object, condition, eventually, nodes_that_take_pods, run

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts/qsg"
GROUP, BANK = "orders", "bank"
CHANNEL = "orders-to-bank"
CHANNELS = (CHANNEL, "orders-to-bank-at-bank", "bank-to-orders", "bank-to-orders-at-bank")
STOPPED = "halted-to-bank"
SECRET = "orders-client-tls"
STORES = tuple(f"{GROUP}-store-{n}" for n in range(3))
DEATH_MS = 1_000
COUNTS = ("lost", "duplicated", "unexpected", "out_of_order")


def allowed_ms(bound_ms: float) -> float:
    """Machines of tests are small and busy with other things: a bound is missed only by far. The figures are told as they are."""
    return 4 * bound_ms + 4_000


def image() -> str:
    if not os.environ.get("KUBECONFIG"):
        raise AssertionError(HOW_TO)
    return os.environ.get("QSG_IMAGE", "localhost/qsg:0.1.0")


def group_addresses(namespace: str, members: int = 3) -> str:
    """Each member by its own name, so that a client that loses one asks all others at once; and any, where DNS has old addresses."""
    return ",".join([*(f"orders-{n}.orders-pods.{namespace}.svc:1416" for n in range(members)), "orders-client:1416"])


@dataclass(frozen=True)
class Release:
    """The chart, installed; `operator`: the namespace it is in."""

    operator: Namespace
    name: str = "qsg"

    @property
    def deployment(self) -> str:
        return f"{self.name}-operator"

    def install(self, **values: str) -> None:
        repository, _, tag = image().rpartition(":")
        etcd = os.environ.get("QSG_ETCD_IMAGE", "localhost/etcd:3.5")
        given = {"image.repository": repository, "image.tag": tag, "etcd.image": etcd, "replicas": "2", **values}
        settings = [part for name, value in given.items() for part in ("--set", f"{name}={value}")]
        run(["helm", "upgrade", "--install", self.name, str(CHART), "-n", self.operator.name, "--create-namespace", *settings])

    def rolled_out(self) -> None:
        self.operator.kubectl("rollout", "status", "deployment", self.deployment, "--timeout=120s")

    def uninstall(self) -> None:
        run(["helm", "uninstall", self.name, "-n", self.operator.name, "--ignore-not-found", "--wait"])

    def scale(self, replicas: int) -> None:
        self.operator.kubectl("scale", "deployment", self.deployment, f"--replicas={replicas}")
        if replicas:
            self.rolled_out()
        else:
            eventually(lambda: not self.pods(), 90, "the operator is gone")

    def pods(self) -> list[str]:
        """Of the operator, not of what it is asked to do."""
        found = self.operator.list("pod", f"app.kubernetes.io/name=qsg-operator,app.kubernetes.io/instance={self.name}")
        return [pod["metadata"]["name"] for pod in found]

    def leader(self) -> str:
        """The pod of the operator that works."""
        return str(self.operator.get("lease", "qsg-operator")["spec"].get("holderIdentity") or "")


@dataclass(frozen=True)
class Shop:
    namespace: Namespace

    def apply_examples(self) -> None:
        self.namespace.kubectl("apply", "-f", str(CHART / "examples"))

    def channel(self, name: str = CHANNEL) -> Object:
        return self.namespace.get("schan", name)

    def group(self) -> Object:
        return self.namespace.get("queuesharinggroups", GROUP)

    def owner(self, channel: str = CHANNEL) -> Object:
        """The owner of the channel, as its status says: member, pod, node, since, epoch."""
        found: Object = eventually(lambda: self.channel(channel).get("status", {}).get("owner"), what="the channel has an owner")
        return found

    def bank_node(self) -> str:
        return self.namespace.node_of("bank-qm-0")

    def taken_over(self, before: Object, within_s: float = 60.0) -> Object:
        """The owner after `before`."""
        eventually(lambda: self.owner()["epoch"] > before["epoch"], within_s, "the channel was taken over")
        return self.owner()

    def owner_away_from_bank(self) -> Object:
        """The owner, once it is on another node than the bank: whatever happens to that node leaves the bank alone."""
        for _ in range(6):
            owner = self.owner()
            if owner["node"] != self.bank_node():
                return owner
            self.namespace.delete("pod", owner["pod"], "--grace-period=1")
            self.taken_over(owner)
            self.whole()
        raise AssertionError("the channel does not leave the bank's node")

    def whole(self, within_s: float = 240.0) -> None:
        """Every member and store is there, all channels are ready, and what was stopped is stopped."""
        found: dict[str, Any] = eventually(self._as_it_should_be, within_s, "group, bank and channels are ready")
        assert found

    def _as_it_should_be(self) -> dict[str, Any]:
        looks: dict[str, Any] = {}
        for _ in range(2):  # a status may be from before what was just done
            looks = self._look()
            wrong = {name: why for name, why in looks.items() if why}
            if wrong:
                raise NotYet(wrong)
            time.sleep(1.5)
        return looks

    def _look(self) -> dict[str, Any]:
        group, bank = self.group(), self.namespace.get("qm", BANK)
        looks = {f"group {kind}": _missing(group, kind) for kind in ("Ready", "Redundant")} | {"bank": _missing(bank, "Ready")}
        for found in self.namespace.list("schan"):
            name = found["metadata"]["name"]
            if name == STOPPED:
                state = found.get("status", {}).get("state")
                looks[name] = "" if state == "Stopped" else f"{state}: it was to stay stopped"
            elif name.startswith((GROUP, BANK)):
                looks[name] = _missing(found, "Ready")
        return looks

    def store_leader(self) -> str:
        """The etcd that leads, as its metrics say, once one does."""
        found: str = eventually(lambda: next(filter(self._leads, STORES), ""), 60, "an etcd leads")
        return found

    def _leads(self, pod: str) -> bool:
        path = f"/api/v1/namespaces/{self.namespace.name}/pods/{pod}:2381/proxy/metrics"
        try:
            return "etcd_server_is_leader 1" in run(["kubectl", "get", "--raw", path])
        except CommandFailed:  # one that starts does not answer, nor one that is gone
            return False

    def spread(self) -> None:
        """No node has two members of the store any more, where nodes are enough: docs/kubernetes.md, after a drain."""
        if len(nodes_that_take_pods()) < len(STORES):
            return
        for _ in range(6):
            nodes: dict[str, str] = eventually(self._store_nodes, what="each etcd member is on a node")
            crowd = [pod for pod, node in nodes.items() if list(nodes.values()).count(node) > 1]
            if not crowd:
                eventually(lambda: condition(self.group(), "Redundant")["reason"] == "MemberAndStoreSpare", 60, "a node can be lost")
                return
            eventually(lambda: condition(self.group(), "Redundant")["reason"] == "NodeNotSpare", 60, "it says that a node must not be lost")
            self.namespace.delete("pod", crowd[-1])
            self.whole()
        raise AssertionError(f"the store's members do not leave each other: {nodes}")

    def _store_nodes(self) -> dict[str, str]:
        nodes = {pod: self.namespace.node_of(pod) for pod in STORES}
        return nodes if all(nodes.values()) else {}

    # ---- commands of the product

    def qsg(self, *arguments: str, pod: str = "orders-0", given: str | None = None) -> str:
        return self.namespace.kubectl("exec", "-i", pod, "-c", "queue-manager", "--", "qsg", *arguments, given=given)

    def stopped_with_a_message(self) -> None:
        """Makes the channel that is stopped, and puts the message that waits for it."""
        spec: Object = {"group": GROUP, "type": "Sender", "transmissionQueue": "HALTED", "connectionNames": ["bank-qm-listener:1414"]}
        remote: Object = {"type": "Remote", "remoteQueue": "HALTED", "remoteQueueManager": "BANK", "transmissionQueue": "HALTED"}
        made = [
            ("SharedQueue", "halted", {"group": GROUP, "type": "Transmission"}),
            ("SharedQueue", "to-halted", {"group": GROUP, **remote}),
            ("SharedQueue", "halted-at-bank", {"queueManager": BANK, "queueName": "HALTED"}),
            ("SharedChannel", "halted-to-bank-at-bank", {"queueManager": BANK, "channelName": "HALTED.TO.BANK", "type": "Receiver"}),
            ("SharedChannel", STOPPED, {**spec, "desiredState": "Stopped"}),
        ]
        kinds = {"apiVersion": "qsg.dev/v1alpha1"}
        self.namespace.apply(*({**kinds, "kind": kind, "metadata": {"name": name}, "spec": s} for kind, name, s in made))
        for kind, name, _ in made[:2]:
            self.namespace.wait(kind, name)
        eventually(lambda: self.channel(STOPPED)["status"].get("state") == "Stopped", 30, "the channel is stopped")
        self.qsg("put", "TO.HALTED", "hello")


def _missing(found: Object, kind: str) -> str:
    """Why a condition is not true; "" = it is."""
    is_so = condition(found, kind)
    if is_so.get("status") == "True" and is_so.get("observedGeneration") == found["metadata"]["generation"]:
        return ""
    return f"{is_so.get('status')} {is_so.get('reason')}: {is_so.get('message')}"


@dataclass
class Figures:
    """What was measured: kind of fault -> what; the bound that it should keep."""

    rows: list[tuple[str, str, str]] = field(default_factory=list)

    def add(self, what: str, measured: str, wanted: str) -> None:
        self.rows.append((what, measured, wanted))
        print(f"figure: {what} | {measured} | {wanted}", flush=True)  # noqa: T201

    def table(self) -> str:
        return "\n".join(["| what | measured | wanted |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in self.rows)])


@dataclass
class Traffic:
    """500 messages a second of 1 KiB from the group to the bank (or QSG_RATE), a tenth of them back; both from the bank's node."""

    shop: Shop
    figures: Figures
    flows: tuple[Flow, Flow] = field(init=False)

    def __post_init__(self) -> None:
        namespace, there = self.shop.namespace, group_addresses(self.shop.namespace.name)
        bank = "bank-qm-client:1416"
        roads = Road("flow-out", there, "PAYMENTS", bank, "PAYMENTS"), Road("flow-back", bank, "RECEIPTS", there, "RECEIPTS")
        node, rate_per_s = self.shop.bank_node(), float(os.environ.get("QSG_RATE", "500"))
        self.flows = (
            Flow(namespace, image(), roads[0], SECRET, node, rate_per_s),
            Flow(namespace, image(), roads[1], SECRET, node, rate_per_s / 10),
        )

    def start(self) -> None:
        for flow in self.flows:
            flow.start()
        for flow in self.flows:
            flow.started()

    def moves(self) -> None:
        for flow in self.flows:
            flow.moves()

    def end(self) -> None:
        self.shop.namespace.kubectl("delete", "pod", "-l", "app=flow", "--ignore-not-found", "--grace-period=0", "--force")

    def through_an_election(self, fault: str) -> None:
        """The store's leader is killed, and is there again."""
        namespace, leader = self.shop.namespace, self.shop.store_leader()
        before = namespace.get("pod", leader)["metadata"]["uid"]
        with self.through(fault, DEATH_MS):
            namespace.delete("pod", leader, "--grace-period=0", "--force")
            self.moves()
            eventually(lambda: namespace.get("pod", leader)["metadata"]["uid"] != before, what="another pod in its place")
            self.shop.store_leader()

    @contextlib.contextmanager
    def through(self, fault: str, below_ms: float) -> Iterator[None]:
        """Messages move meanwhile and at the end, everything is whole again; then nothing was lost, repeated or overtaken."""
        began = time.time()
        yield
        self.moves()
        ended = time.time()
        self.shop.whole()
        gaps = []
        for flow in self.flows:
            result = flow.finish()
            wrong = {name: result[name] for name in COUNTS}
            assert result["clean"] and not any(wrong.values()), (fault, flow.road.name, wrong, result["sent"], result["ok"])
            assert result["received"] == result["ok"] >= result["acknowledged"] > 0, (fault, flow.road.name, result)
            gaps.append(flow.longest_pause_ms(began, ended))
        told = ", ".join(f"{gap:.0f} ms" if gap else f"< {PAUSE_MS} ms" for gap in gaps)
        self.figures.add(fault, told, f"{below_ms:g} ms")
        assert max(gaps) < allowed_ms(below_ms), (fault, gaps, below_ms)
