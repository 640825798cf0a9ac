"""Applications: producers, consumers with units of work, a bridge. Each runs in a process of its own and keeps the tally.

They use the client library as an application should: idempotent puts under a producer name, gets in units of work, calls that were told
*backed out* or *refused* are given up or done anew. Invariant: what the library answered is what is written down.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import TYPE_CHECKING

import qsg
from qsg.rules.world import World
from simulation.loop import KERNEL, Process
from simulation.tally import Sent

if TYPE_CHECKING:
    from simulation.landscape import Landscape

RECONNECT_S = 20.0
PAUSE_S = 0.5
WAIT_MS = 5000
LETTERS_S = 6.0
AT_ONCE = 6
"""So many messages are put without waiting for each other."""
BURST = 4
THINKS_SHARE, THINKS_S = 0.2, 2.0
"""How often, and for how long at most, who has got messages in a unit of work takes to commit it."""


@dataclass(frozen=True, slots=True)
class Flow:
    """Messages put on `queue` at `source` ("G", "R" or "S")."""

    name: str
    source: str
    queue: str
    kind: str = "plain"
    """plain: puts one by one or a few in a row, or many at once; unit: several in a unit of work; expiring; large"""
    ordered: bool = True
    every_s: float = 3.0


class App:
    """One process with one connection to `place` ("G", "R" or "S"), which runs jobs until it is killed."""

    def __init__(self, land: Landscape, name: str, place: str, jobs: list[Callable[[App], Awaitable[None]]], *, producer: bool) -> None:
        self.land, self.name, self.place, self.jobs = land, name, place, jobs
        self.chance = Random(f"{land.seed} {name}")
        self.queue_manager: qsg.QueueManager
        self.producing: set[str] = set()
        """Flows that are not done yet."""
        self._producer = f"P.{name}" if producer else ""
        self.process: Process | None = None
        self._starts = 0

    def start(self) -> None:
        if self.process is None:
            self._starts += 1
            self.process = process = Process(self.land.loop, self.name)
            self.process.spawn(self._run(process), self.name)

    def kill(self, restart_s: float | None) -> None:
        process, self.process = self.process, None
        if process is not None:
            self.land.network.kill(self.name)
            process.kill()
            if restart_s is not None:
                self.land.loop.call_later(restart_s, self.start, context=KERNEL)

    async def _run(self, process: Process) -> None:
        addresses = [f"{m}-qm:1416" for m in ("XYZ" if self.place == "G" else self.place)]
        world = World(process.wall_ms, Random(f"{self.land.seed} {self.name} {self._starts}"))
        while True:
            connection = qsg.connect(
                addresses,
                producer=self._producer,
                application=self.name,
                reconnect_s=RECONNECT_S,
                transport=self.land.network.transport(self.name),
                world=world,
            )
            try:
                await connection.open()
                break
            except qsg.QsgError as error:
                self.told("connect", error)
                await asyncio.sleep(PAUSE_S)
        self.queue_manager = connection
        await asyncio.gather(*(job(self) for job in self.jobs))
        await connection.close()

    def told(self, what: str, error: Exception) -> None:
        self.land.trace(self.name, f"{what}: {error!r}")


def produce(flow: Flow, moments: Sequence[float]) -> Callable[[App], Awaitable[None]]:
    """Puts one or a few messages at each of these moments, or as soon as what was put before is done."""

    async def job(app: App) -> None:
        loop = app.land.loop
        app.producing.add(flow.name)
        for at in [at for at in moments if at >= loop.time()]:
            await asyncio.sleep(max(0.0, at - loop.time()))
            count = app.chance.choice((1, 1, 1, 2, 6))
            messages = [_drawn(app, flow) for _ in range(count)]
            await (_put_in_unit if flow.kind == "unit" else _put)(app, flow, messages)
        app.producing.discard(flow.name)

    return job


def burst(app: App, flow: Flow) -> None:
    """Puts some messages now, beside what else the application does, as a flow of their own; nothing if it is down."""
    if app.process is not None and hasattr(app, "queue_manager"):
        app.process.spawn(_burst(app, replace(flow, name=f"{flow.name}-burst")), f"burst of {flow.name}")


async def _burst(app: App, flow: Flow) -> None:
    await _put_all(app, flow, [_drawn(app, flow) for _ in range(BURST)])


def _drawn(app: App, flow: Flow) -> tuple[Sent, bytes]:
    size = app.chance.choice((300_000, 700_000)) if flow.kind == "large" else app.chance.choice((10, 100, 100, 1000, 6000))
    return app.land.tally.send(flow.name, app.chance.choice((0, 0, 5)), size, expires=flow.kind == "expiring")


async def _put(app: App, flow: Flow, messages: list[tuple[Sent, bytes]]) -> None:
    """One by one; many at once."""
    if len(messages) >= AT_ONCE:
        await _put_all(app, flow, messages)
        return
    for sent, body in messages:
        await _put_one(app, flow, sent, body)


async def _put_all(app: App, flow: Flow, messages: list[tuple[Sent, bytes]]) -> None:
    await asyncio.gather(*(_put_one(app, flow, sent, body) for sent, body in messages))


async def _put_one(app: App, flow: Flow, sent: Sent, body: bytes) -> None:
    expiry_ms = 3000 if flow.kind == "expiring" else 0
    try:
        message_id = await app.queue_manager.put(flow.queue, body, priority=sent.priority, expiry_ms=expiry_ms)
    except qsg.OutcomeUnknown as error:
        app.told(f"put {sent.flow} {sent.number}", error)
    except qsg.QsgError as error:
        sent.state = "refused"
        app.told(f"put {sent.flow} {sent.number}", error)
        await asyncio.sleep(PAUSE_S)
    else:
        sent.state = "acknowledged"
        app.land.tally.ids[message_id] = sent


async def _put_in_unit(app: App, flow: Flow, messages: list[tuple[Sent, bytes]]) -> None:
    state = "acknowledged"
    try:
        async with app.queue_manager.unit() as unit:
            for sent, body in messages:
                app.land.tally.ids[await unit.put(flow.queue, body, priority=sent.priority)] = sent
            if app.chance.random() < 0.1:
                state = "refused"
                await unit.backout()
    except qsg.OutcomeUnknown as error:
        app.told(f"unit of {flow.name}", error)
        return
    except qsg.QsgError as error:
        app.told(f"unit of {flow.name}", error)
        state = "refused"
    for sent, _ in messages:
        sent.state = state


def consume(queue: str) -> Callable[[App], Awaitable[None]]:
    async def job(app: App) -> None:
        while True:
            try:
                await _consume_one(app, queue)
            except qsg.NoMessageAvailable:
                continue
            except qsg.QsgError as error:
                app.told(f"get {queue}", error)
                await asyncio.sleep(PAUSE_S)

    return job


async def _consume_one(app: App, queue: str, *, wait_ms: int = WAIT_MS) -> None:
    tally = app.land.tally
    unit = app.queue_manager.unit()
    try:
        got = await unit.get_many(queue, app.chance.choice((1, 3, 10)), wait_ms=wait_ms)
        if app.chance.random() < 0.1:
            return
        if app.chance.random() < THINKS_SHARE:
            await asyncio.sleep(app.chance.uniform(0.0, THINKS_S))
        bodies = [message.payload for message in got]
        tally.committing(bodies)
        try:
            await unit.commit()
        except qsg.OutcomeUnknown:
            raise
        except qsg.QsgError:
            tally.backed_out(bodies)
            raise
        tally.arrived(bodies)
    finally:
        await unit.backout()


def poach(queue: str) -> Callable[[App], Awaitable[None]]:
    """Gets from a transmission queue, which is refused while a channel has it open."""

    async def job(app: App) -> None:
        while True:
            await asyncio.sleep(app.chance.uniform(0.1, 1.2))
            try:
                await _consume_one(app, queue, wait_ms=0)
            except qsg.NoMessageAvailable:
                continue
            except qsg.QsgError as error:
                app.told(f"get {queue}", error)

    return job


def dead_letters(queue: str) -> Callable[[App], Awaitable[None]]:
    """Looks at a dead-letter queue now and then."""

    async def job(app: App) -> None:
        while True:
            await asyncio.sleep(LETTERS_S)
            try:
                async with app.queue_manager.unit() as unit:
                    bodies = [message.payload for message in await unit.get_many(queue, 50)]
                    app.land.tally.committing(bodies)
                    await unit.commit()
                app.land.tally.arrived(bodies, dead_letters=True)
            except qsg.NoMessageAvailable:
                continue
            except qsg.QsgError as error:
                app.told(f"get {queue}", error)

    return job


def bridge(source: str, target: str) -> Callable[[App], Awaitable[None]]:
    """Takes messages from one queue to another in units of work."""

    async def job(app: App) -> None:
        while True:
            try:
                async with app.queue_manager.unit() as unit:
                    for message in await unit.get_many(source, app.chance.choice((1, 4)), wait_ms=WAIT_MS):
                        await unit.put(target, message.payload, priority=message.priority, message_id=message.message_id)
                    if app.chance.random() < 0.1:
                        await unit.backout()
            except qsg.NoMessageAvailable:
                continue
            except qsg.QsgError as error:
                app.told(f"bridge {source}", error)
                await asyncio.sleep(PAUSE_S)

    return job
