"""What people type: `helm test` of the release, and `kubectl qsg` from outside the cluster."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from support.cluster_shop import CHANNELS, STOPPED, Release, Shop
from support.kubernetes import CommandFailed, run

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]

Typed = Callable[..., str]


def test_helm_test_passes_and_leaves_nothing_but_its_pod(shop: Shop, release: Release) -> None:
    """Messages from a group of its own, whose owner it kills on the way."""
    told = run(["helm", "test", release.name, "-n", release.operator.name, "--logs", "--timeout", "5m"], timeout_s=310)
    print(told)  # noqa: T201
    assert re.search(r"^killing qsg-selftest-\d, which owns the channel$", told, re.MULTILINE)
    assert re.search(r"^500 put, 500 arrived, 0 lost, 0 twice, in order$", told, re.MULTILINE)
    (before, after, how) = re.findall(r"^the channel was with (\S+) and is with (\S+) now: (taken|handed) over", told, re.MULTILINE)[0]
    assert before != after or how == "taken"
    assert re.search(r"^passed$", told, re.MULTILINE)
    assert not release.operator.kubectl("get", "qsg", "-o", "name")
    release.operator.delete("pod", f"{release.deployment}-test")


@pytest.fixture
def kubectl_qsg(shop: Shop, tmp_path: Path) -> Typed:
    """A plugin is a program on the PATH."""
    program = tmp_path / "kubectl-qsg"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m qsg_operator.plugin "$@"\n')
    program.chmod(0o755)

    def typed(*arguments: str) -> str:
        path = f"{tmp_path}:{os.environ['PATH']}"
        return run(["env", f"PATH={path}", "kubectl", "qsg", "-n", shop.namespace.name, *arguments], timeout_s=60)

    return typed


def test_kubectl_qsg_reaches_the_group_and_the_queue_manager(shop: Shop, kubectl_qsg: Typed) -> None:
    shop.whole()
    lines = {line["channel"]: line["status"] for line in json.loads(kubectl_qsg("channel", "status", "-o", "json"))}
    names = {name.upper().replace("-", ".") for name in (CHANNELS[0], CHANNELS[2], STOPPED)}
    assert lines.keys() >= names
    assert lines["ORDERS.TO.BANK"] == "RUNNING" and lines["HALTED.TO.BANK"] == "STOPPED"
    queues = {one["name"] for one in json.loads(kubectl_qsg("queue", "list", "-o", "json"))}
    assert {"PAYMENTS", "BANK", "RECEIPTS", "HALTED"} <= queues

    kubectl_qsg("--group", "orders", "put", "PAYMENTS", "from outside")
    assert kubectl_qsg("--queue-manager", "bank", "get", "PAYMENTS", "--wait-ms", "20000").strip() == "from outside"
    with pytest.raises(CommandFailed, match="there is: --group orders, --queue-manager bank"):
        kubectl_qsg("--group", "nobody", "channel", "status")
