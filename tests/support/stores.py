"""Every store behind one face: the conformance suite runs on each entry of `STORES`.

An entry is an asynchronous context manager that takes a folder of its own and yields a `Harness` on an empty store. What a store needs
is imported when it is asked for, so that one that is broken does not take the others along.
"""

from __future__ import annotations

import atexit
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from qsg.store.contract import Compacted, Delete, Store

if TYPE_CHECKING:
    from qsg.process.etcd import EtcdCluster

PATIENT_S = 60.0
"""For one request, or anything else that is sure to come: a guard against hangs. With the usual 0.4 s for a transaction, or 2 s for a
renewal, a machine that stands still makes the outcome unknown."""


@dataclass(slots=True)
class Harness:
    store: Store
    second: Store
    """Another client of the same store."""
    cut_connections: Callable[[], None] | None = None
    """Breaks every connection of `store`; new ones can be made."""
    lose_replies: Callable[[bool], None] | None = None
    """While on, what `store` sends arrives, but no answer does."""
    restart: Callable[[], Awaitable[None]] | None = None
    """The store's process dies and comes back on its data."""
    ends_watches: bool = False
    """`restart` and `restore` end the iterators of watches, as the store is in this process."""
    save: Callable[[], Awaitable[None]] | None = None
    """Takes a snapshot, once."""
    restore: Callable[[], Awaitable[None]] | None = None
    """The store comes back from that snapshot, in the way that its operators have."""
    keeps_leases: bool = True
    """Whether leases come back with a snapshot, with their full time to live; else they are gone, and their keys."""


Factory = Callable[[Path], AbstractAsyncContextManager[Harness]]


@asynccontextmanager
async def memory(folder: Path) -> AsyncIterator[Harness]:
    from qsg.store.faults import Fault, Faults
    from qsg.store.memory import MemoryServer

    class LostReplies(Faults):
        on = False

        def request(self, kind: str) -> Fault:
            return Fault(reply_lost=self.on)

    faults = LostReplies()
    server = MemoryServer(random=Random(1))
    store = server.client(faults)

    def lose_replies(on: bool) -> None:
        faults.on = on

    harness = Harness(store, server.client(), cut_connections=store.cut_watches, lose_replies=lose_replies)

    async def save() -> None:
        snapshot = server.snapshot()

        async def restore() -> None:
            server.restore(snapshot)

        harness.restore = restore

    harness.save = save
    yield harness
    server.close()


@asynccontextmanager
async def sqlite(folder: Path) -> AsyncIterator[Harness]:
    from qsg.store.sqlite import SqliteStore

    store = SqliteStore(folder / "store.db", compact_interval_s=0)
    await store.open()
    harness = Harness(store, store, ends_watches=True, keeps_leases=False)

    async def restart() -> None:
        await store.close()
        await store.open()

    async def restore() -> None:
        await store.close()
        _back_from(folder / "copy", folder / "store.db")
        await store.open()

    async def save() -> None:
        await store.snapshot(folder / "copy")

    harness.restart, harness.save, harness.restore = restart, save, restore
    yield harness
    await store.close()


def _back_from(copy: Path, file: Path) -> None:
    """As `qsg store restore` does it, in the place of a file that is lost with its logs."""
    from qsg.store.sqlite import restore

    for lost in file.parent.glob(f"{file.name}*"):
        lost.unlink()
    restore(copy, file)


@asynccontextmanager
async def serve(folder: Path) -> AsyncIterator[Harness]:
    """`qsg store` before a file, and the etcd client in front of it."""
    from qsg.process.proxy import Proxy
    from qsg.store.etcd import EtcdStore
    from qsg.store.serve import LIMITS, StoreServer
    from qsg.store.sqlite import SqliteStore

    server = StoreServer(SqliteStore(folder / "store.db", compact_interval_s=0, limits=LIMITS), "127.0.0.1:0")
    await server.start()
    proxy = await Proxy.start("127.0.0.1:0", [server.address])
    store, second = EtcdStore([proxy.address], timeout_s=PATIENT_S), EtcdStore([server.address], timeout_s=PATIENT_S)

    def lose_replies(on: bool) -> None:
        if on:
            proxy.cut(direction="from_target")
        else:
            proxy.reset()
            proxy.heal()

    async def restart() -> None:
        await server.stop()
        await server.start()

    async def save() -> None:
        await server.store.snapshot(folder / "copy")

    async def restore() -> None:
        await server.stop()
        _back_from(folder / "copy", folder / "store.db")
        await server.start()

    harness = Harness(store, second, cut_connections=proxy.reset, lose_replies=lose_replies, restart=restart)
    harness.save, harness.restore, harness.keeps_leases = save, restore, False
    yield harness
    await store.close()
    await second.close()
    await proxy.close()
    await server.stop()


_cluster: list[EtcdCluster] = []


async def etcd_cluster() -> EtcdCluster:
    """One etcd for all tests of this process."""
    from qsg.process.etcd import EtcdCluster, EtcdOptions

    if not _cluster:
        cluster = EtcdCluster(Path(tempfile.mkdtemp(prefix="qsg-etcd-")), options=EtcdOptions(fsync=False))
        atexit.register(cluster.destroy)
        await cluster.start()
        _cluster.append(cluster)
    await _cluster[0].restart_dead()
    return _cluster[0]


@asynccontextmanager
async def etcd(folder: Path) -> AsyncIterator[Harness]:
    from qsg.process.proxy import Proxy
    from qsg.store.etcd import EtcdStore

    cluster = await etcd_cluster()
    proxy = await Proxy.start("127.0.0.1:0", cluster.endpoints)
    store, second = EtcdStore([proxy.address], timeout_s=PATIENT_S), EtcdStore(cluster.endpoints, timeout_s=PATIENT_S)
    await second.txn([], [Delete(b"\0", b"\0")], timeout_s=5)
    try:
        await second.compact((await second.status()).revision)
    except Compacted:
        pass  # nothing was written since the last test

    def lose_replies(on: bool) -> None:
        if on:
            proxy.cut(direction="from_target")
        else:
            proxy.reset()
            proxy.heal()

    async def restart() -> None:
        cluster.kill(0)
        await cluster.restart(0)

    yield Harness(store, second, cut_connections=proxy.reset, lose_replies=lose_replies, restart=restart)
    await store.close()
    await second.close()
    await proxy.close()


@asynccontextmanager
async def etcd_alone(folder: Path) -> AsyncIterator[Harness]:
    """An etcd of its own: restored by etcd's tool, it is another cluster than before."""
    from qsg.store.etcd import EtcdStore
    from support.etcd import restored_from, running

    async with running(folder / "etcd") as cluster:
        store, second = (EtcdStore(cluster.endpoints, timeout_s=PATIENT_S) for _ in range(2))

        async def save() -> None:
            with (folder / "copy").open("wb") as file:
                async for chunk in store.snapshot():
                    file.write(chunk)

        async def restore() -> None:
            restored_from(folder / "copy", cluster)
            await cluster.restart(0)

        yield Harness(store, second, save=save, restore=restore)
        await store.close()
        await second.close()


STORES: dict[str, Factory] = {"memory": memory, "sqlite": sqlite, "serve": serve, "etcd": etcd}
CUTTABLE = ("memory", "serve", "etcd")
"""Those with `cut_connections` and `lose_replies`."""
RESTARTABLE = ("sqlite", "serve", "etcd")
"""Those with `restart`."""
RESTORABLE: dict[str, Factory] = STORES | {"etcd": etcd_alone}
"""All, with `save` and `restore`."""
