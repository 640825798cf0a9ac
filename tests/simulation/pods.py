"""A pod: one queue manager process and one initiator process of a simulated host, started again whenever they end, as a kubelet does.

Runs the product's own code of both processes (`qsg.process.queue_manager.incarnations`, `Initiator`). Invariant: of each at most one
lives; a killed one writes nothing more, what it had sent off may still arrive. Does not decide what is killed when.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from random import Random
from typing import TYPE_CHECKING

from qsg.initiator import Initiator
from qsg.manager.manager import Options, QueueManager
from qsg.process.queue_manager import Doors, incarnations
from qsg.rules.definitions import Definitions
from qsg.rules.world import World
from qsg.store.memory import MemoryStore
from qsg.transport.contract import Listener, Stream
from simulation.aimed import AimedStore
from simulation.disk import DiskServer
from simulation.loop import KERNEL, Process

if TYPE_CHECKING:
    from simulation.landscape import Landscape

LOCAL = "qsg.v1.Initiator"
LEFT_S = 0.2


class Pod:
    def __init__(self, land: Landscape, name: str, group: str, definitions: Definitions) -> None:
        self.land, self.name, self.group, self.definitions = land, name, group, definitions
        self.disk = DiskServer(Random(f"{land.seed} disk {name}"))
        self.manager_process: Process | None = None
        self.initiator_process: Process | None = None
        self.manager: QueueManager | None = None
        self.stores: dict[str, MemoryStore] = {}
        self.initiator: Initiator | None = None
        self.highest: dict[str, int] = {}
        """Of each structure, as kept in a file."""
        self.cut_off: set[str] = set()
        """Structures that are out of reach."""
        self.clock = (0.0, 1.0)
        """(milliseconds ahead, rate) of the host's wall clock."""
        self.unsynced = 0
        """Commits that crashes took."""
        self.number = ""
        """Random id of the queue manager's newest process."""
        self.down = False
        """Nothing is started until this ends."""
        self._stop = asyncio.Event()
        self._starts = {"qm": 0, "ci": 0}

    @property
    def group_listener(self) -> str:
        return f"{self.name}:1415" if self.group else ""

    # Starting

    def start(self) -> None:
        self.down = False
        self.start_manager()
        self.start_initiator()

    def _process(self, kind: str) -> tuple[Process, World]:
        self._starts[kind] += 1
        process = Process(self.land.loop, f"{self.name}-{kind}")
        process.clock_ms, process.clock_rate = self.clock
        return process, World(process.wall_ms, Random(f"{self.land.seed} {self.name} {kind} {self._starts[kind]}"))

    def start_manager(self) -> None:
        if self.down or self.manager_process is not None:
            return
        process, world = self._process("qm")
        self.manager_process = process
        self._stop = asyncio.Event()
        self.stores = {"private": self.disk.open()}
        if self.group:
            self.stores |= {name: AimedStore(server, self.land.faults(self.name, name)) for name, server in self.land.structures.items()}
        for structure in sorted(self.cut_off):
            self.stores[structure].cut()
        process.spawn(self._run_manager(process, world, self.stores, self._stop), f"queue manager {self.name}")

    async def _run_manager(self, process: Process, world: World, stores: dict[str, MemoryStore], stop: asyncio.Event) -> None:
        transport = self.land.network.transport(f"{self.name}-qm")
        number = self.number = world.id().hex()

        async def listen(handler: Callable[[Stream], Awaitable[None]]) -> Listener:
            return await transport.listen(f"{self.name}-qm:1", {LOCAL: handler})

        def make(again: bool) -> QueueManager:
            options = Options(
                member=self.name,
                group=self.group,
                address=f"{self.name}-qm:1416",
                group_listener=self.group_listener,
                local_listener=f"{self.name}:1414",
                process=number,
                again=again,
                definitions=self.definitions,
                highest=dict(self.highest),
            )
            self.manager = QueueManager(options, world, stores, transport, listen, kill=self._kill_initiator, on_revision=self._note)
            return self.manager

        try:
            status = await incarnations(make, stores["admin" if self.group else "private"], Doors(stop), asyncio.Event())
        except SystemExit as exit_:
            status = exit_.code if isinstance(exit_.code, int) else 1
        self.land.trace(process.name, f"exits with {status}")
        for store in stores.values():
            await store.close()
        await asyncio.sleep(LEFT_S)
        left = [task for task in process.tasks() if task is not asyncio.current_task()]
        if left:
            self.land.violation(f"{process.name} has ended and left {len(left)} tasks: {left[0].get_coro()}")
        if self.manager_process is process:
            self._ended("manager", process)

    def _note(self, structure: str, revision: int) -> None:
        self.highest[structure] = max(revision, self.highest.get(structure, 0))

    def start_initiator(self) -> None:
        if self.down or self.initiator_process is not None:
            return
        process, world = self._process("ci")
        self.initiator_process = process
        process.spawn(self._run_initiator(process, world), f"initiator {self.name}")

    async def _run_initiator(self, process: Process, world: World) -> None:
        transport = self.land.network.transport(self.name)
        self.initiator = Initiator(
            world,
            transport,
            lambda: transport.connect(f"{self.name}-qm:1", LOCAL),
            member=self.name,
            group_listener=self.group_listener,
            local_listener=f"{self.name}:1414",
            pid=self._starts["ci"],
        )
        await self.initiator.start()
        await self.initiator.run()

    # Ending

    def _kill_initiator(self, pid: int) -> None:
        if pid == self._starts["ci"] and self.initiator_process is not None:
            self.land.trace(self.name, "queue manager kills its initiator")
            self.kill("initiator", 0.3)

    def kill(self, which: str, restart_s: float | None, *, silent: bool = False) -> None:
        """SIGKILL of "manager" or "initiator"; `silent`: nobody hears of it (power). Started again after `restart_s`, None: by `start`."""
        process = self.manager_process if which == "manager" else self.initiator_process
        if process is None:
            return
        if which == "manager":
            for store in self.stores.values():
                store.abandon()
            self.unsynced += self.disk.crash()
            self.land.observer.crashed(f"private {self.name}", self.disk)
        host = f"{self.name}-qm" if which == "manager" else self.name
        if silent:
            self.land.network.lose(host)
        else:
            self.land.network.kill(host)
        process.kill()
        self._ended(which, process, restart_s)

    def _ended(self, which: str, process: Process, restart_s: float | None = 1.0) -> None:
        if which == "manager":
            self.manager_process = self.manager = None
        else:
            self.initiator_process = self.initiator = None
        if restart_s is not None:
            again = self.start_manager if which == "manager" else self.start_initiator
            self.land.loop.call_later(restart_s, again, context=KERNEL)

    def kill_both(self, *, silent: bool = False) -> None:
        """Nothing is started again before `start`."""
        self.down = True
        self.kill("initiator", None, silent=silent)
        self.kill("manager", None, silent=silent)

    def stop(self) -> asyncio.Event:
        """SIGTERM of the queue manager: channels are handed over, then it ends. It is started again when it has ended, unless `down`."""
        self._stop.set()
        return self._stop

    @property
    def is_stopping(self) -> bool:
        """A planned stop of the queue manager was asked for."""
        return self._stop.is_set()

    def processes(self, which: str) -> list[Process]:
        found = {"manager": [self.manager_process], "initiator": [self.initiator_process]}
        return [p for p in found.get(which, [self.manager_process, self.initiator_process]) if p is not None]
