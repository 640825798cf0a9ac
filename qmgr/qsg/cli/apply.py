"""`qsg apply`: makes definitions so."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import track

import qsg
from qsg.cli.common import FAILED, Connect, Format, Output, call, emit, err, out, table_of
from qsg.cli.definitions import Fault, read, refuse_faults
from qsg.rules.definitions import Channel, Definition, Definitions, Queue, Settings

Row = dict[str, Any]


def apply(
    files: Annotated[list[str], typer.Option("--file", "-f", metavar="FILE", help="YAML; '-' = standard input.", show_default=False)],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would change.")] = False,
    connect: Connect = "",
    output: Output = Format.TABLE,
) -> None:
    """Defines or alters queues, channels and settings as files say. What the files do not name is left alone."""
    definitions = [found for file in files for found in _read(file, output)]

    async def work(qmgr: qsg.QueueManager) -> list[Row]:
        shown = track(definitions, "apply", console=err, transient=True, disable=len(definitions) < 20)
        return [await _apply(qmgr, one, dry_run) for one in shown]

    rows = call(connect, work, output)
    if output is Format.TABLE:
        out.print(table_of(rows, ["kind", "name", "result", "changes"]))
    else:
        emit(rows, output)
    if any(row["result"] == "failed" for row in rows):
        raise typer.Exit(FAILED)


def _read(file: str, form: Format) -> list[Definition]:
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text()
    except (OSError, UnicodeDecodeError) as problem:
        raise refuse_faults([Fault(0, "", str(problem))], form, file) from problem
    found = read(text)
    if isinstance(found, Definitions):
        # Queues before the channels that use them.
        settings = [found.settings] if "settings" in found.model_fields_set else []
        return [*settings, *found.queues, *found.channels]
    raise refuse_faults(found, form, file)


async def _apply(qmgr: qsg.QueueManager, one: Definition, dry_run: bool) -> Row:
    kind = "queue" if isinstance(one, Queue) else "channel" if isinstance(one, Channel) else "settings"
    name = one.name if isinstance(one, Queue | Channel) else ""
    row: Row = {"kind": kind, "name": name, "result": "", "changes": ""}
    try:
        before = await _present(qmgr, kind, name)
        if before is not None:
            row["changes"] = _changes(before, one)
        row["result"] = "defined" if before is None else "altered" if row["changes"] else "unchanged"
        if not dry_run and row["result"] != "unchanged":
            definition = one.model_dump(mode="json", exclude_defaults=True)
            await qmgr.command("define", kind=kind, definition=definition, replace=True)
    except qsg.QsgError as error:
        if isinstance(error, qsg.ReconnectFailed | qsg.ConnectionBroken):
            raise
        row["result"], row["changes"] = "failed", str(error)
    return row


async def _present(qmgr: qsg.QueueManager, kind: str, name: str) -> dict[str, Any] | None:
    if kind == "settings":
        return {}
    try:
        present: dict[str, Any] = await qmgr.inquire(kind, name)
    except qsg.QsgError as error:
        if error.reason in (qsg.Reason.UNKNOWN_OBJECT_NAME, qsg.Reason.CHANNEL_NOT_FOUND, qsg.Reason.UNKNOWN_CHANNEL_NAME):
            return None
        raise
    return present


def _changes(before: dict[str, Any], one: Definition) -> str:
    """Attributes whose values differ, as `max_depth: 5 -> 10`."""
    after = one.model_dump(mode="json", exclude_defaults=isinstance(one, Settings))
    changed = {key: value for key, value in after.items() if before.get(key) != value}
    return ", ".join(f"{key}: {before[key]} -> {value}" if key in before else f"{key}: {value}" for key, value in changed.items())
