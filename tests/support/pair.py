"""Queue manager's link and channel initiator of a member in memory, joined over a memory network: what tests of channels stand on."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from qsg.initiator import Initiator
from qsg.manager.link import InitiatorLink
from qsg.manager.structure import Structure
from qsg.rules.world import World
from qsg.transport.memory import MemoryListener, MemoryNetwork

LOCAL = "qsg.v1.Initiator"


@dataclass
class Pair:
    """Member `name`: the initiator runs on host `name`, its queue manager on host `name-qm`."""

    name: str
    network: MemoryNetwork
    world: World
    link: InitiatorLink
    initiator: Initiator
    listener: MemoryListener
    runner: asyncio.Task[None]
    lost: list[tuple[int, str]] = field(default_factory=list)
    killed: list[int] = field(default_factory=list)

    async def stop_initiator(self) -> None:
        """The initiator's process is gone."""
        self.network.kill(self.name)
        self.runner.cancel()
        await asyncio.gather(self.runner, return_exceptions=True)
        await self.initiator.close()

    async def start_initiator(self) -> None:
        self.initiator = make_initiator(self.name, self.network, self.world)
        await self.initiator.start()
        self.runner = asyncio.create_task(self.initiator.run())
        await self.initiator.joined.wait()

    async def close(self) -> None:
        self.runner.cancel()
        await asyncio.gather(self.runner, return_exceptions=True)
        await self.initiator.close()
        await self.link.close()
        await self.listener.close()


def make_initiator(name: str, network: MemoryNetwork, world: World) -> Initiator:
    transport = network.transport(name)

    async def connect() -> object:
        return await transport.connect(f"{name}-qm:1", LOCAL)

    return Initiator(
        world,
        transport,
        connect,  # type: ignore[arg-type]
        member=name,
        group_listener=f"{name}:1415",
        local_listener=f"{name}:1414",
        aliases={"r.example:1414": "R:1414"},
        pid=4711,
    )


async def pair(name: str, network: MemoryNetwork, structure: Structure, world: World, *, group: str = "") -> Pair:
    killed: list[int] = []
    lost: list[tuple[int, str]] = []
    link = InitiatorLink(structure, group=group, kill=killed.append)
    link.on_lost = lambda initiator, cause: lost.append((initiator, cause))
    listener = await network.transport(f"{name}-qm").listen(f"{name}-qm:1", {LOCAL: link.serve})
    initiator = make_initiator(name, network, world)
    await initiator.start()
    runner = asyncio.create_task(initiator.run())
    made = Pair(name, network, world, link, initiator, listener, runner, lost, killed)
    await asyncio.wait_for(initiator.joined.wait(), 5)
    return made
