"""`qsg channel …` and `qsg group …`."""

from __future__ import annotations

import time
from typing import Annotated, Any, Literal

import typer
from pydantic import ValidationError
from rich.console import Group

import qsg
from qsg.cli.common import FAILED, Connect, Format, Output, Watch, call, channel_names, confirm, emit, err, facts, out, show, table_of
from qsg.cli.definitions import from_options, refuse_invalid
from qsg.rules.definitions import SEQUENCE_WRAP, Channel
from qsg.rules.ping import BYTES_MAX, BYTES_MIN

app = typer.Typer(no_args_is_help=True, help="Channels: list, show, status, start, stop, move, resolve, reset, ping, define, delete.")
group_app = typer.Typer(no_args_is_help=True, help="The queue-sharing group.")

Name = Annotated[str, typer.Argument(help="Name of the channel.", show_default=False, autocompletion=channel_names)]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


@app.command("list")
def list_(
    prefix: Annotated[str, typer.Argument(help="Only names that begin so.")] = "", connect: Connect = "", output: Output = Format.TABLE
) -> None:
    """Lists channel definitions."""

    async def ask(qmgr: qsg.QueueManager) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = (await qmgr.inquire("channels", prefix))["channels"]
        return rows

    columns = ("name", "type", "transmission_queue", "connection_names", "partner", "disposition")
    show(connect, output, ask, lambda rows: table_of(rows, columns))


@app.command("show")
def show_(name: Name, connect: Connect = "", output: Output = Format.TABLE) -> None:
    """Shows a channel's definition."""
    show(connect, output, lambda qmgr: qmgr.inquire("channel", name), lambda data: Group(facts(data)))


