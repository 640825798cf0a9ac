"""Probes and metrics over HTTP, and the end of a whole pod: both processes are told to end at the same moment."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client.metrics_core import CounterMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families

from qsg.manager.committer import Counters
from qsg.process import monitor as module
from qsg.process.children import free_ports
from qsg.process.local import OUT_CHANNEL
from qsg.process.metrics import _own as own_metrics
from qsg.process.monitor import Monitor
from qsg.store.contract import StoreStatus
from support.group import READY_S, connected, eventually, flowing, running, status


def fetch(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=READY_S) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


async def get(port: int, path: str) -> tuple[int, str]:
    return await asyncio.to_thread(fetch, port, path)


class Watched:
    why = "starting"

    async def metrics(self) -> Iterable[Metric]:
        made = CounterMetricFamily("qsg_things", "Things.", labels=["kind"])
        made.add_metric(["odd"], 3)
        return [made]


@pytest.fixture
async def watched(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Monitor, Watched]]:
    monkeypatch.setattr(module, "ANSWER_S", READY_S)
    about = Watched()
    made = Monitor("127.0.0.1:0", lambda: about.why, about.metrics)
    made.start()
    yield made, about
    made.stop()


async def test_pages(watched: tuple[Monitor, Watched]) -> None:
    monitor, about = watched
    assert await get(monitor.port, "/livez") == (200, "alive\n")
    assert await get(monitor.port, "/readyz") == (503, "starting\n")
    about.why = ""
    assert await get(monitor.port, "/readyz") == (200, "ready\n")
    code, page = await get(monitor.port, "/metrics")
    assert code == 200
    assert 'qsg_things_total{kind="odd"} 3.0' in page
    assert "process_resident_memory_bytes" in page
    assert (await get(monitor.port, "/"))[0] == 404


async def test_a_loop_that_hangs_is_not_alive(watched: tuple[Monitor, Watched], monkeypatch: pytest.MonkeyPatch) -> None:
    with ThreadPoolExecutor() as threads, monkeypatch.context() as patch:
        patch.setattr(module, "ANSWER_S", 0.05)
        assert threads.submit(fetch, watched[0].port, "/livez").result()[0] == 503  # our loop hangs here until that is answered
    assert (await get(watched[0].port, "/livez"))[0] == 200


async def test_nonsense_harms_nobody(watched: tuple[Monitor, Watched]) -> None:
    port = watched[0].port
    silent = await asyncio.open_connection("127.0.0.1", port)
    for line in (b"\x00\xff" * 100 + b"\r\n\r\n", b"POST /livez HTTP/1.1\r\n\r\n", b"GET " + b"x" * 100_000 + b" HTTP/1.1\r\n\r\n"):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(line)
        with contextlib.suppress(ConnectionError):  # it may be reset before all of it is read
            assert b"200" not in (await asyncio.wait_for(reader.read(64), READY_S)).split(b"\r\n")[0]
        writer.close()
    assert (await get(port, "/livez"))[0] == 200
    silent[1].close()


def test_how_full_structures_are_is_told_as_far_as_it_is_known() -> None:
    def structure(filled: StoreStatus | None) -> Any:
        return SimpleNamespace(filled=filled, reachable=True, counters=Counters())

    told = StoreStatus(revision=5, bytes_in_use=300, bytes_quota=1_000, version="3.6", leader="")
    structures = {"admin": structure(told), "app1": structure(replace(told, bytes_quota=0)), "far": structure(None)}
    manager: Any = SimpleNamespace(structures=structures, link=SimpleNamespace(joined=True))
    found = {
        f.name: {s.labels["structure"]: s.value for s in f.samples} for f in own_metrics(manager, {"members": []}) if "bytes" in f.name
    }
    assert found == {"qsg_structure_bytes_in_use": {"admin": 300, "app1": 300}, "qsg_structure_bytes_quota": {"admin": 1_000}}


async def is_answered(port: int, page: str) -> bool:
    return (await get(port, page))[0] == 200


async def tells(port: int, owner: str) -> bool:
    """Metrics of a member: who owns the channel and that it runs, and how its structures are."""
    families = {f.name: f for f in text_string_to_metric_families((await get(port, "/metrics"))[1])}
    (state,) = [s for s in families["qsg_channel_state"].samples if s.labels["channel"] == OUT_CHANNEL]
    (owned,) = [s for s in families["qsg_channel_owner_info"].samples if s.labels["channel"] == OUT_CHANNEL]
    reached = {s.labels["structure"]: s.value for s in families["qsg_structure_reachable"].samples}
    filled = {s.labels["structure"] for s in families["qsg_structure_bytes_in_use"].samples if s.value > 0}
    return (
        (state.labels["state"], owned.labels["queue_manager"]) == ("RUNNING", owner)
        and reached == {"admin": 1, "private": 1}
        and filled == {"admin", "private"}
    )


@pytest.mark.processes
@pytest.mark.timeout(400)
async def test_a_member_that_ends_as_a_whole_hands_its_channels_over(tmp_path: Path) -> None:
    ports = iter(free_ports(4))
    at = {m: (next(ports), next(ports)) for m in ("X", "Y")}
    further = {
        m: {"monitor": f"127.0.0.1:{manager}", "initiator_monitor": f"127.0.0.1:{initiator}", "initiator_linger_s": READY_S}
        for m, (manager, initiator) in at.items()
    }
    async with running(tmp_path, members=("X", "Y"), configure=further) as group, flowing(group) as flow, connected(group) as observer:
        await flow.moves()
        for port in (*at["X"], *at["Y"]):
            for page in ("/livez", "/readyz", "/metrics"):
                await eventually(partial(is_answered, port, page), what=f"{page} at {port}")
        owner = str((await status(observer, OUT_CHANNEL))["owner"])
        other = "Y" if owner == "X" else "X"
        await eventually(partial(tells, at[other][0], owner), what=f"{other} tells that {owner} has the channel, and of its structures")

        for process in (owner, group.initiator(owner)):
            group.supervisor.signal(process, signal.SIGTERM)

        async def moved() -> bool:
            line = await status(observer, OUT_CHANNEL)
            return (line["owner"], line["status"]) == (other, "RUNNING")

        await eventually(moved, what="the other member has the channel")
        (draining,) = group.logged(event="draining", at=owner)
        ended = partial(group.logged, event="initiator lost", at=owner, timestamp=lambda when: when >= draining["timestamp"])
        lost = await eventually(ended, what="the queue manager has ended")
        assert [line["cause"] for line in lost] == ["given up here"], "the initiator ended before its queue manager had handed over"
        await flow.moves()
