"""What a message that travels alone costs: CPU time, switches and requests of each process, counted and not timed.

    python bench/lone.py --store etcd --rate 200 --messages 2000

Starts a group and R, lets it idle, then puts from X, Y, Z to R as the demo does. Prints one JSON line: for each process CPU milliseconds a
message (user and system), what it would have used idle in that time, voluntary context switches; what etcd's members served; and what the
queue managers and initiators counted (tasks made, transactions and reads of stores, SQLite commits, frames sent), all a message.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import gc
import json
import os
import re
import signal
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

COUNTS: collections.Counter[str] = collections.Counter()
METRICS = re.compile(
    r"^(grpc_server_handled_total|grpc_server_msg_sent_total|grpc_server_msg_received_total|etcd_disk_wal_fsync_duration_seconds_count)"
    r"(?:\{(.*)\})? (\S+)$",
    re.MULTILINE,
)


# --- in a process that is counted


def count_calls(owner: Any, method: str, name: str) -> None:
    plain = getattr(owner, method)

    def counted(*arguments: Any, **named: Any) -> Any:
        COUNTS[name] += 1
        return plain(*arguments, **named)

    setattr(owner, method, counted)


def count_store(owner: Any, label: str) -> None:
    plain = owner.txn

    async def txn(self: Any, compares: Any, ops: Any, else_ops: Any = (), *, timeout_s: float | None = None) -> Any:
        reads = not compares and all(type(op).__name__ == "Get" for op in ops)
        COUNTS[f"{label} {'read' if reads else 'transaction'}"] += 1
        return await plain(self, compares, ops, else_ops, timeout_s=timeout_s)

    owner.txn = txn


def serve(role: str, config: str, out: str) -> int:
    """Runs one process of a member, counting; SIGUSR1 writes what was counted so far to `out`."""
    import uvloop

    from qsg.process import run
    from qsg.store.etcd.store import EtcdStore
    from qsg.store.sqlite import SqliteStore
    from qsg.store.sqlite_engine import Engine
    from qsg.transport.grpc_ import _GrpcStream
    from qsg.transport.unix import UnixStream

    count_store(EtcdStore, "etcd")
    count_store(SqliteStore, "sqlite")
    count_calls(Engine, "commit", "sqlite commit")
    count_calls(UnixStream, "send", "unix frame sent")
    count_calls(_GrpcStream, "send", "grpc frame sent")
    count_calls(asyncio, "timeout", "timeout")
    count_calls(asyncio, "timeout_at", "timeout")

    def collected(phase: str, _: Any) -> None:
        COUNTS["gc us"] += round(1e6 * time.thread_time()) * (1 if phase == "stop" else -1)

    gc.callbacks.append(collected)

    def task(loop: Any, coroutine: Any, **named: Any) -> Any:
        COUNTS["task"] += 1
        return asyncio.Task(coroutine, loop=loop, **named)

    def write(*_: object) -> None:
        Path(out + ".new").write_text(json.dumps(COUNTS))
        os.replace(out + ".new", out)

    plain = uvloop.run

    def counted(main: Any, **named: Any) -> Any:
        async def whole() -> Any:
            asyncio.get_running_loop().set_task_factory(task)
            asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, write)
            return await main

        return plain(whole(), **named)

    uvloop.run = counted
    return run.main([role, config])


# --- outside


def counted_group(directory: Path, store: str) -> Any:
    from qsg.process.local import LocalGroup

    class Counted(LocalGroup):
        async def _start_member(self, name: str, config: Path) -> None:
            for process, role in ((name, "serve"), (self.initiator(name), "initiator")):
                out = str(directory / f"{process}.counts")
                command = [sys.executable, __file__, "--serve", role, "--config", str(config), "--out", out]
                await self.supervisor.start(process, command)

    return Counted(directory, store=store, cuttable=False)


def cpu_ms(pid: int) -> float:
    return 1000 * time.clock_gettime(((~pid) << 3) | 2)


def switches(pid: int) -> int:
    found = 0
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        found += int(re.search(r"^voluntary_ctxt_switches:\s+(\d+)", status.read_text(), re.MULTILINE)[1])  # type: ignore[index]
    return found


def etcd_counts(group: Any) -> collections.Counter[str]:
    found: collections.Counter[str] = collections.Counter()
    for endpoint in group.etcd.endpoints if group.etcd is not None else []:
        with urllib.request.urlopen(f"http://{endpoint.split('//')[-1]}/metrics", timeout=5) as answer:
            for name, labels, value in METRICS.findall(answer.read().decode()):
                method = re.search(r'grpc_method="(\w+)"', labels)
                what = name.removeprefix("grpc_server_").removeprefix("etcd_disk_").removesuffix("_duration_seconds_count")
                found[f"{method[1]} {what}" if method else what] += int(float(value))
    return found


async def look(group: Any, pids: dict[str, int], counted: bool) -> dict[str, Any]:
    counts = {}
    if counted:
        for name, pid in pids.items():
            path = group.directory / f"{name}.counts"
            if name.split(".")[0] in (*group.members, "R"):
                path.unlink(missing_ok=True)
                os.kill(pid, signal.SIGUSR1)
                while not path.exists():  # noqa: ASYNC110  (another process writes it)
                    await asyncio.sleep(0.005)
                counts[name] = collections.Counter(json.loads(path.read_text()))
    etcd = etcd_counts(group)
    return {
        "at": time.monotonic(),
        "cpu": {n: cpu_ms(p) for n, p in pids.items()},
        "switches": {n: switches(p) for n, p in pids.items()},
        "etcd": etcd,
        "counts": counts,
    }


def between(a: dict[str, Any], b: dict[str, Any], n: int) -> dict[str, Any]:
    return {
        "cpu_ms": {k: round((b["cpu"][k] - a["cpu"][k]) / n, 3) for k in a["cpu"]},
        "switches": {k: round((b["switches"][k] - a["switches"][k]) / n, 1) for k in a["switches"]},
        "etcd": {k: round(v / n, 2) for k, v in sorted((b["etcd"] - a["etcd"]).items()) if v / n > 0.02},
        "counts": {
            p: {k: round(v / n, 2) for k, v in sorted((b["counts"][p] - a["counts"][p]).items()) if v / n > 0.02} for p in a["counts"]
        },
    }


async def main(store: str, rate: float, messages: int, count: bool, idle_s: float) -> int:
    import qsg
    from qsg.process.bench import whole
    from qsg.process.flow import Plan, run
    from qsg.process.local import LocalGroup, wait_until
    from qsg.process.world import real_world

    with tempfile.TemporaryDirectory(prefix="qsg-lone-", ignore_cleanup_errors=True) as name:
        group = counted_group(Path(name), store) if count else LocalGroup(Path(name), store=store, cuttable=False)
        await group.start()
        try:
            async with qsg.connect(group.group_addresses, connect_s=60) as inside:
                await wait_until(lambda: whole(group, inside), 60, "the group to be whole")
            way = group.group_addresses, "TO.R", group.remote_address, "FROM.QSG"
            await run(Plan(*way, rate_per_s=rate, messages=20), real_world(), asyncio.Event())
            pids = {**group.named_pids(), "applications": os.getpid()}
            if group.etcd is not None:
                pids |= {f"etcd{i}": m.process.pid for i, m in enumerate(group.etcd.members) if m.process is not None}
            first = await look(group, pids, count)
            await asyncio.sleep(idle_s)
            second = await look(group, pids, count)
            result = await run(Plan(*way, rate_per_s=rate, messages=messages), real_world(), asyncio.Event())
            third = await look(group, pids, count)
        finally:
            await group.stop()
    line = {"bench": "lone", "store": store, "rate": rate, "messages": messages, "clean": result["clean"]}
    line |= {name: result[name] for name in ("wait_p50_ms", "wait_p99_ms")}
    line |= {"seconds": round(third["at"] - second["at"], 2), "idle_s": idle_s}
    line |= between(second, third, messages)
    line["idle_cpu_ms_per_s"] = between(first, second, 1)["cpu_ms"]
    line["idle_cpu_ms_per_s"] = {k: round(v / idle_s, 2) for k, v in line["idle_cpu_ms_per_s"].items()}
    line["total_cpu_ms"] = round(sum(line["cpu_ms"].values()), 3)
    line["total_idle_ms_per_s"] = round(sum(line["idle_cpu_ms_per_s"].values()), 1)
    sys.stdout.write(json.dumps(line) + "\n")
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", default="embedded")
    parser.add_argument("--rate", type=float, default=200)
    parser.add_argument("--messages", type=int, default=2000)
    parser.add_argument("--idle", type=float, default=5)
    parser.add_argument("--count", action="store_true", help="count tasks, transactions and frames too (costs some CPU time itself)")
    parser.add_argument("--serve")
    parser.add_argument("--config")
    parser.add_argument("--out")
    given = parser.parse_args()
    if given.serve:
        sys.exit(serve(given.serve, given.config, given.out))
    sys.exit(asyncio.run(main(given.store, given.rate, given.messages, given.count, given.idle)))
