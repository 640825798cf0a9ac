"""The demo: traffic through a real group while the owner of a channel is killed again and again, and a verdict.

The traffic is divided into one window a kill (and one before the first), so that every kill happens under load and only while the group is
redundant again; between windows the producers pause. A takeover's gap is the longest silence in arrivals around it.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Literal

import structlog

import qsg
from qsg.process.ledger import Counts, Ledger
from qsg.process.local import DEAD_LETTER_QUEUE, IN_CHANNEL, OUT_CHANNEL, LocalGroup, there
from qsg.process.workload import Direction, Pace, consume, produce

log = structlog.get_logger()

Kill = Literal["initiator", "queue-manager", "member", "pause", "store", "network", "isolate", "drain", "none"]
KILLS: tuple[Kill, ...] = ("initiator", "queue-manager", "member", "pause", "store", "network", "isolate", "drain", "none")
_DEEDS = {
    "initiator": "killed the initiator of {}",
    "queue-manager": "killed the queue manager of {}",
    "member": "killed {}, queue manager and initiator",
    "pause": "froze {}",
    "store": "killed {}",
    "network": "cut the paths between {} and R",
    "isolate": "cut {} off from everything",
    "drain": "told {} to end",
}
PRODUCERS = 4
CONSUMERS = 1  # two that compete would see messages in turns, and no order could be checked
READY_S = 60.0
TAKEOVER_S = 60.0
DRAIN_S = 60.0


@dataclass(slots=True)
class Plan:
    messages: int = 5000
    size: int = 1024
    rate: float = 500.0
    direction: Literal["out", "in", "both"] = "out"
    kill: Kill = "queue-manager"
    kills: int = 5
    seed: int = 1


@dataclass(slots=True)
class Takeover:
    cause: str
    channel: str
    from_: str
    to: str
    at: float
    wall_ms: float = 0.0
    until: float = 0.0
    detect_ms: float | None = None
    """From the fault until a member had noticed, of an inbound channel until the partner had bound to another one; 0 of a planned stop.
    None, as the next two: nothing was told."""
    claim_ms: float | None = None
    """From there until the channel had its new owner, and `resume_ms` until it ran: an inbound channel has no such parts."""
    resume_ms: float | None = None
    gap_ms: float = 0.0
    worst_wait_ms: float = 0.0

    def public(self) -> dict[str, Any]:
        fields = asdict(self)
        for internal in ("at", "wall_ms", "until"):
            del fields[internal]
        return {name.rstrip("_"): round(v, 1) if isinstance(v, float) else v for name, v in fields.items()}


@dataclass(slots=True)
class Result:
    counts: Counts
    takeovers: list[Takeover] = field(default_factory=list)
    max_gap_ms: float = 0.0
    worst_wait_ms: float = 0.0
    wait_p50_ms: float = 0.0
    wait_p99_ms: float = 0.0
    rate_per_s: float = 0.0
    duplicates_suppressed: int = 0
    fenced_writes: int = 0
    dead_letters: int = 0
    error: str = ""

    @property
    def clean(self) -> bool:
        return self.counts.clean and not self.error and not self.dead_letters

    def json(self) -> str:
        fields = {**asdict(self.counts), "takeovers": [t.public() for t in self.takeovers]}
        for name in ("max_gap_ms", "worst_wait_ms", "wait_p50_ms", "wait_p99_ms", "rate_per_s"):
            fields[name] = round(getattr(self, name), 1)
        fields |= {"duplicates_suppressed": self.duplicates_suppressed, "fenced_writes": self.fenced_writes}
        fields |= {"dead_letters": self.dead_letters, "clean": self.clean, "error": self.error}
        return json.dumps(fields)


class Demo:
    """`watch` is called with the demo whenever there is something to show; `group` is started by the caller."""

    def __init__(
        self, group: LocalGroup, plan: Plan, *, watch: Callable[[Demo, str], None] = lambda demo, text: None, look_s: float = 0.2
    ) -> None:
        self.group = group
        self.plan = plan
        self.watch = watch
        self.look_s = look_s
        self.takeovers: list[Takeover] = []
        self.status: dict[str, dict[str, Any]] = {}
        """Channel -> its last seen status."""
        self.depths: dict[str, int] = {}
        self.started_at = 0.0
        self.lacking = ""
        """What the group lacks to be whole, as its members last said."""
        self.finished_at = 0.0
        self._random = random.Random(plan.seed)
        ways = ("out", "in") if plan.direction == "both" else (plan.direction,)
        self.directions = [self._direction(way) for way in ways]

    def _direction(self, way: str) -> Direction:
        share = self.plan.messages
        pace = Pace(self.plan.rate, share, share if self.plan.kill == "none" else 0)
        inside, outside = self.group.group_addresses, self.group.remote_address
        roads = {"out": (inside, "TO.R", outside, "FROM.QSG"), "in": (outside, "TO.QSG", inside, "FROM.R")}
        put_at, put_queue, get_at, get_queue = roads[way]
        return Direction(way, put_at, put_queue, get_at, get_queue, self.plan.size, pace, Ledger(PRODUCERS))

    async def run(self) -> Result:
        error = ""
        async with qsg.connect(self.group.group_addresses, application="demo", connect_s=READY_S) as observer:
            await self._until(lambda: self._redundant(observer), READY_S, "the group to be ready")
            self.watch(self, "group is ready; messages flow")
            self.started_at = time.monotonic()
            tasks = [asyncio.create_task(self._watch_status(observer))]
            for d in self.directions:
                tasks += [asyncio.create_task(consume(d, i)) for i in range(CONSUMERS)]
            producers = [
                asyncio.create_task(produce(d, i, f"demo-{self.plan.seed}-{d.name}-{i}")) for d in self.directions for i in range(PRODUCERS)
            ]
            try:
                await self._all_kills(observer, producers)
                await self._drain(producers)
            except (TimeoutError, qsg.QsgError) as failure:
                error = str(failure) or type(failure).__name__
            finally:
                self.finished_at = time.monotonic()
                for task in [*tasks, *producers]:
                    task.cancel()
                await asyncio.gather(*tasks, *producers, return_exceptions=True)
            return await self._verdict(observer, error)

    # --- kills

    async def _all_kills(self, observer: qsg.QueueManager, producers: list[asyncio.Task[None]]) -> None:
        if self.plan.kill == "none" or not self.plan.kills:
            for d in self.directions:
                d.pace.allowed = d.pace.total
            return
        windows = self.plan.kills + 1
        self._allow(1, windows)
        await self._until(partial(self._arrived, 0.5 / windows), READY_S, "the first messages to arrive")
        for k in range(self.plan.kills):
            self._check(producers)
            await self._until(lambda: self._redundant(observer), READY_S, "the group to be whole again")
            self._allow(k + 2, windows)
            share = (k + 1 + self._random.uniform(0.05, 0.3)) / windows
            await self._until(partial(self._arrived, share), READY_S, "messages to arrive")
            channel = OUT_CHANNEL if self.directions[k % len(self.directions)].name == "out" else IN_CHANNEL
            self.takeovers.append(await self._kill_owner(observer, channel))
        for d in self.directions:
            d.pace.allowed = d.pace.total

    def _allow(self, window: int, windows: int) -> None:
        for d in self.directions:
            d.pace.allowed = d.pace.total * window // windows

    async def _arrived(self, share: float) -> bool:
        return all(len(d.ledger.arrivals) >= d.pace.total * share for d in self.directions)

    @staticmethod
    def _check(producers: list[asyncio.Task[None]]) -> None:
        for task in producers:
            if task.done() and not task.cancelled() and (failure := task.exception()):
                raise failure

    async def _kill_owner(self, observer: qsg.QueueManager, channel: str) -> Takeover:
        before = await self._running(observer, channel)
        owner, kill = str(before["owner"]), self.plan.kill
        at, wall_ms = time.monotonic(), 1000 * time.time()
        if kill == "store":
            owner = await self.group.kill_store()
        elif kill == "network":
            self.group.cut(owner)
        elif kill == "isolate":
            self.group.isolate(owner)
        else:
            self.group.kill(owner, kill)
        takeover = Takeover(kill, channel, owner, "", at, wall_ms)
        self.watch(self, _DEEDS[kill].format(owner))
        seen = {d.name: len(d.ledger.arrivals) for d in self.directions}

        async def over() -> bool:
            if kill != "store":
                now = await self._channel(observer, channel)
                if not _taken_over(before, now):
                    return False
                takeover.to = str(now.get("owner", ""))
                if not self._note_parts(takeover, now):
                    return False
            # What was put before it may have been on its way to the consumer already.
            return all(any(sent > at for sent in d.ledger.sent_times[seen[d.name] :]) or _idle(d.ledger) for d in self.directions)

        await self._until(over, TAKEOVER_S, f"takeover of {channel} from {owner} ({kill})")
        takeover.until = time.monotonic()
        if kill == "pause":
            self.group.kill(owner, "resume")
        elif kill in ("network", "isolate"):
            self.group.heal(owner)
        elif kill == "store":
            await self.group.revive_store()
        await self._until(partial(self._gap_is_over, takeover), TAKEOVER_S, f"messages to arrive after {channel} was taken over")
        takeover.gap_ms = self._gap_ms(takeover)
        moved = f"{channel}: {owner} -> {takeover.to}" if takeover.to else f"{channel}: goes on"
        self.watch(self, f"{moved} in {takeover.gap_ms:.0f} ms")
        return takeover

    async def _running(self, observer: qsg.QueueManager, channel: str) -> dict[str, Any]:
        """Its status once it runs, at a member whose processes do: nobody else can be killed."""
        found: dict[str, Any] = {}

        async def runs() -> bool:
            found.update(await self._channel(observer, channel))
            return found.get("status") == "RUNNING" and self.group.is_up(str(found.get("owner", "")))

        await self._until(runs, READY_S, f"{channel} to run")
        return found

    def _touched(self, takeover: Takeover) -> list[Direction]:
        return [d for d in self.directions if self.plan.kill == "store" or (d.name == "out") == (takeover.channel == OUT_CHANNEL)]

    async def _gap_is_over(self, takeover: Takeover) -> bool:
        """What is measured now is final: messages have arrived since."""
        touched = self._touched(takeover)
        return all((d.ledger.arrivals and d.ledger.arrivals[-1] > takeover.until) or _idle(d.ledger) for d in touched)

    def _gap_ms(self, takeover: Takeover) -> float:
        """The longest silence in arrivals around it."""
        return 1000 * max(d.ledger.gap_s(takeover.at, takeover.until) for d in self._touched(takeover))

    @staticmethod
    def _note_parts(takeover: Takeover, now: dict[str, Any]) -> bool:
        """What the channel's status says of this takeover; false while it does not say it yet."""
        takeover.detect_ms = takeover.claim_ms = takeover.resume_ms = None
        told = now.get("takeover") or {}
        inbound = takeover.channel == IN_CHANNEL
        # A partner that did not answer in time sends it from one survivor to the next: then the last step is told, by another's name.
        since = told.get("from") == takeover.from_ or told.get("at_ms", 0) >= takeover.wall_ms
        if not since or told.get("to") != takeover.to or not (inbound or told.get("resume_ms")):
            # A retry may have gone back to the owner (the network was cut only for a moment): then there is nothing to be told.
            # An inbound channel's entry tells at once or not at all.
            return inbound or takeover.to == takeover.from_
        if not inbound:
            takeover.claim_ms, takeover.resume_ms = float(told["claim_ms"]), float(told["resume_ms"])
        # From the fault, which only we know the time of, until a member has noticed; a planned stop need not be noticed.
        takeover.detect_ms = 0.0 if takeover.cause == "drain" else max(0.0, told["at_ms"] - takeover.wall_ms)
        return True

    # --- looking

    async def _watch_status(self, observer: qsg.QueueManager) -> None:
        while True:
            try:
                for d in self.directions:
                    await self._channel(observer, OUT_CHANNEL if d.name == "out" else IN_CHANNEL)
                    queue = "R" if d.name == "out" else "FROM.R"
                    self.depths[d.name] = int((await observer.inquire_queue(queue)).get("depth", 0))
            except qsg.QsgError:
                pass  # the next look comes soon
            self.watch(self, "")
            await asyncio.sleep(self.look_s)

    async def _channel(self, observer: qsg.QueueManager, channel: str) -> dict[str, Any]:
        try:
            answer = await observer.inquire("status", channel)
        except qsg.QsgError:
            return {}
        rows: list[dict[str, Any]] = answer["channels"]
        found = next((row for row in rows if row["channel"] == channel), {})
        if found:
            self.status[channel] = found
        return found

    async def _redundant(self, observer: qsg.QueueManager) -> bool:
        """Every member is there with its initiator, and the channels with traffic run. `lacking` says what is not so."""
        try:
            answer = await observer.inquire("group")
        except qsg.QsgError as error:
            self.lacking = str(error)
            return False
        missing = set(self.group.members) - there(answer)
        self.lacking = f"{answer['member']} misses {', '.join(sorted(missing))}" if missing else ""
        if missing or not self.started_at:
            return not missing
        for channel in (OUT_CHANNEL if d.name == "out" else IN_CHANNEL for d in self.directions):
            line = await self._channel(observer, channel)
            if line.get("status") != "RUNNING":
                self.lacking = f"{answer['member']} says that {channel} is {line.get('status', 'not there')} {line.get('detail', '')}"
                return False
        return True

    async def _until(self, condition: Callable[[], Awaitable[bool]], timeout_s: float, what: str) -> None:
        end = time.monotonic() + timeout_s
        while not await condition():
            if time.monotonic() > end:
                raise TimeoutError(f"waited {timeout_s:.0f} s for {what}" + (f": {self.lacking}" if self.lacking else ""))
            await asyncio.sleep(0.01)

    # --- the end

    async def _drain(self, producers: list[asyncio.Task[None]]) -> None:
        self.watch(self, "waiting for the last messages")
        async with asyncio.timeout(DRAIN_S + self.plan.messages / self.plan.rate):
            await asyncio.gather(*producers)

        async def empty() -> bool:
            return not any(d.ledger.outstanding for d in self.directions)

        await self._until(empty, DRAIN_S, "the last messages to arrive")
        await asyncio.sleep(0.5)  # what is sent twice arrives a little later

    async def _verdict(self, observer: qsg.QueueManager, error: str) -> Result:
        counts = Counts()
        for d in self.directions:
            counts = counts.plus(d.ledger.counts())
        for i, t in enumerate(self.takeovers):
            until = self.takeovers[i + 1].at if i + 1 < len(self.takeovers) else self.finished_at
            t.gap_ms = self._gap_ms(t)
            # By arrival: a message that is still under way at the next fault has waited for that one.
            t.worst_wait_ms = 1000 * max(d.ledger.worst_wait_s(t.at, until) for d in self._touched(t))
        result = Result(counts, self.takeovers, error=error)
        result.max_gap_ms = max((t.gap_ms for t in self.takeovers), default=0.0)
        result.worst_wait_ms = 1000 * max(d.ledger.worst_wait_s() for d in self.directions)
        waits = sorted(wait for d in self.directions for _, wait in d.ledger.waits)
        if waits:
            result.wait_p50_ms = 1000 * waits[len(waits) // 2]
            result.wait_p99_ms = 1000 * waits[len(waits) * 99 // 100]
        result.rate_per_s = counts.ok / max(self.finished_at - self.started_at, 1e-9)
        if not error:
            result.dead_letters = await self._dead_letters(observer)
        result.duplicates_suppressed, result.fenced_writes = from_logs(self.group.log_lines())
        return result

    async def _dead_letters(self, observer: qsg.QueueManager) -> int:
        """In the group and at R."""
        async with qsg.connect(self.group.remote_address, application="demo", connect_s=READY_S) as remote:
            return sum([int((await at.inquire_queue(DEAD_LETTER_QUEUE))["depth"]) for at in (observer, remote)])


def _idle(ledger: Ledger) -> bool:
    """Nobody waits for anything: all that was put is acknowledged and has arrived."""
    return not ledger.outstanding and ledger.sent_total == ledger.acknowledged_total


def _taken_over(before: dict[str, Any], now: dict[str, Any]) -> bool:
    return now.get("status") == "RUNNING" and (now.get("epoch"), now.get("owner"), now.get("instance")) != (
        before.get("epoch"),
        before.get("owner"),
        before.get("instance"),
    )


def from_logs(lines: list[str]) -> tuple[int, int]:
    """(messages that a resynchronisation found already committed at the partner, units of work that a fence refused)."""
    suppressed = fenced = 0
    for line in lines:
        if '"resynchronised"' in line or '"writes refused"' in line:
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if record.get("event") == "resynchronised":
                suppressed += int(record.get("covered", 0))
            elif record.get("event") == "writes refused":
                fenced += int(record.get("units", 0))
    return suppressed, fenced