async def _status(qmgr: qsg.QueueManager, name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = (await qmgr.inquire("status", name))["channels"]
    return rows


def _age(at_ms: int) -> str:
    if not at_ms:
        return ""
    seconds = max(0.0, time.time() - at_ms / 1000)
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"


@app.command()
def status(
    name: Annotated[str, typer.Argument(help="A channel; nothing = all; a trailing * matches.")] = "",
    watch: Watch = False,
    connect: Connect = "",
    output: Output = Format.TABLE,
) -> None:
    """Shows the channel status table: who owns which channel, how far it is, what went wrong last."""

    def draw(rows: list[dict[str, Any]]) -> Any:
        for row in rows:
            row["updated"] = _age(row.get("updated_at_ms", 0))
            row["sequence"] = row.get("current_sequence") or row.get("last_sequence") or row.get("saved", {}).get("last_sequence", 0)
            row["problem"] = row.get("note") or row.get("detail") or ("in doubt" if row.get("in_doubt") else "")
        columns = ["channel", "status", "owner", "partner", "epoch", "sequence", "messages", "depth", "takeovers", "updated"]
        return table_of(rows, [*columns, *(["problem"] if any(row["problem"] for row in rows) else [])])

    show(connect, output, lambda qmgr: _status(qmgr, name), draw, watch=watch)


def _command(connect: str, form: Format, command: str, *, call_s: float = 30.0, **arguments: Any) -> dict[str, Any]:
    async def work(qmgr: qsg.QueueManager) -> dict[str, Any]:
        with err.status(f"{command} …"):
            done: dict[str, Any] = await qmgr.command(command, **arguments)
        return done

    result = call(connect, work, form)
    if form is not Format.TABLE:
        emit(result, form)
    return result


def _now(result: dict[str, Any]) -> str:
    owner = f" on {result['owner']}" if result.get("owner") else ""
    why = result.get("note") or result.get("detail")
    return f"{result.get('channel', '')} is {result.get('status', '?')}{owner}" + (f" ({why})" if why else "")


@app.command()
def start(
    name: Name,
    wait_s: Annotated[float, typer.Option(min=0, max=60, help="How long to wait until it is active.")] = 5.0,
    connect: Connect = "",
    output: Output = Format.TABLE,
) -> None:
    """Starts a sender channel, on the member that suits best. A receiver runs whenever its partner binds."""
    result = _command(connect, output, "start", channel=name, wait_s=wait_s)
    if output is Format.TABLE:
        out.print(_now(result), highlight=False)


@app.command()
def stop(
    name: Name,
    mode: Annotated[Literal["quiesce", "force"], typer.Option(help="quiesce: finish the batches in flight; force: at once.")] = "quiesce",
    to: Annotated[
        Literal["stopped", "inactive"], typer.Option("--status", help="stopped: until started by command; inactive: until messages come.")
    ] = "stopped",
    wait_s: Annotated[float, typer.Option(min=0, max=60, help="How long to wait until it has stopped.")] = 10.0,
    connect: Connect = "",
    output: Output = Format.TABLE,
) -> None:
    """Stops a sender channel, wherever it runs.

    A receiver cannot be stopped here: stop the sender at its own end, or name somebody else in the receiver's allowed_identities.
    """
    result = _command(connect, output, "stop", channel=name, mode=mode, status=to, wait_s=wait_s)
    if output is Format.TABLE:
        out.print(_now(result), highlight=False)


@app.command()
def move(
    name: Name,
    to: Annotated[str, typer.Option("--to", metavar="MEMBER", help="Nothing = the member that suits best.")] = "",
    wait_s: Annotated[float, typer.Option(min=0, max=60, help="How long to wait until it runs there.")] = 5.0,
    connect: Connect = "",
    output: Output = Format.TABLE,
) -> None:
    """Moves a running channel to another member, with nothing lost and hardly a pause. Exit code 1: it was not seen to run elsewhere."""
    result = _command(connect, output, "move", channel=name, to=to, wait_s=wait_s)
    if output is Format.TABLE:
        out.print(_now(result), highlight=False)
    if not result["moved"]:
        err.print(f"not seen to run on {result['ready'] or 'another member'} yet", highlight=False)
        raise typer.Exit(FAILED)


@app.command()
def resolve(
    name: Name,
    action: Annotated[
        Literal["commit", "backout"], typer.Argument(help="commit: the partner has the messages; backout: it has not.", show_default=False)
    ],
    record: Annotated[str, typer.Option(help="With commit: the record that the partner's `qsg channel status -o json` shows.")] = "",
    force: Annotated[bool, typer.Option("--force", help="Although the partner may still accept messages: can send some twice.")] = False,
    yes: Yes = False,
    connect: Connect = "",
    output: Output = Format.TABLE,
) -> None:
    """Settles messages in doubt by hand, when the partner is gone for good. The wrong answer loses messages or sends them twice."""
    confirm(f"Resolve {name} by {action}?", yes)
    result = _command(connect, output, "resolve", channel=name, action=action, record=record, force=force)
    if output is Format.TABLE:
        out.print(f"{name}: {result.get('deleted', 0)} messages deleted as delivered", highlight=False)
        if result.get("risk"):
            err.print(f"[yellow]{result['risk']}[/yellow]", highlight=False)


@app.command()
def reset(
    name: Name,
    sequence: Annotated[int, typer.Option("--sequence", min=1, max=SEQUENCE_WRAP)] = 1,
    connect: Connect = "",
    output: Output = Format.TABLE,
) -> None:
    """Sets the sequence number. Messages in doubt are not touched."""
    result = _command(connect, output, "reset", channel=name, sequence=sequence)
    if output is Format.TABLE:
        out.print(f"{name}: sequence number {result.get('sequence', sequence)}", highlight=False)


@app.command()
def ping(
    name: Name,
    size: Annotated[int, typer.Option("--bytes", min=BYTES_MIN, max=BYTES_MAX, help="So many go there and must come back.")] = BYTES_MIN,
    connect: Connect = "",
    output: Output = Format.TABLE,
) -> None:
    """Asks the partner of a channel that does not run whether it is there, and whether so many bytes come back as they were sent."""
    result = _command(connect, output, "ping", channel=name, bytes=size)
    if output is Format.TABLE:
        what = f" {result['bytes']} bytes" if result.get("bytes") else ""
        out.print(f"{name}: {result.get('address', '')} answered{what} in {result.get('ms', '?')} ms", highlight=False)


@app.command()
def define(
    name: Name,
    kind: Annotated[Literal["sender", "receiver"], typer.Option("--type", "-t", show_default=False)],
    transmission_queue: Annotated[str | None, typer.Option("--transmission-queue", "-x", show_default=False)] = None,
    connection_names: Annotated[
        list[str] | None,
        typer.Option("--connection-name", "-n", metavar="HOST:PORT", help="One or more.", show_default=False),
    ] = None,
    partner: Annotated[str | None, typer.Option(help="Queue manager or group at the other end.", show_default=False)] = None,
    disposition: Annotated[Literal["shared", "fixed-shared", "private"] | None, typer.Option(show_default=False)] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", metavar="KEY=VALUE", help="Any other, e.g. retry.short_ms=500.", show_default=False),
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Alter it when it exists.")] = False,
    connect: Connect = "",
    output: Output = Format.TABLE,
) -> None:
    """Defines a channel. A change takes effect at its next start."""
    given = {
        "name": name,
        "type": kind,
        "transmission_queue": transmission_queue,
        "connection_names": connection_names or None,
        "partner": partner,
        "disposition": disposition,
    }
    try:
        channel = Channel.model_validate(from_options(given, settings))
    except ValidationError as error:
        raise refuse_invalid(error, output) from error
    definition = channel.model_dump(mode="json", exclude_defaults=True)
    _command(connect, output, "define", kind="channel", definition=definition, replace=replace)
    if output is Format.TABLE:
        out.print(f"channel {name} is defined", highlight=False)


@app.command()
def delete(name: Name, connect: Connect = "", output: Output = Format.TABLE) -> None:
    """Deletes a channel's definition. What is known about its messages belongs to the transmission queue and stays."""
    _command(connect, output, "delete", kind="channel", name=name)
    if output is Format.TABLE:
        out.print(f"channel {name} is deleted", highlight=False)


@group_app.command("status")
def group_status(watch: Watch = False, connect: Connect = "", output: Output = Format.TABLE) -> None:
    """Shows the members of the group, as the member that answers sees them."""

    def draw(data: dict[str, Any]) -> Any:
        rows = [row | {"incarnation": str(row.get("incarnation", ""))} for row in data.get("members", [])]
        columns = ["member", "linked", "silent_ms", "initiator", "channels", "draining", "structures", "incarnation"]
        title = f"{data.get('group') or 'no group'}, as {data.get('member', '?')} sees it"
        return table_of(rows, [column for column in columns if any(column in row for row in rows)], title)

    show(connect, output, lambda qmgr: qmgr.inquire("group"), draw, watch=watch)
