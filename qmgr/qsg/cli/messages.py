"""`qsg put`, `qsg get`, `qsg browse`."""

from __future__ import annotations

import base64
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import Progress

import qsg
from qsg.cli.common import Connect, Format, Output, call, emit, err, out, queue_names, show, table_of
from qsg.cli.common import Watch as WatchOption

BURST = 500
GET_BURST = 100

Queue = Annotated[str, typer.Argument(help="Name of the queue.", show_default=False, autocompletion=queue_names)]


def _payloads(text: str | None, file: Path | None, lines: bool, count: int) -> Iterator[bytes]:
    if file is not None:
        data: bytes | None = file.read_bytes()
    elif text == "-" or text is None:
        if lines:
            yield from (line.rstrip(b"\r\n") for line in sys.stdin.buffer)
            return
        data = sys.stdin.buffer.read()
    else:
        data = text.encode()
    assert data is not None
    pieces = data.splitlines() if lines else [data]
    for _ in range(count):
        yield from pieces


def _bursts(payloads: Iterator[bytes]) -> Iterator[list[bytes]]:
    burst: list[bytes] = []
    for payload in payloads:
        burst.append(payload)
        if len(burst) == BURST:
            yield burst
            burst = []
    if burst:
        yield burst


def _pairs(properties: list[str]) -> dict[str, str]:
    pairs = {}
    for text in properties:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise typer.BadParameter(f"{text!r} is not KEY=VALUE", param_hint="--property")
        pairs[key] = value
    return pairs


def put(
    queue: Queue,
    payload: Annotated[str | None, typer.Argument(help="The message; '-' or nothing: standard input.", show_default=False)] = None,
    file: Annotated[Path | None, typer.Option("--file", "-f", exists=True, dir_okay=False, help="Take the message from a file.")] = None,
    lines: Annotated[bool, typer.Option("--lines", help="Each line is a message.")] = False,
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Put it so many times.")] = 1,
    priority: Annotated[int | None, typer.Option(min=0, max=9, help="If none is given: the queue's default.", show_default=False)] = None,
    expiry_ms: Annotated[int, typer.Option(min=0, help="Discarded after so long; 0 = never.")] = 0,
    correlation_id: Annotated[str, typer.Option(help="Hexadecimal, up to 24 bytes.")] = "",
    reply_to: Annotated[str, typer.Option(help="QUEUE or QUEUE@QUEUE-MANAGER.")] = "",
    properties: Annotated[list[str] | None, typer.Option("--property", metavar="KEY=VALUE", show_default=False)] = None,
    nonpersistent: Annotated[
        bool, typer.Option("--nonpersistent", help="Mark it so for its receiver; it is as durable as any other.")
    ] = False,
    queue_manager: Annotated[str, typer.Option(help="Queue manager where the queue is, when it is another one.")] = "",
    producer: Annotated[str, typer.Option(help="Name that is unique among living applications: put exactly once, whatever breaks.")] = "",
    connect: Connect = "",
    output: Output = Format.TABLE,
) -> None:
    """Puts messages on a queue and prints their ids."""
    told = _pairs(properties or [])
    correlation = _hexadecimal(correlation_id, "--correlation-id")
    reply_queue, _, reply_manager = reply_to.partition("@")

    async def work(qmgr: qsg.QueueManager) -> list[bytes]:
        ids: list[bytes] = []
        with Progress(console=err, transient=True, disable=count < 2 * BURST and not lines) as progress:
            task = progress.add_task(f"put to {queue}", total=None if lines else count)
            for burst in _bursts(_payloads(payload, file, lines, count)):
                ids += await qmgr.put_many(
                    queue,
                    burst,
                    priority=priority,
                    expiry_ms=expiry_ms,
                    correlation_id=correlation,
                    reply_to=(reply_queue, reply_manager) if reply_to else None,
                    properties=told,
                    persistent=not nonpersistent,
                    queue_manager=queue_manager,
                )
                progress.update(task, completed=len(ids))
        return ids

    ids = call(connect, work, output, producer=producer)
    if output is not Format.TABLE:
        emit({"queue": queue, "messages": len(ids), "message_ids": [one.hex() for one in ids]}, output)
    elif len(ids) <= 10:
        for one in ids:
            out.print(one.hex(), highlight=False)
    else:
        out.print(f"{len(ids)} messages", highlight=False)


