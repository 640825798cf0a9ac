"""`qsg bench flow`: traffic through a channel with a count of what arrived, until Ctrl-C."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from typing import Annotated

import typer

import qsg
from qsg.cli.common import MESSAGE_BYTES_MAX, Format, facts, fail, out
from qsg.process.ledger import PAYLOAD_BYTES_MIN

EXIT_UNCLEAN = 1

CountedSize = Annotated[
    int,
    typer.Option("--size", min=PAYLOAD_BYTES_MIN, max=MESSAGE_BYTES_MAX, help="Bytes of a message, with number, time and checksum in it."),
]


def flow(
    put_queue: Annotated[str, typer.Option(help="Where to put, such as a remote queue that leads through a channel.")],
    get_queue: Annotated[str, typer.Option(help="Where the messages arrive.")],
    connect: Annotated[str, typer.Option("--connect", envvar="QSG_CONNECT", help="Of the putting side.")],
    get_connect: Annotated[str, typer.Option(help="Of the side where they arrive; default: the same.")] = "",
    rate: Annotated[float, typer.Option(min=0.1, help="Messages a second.")] = 100.0,
    messages: Annotated[int, typer.Option("--messages", "-n", min=1, help="End after so many.")] = 1_000_000_000,
    size: CountedSize = 1024,
    pause_ms: Annotated[float, typer.Option(min=1, help="Tell of silences longer than this.")] = 100.0,
    as_json: Annotated[bool, typer.Option("--json", help="A line a second; the last one has the counts.")] = False,
) -> None:
    """Puts numbered messages at one queue manager and gets them at another, until Ctrl-C or SIGTERM; then says what was lost or came twice.

    Exit code 0: everything acknowledged arrived once and in order (what a getter whose session ended gave back may come later: `returned`).
    """
    from qsg.process.flow import Plan, run
    from qsg.process.world import real_world

    plan = Plan(connect, put_queue, get_connect or connect, get_queue, rate, messages, size, pause_s=pause_ms / 1000)

    async def work() -> dict[str, object]:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)

        def tell(line: dict[str, object]) -> None:
            if as_json:
                _line(line)

        return await run(plan, real_world(), stop, tell)

    try:
        result = asyncio.run(work())
    except qsg.QsgError as error:
        raise fail(error, Format.JSON if as_json else Format.TABLE) from error
    if as_json:
        _line(result)
    else:
        out.print(facts({name: value for name, value in result.items() if name != "pauses"}))
    raise typer.Exit(0 if result["clean"] else EXIT_UNCLEAN)


def _line(fields: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()
