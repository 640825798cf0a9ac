"""A run: traffic both ways, phases of faults and quiet, then a drain without faults, then the count.

A phase is one fault that stands alone (its gap is measured), or a storm: several at once, some of them at marked places of the code. After
each, messages that are put from now on must arrive, both ways, and two members be there; before a storm, and before the drain, all. First
every kind has its turn, in an order drawn from the seed; then kinds are drawn. Bounded: faults end with the minutes asked for, or with the
first turn of the last kind, at most `OVERTIME_S` later.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path

import qsg
from qsg.process.etcd_cluster import EtcdFailed
from qsg.process.ledger import Counts, Ledger
from qsg.process.local import DEAD_LETTER_QUEUE, REMOTE, there
from qsg.process.workload import Direction, Pace, consume, produce
from qsg.store.contract import StoreError
from qsg.store.etcd import EtcdStore
from torture import leftovers
from torture.audit import Audit
from torture.faults import ALL_KINDS, KINDS, POINT_KINDS, Act, NotReached, Provoke, provocation
from torture.group import TortureGroup
from torture.history import History
from torture.report import Measured, Report

EVERY_KIND_MINUTES = 3.0
"""From here on a run is long enough for every kind."""
MEMBERS = 3
PRODUCERS = 2
CONSUMERS = 1  # of two that compete no order could be checked
SIZE = 600
RATE = 80.0
"""Messages a second in each direction."""
FOREVER = 1_000_000_000
READY_S = WHOLE_S = DRAIN_S = 120.0
"""No measure: behind this it never comes. A process alone may need 20 s to start where the machine is starved."""
OVERTIME_S = 600.0
"""A slow machine needs it; on one that is idle all kinds have had their turn within three minutes."""
LEFT_S = 60.0
QUIET_S = (0.1, 0.5)
STORM_KILLS = 4
STORM = 8
"""Places of the code armed at once."""
ASK_S = 10.0
LANES = 2 * 3
"""Slots of all members: so many lanes may a queue have."""


class Broken(Exception):
    """An invariant does not hold."""


class Torture:
    """One run; `say` is told what happens. `only`: these kinds of fault, all when none is named."""

    def __init__(
        self,
        directory: Path,
        *,
        minutes: float,
        seed: int,
        rate: float = RATE,
        only: Collection[str] = (),
        planted: str = "",
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.directory = directory
        self.minutes, self.seed = minutes, seed
        self.group = TortureGroup(directory, planted)
        self.random = random.Random(seed)
        self.report = Report(seed, minutes)
        self.history: History
        self.audit: Audit
        self.missed: Counter[str] = Counter()
        self.effects = self.report.effects
        self._tell = say
        self._began = time.monotonic()
        self._rate = rate
        self._faults: Counter[str] = Counter()
        self._phase = 0
        self._now = "start"
        chosen = set(only) or ALL_KINDS
        self._every_kind = bool(only) or minutes >= EVERY_KIND_MINUTES
        self._kinds = sorted(KINDS.keys() & chosen)
        self._point_kinds = sorted(POINT_KINDS.keys() & chosen)
        self._alone = deque(self.random.sample(self._kinds, len(self._kinds)))
        self._points = deque(self.random.sample(self._point_kinds, len(self._point_kinds)))
        self._ways: list[Direction] = []

    def say(self, text: str) -> None:
        self._tell(f"{time.monotonic() - self._began:6.1f} s  phase {self._phase}  {text}")

    # The whole

    async def run(self) -> Report:
        try:
            await self._run()
        except (Broken, TimeoutError, OSError, qsg.QsgError, StoreError, EtcdFailed) as error:
            self._problem(str(error) or repr(error))
        finally:
            await self.group.stop()
        for name, number in leftovers.of_sqlite(self.group.remote_store).items() if not self.report.problems else ():
            if name.startswith("q/") and name.rsplit("/", 1)[1] not in (*leftovers.LASTING, "n"):
                self._problem(f"left over at R: {number} of {name}")
        self.report.faults = dict(self._faults)
        self.report.missing = sorted({*self._kinds, *self._point_kinds} - self._faults.keys())
        self.report.seconds = time.monotonic() - self._began
        return self.report

    def _problem(self, text: str) -> None:
        told = f"seed {self.seed}, phase {self._phase}, {self._now}: {text}"
        self.say(f"BROKEN {text}")
        self.report.problems.append(told)

    async def _run(self) -> None:
        await self.group.start()
        assert self.group.etcd is not None
        endpoints = self.group.etcd.endpoints
        self._ways = [self._way("out"), self._way("in")]
        self.history = History(endpoints)
        self.history.start()
        self.audit = Audit(endpoints)
        self.audit.start()
        store = EtcdStore(endpoints)
        tasks = [asyncio.create_task(consume(way, i), name=f"consumer {way.name}") for way in self._ways for i in range(CONSUMERS)]
        names = [(way, i, f"torture-{self.seed}-{way.name}-{i}") for way in self._ways for i in range(PRODUCERS)]
        producers = [asyncio.create_task(produce(way, i, name), name=f"producer {name}") for way, i, name in names]
        try:
            async with qsg.connect(self.group.group_addresses, application="torture", connect_s=READY_S) as observer:
                await self._until(lambda: self._whole(observer, MEMBERS), READY_S, "the group is ready")
                await self._until(lambda: self._used(store), READY_S, "everything has been used")
                before = await leftovers.of_etcd(store)
                await self._phases(observer, [*tasks, *producers])
                await self._drain(observer, producers)
                await self._verdict(observer, store, before)
        finally:
            for task in [*tasks, *producers]:
                task.cancel()
            await asyncio.gather(*tasks, *producers, return_exceptions=True)
            await self._count()
            await store.close()

    def _way(self, name: str) -> Direction:
        inside, outside = self.group.group_addresses, self.group.remote_address
        roads = {"out": (inside, "TO.R", outside, "FROM.QSG"), "in": (outside, "TO.QSG", inside, "FROM.R")}
        return Direction(name, *roads[name], size=SIZE, pace=Pace(self._rate, FOREVER, FOREVER), ledger=Ledger(PRODUCERS))

    # Phases

    async def _phases(self, observer: qsg.QueueManager, tasks: list[asyncio.Task[None]]) -> None:
        end = time.monotonic() + 60 * self.minutes
        overtime_s = OVERTIME_S if self._every_kind else 0.0
        while time.monotonic() < (end + overtime_s if self._alone or self._points else end):
            self._phase += 1
            if self._storms():
                await self._storm(observer)
            else:
                await self._one(observer)
            for task in tasks:
                if task.done() and not task.cancelled() and (error := task.exception()) is not None:
                    raise Broken(f"{task.get_name()} ended: {error!r}")
            self._check()
            self._now = "quiet"
            await asyncio.sleep(self.random.uniform(*QUIET_S))

    def _storms(self) -> bool:
        """Whether this phase is one."""
        if not self._kinds or not self._point_kinds:
            return not self._kinds
        if self._alone and self._points:
            return self._phase % 3 == 0
        return bool(self._points) or (not self._alone and self.random.random() < 0.5)

    async def _one(self, observer: qsg.QueueManager) -> None:
        kind = self._alone.popleft() if self._alone else self.random.choice(self._kinds)
        self._now = kind
        at, seen = time.monotonic(), len(self.history.takeovers)
        try:
            await self._inflict(kind, KINDS[kind])
        except NotReached as error:
            self.say(f"{kind}: not reached: {error}")
            if not self._faults[kind]:
                self._alone.append(kind)
            await self._until_whole(observer, MEMBERS)
            return
        await self._until_whole(observer, 2)
        until = time.monotonic()
        gap_s = max(way.ledger.gap_s(at, until) for way in self._ways)
        self.report.measured.append(Measured(kind, 1000 * gap_s, tuple(self.history.takeovers[seen:])))
        self.say(f"{kind}: whole again after {until - at:.1f} s, gap {1000 * gap_s:.0f} ms")

    async def _storm(self, observer: qsg.QueueManager) -> None:
        """Places of the code, what brings the code there, and once every kind has had its turn, faults of other kinds too."""
        await self._until_whole(observer, MEMBERS)
        chosen = self._next_points()
        more = [] if chosen else self.random.sample(self._kinds, min(2, len(self._kinds)))
        chosen = chosen or self.random.sample(self._point_kinds, min(3, len(self._point_kinds)))
        self._now = "storm of " + ", ".join([*more, *chosen])
        provocations: dict[Provoke, None] = {}
        for kind in chosen:
            if (provoke := provocation(POINT_KINDS[kind][0])) is not None:
                provocations[provoke] = None
        results = await asyncio.gather(
            *(self._inflict(kind, POINT_KINDS[kind][1]) for kind in chosen),
            *(self._inflict(kind, KINDS[kind]) for kind in more),
            *(self._provoke(provoke, 0.3 + n) for n, provoke in enumerate(provocations)),
            return_exceptions=True,
        )
        for kind, result in zip([*chosen, *more], results, strict=False):
            if isinstance(result, NotReached):
                self.say(f"{kind}: not reached: {result}")
                self._points += [kind] if kind in chosen else []
        for result in results:
            if isinstance(result, BaseException) and not isinstance(result, NotReached):
                raise result
        await self._until_whole(observer, 2)

    def _next_points(self) -> list[str]:
        """The next of those that have not had their turn, not too many of them deadly."""
        chosen: list[str] = []
        for kind in list(self._points):
            kills = sum(other.startswith("kill") for other in chosen)
            twice = POINT_KINDS[kind][0] in {POINT_KINDS[other][0] for other in chosen}
            if len(chosen) < STORM and not twice and not (kind.startswith("kill") and kills == STORM_KILLS):
                chosen.append(kind)
                self._points.remove(kind)
        return chosen

    async def _inflict(self, kind: str, act: Act) -> None:
        await act(self)
        self._faults[kind] += 1

    async def _provoke(self, provoke: Provoke, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        await provoke(self)

    # Whole

    async def _until_whole(self, observer: qsg.QueueManager, members: int) -> None:
        mark = time.monotonic()
        await self._until(lambda: self._flows(mark), WHOLE_S, "messages flow both ways")
        await self._until(lambda: self._whole(observer, members), WHOLE_S, f"{members} members are there with their initiators")

    async def _used(self, store: EtcdStore) -> bool:
        """Every producer's messages arrive, and whatever a channel writes is there."""
        if not all(producer.arrived for way in self._ways for producer in way.ledger.producers):
            return False
        return leftovers.unused(await leftovers.of_etcd(store)) == []

    async def _flows(self, mark: float) -> bool:
        """Messages put after `mark` have arrived."""
        return all(way.ledger.sent_times and max(way.ledger.sent_times[-PRODUCERS * 8 :]) > mark for way in self._ways)

    async def _whole(self, observer: qsg.QueueManager, members: int) -> bool:
        try:
            async with asyncio.timeout(ASK_S):
                answer = await observer.inquire("group")
        except (qsg.QsgError, TimeoutError):
            return False
        return len(there(answer) & set(self.group.members)) >= members

    async def _until(self, condition: Callable[[], Awaitable[bool]], timeout_s: float, what: str) -> None:
        end = time.monotonic() + timeout_s
        while not await condition():
            if time.monotonic() > end:
                raise Broken(f"not within {timeout_s:.0f} s: {what}")
            await asyncio.sleep(0.02)

    # The end

    async def _drain(self, observer: qsg.QueueManager, producers: list[asyncio.Task[None]]) -> None:
        self._phase += 1
        self._now = "drain"
        self.say("no more faults: what is on its way arrives")
        await self._until_whole(observer, MEMBERS)
        for way in self._ways:
            way.pace.total = 0
        async with asyncio.timeout(DRAIN_S):
            await asyncio.gather(*producers)

        async def arrived() -> bool:
            return not any(way.ledger.outstanding for way in self._ways)

        await self._until(arrived, DRAIN_S, "everything acknowledged has arrived")
        await asyncio.sleep(0.5)  # what is sent twice comes a little later

    async def _count(self) -> None:
        counts = Counts()
        for way in self._ways:
            counts = counts.plus(way.ledger.counts())
            self.report.recovered += way.ledger.recovered
        self.report.counts = counts
        await self.audit.close()
        await self.history.close()
        self.report.changes, self.report.breaks = len(self.history.changes), self.history.breaks
        self.report.reads = len(self.audit.reads)
        for problem in [*self.history.problems(), *self.audit.problems(self.history.changes)]:
            self._problem(f"history: {problem}")

    def _check(self) -> None:
        """No count that is final already is wrong."""
        for way in self._ways:
            counts = way.ledger.counts()
            if counts.duplicated or counts.unexpected or counts.out_of_order:
                raise Broken(f"{way.name}: {counts}")

    async def _verdict(self, observer: qsg.QueueManager, store: EtcdStore, before: Counter[str]) -> None:
        async with qsg.connect(self.group.remote_address, application="torture", connect_s=READY_S) as remote:
            for at, name in ((observer, "the group"), (remote, REMOTE)):
                letters = int((await at.inquire_queue(DEAD_LETTER_QUEUE))["depth"])
                if letters:
                    self._problem(f"{letters} dead letters at {name}")
        interruptions = sum(way.ledger.interruptions for way in self._ways)
        end = time.monotonic() + LEFT_S
        while found := leftovers.leftovers(before, await leftovers.of_etcd(store), LANES, interruptions):
            if time.monotonic() > end:
                break
            await asyncio.sleep(0.5)
        for text in found:
            self._problem(f"left over: {text}")