def get(
    queue: Queue,
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="How many at most.")] = 1,
    everything: Annotated[bool, typer.Option("--all", "-a", help="All that are there.")] = False,
    wait_ms: Annotated[int, typer.Option("--wait-ms", min=-1, help="How long to wait for the first; -1 = for ever.")] = 0,
    message_id: Annotated[str, typer.Option(help="Hexadecimal.")] = "",
    correlation_id: Annotated[str, typer.Option(help="Hexadecimal.")] = "",
    connect: Connect = "",
    output: Output = Format.TABLE,
) -> None:
    """Takes messages off a queue and prints them, one a line. A message is taken only once it was printed."""
    which = {
        "message_id": _hexadecimal(message_id, "--message-id"),
        "correlation_id": _hexadecimal(correlation_id, "--correlation-id"),
    }

    async def work(qmgr: qsg.QueueManager) -> int:
        got = 0
        while everything or got < count:
            wanted = GET_BURST if everything else min(GET_BURST, count - got)
            try:
                async with qmgr.unit() as unit:
                    messages = await unit.get_many(queue, wanted, wait_ms=wait_ms if not got else 0, **which)
                    for message in messages:
                        _print(message, output)
                    sys.stdout.flush()
            except qsg.NoMessageAvailable:
                if got or everything:
                    break
                raise
            got += len(messages)
        return got

    call(connect, work, output)


def browse(
    queue: Queue,
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="How many at most.")] = 50,
    headers_only: Annotated[bool, typer.Option("--headers-only", help="Without the messages themselves.")] = False,
    watch: WatchOption = False,
    connect: Connect = "",
    output: Output = Format.TABLE,
) -> None:
    """Shows the messages on a queue without taking them."""

    async def ask(qmgr: qsg.QueueManager) -> list[dict[str, Any]]:
        rows = []
        shown = qmgr.browse(queue, headers_only=headers_only)
        async for message in shown:
            rows.append(describe(message))
            if len(rows) == count:
                break
        await shown.aclose()
        return rows

    def draw(rows: list[dict[str, Any]]) -> Any:
        columns = ["message_id", "priority", "put_at", "backout_count", "payload"]
        if any("dead_letter" in row for row in rows):
            columns.insert(4, "dead_letter")
        if not all(row["persistent"] for row in rows):
            columns.insert(2, "persistent")
        short = [row | {"message_id": row["message_id"][:12] + "…", "payload": str(row.get("payload", "<binary>"))[:80]} for row in rows]
        return table_of(short, columns, title=f"{queue}: {len(rows)} messages")

    show(connect, output, ask, draw, watch=watch)


def _print(message: qsg.Message, form: Format) -> None:
    if form is Format.TABLE:
        sys.stdout.buffer.write(message.payload + b"\n")
    else:
        sys.stdout.flush()
        emit(describe(message) if form is Format.JSON else [describe(message)], form)


def describe(message: qsg.Message) -> dict[str, Any]:
    """A message for JSON: fields that say something; the payload as text, or as base64 where it is none."""
    told: dict[str, Any] = {
        "message_id": message.message_id.hex(),
        "correlation_id": message.correlation_id.hex(),
        "priority": message.priority,
        "persistent": message.persistent,
        "backout_count": message.backout_count,
        "put_at": message.put_at.isoformat() if message.put_at else None,
        "expires_at": message.expires_at.isoformat() if message.expires_at else None,
        "put_application": message.put_application,
        "origin": message.origin,
        "hops": message.hops,
        "properties": dict(message.properties),
        "reply_to": f"{message.reply_to.queue}@{message.reply_to.queue_manager}".rstrip("@") if message.reply_to else "",
    }
    told = {key: value for key, value in told.items() if value not in ("", None, {})}
    if dead := message.dead_letter:
        reason = dead.reason_name or (dead.reason.name if isinstance(dead.reason, qsg.Reason) else "")
        told["dead_letter"] = {
            "reason": int(dead.reason),
            "reason_name": reason,
            "queue": dead.queue,
            "queue_manager": dead.queue_manager,
            "channel": dead.channel,
            "at": dead.at.isoformat(),
        }
    try:
        told["payload"] = message.payload.decode()
    except UnicodeDecodeError:
        told["payload_base64"] = base64.b64encode(message.payload).decode()
    return told


def _hexadecimal(text: str, option: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError as problem:
        raise typer.BadParameter(f"{text!r} is not hexadecimal", param_hint=option) from problem
