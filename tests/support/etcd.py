"""Real etcd servers for tests: fixtures to import, a store on an empty etcd, and ways to make an etcd empty.

`etcd_one`, `etcd_three`: clusters that live for the session; a test gets them whole and empty (keys and leases; revisions go on).
`fresh_etcd`: a new one-member cluster for one test (a fifth of a second).
"""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from qsg.process.etcd import EtcdCluster, EtcdOptions, tool
from qsg.store.contract import Delete, NotApplied, Unavailable
from qsg.store.etcd import EtcdStore
from support.stores import PATIENT_S

FAST = EtcdOptions(fsync=False)
"""For tests that do not pull the plug."""


@asynccontextmanager
async def running(directory: Path, *, members: int = 1, options: EtcdOptions = FAST) -> AsyncIterator[EtcdCluster]:
    cluster = EtcdCluster(directory, members=members, options=options)
    await cluster.start()
    try:
        yield cluster
    finally:
        cluster.destroy()


@asynccontextmanager
async def opened(endpoints: list[str], **options: object) -> AsyncIterator[EtcdStore]:
    store = EtcdStore(endpoints, **options)  # type: ignore[arg-type]
    try:
        yield store
    finally:
        await store.close()


async def wipe(cluster: EtcdCluster) -> None:
    """Deletes all keys, again where a change of leader made that unknown. Leases without keys harm nobody."""
    async with opened(cluster.endpoints) as store, asyncio.timeout(PATIENT_S):
        while True:
            try:
                await store.txn([], [Delete(b"\0", b"\0")], timeout_s=5.0)
                return
            except (NotApplied, Unavailable):
                continue


async def make_whole(cluster: EtcdCluster) -> None:
    """All members run, none is frozen, nothing is stored."""
    for index, member in enumerate(cluster.members):
        if member.running:
            cluster.wake(index)
    await cluster.restart_dead()
    await asyncio.to_thread(cluster.wait_ready)
    await wipe(cluster)


def _session_cluster(factory: pytest.TempPathFactory, members: int) -> Iterator[EtcdCluster]:
    cluster = EtcdCluster(factory.mktemp("etcd"), members=members, options=FAST)
    asyncio.run(cluster.start())
    yield cluster
    cluster.destroy()


@pytest.fixture(scope="session")
def etcd_one_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    yield from _session_cluster(tmp_path_factory, 1)


@pytest.fixture(scope="session")
def etcd_three_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    yield from _session_cluster(tmp_path_factory, 3)


@pytest.fixture
async def etcd_one(etcd_one_session: EtcdCluster) -> EtcdCluster:
    await make_whole(etcd_one_session)
    return etcd_one_session


@pytest.fixture
async def etcd_three(etcd_three_session: EtcdCluster) -> EtcdCluster:
    await make_whole(etcd_three_session)
    return etcd_three_session


@pytest.fixture
async def fresh_etcd(tmp_path: Path) -> AsyncIterator[EtcdCluster]:
    async with running(tmp_path / "etcd") as cluster:
        yield cluster


def restored_from(copy: Path, etcd: EtcdCluster) -> None:
    """Puts a snapshot in the place of the one member's data, which is killed, as docs/restore.yaml does it; the caller starts it again."""
    etcd.kill(0)
    (member,) = etcd.members
    shutil.rmtree(member.directory / "data")
    peer = f"http://127.0.0.1:{member.peer_port}"
    arguments = {
        "data-dir": member.directory / "data",
        "name": member.name,
        "initial-cluster": f"{member.name}={peer}",
        "initial-advertise-peer-urls": peer,
        "bump-revision": 1_000_000_000,
    }
    command = [
        tool("etcdutl"),
        "snapshot",
        "restore",
        copy,
        *(f"--{name}={value}" for name, value in arguments.items()),
        "--mark-compacted",
    ]
    subprocess.run(list(map(str, command)), check=True, capture_output=True)
