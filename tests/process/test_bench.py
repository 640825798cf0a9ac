"""`qsg bench drain`: what its percentiles mean, and that it runs to its end."""

from __future__ import annotations

import asyncio
import json
import sys

import pytest

from qsg.process.bench import reached_s
from qsg.process.children import bound_to_parent


def test_percentiles_of_a_drain_lie_between_two_samples() -> None:
    samples = [(0.1, 0), (0.2, 0), (0.4, 40), (0.4, 40), (0.8, 80), (1.0, 100)]
    assert [round(reached_s(samples, count), 6) for count in (1, 40, 50, 80, 99, 100)] == [0.205, 0.4, 0.5, 0.8, 0.99, 1.0]
    assert reached_s([(0.2, 10)], 5) == 0.1, "all had come at the first look"
    with pytest.raises(ValueError, match="had not arrived"):
        reached_s(samples, 101)


@pytest.mark.processes
@pytest.mark.timeout(400)
async def test_bench_drain() -> None:
    argv = [sys.executable, "-m", "qsg.cli.main", "bench", "drain", "--messages", "300", "--size", "100", "--json"]
    process = await asyncio.create_subprocess_exec(*bound_to_parent(argv), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE)
    out, told = await process.communicate()
    assert process.returncode == 0, told.decode()
    (line,) = out.decode().splitlines()
    result = json.loads(line)
    assert (result["bench"], result["messages"], result["size"]) == ("drain", 300, 100)
    assert 0 < result["p50_ms"] <= result["p99_ms"] <= 1000 * result["seconds"] + 1
    assert result["rate_per_s"] > 0
    assert result["cpu_us_per_message"] > 0
    assert result["rss_mib"] > 0
