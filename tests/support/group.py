"""A group of real processes for tests: started once a module, with traffic both ways whose every message is accounted for.

`running`: a `LocalGroup` whose members and store can be configured further. `Flow`: producers and consumers in both directions;
`moves` says that messages put from now on arrive, `clean` that none was lost, repeated, or overtaken.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import yaml

import qsg
from qsg.process.children import free_ports
from qsg.process.ledger import Ledger
from qsg.process.local import IN_CHANNEL, OUT_CHANNEL, REMOTE, LocalGroup, there
from qsg.process.workload import Direction, Pace, consume, produce
from support.patient import LEASE_TTL_S, patience, program

READY_S = 60.0
FOREVER = 1_000_000


class ConfiguredGroup(LocalGroup):
    """`configure`: member (or "R") -> further fields of its configuration. `store_quota_bytes`: of the embedded store. `patient`: see
    `support.patient`."""

    def __init__(
        self,
        directory: Path,
        *,
        configure: Mapping[str, Mapping[str, Any]] | None = None,
        store_quota_bytes: int = 0,
        patient: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(directory, **options)
        self.patient = patient
        self.store_address = ""
        self.configs: dict[str, Path] = {}
        self._further = configure or {}
        self._store_quota_bytes = store_quota_bytes

    async def _start_store(self) -> list[str]:
        if self.store != "embedded":
            return await super()._start_store()
        self.store_address = f"127.0.0.1:{free_ports(1)[0]}"
        serve = [sys.executable, "-m", "qsg.store.serve", str(self.directory / "store.db"), self.store_address]
        await self.supervisor.start("store", [*serve, "--quota-bytes", str(self._store_quota_bytes)])
        return [self.store_address]

    def _config(self, name: str, place: dict[str, str], endpoints: list[str], aliases: dict[str, str]) -> Path:
        path = super()._config(name, place, endpoints, aliases)
        config = yaml.safe_load(path.read_text()) | dict(self._further.get(name, {}))
        if self.patient and name != REMOTE:
            config["lease_ttl_s"] = LEASE_TTL_S
        path.write_text(yaml.safe_dump(config, sort_keys=False))
        self.configs[name] = path
        return path

    def _entry(self) -> list[str]:
        return program() if self.patient else super()._entry()

    def config(self, name: str) -> dict[str, Any]:
        """The configuration of a member, as it was written."""
        found: dict[str, Any] = yaml.safe_load(self.configs[name].read_text())
        return found

    def logged(self, **fields: object) -> list[dict[str, Any]]:
        """Log lines whose fields are these (a callable decides for itself)."""
        found = []
        for line in self.log_lines():
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict) and all(_matches(record.get(name), wanted) for name, wanted in fields.items()):
                found.append(record)
        return found

    def starts(self) -> dict[str, int]:
        """How often each process was started."""
        return {name: self.supervisor.child(name).starts for name in self.supervisor.names}


def _matches(value: object, wanted: object) -> bool:
    return bool(wanted(value)) if callable(wanted) else value == wanted


async def eventually(condition: Callable[[], Any], timeout_s: float = READY_S, what: str = "") -> Any:
    """What `condition` (plain or async) answers once it is true. It may raise `QsgError` meanwhile.

    `timeout_s` guards against a hang, on a machine that is slow or stands still; what must be fast is measured elsewhere.
    """
    last: object = None
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                try:
                    last = condition()
                    if asyncio.iscoroutine(last):
                        last = await last
                    if last:
                        return last
                except qsg.QsgError as error:
                    last = error
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"not within {timeout_s} s: {what or condition}; last: {last!r}") from None


async def status(queue_manager: qsg.QueueManager, channel: str) -> dict[str, Any]:
    """The first line of the status of a channel."""
    line: dict[str, Any] = (await queue_manager.inquire("status", channel))["channels"][0]
    return line


async def is_running(queue_manager: qsg.QueueManager, *channels: str) -> bool:
    return all([(await status(queue_manager, channel))["status"] == "RUNNING" for channel in channels])


async def whole(group: LocalGroup) -> None:
    """Returns when all serve and have their initiators, and the members are linked to each other. Tests that share a group run in any
    order: what one of them has killed is back before the next begins."""
    for name in group.addresses:
        async with connected(group, name) as at:
            await eventually(partial(_sees_all, at, group, name), what=f"{name} is linked to all")


async def _sees_all(at: qsg.QueueManager, group: LocalGroup, name: str) -> bool:
    return there(await at.inquire("group")) >= ({REMOTE} if name == REMOTE else set(group.members))


@asynccontextmanager
async def running(directory: Path, **options: Any) -> AsyncIterator[ConfiguredGroup]:
    """Started and `whole`."""
    group = ConfiguredGroup(directory, **options)
    with patience() if group.patient else nullcontext():
        try:
            await group.start()
            await whole(group)
            yield group
        finally:
            await group.stop()


def connected(group: LocalGroup, at: str = "", **options: Any) -> qsg.QueueManager:
    """A connection to one member, to "R", or to whoever of the group answers."""
    return qsg.connect(group.addresses[at] if at else group.group_addresses, connect_s=READY_S, **options)


class Flow:
    """Numbered messages at `rate_per_s` in both directions, until the end."""

    def __init__(self, group: LocalGroup, *, rate_per_s: float = 50, size: int = 200, ways: Sequence[str] = ("out", "in")) -> None:
        inside, outside = group.group_addresses, group.remote_address
        roads = {"out": (inside, "TO.R", outside, "FROM.QSG"), "in": (outside, "TO.QSG", inside, "FROM.R")}
        self.ways = [Direction(way, *roads[way], size=size, pace=Pace(rate_per_s, FOREVER, FOREVER), ledger=Ledger(1)) for way in ways]
        self._name = f"flow-{id(self)}"
        self._producers: list[asyncio.Task[None]] = []
        self._consumers: list[asyncio.Task[None]] = []

    def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._producers = [loop.create_task(produce(way, 0, f"{self._name}-{way.name}")) for way in self.ways]
        self._consumers = [loop.create_task(consume(way, 0)) for way in self.ways]

    def check(self) -> None:
        """Raises what ended a producer or a consumer; no count is wrong so far."""
        for task in [*self._producers, *self._consumers]:
            if task.done():
                task.result()
        for way in self.ways:
            counts = way.ledger.counts()
            assert not (counts.duplicated or counts.unexpected or counts.out_of_order), (way.name, counts)

    async def moves(self, timeout_s: float = READY_S) -> None:
        """Messages that are put from now on arrive, in both directions."""
        marks = [way.ledger.sent_total + 1 for way in self.ways]

        def arrived() -> bool:
            self.check()
            return all(mark in way.ledger.producers[0].arrived for mark, way in zip(marks, self.ways, strict=True))

        await eventually(arrived, timeout_s, "messages flow both ways")

    async def clean(self, timeout_s: float = READY_S) -> None:
        """Ends the traffic: everything acknowledged has arrived, once and in order."""
        for way in self.ways:
            way.pace.total = 0
        async with asyncio.timeout(timeout_s):
            await asyncio.gather(*self._producers)
        await eventually(lambda: not any(way.ledger.outstanding for way in self.ways), timeout_s, "everything arrived")
        self.check()
        for way in self.ways:
            counts = way.ledger.counts()
            assert counts.clean, (way.name, counts)

    async def close(self) -> None:
        tasks = [*self._producers, *self._consumers]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def flowing(group: LocalGroup, **options: Any) -> AsyncIterator[Flow]:
    """Traffic that moves already; at the end it was clean."""
    async with connected(group) as observer:
        flow = Flow(group, **options)
        flow.start()
        try:
            await flow.moves(READY_S)
            await eventually(lambda: is_running(observer, OUT_CHANNEL, IN_CHANNEL), READY_S, "both channels run")
            yield flow
            await flow.clean()
        finally:
            await flow.close()
