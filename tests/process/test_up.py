"""`qsg up` as a person uses it: the addresses that it prints, the commands that it suggests, and Ctrl-C."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import signal
import sys
from pathlib import Path

import psutil
import pytest

from qsg.process.children import bound_to_parent
from support.group import READY_S, eventually
from support.processes import is_alive

QSG = [sys.executable, "-m", "qsg.cli.main"]


async def qsg(command: str, address: str) -> tuple[int, str]:
    """Exit code and standard output of a command in another terminal."""
    process = await asyncio.create_subprocess_exec(
        *QSG, *shlex.split(command), stdout=asyncio.subprocess.PIPE, env=os.environ | {"QSG_CONNECT": address}
    )
    out, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode()


@pytest.mark.processes
@pytest.mark.timeout(400)
async def test_up(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(*bound_to_parent([*QSG, "up"]), stdout=asyncio.subprocess.PIPE, cwd=tmp_path)
    assert process.stdout is not None
    printed = ""
    async with asyncio.timeout(READY_S):
        while "Ctrl-C" not in printed:
            line = await process.stdout.readline()
            assert line, printed
            printed += line.decode()
    children: list[psutil.Process] = []

    def all_there() -> bool:
        children[:] = psutil.Process(process.pid).children(recursive=True)
        return len(children) == 9

    await eventually(all_there, what="the store, and two processes for each of X, Y, Z and R")
    address = re.findall(r"export QSG_CONNECT=(\S+)", printed)[0]
    remote = re.findall(r"qsg get FROM.QSG --connect (\S+)", printed)[0]

    assert (await qsg("put TO.R hello", address))[0] == 0
    assert await qsg(f"get FROM.QSG --wait-ms 60000 --connect {remote}", address) == (0, "hello\n")
    assert (await qsg("put TO.QSG back", remote))[0] == 0
    assert await qsg("get FROM.R --wait-ms 60000", address) == (0, "back\n")

    async def runs() -> bool:
        code, out = await qsg("channel status QSG.TO.R -o json", address)
        (row,) = json.loads(out)
        return (code, row["status"], row["owner"] in set("XYZ")) == (0, "RUNNING", True)

    await eventually(runs, what="the channel that has moved messages runs")
    code, out = await qsg("group status -o json", address)
    assert code == 0
    assert {name for name in "XYZ" if f'"{name}"' in out} == set("XYZ")

    process.send_signal(signal.SIGINT)
    async with asyncio.timeout(READY_S):
        assert await process.wait() == 0
    await eventually(lambda: not any(is_alive(child) for child in children), what="all have ended")
    assert (tmp_path / "qsg-data" / "log" / "X.log").exists()
