"""Back from a snapshot of the managed etcd, by the commands of docs/kubernetes.md as they stand: refused, until somebody says so."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from support.cluster_shop import CHANNELS, GROUP, ROOT, Release, Shop, Traffic, image
from support.kubernetes import eventually, run

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

QUEUE = "RECEIPTS"


def written(shop: Shop) -> list[str]:
    """The lines of the two blocks of commands, for this namespace."""
    section = (ROOT / "docs/kubernetes.md").read_text().partition("### Back from a snapshot")[2].partition("\n## ")[0]
    blocks: list[str] = re.findall(r"^```\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2
    lines = "".join(blocks).replace("NAMESPACE/shop", f"NAMESPACE/{shop.namespace.name}").replace("-n shop", f"-n {shop.namespace.name}")
    return lines.replace("kubectl exec orders-0 ", f"kubectl exec -n {shop.namespace.name} orders-0 ").splitlines()


def place(folder: Path) -> None:
    """Where the commands are typed: with docs/restore.yaml, for the images that are there."""
    etcd = os.environ.get("QSG_ETCD_IMAGE", "localhost/etcd:3.5")
    text = (ROOT / "docs/restore.yaml").read_text()
    assert "image: qsg:0.1.0\n" in text
    text = re.sub(r"image: \S*etcd:\S+", f"image: {etcd}", text.replace("image: qsg:0.1.0\n", f"image: {image()}\n"))
    (folder / "docs").mkdir()
    (folder / "docs/restore.yaml").write_text(text)


def test_a_group_comes_back_from_a_snapshot(shop: Shop, release: Release, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    shop.whole()
    place(tmp_path)
    save, *lines = written(shop)
    accept, back = lines[-2:]
    assert "acceptRestored" in accept and "qsg-operator --replicas=1" in back

    def typed(*commands: str) -> None:
        run(["bash", "-euo", "pipefail", "-c", f"cd {tmp_path}\n" + "\n".join(commands)], timeout_s=420)

    shop.qsg("put", QUEUE, "kept")
    typed(save)
    assert "kept" in shop.qsg("get", QUEUE)
    shop.qsg("put", QUEUE, "later")
    typed(*lines[:-2], back)
    # Nobody has said that it is as intended: the members do not use it.
    eventually(lambda: _refused(shop), 120, "the members refuse the restored store")
    assert not (shop.group()["status"].get("membersReady") or "0/").startswith("3/")
    typed(accept)
    release.scale(2)
    for channel in CHANNELS:
        shop.namespace.wait("schan", channel, timeout_s=180)
    shop.whole()
    browsed = shop.qsg("browse", QUEUE)
    assert "kept" in browsed and "later" not in browsed, "as it was when the snapshot was taken"
    assert "kept" in shop.qsg("get", QUEUE)
    traffic: Traffic = request.getfixturevalue("traffic")
    with traffic.through("after a restore", 1_000):
        traffic.moves()


def _refused(shop: Shop) -> bool:
    return "STRUCTURE_RESTORED" in shop.namespace.kubectl("logs", f"{GROUP}-0", "-c", "queue-manager", "--tail=50")
