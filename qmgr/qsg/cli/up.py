"""`qsg up`: a queue-sharing group and a remote queue manager on this machine, to play with."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import Annotated

import typer
import uvloop
from rich.console import Console

from qsg.cli.common import Store
from qsg.process.local import REMOTE, LocalGroup


async def _run(group: LocalGroup, console: Console) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    console.print(f"starting {', '.join(group.members)} and {REMOTE}; data and logs: {group.directory}", highlight=False, soft_wrap=True)
    try:
        await group.start()
        for name in (*group.members, REMOTE):
            console.print(f"{name}: client API {group.addresses[name]}", highlight=False)
        console.print("\nIn another terminal:", f"  export QSG_CONNECT={group.group_addresses}", sep="\n", highlight=False)
        console.print("  qsg put TO.R hello", "  qsg channel status", sep="\n", highlight=False)
        console.print(f"  qsg get FROM.QSG --connect {group.remote_address}", "\nCtrl-C ends it.", sep="\n", highlight=False)
        await stop.wait()
    finally:
        await group.stop()


def up(
    directory: Annotated[Path, typer.Option(help="Folder for data and logs; kept.")] = Path("qsg-data"),
    store: Store = "embedded",
) -> None:
    """Starts X, Y, Z and R as processes, with queues and a channel each way, until Ctrl-C."""
    if store == "etcd" and directory.exists() and any(directory.iterdir()):
        raise typer.BadParameter(f"{directory} is not empty, and a new etcd does not know what is in it", param_hint="--directory")
    uvloop.run(_run(LocalGroup(directory.absolute(), store=store, cuttable=False), Console()))
