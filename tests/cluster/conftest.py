"""One release of the chart with its examples for all tests, and traffic over them for each that asks for it.

Told by the environment: KUBECONFIG; QSG_IMAGE, QSG_ETCD_IMAGE and QSG_IMAGE_NEWER (images that the nodes have); QSG_CLUSTER_COMMAND (kills
nodes); QSG_KEEP (what is there is used, and left); QSG_FIGURES (a file for what was measured); QSG_RATE (messages a second, 500).
"""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from support.cluster_report import report
from support.cluster_shop import CHANNELS, Figures, Release, Shop, Traffic, image
from support.kubernetes import Namespace, Nodes

NAMESPACE = "qsg-e2e"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test that fails tells what the cluster says at that moment, before anything is put in order again."""
    told = yield
    if told.failed and os.environ.get("KUBECONFIG") and item.get_closest_marker("cluster") is not None:
        told.sections.append(("the cluster, when it failed", report()))
    return told


@pytest.fixture(scope="session")
def figures() -> Iterator[Figures]:
    """What was measured, as a table at the end; in the file that QSG_FIGURES names too."""
    found = Figures()
    yield found
    print(f"\n{found.table()}")  # noqa: T201
    if os.environ.get("QSG_FIGURES"):
        Path(os.environ["QSG_FIGURES"]).write_text(found.table() + "\n")


@pytest.fixture(scope="session")
def nodes() -> Nodes:
    found = Nodes()
    if not found.can_die:
        pytest.skip("set QSG_CLUSTER_COMMAND to a command that knows `node kill|start|cut|heal NAME` and `node exec NAME COMMAND...`")
    return found


@pytest.fixture(scope="session")
def release() -> Release:
    image()
    return Release(Namespace("qsg-system"))


@pytest.fixture(scope="session")
def shop(release: Release, figures: Figures) -> Iterator[Shop]:
    """The namespace of the examples, everything ready. QSG_KEEP: what is there is used, and left for the next run."""
    shop = Shop(Namespace(NAMESPACE))
    keep = bool(os.environ.get("QSG_KEEP"))
    if not (keep and shop.namespace.exists()):
        shop.namespace.create()
        _install(shop, release, figures)
    yield shop
    if not keep:
        began = time.monotonic()
        shop.namespace.remove()
        figures.add("the examples' namespace deleted", f"{time.monotonic() - began:.0f} s", "90 s")
        release.uninstall()


def _install(shop: Shop, release: Release, figures: Figures) -> None:
    began = time.monotonic()
    release.install()
    shop.apply_examples()
    for channel in CHANNELS:
        shop.namespace.wait("schan", channel, timeout_s=180)
    traffic = Traffic(shop, figures)
    try:
        traffic.start()
        took_s = time.monotonic() - began
        traffic.through_an_election("etcd's leader deleted by force, as soon as messages move")
    finally:
        traffic.end()
    figures.add("helm install to Ready and the first message", f"{took_s:.0f} s", "60 s")
    assert took_s < 180
    shop.stopped_with_a_message()


@pytest.fixture
def traffic(shop: Shop, figures: Figures) -> Iterator[Traffic]:
    shop.whole()
    traffic = Traffic(shop, figures)
    try:
        traffic.start()
        yield traffic
    finally:
        traffic.end()
