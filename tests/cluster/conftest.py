"""One release of the chart with its examples for all tests: a group `orders` of three, a queue manager `bank`, a channel each way."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.cluster_flow import Flow, Road
from support.kubernetes import HOW_TO, Namespace, run

ROOT = Path(__file__).parents[2]
OPERATOR = Namespace("qsg-system")
CHANNELS = ("orders-to-bank", "orders-to-bank-at-bank", "bank-to-orders", "bank-to-orders-at-bank")
GROUP, BANK = "orders-client:1416", "bank-qm-client:1416"


def image() -> str:
    if not os.environ.get("KUBECONFIG"):
        raise AssertionError(HOW_TO)
    return os.environ.get("QSG_IMAGE", "localhost/qsg:0.1.0")


@pytest.fixture(scope="session")
def release() -> Iterator[Namespace]:
    """The namespace of the examples, everything Ready; `installed_in_s` says how long that took."""
    repository, _, tag = image().rpartition(":")
    given = {"image.repository": repository, "image.tag": tag, "etcd.image": os.environ.get("QSG_ETCD_IMAGE", "localhost/etcd:3.5")}
    values = [part for name, value in given.items() for part in ("--set", f"{name}={value}")]
    began = time.monotonic()
    run(["helm", "upgrade", "--install", "qsg", str(ROOT / "charts/qsg"), "-n", OPERATOR.name, "--create-namespace", *values])
    shop = Namespace("qsg-e2e")
    run(["kubectl", "create", "namespace", shop.name])
    run(["kubectl", "label", "namespace", shop.name, "pod-security.kubernetes.io/enforce=restricted"])
    shop.kubectl("apply", "-f", str(ROOT / "charts/qsg/examples"))
    for channel in CHANNELS:
        shop.wait("schan", channel, timeout_s=180)
    print(f"from helm install to Ready: {time.monotonic() - began:.0f} s")  # noqa: T201
    yield shop
    run(["kubectl", "delete", "namespace", shop.name, "--wait=false"])
    run(["helm", "uninstall", "qsg", "-n", OPERATOR.name])


@pytest.fixture
def traffic(release: Namespace) -> Iterator[tuple[Flow, Flow]]:
    """500 messages a second of 1 KiB from the group to the bank, and some back; at the end nothing was lost, repeated or overtaken."""
    roads = Road("flow-out", GROUP, "PAYMENTS", BANK, "PAYMENTS"), Road("flow-back", BANK, "RECEIPTS", GROUP, "RECEIPTS")
    flows = (
        Flow(release, image(), roads[0], "orders-client-tls"),
        Flow(release, image(), roads[1], "orders-client-tls", rate_per_s=50),
    )
    try:
        for flow in flows:
            flow.start()
        yield flows
        for flow in flows:
            result = flow.result or flow.finish()
            wrong = {name: result[name] for name in ("lost", "duplicated", "unexpected", "out_of_order")}
            assert result["clean"] and not any(wrong.values()), (flow.road.name, wrong, result["sent"], result["ok"])
    finally:
        release.kubectl("delete", "pod", "-l", "app=flow", "--ignore-not-found", "--grace-period=0", "--force")
