"""Does the events of a plan to a landscape, and mends everything at the end."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

from simulation.aimed import Aim
from simulation.landscape import MEMBERS, STORE_DELAY_S, Landscape
from simulation.loop import KERNEL, Process
from simulation.plan import HOSTS, Event
from simulation.pods import Pod

OWNER = "owner of "


class Faults:
    """Invariant: whatever an event breaks is undone when its time is over, and by `mend`."""

    def __init__(self, land: Landscape) -> None:
        self.land = land
        self._undo: dict[int, Callable[[], None]] = {}
        self._numbers = itertools.count()
        self._cuts: dict[tuple[str, str], int] = {}

    def do(self, event: Event) -> None:
        name = event.kind.replace(" ", "_")
        if event.where.startswith(OWNER):
            event = replace(event, where=self.land.observer.owner(event.where[len(OWNER) :]) or MEMBERS[0])
        if event.where and event.where == event.detail:  # a path from a host to itself: to the next one instead
            event = replace(event, detail=HOSTS[(HOSTS.index(event.where) + 1) % len(HOSTS)])
        self.land.trace("FAULT", str(event)[8:])
        self.land.count(event.kind)
        getattr(self, f"_{name}")(event)

    def mend(self) -> None:
        for number in list(self._undo):
            self._over(number)
        for pod in self.land.pods.values():
            if pod.down:
                pod.start()

    def _until_over(self, event: Event, undo: Callable[[], None]) -> None:
        number = next(self._numbers)
        self._undo[number] = undo
        self.land.loop.call_later(event.for_s, self._over, number, context=KERNEL)

    def _over(self, number: int) -> None:
        undo = self._undo.pop(number, None)
        if undo is not None:
            undo()

    def _pod(self, event: Event) -> Pod:
        return self.land.pods[event.where]

    # Processes

    def _kill_queue_manager(self, event: Event) -> None:
        self._pod(event).kill("manager", event.for_s)

    def _kill_initiator(self, event: Event) -> None:
        self._pod(event).kill("initiator", event.for_s)

    def _kill_member(self, event: Event) -> None:
        pod = self._pod(event)
        pod.kill_both()
        self._until_over(event, lambda: pod.start() if pod.down else None)

    def _power_loss(self, event: Event) -> None:
        pod = self._pod(event)
        pod.kill_both(silent=True)
        self._isolate(event)
        self._until_over(event, lambda: pod.start() if pod.down else None)

    def _everything_dies(self, event: Event) -> None:
        for name in HOSTS:
            self.land.pods[name].kill_both()

        def undo() -> None:
            for pod in self.land.pods.values():
                if pod.down:
                    pod.start()

        self._until_over(event, undo)

    def _pause(self, event: Event, which: str) -> None:
        processes = self._pod(event).processes(which)
        for process in processes:
            process.pause()

        def undo() -> None:
            for process in processes:
                process.resume()

        self._until_over(event, undo)

    def _pause_queue_manager(self, event: Event) -> None:
        self._pause(event, "manager")

    def _pause_initiator(self, event: Event) -> None:
        self._pause(event, "initiator")

    def _pause_member(self, event: Event) -> None:
        self._pause(event, "both")

    def _drain(self, event: Event) -> None:
        self._pod(event).stop()

    def _kill_application(self, event: Event) -> None:
        for app in self.land.apps:
            if app.place == event.where:
                app.kill(event.for_s)

    def _pause_application(self, event: Event) -> None:
        processes = [app.process for app in self.land.apps if app.place == event.where and app.process is not None]
        for process in processes:
            process.pause()

        def undo() -> None:
            for process in processes:
                process.resume()

        self._until_over(event, undo)

    def _applications_cut_off(self, event: Event) -> None:
        """From one member: they go on with another, and what was on its way arrives later."""
        pairs = itertools.product([f"{event.where}-qm"], [app.name for app in self.land.apps])
        self._cut_pairs(event, pairs, one_way=False)

    def _applications_reset(self, event: Event) -> None:
        for app in self.land.apps:
            self.land.network.reset(app.name, f"{event.where}-qm")

    # The shared store

    def _members(self, event: Event) -> list[str]:
        return [event.where] if event.where else list(MEMBERS)

    def _store_lossy(self, event: Event) -> None:
        paths = [self.land.faults(m, event.detail) for m in self._members(event)]
        for path in paths:
            path.refused, path.lost, path.reply_lost, path.late = (event.amount * share for share in (0.3, 1.0, 1.0, 0.5))

        def undo() -> None:
            for path in paths:
                path.refused = path.lost = path.reply_lost = path.late = 0.0

        self._until_over(event, undo)

    def _answers_lost(self, event: Event) -> None:
        """To transactions of the kind in `detail`, at every structure."""
        self._aim(event, Aim(reply_lost=event.amount))

    def _late(self, event: Event) -> None:
        """Transactions of the kind in `detail`, at every structure: others that were sent later overtake them."""
        self._aim(event, Aim(late=event.amount))

    def _aim(self, event: Event, aim: Aim) -> None:
        paths = [self.land.faults(m, structure) for m in self._members(event) for structure in self.land.structures]
        for path in paths:
            path.aims[event.detail] = aim

        def undo() -> None:
            for path in paths:
                path.aims.pop(event.detail, None)

        self._until_over(event, undo)

    def _store_slow(self, event: Event) -> None:
        paths = [self.land.faults(m, event.detail) for m in self._members(event)]
        for path in paths:
            path.delay_s = event.amount

        def undo() -> None:
            for path in paths:
                path.delay_s = STORE_DELAY_S

        self._until_over(event, undo)

    def _store_compacted(self, event: Event) -> None:
        state = self.land.structures[event.detail].state
        if state.revision > state.compacted:
            state.compact(state.revision)

    def _store_leader_change(self, event: Event) -> None:
        server = self.land.structures[event.detail]
        handles = [pod.stores[event.detail] for pod in self.land.pods.values() if event.detail in pod.stores]
        for handle in handles:
            handle.pause()

        def undo() -> None:
            server.leader_change()
            for handle in handles:
                handle.cut_watches()
                handle.resume()

        self._until_over(event, undo)

    def _store_out_of_reach(self, event: Event) -> None:
        pod = self._pod(event)
        pod.cut_off.add(event.detail)
        if event.detail in pod.stores:
            pod.stores[event.detail].cut()

        def undo() -> None:
            pod.cut_off.discard(event.detail)
            if event.detail in pod.stores:
                pod.stores[event.detail].heal()

        self._until_over(event, undo)

    def _store_full(self, event: Event) -> None:
        state = self.land.structures[event.detail].state
        state.quota = state.bytes_in_use + 2000

        def undo() -> None:
            state.quota = 0

        self._until_over(event, undo)

    def _watches_break(self, event: Event) -> None:
        pod = self._pod(event)
        if event.detail in pod.stores:
            pod.stores[event.detail].cut_watches()

    # Disks

    def _disk_slow(self, event: Event) -> None:
        disk = self._pod(event).disk
        disk.sync_s = event.amount

        def undo() -> None:
            disk.sync_s = 0.002

        self._until_over(event, undo)

    def _disk_full(self, event: Event) -> None:
        state = self._pod(event).disk.state
        state.quota = state.bytes_in_use + 2000

        def undo() -> None:
            state.quota = 0

        self._until_over(event, undo)

    # The network. A host has two addresses: its initiator's and its queue manager's.

    def _network_slow(self, event: Event) -> None:
        self.land.slow_s = event.amount

        def undo() -> None:
            self.land.slow_s = 0.0

        self._until_over(event, undo)

    def _addresses(self, host: str) -> tuple[str, str]:
        return host, f"{host}-qm"

    def _connections_reset(self, event: Event) -> None:
        for a, b in itertools.product(self._addresses(event.where), self._addresses(event.detail)):
            self.land.network.reset(a, b)

    def _path_cut(self, event: Event) -> None:
        self._cut_pairs(event, itertools.product(self._addresses(event.where), self._addresses(event.detail)), one_way=False)

    def _path_cut_one_way(self, event: Event) -> None:
        self._cut_pairs(event, itertools.product(self._addresses(event.where), self._addresses(event.detail)), one_way=True)

    def _host_cut_off(self, event: Event) -> None:
        self._isolate(event)

    def _isolate(self, event: Event) -> None:
        others = [a for host in HOSTS if host != event.where for a in self._addresses(host)] + [app.name for app in self.land.apps]
        self._cut_pairs(event, itertools.product(self._addresses(event.where), others), one_way=False)
        # Its way to the stores as well.
        for structure in self.land.structures if event.where in MEMBERS else ():
            self._store_out_of_reach(Event(event.at, event.kind, event.where, event.for_s, structure))

    def _cut_pairs(self, event: Event, pairs: itertools.product[tuple[str, str]], *, one_way: bool) -> None:
        """Cuts are counted: of two that overlap the later end mends."""
        directed = [pair for a, b in pairs for pair in ([(a, b)] if one_way else [(a, b), (b, a)])]
        for a, b in directed:
            self._cuts[a, b] = self._cuts.get((a, b), 0) + 1
            self.land.network.cut(a, b, one_way=True)

        def undo() -> None:
            for a, b in directed:
                self._cuts[a, b] -= 1
                if not self._cuts[a, b] and not self._cuts.get((b, a)):
                    self.land.network.heal(a, b)

        self._until_over(event, undo)

    # Clocks

    def _clock_step(self, event: Event) -> None:
        self._set_clock(self._pod(event), event.amount, None)

    def _clock_skew(self, event: Event) -> None:
        self._set_clock(self._pod(event), 0.0, event.amount)

    def _set_clock(self, pod: Pod, step_ms: float, rate: float | None) -> None:
        pod.clock = (pod.clock[0] + step_ms, pod.clock[1] if rate is None else rate)
        for process in pod.processes("both"):
            set_clock(process, pod.clock)


def set_clock(process: Process, clock: tuple[float, float]) -> None:
    process.clock_ms, process.clock_rate = clock
