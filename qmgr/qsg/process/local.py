"""A queue-sharing group X, Y, Z and a remote queue manager R as real processes on this machine.

Used by `qsg up`, `qsg demo`, the benchmarks and the tests of real processes. Every member reaches R through a proxy of its own, and R
reaches the group through one portal proxy (standing in for the Kubernetes Service), so that single network paths can be cut. With
`isolable` so it is with all paths of a member: to the store, to and from each peer and the applications. Where nothing is to be cut
(`cuttable` False) members reach R directly, as they do elsewhere: a proxy costs CPU time, and time, for each frame.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import structlog
import yaml

from qsg.process.children import free_ports
from qsg.process.config import ADMIN
from qsg.process.etcd_cluster import EtcdCluster, EtcdOptions
from qsg.process.roads import APPLICATIONS, STORE, Roads
from qsg.process.supervise import Supervisor

log = structlog.get_logger()

GROUP = "QSG1"
REMOTE = "R"
MEMBERS = ("X", "Y", "Z")
OUT_CHANNEL = "QSG.TO.R"
IN_CHANNEL = "R.TO.QSG"
DEAD_LETTER_QUEUE = "SYSTEM.DEAD.LETTER.QUEUE"

GROUP_DEFINITIONS = {
    "settings": {"dead_letter_queue": DEAD_LETTER_QUEUE},
    "queues": [
        {"name": DEAD_LETTER_QUEUE, "structure": ADMIN},
        {"name": REMOTE, "structure": ADMIN, "usage": "transmission"},
        {"name": "TO.R", "type": "remote", "remote_queue": "FROM.QSG", "remote_queue_manager": REMOTE, "transmission_queue": REMOTE},
        {"name": "FROM.R", "structure": ADMIN},
        {"name": "SHARED", "structure": ADMIN},
    ],
    "channels": [
        {"name": OUT_CHANNEL, "type": "sender", "transmission_queue": REMOTE, "connection_names": ["r:1414"], "partner": REMOTE},
        {"name": IN_CHANNEL, "type": "receiver"},
    ],
}
REMOTE_DEFINITIONS = {
    "settings": {"dead_letter_queue": DEAD_LETTER_QUEUE},
    "queues": [
        {"name": DEAD_LETTER_QUEUE},
        {"name": GROUP, "usage": "transmission"},
        {"name": "TO.QSG", "type": "remote", "remote_queue": "FROM.R", "remote_queue_manager": GROUP, "transmission_queue": GROUP},
        {"name": "FROM.QSG"},
    ],
    "channels": [
        {"name": OUT_CHANNEL, "type": "receiver"},
        {"name": IN_CHANNEL, "type": "sender", "transmission_queue": GROUP, "connection_names": ["qsg:1415"], "partner": GROUP},
    ],
}


class LocalGroup:
    """Starts and stops the processes, and hurts them on request. `store`: "embedded", "etcd" or "etcd://host:port,host:port"."""

    def __init__(
        self,
        directory: Path,
        *,
        store: str = "embedded",
        members: Sequence[str] = MEMBERS,
        etcd_members: int = 3,
        etcd_options: EtcdOptions | None = None,
        isolable: bool = False,
        cuttable: bool = True,
    ) -> None:
        self.directory = directory
        self.store = store
        self.members = tuple(members)
        self.etcd_members = etcd_members
        self.etcd_options = etcd_options
        self.isolable = isolable
        self.cuttable = cuttable or isolable
        self.supervisor = Supervisor(directory / "log")
        self.etcd: EtcdCluster | None = None
        self.addresses: dict[str, str] = {}
        """Client API of each queue manager."""
        self.roads = Roads()

    async def start(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        endpoints = await self._start_store()
        names = (*self.members, REMOTE)
        ports = iter(free_ports(4 * len(names) + 1))
        place = {n: {k: f"127.0.0.1:{next(ports)}" for k in ("address", "group", "local", "proxy")} for n in names}
        portal = {m: place[m]["group"] for m in self.members}
        portal_address = await self.roads.open_portal(REMOTE, portal, listen=f"127.0.0.1:{next(ports)}")
        for m in self.members if self.cuttable else ():
            await self.roads.open(m, REMOTE, place[REMOTE]["local"], listen=place[m]["proxy"])
        for n in names:
            aliases = {"r:1414": place[n]["proxy"] if self.cuttable else place[REMOTE]["local"], "qsg:1415": portal_address}
            self.addresses[n] = place[n]["address"]
            reached = endpoints
            if self.isolable and n != REMOTE:
                place[n]["advertise"] = _host(n)
                reached = [await self.roads.open(n, STORE, endpoint) for endpoint in endpoints]
                for peer in self.members:
                    if peer != n:
                        aliases[_host(peer)] = await self.roads.open(n, peer, place[peer]["address"])
                self.addresses[n] = await self.roads.open(APPLICATIONS, n, place[n]["address"])
            await self._start_member(n, self._config(n, place[n], reached, aliases))

    async def _start_store(self) -> list[str]:
        if self.store.startswith("etcd://"):
            return self.store.removeprefix("etcd://").split(",")
        if self.store == "etcd":
            self.etcd = EtcdCluster(self.directory / "etcd", members=self.etcd_members, options=self.etcd_options)
            await self.etcd.start()
            return list(self.etcd.endpoints)
        address = f"127.0.0.1:{free_ports(1)[0]}"
        await self.supervisor.start("store", [sys.executable, "-m", "qsg.store.serve", str(self.directory / "store.db"), address])
        return [address]

    def _config(self, name: str, place: dict[str, str], endpoints: list[str], aliases: dict[str, str]) -> Path:
        folder = self.directory / name
        folder.mkdir(exist_ok=True)
        outside = name == REMOTE
        definitions = folder / "definitions.yaml"
        definitions.write_text(yaml.safe_dump(REMOTE_DEFINITIONS if outside else GROUP_DEFINITIONS, sort_keys=False))
        config = {
            "member": name,
            "data": str(folder / "data"),
            "socket": str(folder / "socket"),
            "address": place["address"],
            "advertise": place.get("advertise", ""),
            "group_listener": place["group"],
            "local_listener": place["local"],
            "aliases": aliases,
            "definitions": str(definitions),
        }
        if not outside:
            config |= {"group": GROUP, "structures": {ADMIN: {"endpoints": endpoints}}}
        path = folder / "member.yaml"
        path.write_text(yaml.safe_dump(config, sort_keys=False))
        return path

    async def _start_member(self, name: str, config: Path) -> None:
        for process, command in ((name, "serve"), (self.initiator(name), "initiator")):
            await self.supervisor.start(process, [*self._entry(), command, str(config)], env=self._environment(process))

    def _entry(self) -> list[str]:
        """The program of both processes of a member."""
        return [sys.executable, "-m", "qsg.process.run"]

    def _environment(self, process: str) -> Mapping[str, str] | None:
        """Of one process; None: ours."""
        return None

    @staticmethod
    def initiator(member: str) -> str:
        return f"{member}.initiator"

    @property
    def group_addresses(self) -> str:
        return ",".join(self.addresses[m] for m in self.members)

    @property
    def remote_address(self) -> str:
        return self.addresses[REMOTE]

    def is_up(self, member: str) -> bool:
        """Both its processes run."""
        return {member, self.initiator(member)} <= self.named_pids().keys()

    def kill(self, member: str, what: str) -> None:
        """SIGKILL of "initiator", "queue-manager" or "member" (both); "pause" and "resume" are SIGSTOP and SIGCONT of both.

        "drain" is a planned stop: SIGTERM of the queue manager, which hands its channels over first.
        """
        if what == "drain":
            self.supervisor.signal(member, signal.SIGTERM)
            return
        self.signal(member, what, {"pause": signal.SIGSTOP, "resume": signal.SIGCONT}.get(what, signal.SIGKILL))

    def signal(self, member: str, what: str, number: signal.Signals) -> None:
        """To its "initiator", its "queue-manager", or, with any other word, both."""
        if what != "initiator":
            self.supervisor.signal(member, number)
        if what != "queue-manager":
            self.supervisor.signal(self.initiator(member), number)

    def cut(self, member: str) -> None:
        """Black-holes the paths between a member and R, connections left open."""
        assert self.cuttable, "started without proxies"
        self.roads.cut(*self.roads.between(member, [REMOTE]))

    def isolate(self, member: str) -> None:
        """Black-holes all paths of a member: to R, the store, its peers and the applications."""
        assert self.isolable, "started with paths that cannot be cut"
        self.roads.cut(*self.roads.between(member))

    def heal(self, member: str) -> None:
        self.roads.heal(*self.roads.between(member))

    async def kill_store(self) -> str:
        """SIGKILL of etcd's leader, or of the embedded store; it is started again. Returns whom."""
        if self.etcd is None:
            self.supervisor.signal("store", signal.SIGKILL)
            return "store"
        index = await self.etcd.leader()
        self.etcd.kill(index)
        return f"etcd{index}"

    async def revive_store(self) -> None:
        if self.etcd is not None:
            await self.etcd.restart_dead()

    async def stop(self) -> None:
        await self.supervisor.stop()
        await self.roads.close()
        if self.etcd is not None:
            await self.etcd.stop()

    def pids(self) -> list[int]:
        """All processes, the store's too."""
        etcd = [m.process.pid for m in self.etcd.members if m.process is not None and m.running] if self.etcd else []
        return [*self.named_pids().values(), *etcd]

    def member_pids(self) -> list[int]:
        """The members' queue managers."""
        pids = self.named_pids()
        return [pids[m] for m in self.members if m in pids]

    def named_pids(self) -> dict[str, int]:
        """Those of the members and of R, and of an embedded store."""
        children = (self.supervisor.child(name) for name in self.supervisor.names)
        return {child.name: child.process.pid for child in children if child.process is not None and child.running}

    def log_lines(self) -> list[str]:
        """All log lines of all processes (JSON, one a line)."""
        folder = self.directory / "log"
        return [line for path in sorted(folder.glob("*.log")) for line in path.read_text(errors="replace").splitlines()]


def _host(member: str) -> str:
    """Under which its peers know it; their aliases say how they reach it."""
    return f"{member.lower()}:1416"


def there(answer: dict[str, Any]) -> set[str]:
    """Members that are linked and have their initiators, as one of them answers an inquiry of the group."""
    return {m["member"] for m in answer["members"] if m["linked"] and m["initiator"]}


async def wait_until(condition: Callable[[], Awaitable[bool]], timeout_s: float, what: str) -> None:
    """Polls an async predicate; raises TimeoutError naming what was waited for."""
    loop = asyncio.get_running_loop()
    end = loop.time() + timeout_s
    while not await condition():
        if loop.time() > end:
            raise TimeoutError(f"{what}: not within {timeout_s} s")
        await asyncio.sleep(0.05)
