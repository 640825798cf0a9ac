"""`qsg bench flow`: what it counts when its channel is moved, and that it sees what is wrong."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path

import pytest

from qsg.process.flow import pauses
from qsg.process.ledger import Ledger, payload
from qsg.process.workload import BURST_MAX
from support.group import READY_S, running


def test_pauses_are_silences_while_something_is_on_its_way() -> None:
    ledger = Ledger(1)
    ledger.sent(0, 4)
    for number, sent, arrived in ((1, 10.0, 10.01), (2, 10.02, 10.5), (3, 20.0, 20.01), (4, 20.02, 20.03)):
        ledger.arrived(payload(0, number, sent, 64), arrived)
    assert pauses(ledger, 0.1, 1000) == [{"until": 1010.5, "ms": 480.0}]


def test_the_longest_pauses_fit_into_one_line_of_a_log() -> None:
    """Container runtimes cut lines at 16 KiB."""
    ledger = Ledger(1)
    ledger.sent(0, 1000)
    for number in range(1, 1001):
        at = 1e9 + number + (0.5 if number == 700 else 0.0)
        ledger.arrived(payload(0, number, 1e9, 64), at)
    found = pauses(ledger, 0.1, 1e9)
    assert {"until": 2e9 + 700.5, "ms": 1500.0} in found
    assert found == sorted(found, key=lambda pause: pause["until"])
    assert len(json.dumps(found)) < 10_000


@pytest.mark.processes
@pytest.mark.timeout(400)
async def test_flow(tmp_path: Path) -> None:
    async with running(tmp_path, members=("X", "Y")) as group:
        command = [sys.executable, "-m", "qsg.cli.main", "bench", "flow", "--put-queue", "TO.R", "--get-queue", "FROM.QSG", "--json"]
        ends = ["--connect", group.group_addresses, "--get-connect", group.remote_address, "--rate", "200"]
        process = await asyncio.create_subprocess_exec(*command, *ends, stdout=asyncio.subprocess.PIPE)
        assert process.stdout is not None
        async with asyncio.timeout(2 * READY_S):
            while (line := json.loads(await process.stdout.readline()))["arrived"] < 200:
                assert line["arrived"] <= line["acknowledged"] + 2 * BURST_MAX  # two producers, each waits for one put
            group.kill("X", "member")
            before = line["arrived"]
            while json.loads(await process.stdout.readline())["arrived"] < before + 200:
                pass
            process.send_signal(signal.SIGTERM)
            *_, last = (await process.stdout.read()).splitlines()
        found = json.loads(last)
        assert (await process.wait(), found["clean"], found["drained"]) == (0, True, True)
        assert found["sent"] == found["acknowledged"] == found["ok"] >= 400
        assert (found["lost"], found["duplicated"], found["unexpected"], found["out_of_order"]) == (0, 0, 0, 0)
