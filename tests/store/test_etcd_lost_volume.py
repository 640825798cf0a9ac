"""An etcd member whose volume is lost, on real etcd: what docs/kubernetes.md ("A lost volume") has an operator do."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from qsg.process.etcd import EtcdCluster, EtcdFailed, EtcdOptions
from qsg.process.etcd_binary import tool
from qsg.store.contract import Get, Put
from qsg_operator.children.etcd import INITIAL_CLUSTER_STATE
from support.etcd import opened, running
from support.stores import PATIENT_S

pytestmark = pytest.mark.etcd


def etcdctl(cluster: EtcdCluster, *arguments: str) -> str:
    command = [str(tool("etcdctl")), f"--endpoints={cluster.members[0].endpoint}", *arguments]
    until = time.monotonic() + PATIENT_S
    while (found := subprocess.run(command, capture_output=True, text=True)).returncode:
        assert "unhealthy cluster" in found.stderr and time.monotonic() < until, found.stderr  # its members are to know each other for 5 s
        time.sleep(0.5)
    return found.stdout


async def test_a_member_that_lost_its_volume_is_let_in_as_a_new_one_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under its old identity, with nothing of what it had acknowledged, it could elect a leader that lacks that."""
    async with running(tmp_path / "etcd", members=3, options=EtcdOptions(fsync=False)) as cluster, opened(cluster.endpoints) as store:
        for number in range(50):
            await store.txn([], [Put(b"k", b"%d" % number)], timeout_s=PATIENT_S)
        lost = cluster.members[2]
        cluster.kill(2)
        shutil.rmtree(lost.directory / "data")
        with pytest.raises(EtcdFailed, match="already been bootstrapped"):
            await cluster.restart(2)

        shutil.rmtree(lost.directory / "data")
        monkeypatch.setenv(INITIAL_CLUSTER_STATE, "hold")
        with pytest.raises(EtcdFailed, match="for ETCD_INITIAL_CLUSTER_STATE"):
            await cluster.restart(2)
        assert not (lost.directory / "data").exists(), "a start before the member is added leaves nothing that would be in the way"
        members = await asyncio.to_thread(etcdctl, cluster, "member", "list")
        (identity,) = (line.split(",")[0] for line in members.splitlines() if lost.name in line)
        await asyncio.to_thread(etcdctl, cluster, "member", "remove", identity)
        await asyncio.to_thread(etcdctl, cluster, "member", "add", lost.name, f"--peer-urls=http://127.0.0.1:{lost.peer_port}")
        monkeypatch.setenv(INITIAL_CLUSTER_STATE, "existing")
        await cluster.restart(2)

        async with opened([lost.endpoint]) as alone:
            kv = (await alone.get(Get(b"k"))).first
            assert kv is not None and (kv.value, kv.version) == (b"49", 50)
        monkeypatch.delenv(INITIAL_CLUSTER_STATE)
        await asyncio.to_thread(cluster.terminate, 2)
        await cluster.restart(2)
