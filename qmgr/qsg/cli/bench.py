"""`qsg bench …`: how fast a queue manager puts, gets and delivers, and how fast a channel drains a backlog.

Against running queue managers (`--connect`; then only this client's CPU time can be seen), or against a group that is started for it
(`--store`; then all processes are counted). The last line of `--json` is one object.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Group as Lines
from rich.progress import Progress, TaskID

import qsg
from qsg.cli.common import MESSAGE_BYTES_MAX, Connect, Format, Store, err, facts, fail, known_store, out, stores
from qsg.cli.flow import CountedSize, flow

app = typer.Typer(no_args_is_help=True, help="Benchmarks: put, get, latency, drain; and flow, which counts.")
app.command()(flow)

QUEUE = "QSG.BENCH"
UNREPORTED_S = 0.1

OwnStore = Annotated[
    str,
    typer.Option(
        "--store",
        help="Start a group for it: embedded, etcd (three members) or etcd://host:port,…",
        show_default=False,
        autocompletion=stores,
        callback=lambda store: store and known_store(store),
    ),
]
Messages = Annotated[int, typer.Option("--messages", "-n", min=1)]
STAMP_BYTES = 8
Size = Annotated[int, typer.Option("--size", min=0, max=MESSAGE_BYTES_MAX, help="Bytes of a message.")]
StampedSize = Annotated[
    int, typer.Option("--size", min=STAMP_BYTES, max=MESSAGE_BYTES_MAX, help="Bytes of a message, with the time that it carries.")
]
Queue = Annotated[str, typer.Option("--queue", "-q", help="Made and emptied if it is the default one.")]
AsJson = Annotated[bool, typer.Option("--json", help="The last line is one JSON object.")]


@dataclass
class Site:
    """Where to measure: addresses, and the processes that can be seen."""

    addresses: str
    pids: Callable[[], list[int]] = lambda: []
    member_pids: Callable[[], list[int]] = lambda: []

    @property
    def whole(self) -> bool:
        return bool(self.pids())


@dataclass
class Measure:
    """Times and resources from its making on."""

    site: Site
    latencies_s: list[float] = field(default_factory=list)
    done: int = 0
    _began_s: float = field(default_factory=time.perf_counter)
    _cpu_s: float = field(default_factory=time.process_time)
    _server_cpu_s: float = 0.0

    def __post_init__(self) -> None:
        self._server_cpu_s = self._server()

    def _server(self) -> float:
        if not self.site.whole:
            return 0.0
        from qsg.process import usage

        return usage.cpu_s(self.site.pids())

    def result(self, **more: Any) -> dict[str, Any]:
        from qsg.process import usage

        seconds = time.perf_counter() - self._began_s
        client_s = time.process_time() - self._cpu_s
        cpu_s = client_s + self._server() - self._server_cpu_s
        members = self.site.member_pids() or [os.getpid()]
        self.latencies_s.sort()
        return {
            **more,
            "messages": self.done,
            "seconds": round(seconds, 3),
            "rate_per_s": round(self.done / seconds, 1),
            "p50_ms": self._percentile(0.5),
            "p99_ms": self._percentile(0.99),
            "cpu_us_per_message": round(cpu_s * 1e6 / max(1, self.done), 1),
            "client_cpu_us_per_message": round(client_s * 1e6 / max(1, self.done), 1),
            "cpu_of": "all processes" if self.site.whole else "this client",
            "rss_mib": round(max(usage.rss_mib(pid, peak=True) for pid in members), 1),
            "rss_of": "largest queue manager" if self.site.whole else "this client",
        }

    def _percentile(self, part: float) -> float | None:
        if not self.latencies_s:
            return None
        if len(self.latencies_s) < 2:
            return round(self.latencies_s[0] * 1000, 3)
        return round(statistics.quantiles(self.latencies_s, n=1000, method="inclusive")[round(part * 1000) - 1] * 1000, 3)


@asynccontextmanager
async def site_of(connect: str, store: str) -> AsyncIterator[Site]:
    if not store:
        yield Site(connect)
        return
    from qsg.process.local import LocalGroup

    directory = Path(tempfile.mkdtemp(prefix="qsg-bench-"))
    group = LocalGroup(directory, store=store, cuttable=False)
    try:
        with err.status("starting a group …"):
            await group.start()
        yield Site(group.group_addresses, group.pids, group.member_pids)
    finally:
        await group.stop()
        shutil.rmtree(directory, ignore_errors=True)


async def _ready(qmgr: qsg.QueueManager, queue: str) -> None:
    """The default queue is made and emptied; another one is taken as it is."""
    if queue != QUEUE:
        await qmgr.inquire_queue(queue)
        return
    try:
        if (await qmgr.inquire_queue(queue)).get("depth"):
            await qmgr.command("purge", name=queue)
    except qsg.UnknownObjectName:
        grouped = qmgr.name != qmgr.member
        definition = {"name": queue, "structure": "admin" if grouped else "private", "description": "qsg bench"}
        await qmgr.command("define", kind="queue", definition=definition)


@dataclass
class Bar:
    """A progress bar that costs nothing per message."""

    progress: Progress
    task: TaskID
    measure: Measure

    async def run(self) -> None:
        while True:
            self.progress.update(self.task, completed=self.measure.done)
            await asyncio.sleep(UNREPORTED_S)


@asynccontextmanager
async def _bar(title: str, total: int, measure: Measure) -> AsyncIterator[None]:
    with Progress(console=err, transient=True) as progress:
        bar = asyncio.create_task(Bar(progress, progress.add_task(title, total=total), measure).run())
        try:
            yield
        finally:
            bar.cancel()
            await asyncio.gather(bar, return_exceptions=True)


@contextmanager
def _bars(total: int) -> Iterator[Callable[[str, int], None]]:
    """A progress bar for each part of long work, from when it is first told of."""
    with Progress(console=err, transient=True) as progress:
        tasks: dict[str, TaskID] = {}

        def told(what: str, done: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=total)
            progress.update(tasks[what], completed=done)

        yield told


def _run(work: Callable[[], Awaitable[dict[str, Any]]], as_json: bool) -> None:
    import uvloop

    async def main() -> dict[str, Any]:
        return await work()

    try:
        result = uvloop.run(main())
    except qsg.QsgError as error:
        raise fail(error, Format.JSON if as_json else Format.TABLE) from error
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    if as_json:
        sys.stdout.write(json.dumps(result) + "\n")
    else:
        out.print(Lines(facts(result)))


@app.command()
def put(
    messages: Messages = 50_000,
    size: Size = 1024,
    concurrency: Annotated[int, typer.Option(min=1, help="Tasks that put one message after the other.")] = 100,
    producer: Annotated[bool, typer.Option("--producer", help="Numbered puts (exactly once).")] = False,
    queue: Queue = QUEUE,
    connect: Connect = "",
    store: OwnStore = "",
    as_json: AsJson = False,
) -> None:
    """Many tasks put messages over one connection."""

    async def work() -> dict[str, Any]:
        name = f"bench.{os.getpid()}.{time.time_ns()}" if producer else ""
        async with site_of(connect, store) as site, qsg.connect(site.addresses, application="qsg bench", producer=name) as qmgr:
            await _ready(qmgr, queue)
            payload = os.urandom(size)
            await asyncio.gather(*(qmgr.put(queue, payload) for _ in range(min(100, messages))))
            await _ready(qmgr, queue)
            measure = Measure(site)
            left = messages

            async def task() -> None:
                nonlocal left
                while left > 0:
                    left -= 1
                    began = time.perf_counter()
                    await qmgr.put(queue, payload)
                    measure.latencies_s.append(time.perf_counter() - began)
                    measure.done += 1

            async with _bar("put", messages, measure):
                await asyncio.gather(*(task() for _ in range(concurrency)))
            result = measure.result(bench="put", size=size, concurrency=concurrency, numbered=producer)
            await _ready(qmgr, queue)
            return result

    _run(work, as_json)


@app.command()
def get(
    messages: Messages = 50_000,
    size: Size = 1024,
    concurrency: Annotated[int, typer.Option(min=1, help="Tasks that get.")] = 4,
    batch: Annotated[int, typer.Option(min=1, max=1000, help="Messages asked for at once.")] = 100,
    units: Annotated[bool, typer.Option("--units", help="Each batch is a unit of work.")] = False,
    queue: Queue = QUEUE,
    connect: Connect = "",
    store: OwnStore = "",
    as_json: AsJson = False,
) -> None:
    """Fills a queue, then gets all of it."""

    async def work() -> dict[str, Any]:
        async with site_of(connect, store) as site, qsg.connect(site.addresses, application="qsg bench") as qmgr:
            await _ready(qmgr, queue)
            await _fill(qmgr, queue, messages, size)
            measure = Measure(site)

            async def once() -> int:
                if units:
                    async with qmgr.unit() as unit:
                        return len(await unit.get_many(queue, batch))
                return len(await qmgr.get_many(queue, batch))

            async def task() -> None:
                while measure.done < messages:
                    began = time.perf_counter()
                    try:
                        count = await once()
                    except qsg.NoMessageAvailable:
                        return
                    measure.done += count
                    measure.latencies_s.append(time.perf_counter() - began)

            async with _bar("get", messages, measure):
                await asyncio.gather(*(task() for _ in range(concurrency)))
            return measure.result(bench="get", size=size, concurrency=concurrency, batch=batch, units=units)

    _run(work, as_json)


async def _fill(qmgr: qsg.QueueManager, queue: str, messages: int, size: int) -> None:
    from qsg.process.workload import burst

    payload, most = os.urandom(size), burst(size, 1000)
    with _bars(messages) as told:
        for start in range(0, messages, most):
            count = min(most, messages - start)
            await qmgr.put_many(queue, [payload] * count)
            told("fill", start + count)


@app.command()
def latency(
    messages: Messages = 1_000,
    size: StampedSize = 1024,
    rate: Annotated[float, typer.Option(min=0.1, help="Messages a second.")] = 200.0,
    queue: Queue = QUEUE,
    connect: Connect = "",
    store: OwnStore = "",
    as_json: AsJson = False,
) -> None:
    """How long a message takes from put to a waiting get, at an even rate, over two connections."""

    async def work() -> dict[str, Any]:
        async with (
            site_of(connect, store) as site,
            qsg.connect(site.addresses, application="qsg bench") as putter,
            qsg.connect(site.addresses, application="qsg bench") as getter,
        ):
            await _ready(putter, queue)
            padding = os.urandom(size - STAMP_BYTES)
            measure = Measure(site)
            put_s: list[float] = []

            async def put_one(at: float) -> None:
                await putter.put(queue, time.perf_counter_ns().to_bytes(STAMP_BYTES, "big") + padding)
                put_s.append(time.perf_counter() - at)

            async def put_all() -> None:
                began = time.perf_counter()
                async with asyncio.TaskGroup() as tasks:
                    for number in range(messages):
                        await asyncio.sleep(max(0.0, began + number / rate - time.perf_counter()))
                        tasks.create_task(put_one(time.perf_counter()))

            async def get_all() -> None:
                while measure.done < messages:
                    for message in await getter.get_many(queue, 100, wait_ms=60_000):
                        sent_ns = int.from_bytes(message.payload[:STAMP_BYTES], "big")
                        measure.latencies_s.append((time.perf_counter_ns() - sent_ns) / 1e9)
                        measure.done += 1

            async with _bar("latency", messages, measure):
                await asyncio.gather(put_all(), get_all())
            put_p50_ms = round(statistics.median(put_s) * 1000, 3)
            return measure.result(bench="latency", size=size, rate_asked_per_s=rate, put_p50_ms=put_p50_ms)

    _run(work, as_json)


@app.command()
def drain(
    messages: Messages = 50_000,
    size: CountedSize = 1024,
    store: Store = "embedded",
    as_json: AsJson = False,
) -> None:
    """Starts a group and a remote queue manager, fills a transmission queue, and measures how fast the channel drains it."""

    async def work() -> dict[str, Any]:
        from qsg.process.bench import drain as drained
        from qsg.process.local import LocalGroup

        directory = Path(tempfile.mkdtemp(prefix="qsg-bench-"))
        group = LocalGroup(directory, store=store, cuttable=False)
        try:
            with err.status("starting a group …"):
                await group.start()
            with _bars(messages) as told:
                figures = (await drained(group, messages, size, told)).fields()
        finally:
            await group.stop()
            shutil.rmtree(directory, ignore_errors=True)
        return {"bench": "drain", "messages": messages, "size": size, **figures}

    _run(work, as_json)
