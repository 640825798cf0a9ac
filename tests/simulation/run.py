"""Runs one seed: load under faults, then faults end, everything drains and is counted."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from random import Random
from typing import Any

import qsg
from qsg.rules.world import World
from simulation.apps import App, bridge, burst, consume, dead_letters, poach, produce
from simulation.copies import Copies
from simulation.faults import Faults
from simulation.landscape import SENDERS, Channels, Landscape
from simulation.loop import KERNEL, Process, SimLoop
from simulation.plan import END_S, FLOWS, LOAD_S, PUT, Event, Plan, moments
from simulation.tally import Counts
from simulation.tempo import HEARTBEAT_MS, tempo
from support.calls import Calls
from support.whole import DLQ

QUIET_S = LOAD_S + 14
"""From then on nothing happens any more: a drain that began last has had its ten seconds, and who was stopped is back."""
QUIET_LEAST_S = 5.0
DRAIN_S = 60.0
"""Within so long after the faults everything has arrived."""
LATE_S = 10.0
COMMANDS = frozenset({"stop", "start", "reset", "resolve"})
Trace = Callable[[float, str, str], None]


@dataclass
class Result:
    plan: Plan
    violations: list[str] = field(default_factory=list)
    counts: Counts = field(default_factory=Counts)
    events: Counter[str] = field(default_factory=Counter)
    done: Counter[str] = field(default_factory=Counter)
    """Of the commands among them, those that were told as done and not refused."""
    simulated_s: float = 0.0
    steps: int = 0
    drained_s: float = 0.0
    """How long after the end of the faults the last message came."""


def run(plan: Plan, events: Sequence[Event] | None = None, trace: Trace | None = None, *, hasty: bool = False) -> Result:
    """Plays a plan, or only some of its events. The same plan and events are the same history. `hasty`: until something is violated."""
    collecting = gc.isenabled()
    gc.disable()  # what the collector finalises, and when, is not part of the history
    loop = SimLoop(f"order {plan.seed}")

    def tell(where: str, what: str) -> None:
        if trace is not None:
            trace(loop.time(), where, what)

    land = Landscape(loop, str(plan.seed), plan.structures, tell, Channels(HEARTBEAT_MS[plan.calm], plan.batch, plan.idle_s))
    asyncio.set_event_loop(loop)
    land.tracing = trace is not None
    result = Result(plan)
    calls, copies = Calls(lambda: loop.steps), Copies()
    try:
        story = Story(land, plan, plan.events if events is None else events, copies)
        if hasty:
            land.on_violation = story.cut_short
        try:
            with tempo(calm=plan.calm), calls.recording(), copies.recording():
                loop.run_until_complete(story.run())
        except RuntimeError as error:
            land.violation(f"the simulation cannot go on: {error}")
        result.drained_s = story.drained_s
    finally:
        asyncio.set_event_loop(None)
        loop.close()
        if collecting:
            gc.enable()
    result.violations = [*land.violations, *calls.problems()]
    result.counts, result.events, result.done = land.tally.counts(), land.counted, land.done
    result.simulated_s, result.steps = loop.time(), loop.steps
    return result


class Story:
    def __init__(self, land: Landscape, plan: Plan, events: Sequence[Event], copies: Copies) -> None:
        self.land, self.plan, self.events, self.copies = land, plan, events, copies
        self.faults = Faults(land)
        self.drained_s = 0.0
        self.commands_out = 0
        self.operator = Process(land.loop, "app-operator")
        self.world = World(self.operator.wall_ms, Random(f"{land.seed} operator"))
        self._playing: asyncio.Task[None] | None = None

    async def run(self) -> None:
        playing = self._playing = asyncio.get_running_loop().create_task(self._play(), name="play")
        await asyncio.wait([playing])
        if not playing.cancelled():
            playing.result()
        await self._end()

    def cut_short(self) -> None:
        if self._playing is not None:
            self.land.loop.call_soon(self._playing.cancel, context=KERNEL)

    async def _play(self) -> None:
        land = self.land
        for pod in land.pods.values():
            pod.start()
        await asyncio.sleep(1.0)
        self._start_apps()
        for event in self.events:
            await asyncio.sleep(max(0.0, event.at - land.loop.time()))
            if event.kind == PUT:
                self._burst(event)
            elif event.kind in COMMANDS:
                land.trace("COMMAND", str(event)[8:])
                land.count(event.kind)
                self.operator.spawn(self._command(event), str(event))
            else:
                self.faults.do(event)
        await asyncio.sleep(max(0.0, LOAD_S - land.loop.time()))
        self.faults.mend()
        land.trace("FAULTS", "end")
        await self._drain()
        self._count()
        self.land.observer.check_drained()
        self._check_errors()

    def _burst(self, event: Event) -> None:
        flow = next(flow for flow in FLOWS if flow.name == event.detail)
        for app in self.land.apps:
            if app.name == f"app-{flow.source}":
                burst(app, flow)

    async def _end(self) -> None:
        """Everything is killed, so that nothing is left to the garbage collector."""
        processes = [p for pod in self.land.pods.values() for p in pod.processes("both")] + [
            app.process for app in self.land.apps if app.process
        ]
        for pod in self.land.pods.values():
            pod.kill_both()
        for app in self.land.apps:
            app.kill(None)
        self.operator.kill()
        while not all(p.gone for p in (*processes, self.operator)):  # noqa: ASYNC110
            await asyncio.sleep(0.05)

    def _start_apps(self) -> None:
        flows = self.plan.flows
        for flow in flows:
            if not flow.ordered:
                self.land.tally.unordered.add(flow.name)
        for place in ("G", "R", "S"):
            jobs = [produce(f, moments(self.plan, f)) for f in flows if f.source == place]
            self.land.apps.append(App(self.land, f"app-{place}", place, [*jobs, consume(f"IN.{place}"), dead_letters(DLQ)], producer=True))
        if any(f.queue in ("WORK", "TO.BRIDGE") for f in flows):
            self.land.apps.append(App(self.land, "app-2", "G", [consume("WORK"), bridge("BRIDGE", "TO.S")], producer=False))
            self.land.apps.append(App(self.land, "app-3", "G", [consume("WORK")], producer=False))
        if self.plan.poacher:
            self.land.apps.append(App(self.land, "app-4", "G", [poach("R"), poach("S")], producer=False))
        for app in self.land.apps:
            app.start()

    async def _command(self, event: Event) -> None:
        self.commands_out += 1
        try:
            await self._carry_out(event)
        finally:
            self.commands_out -= 1

    async def _carry_out(self, event: Event) -> None:
        place = SENDERS[event.where]
        arguments: dict[str, object] = {"channel": event.where}
        if event.kind == "stop":
            arguments["mode"], arguments["status"] = event.detail.split()
            arguments["wait_s"] = 1
        elif event.kind == "start":
            arguments["wait_s"] = 0
        elif event.kind == "resolve":
            arguments["action"] = event.detail
            if event.detail == "commit":
                arguments["record"] = await self._record(event.where)
        leaves = event.kind == "start" or event.detail.endswith(" inactive")
        try:
            with self._released(event.where) if leaves else nullcontext():
                answer = str(await self._ask(place, event.kind, arguments))
            self.land.done[event.kind] += 1
        except qsg.QsgError as error:
            answer = repr(error)
        self.land.trace("COMMAND", f"{event.kind} {event.where}: {answer}")

    @contextmanager
    def _released(self, channel: str) -> Iterator[None]:
        """A command that is not answered may be carried out yet."""
        land, late_s = self.land, LATE_S
        land.releasing[channel] += 1
        try:
            yield
            late_s = 0.0
        finally:
            land.releasing[channel] -= 1
            land.released[channel] = max(land.released.get(channel, 0.0), land.loop.time() + late_s)

    async def _record(self, channel: str) -> str:
        """What the receiving side's status shows."""
        try:
            found = await self._ask("G" if channel.endswith("G") else channel[-1], "status", {"channel": channel})
        except qsg.QsgError:
            return ""
        return str(found["channels"][0].get("record", ""))

    async def _ask(self, place: str, name: str, arguments: dict[str, object]) -> Any:
        addresses = [f"{m}-qm:1416" for m in ("XYZ" if place == "G" else place)]
        transport = self.land.network.transport("app-operator")
        async with qsg.connect(addresses, transport=transport, world=self.world, connect_s=5, reconnect_s=5) as connection:
            return await connection.command(name, **arguments)

    # The end

    async def _drain(self) -> None:
        land = self.land
        for channel in SENDERS:
            self.operator.spawn(self._start(channel), f"start {channel}")
        until = LOAD_S + DRAIN_S
        while land.loop.time() < until and (land.tally.missing or not self._producers_done()):  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        self.drained_s = land.loop.time() - LOAD_S
        if not self._producers_done():
            land.violation(f"an application still waits for its puts {DRAIN_S:.0f} s after the faults")
        await asyncio.sleep(max(3.0, QUIET_S - land.loop.time()))
        for problem in await self.copies.problems():
            land.violation(problem)
        await self._quiet()

    async def _quiet(self) -> None:
        """Nothing fails: nothing is taken over, not even when a wall clock is set."""
        land = self.land
        before = land.observer.standing()
        for event in self.plan.quiet:
            await asyncio.sleep(max(0.0, event.at - land.loop.time()))
            self.faults.do(event)
        await asyncio.sleep(max(QUIET_LEAST_S, END_S - land.loop.time()))
        after = land.observer.standing()
        for what in sorted({*before, *after}):
            ended = self.plan.idle_s and what not in after  # a channel with nothing to send
            if before.get(what) != after.get(what) and not ended:
                land.violation(f"{what} went from {before.get(what)} to {after.get(what)} while nothing failed")

    def _producers_done(self) -> bool:
        return not any(app.producing for app in self.land.apps)

    async def _start(self, channel: str) -> None:
        """Until it is told that the channel runs, or was not stopped. A stop that was asked for before may still be on its way."""
        while self.commands_out:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        while True:
            try:
                with self._released(channel):
                    await self._ask(SENDERS[channel], "start", {"channel": channel, "wait_s": 1})
                return
            except qsg.QsgError as error:
                self.land.trace("COMMAND", f"start {channel}: {error!r}")
                if error.reason == qsg.Reason.CHANNEL_ALREADY_RUNNING:
                    return
            await asyncio.sleep(1.0)

    def _count(self) -> None:
        tally = self.land.tally
        counts = tally.counts()
        for name in ("lost", "duplicated", "unexpected", "out_of_order"):
            if getattr(counts, name):
                self.land.violation(f"{getattr(counts, name)} {name.replace('_', ' ')}")
        for sent in tally.missing[:5]:
            self.land.violation(f"lost: {sent}")
        for before, after in tally.out_of_order()[:5]:
            self.land.violation(f"out of order: {before} before {after}")
        for sent in [s for s in tally.messages.values() if s.arrived > 1 or (s.arrived and s.state == "refused")][:5]:
            self.land.violation(f"twice or unexpected: {sent}")

    def _check_errors(self) -> None:
        for process, what in self.land.loop.errors:
            self.land.violation(f"unhandled in {process.name}: {what}")
