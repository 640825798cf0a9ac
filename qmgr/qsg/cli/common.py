"""What all commands share: the connection, errors and exit codes, forms of output.

Exit codes: 0 done; 1 refused or failed; 2 wrong usage; 3 no message; 4 no queue manager could be reached; 5 the outcome is unknown.
Results go to standard output, everything else to standard error.
"""

from __future__ import annotations

import asyncio
import enum
import json
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Annotated, Any, TypeVar

import typer
import yaml
from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table

import qsg

T = TypeVar("T")

OK, FAILED, USAGE, NO_MESSAGE, UNREACHABLE, UNKNOWN = range(6)
COMPLETION_S = 1.0
MESSAGE_BYTES_MAX = 104_857_600
"""As `qsg.rules.definitions`, which takes long to import."""

out = Console(width=None if sys.stdout.isatty() else 200)
"""Wide when it is not a terminal: programs and files must not get cut tables."""
err = Console(stderr=True)


class Format(enum.StrEnum):
    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


Connect = Annotated[
    str,
    typer.Option(
        "--connect",
        "-c",
        envvar="QSG_CONNECT",
        metavar="HOST:PORT,…",
        help="Queue managers to try; one is enough.",
        show_default=False,
    ),
]
Output = Annotated[Format, typer.Option("--output", "-o", help="A table for people, JSON or YAML for programs.")]
Watch = Annotated[bool, typer.Option("--watch", "-w", help="Show it again every second, until Ctrl-C.")]

_HINTS = {
    qsg.Reason.HOST_NOT_AVAILABLE: "Is the queue manager running? Set --connect or QSG_CONNECT to its client address.",
    qsg.Reason.UNKNOWN_OBJECT_NAME: "`qsg queue list` shows the queues.",
    qsg.Reason.CHANNEL_NOT_FOUND: "`qsg channel list` shows the channels.",
    qsg.Reason.UNKNOWN_CHANNEL_NAME: "`qsg channel list` shows the channels.",
    qsg.Reason.Q_NOT_EMPTY: "--purge deletes it with its messages.",
    qsg.Reason.CALL_INTERRUPTED: "Perhaps it was done: look before you repeat it.",
}


def _names(kind: str, incomplete: str) -> list[str]:
    """For shell completion: names of queues or channels that begin so; none when nobody answers quickly."""

    async def main() -> list[str]:
        async with qsg.connect(application="qsg completion", connect_s=COMPLETION_S, reconnect_s=COMPLETION_S) as qmgr:
            return [row["name"] for row in (await qmgr.inquire(kind, incomplete))[kind]]

    try:
        return asyncio.run(main())
    except qsg.QsgError:
        return []


def queue_names(incomplete: str) -> list[str]:
    return _names("queues", incomplete)


def channel_names(incomplete: str) -> list[str]:
    return _names("channels", incomplete)


def stores(incomplete: str) -> list[str]:
    """For shell completion: what `--store` takes; the last one goes on with addresses."""
    return [name for name in ("embedded", "etcd", "etcd://") if name.startswith(incomplete)]


def known_store(store: str) -> str:
    """As `qsg.process.local` takes it, for which anything else would be an embedded one."""
    if store not in ("embedded", "etcd") and not store.startswith("etcd://"):
        raise typer.BadParameter("embedded, etcd or etcd://host:port,…")
    return store


Store = Annotated[
    str,
    typer.Option(
        "--store",
        help="embedded, etcd (three members are started) or etcd://host:port,…",
        autocompletion=stores,
        callback=known_store,
    ),
]


def exit_code(error: qsg.QsgError) -> int:
    match error:
        case qsg.NoMessageAvailable():
            return NO_MESSAGE
        case qsg.HostNotAvailable() | qsg.ReconnectFailed() | qsg.QueueManagerNameError():
            return UNREACHABLE
        case qsg.OutcomeUnknown():
            return UNKNOWN
    return FAILED


def emit_error(reason: qsg.Reason, detail: str, form: Format, **more: Any) -> None:
    """An error for programs, on standard error: one line of JSON, or a YAML document."""
    told = {"error": reason.name, "reason": int(reason), "detail": detail, **more}
    sys.stderr.write(_yaml(told) if form is Format.YAML else json.dumps(told) + "\n")


def fail(error: qsg.QsgError, form: Format = Format.TABLE) -> typer.Exit:
    """Says what went wrong; raise what it returns."""
    if form is not Format.TABLE:
        emit_error(error.reason, error.detail, form)
    else:
        err.print(f"[bold red]error[/bold red] {error.reason.name} ({int(error.reason)})" + (": " if error.detail else ""), end="")
        err.print(error.detail, markup=False, highlight=False)
        if hint := _HINTS.get(error.reason):
            err.print(f"[dim]{hint}[/dim]", highlight=False)
    return typer.Exit(exit_code(error))


def call(connect: str, work: Callable[[qsg.QueueManager], Awaitable[T]], form: Format = Format.TABLE, **options: Any) -> T:
    """Connects, does `work`, and turns errors into messages and exit codes."""

    async def main() -> T:
        async with qsg.connect(connect, application="qsg", **({"connect_s": 5.0, "reconnect_s": 30.0} | options)) as qmgr:
            return await work(qmgr)

    try:
        return asyncio.run(main())
    except qsg.QsgError as error:
        raise fail(error, form) from error
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def _yaml(data: object) -> str:
    return str(yaml.safe_dump(data, sort_keys=False, allow_unicode=True))


def emit(data: object, form: Format) -> None:
    """`data` as JSON or YAML on standard output."""
    if form is Format.YAML:
        sys.stdout.write(_yaml(data))
    else:
        sys.stdout.write(json.dumps(data, indent=None if not sys.stdout.isatty() else 2) + "\n")


def table_of(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], title: str = "") -> Table:
    table = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for column in columns:
        numeric = rows and all(isinstance(row.get(column), int | float) and not isinstance(row.get(column), bool) for row in rows)
        table.add_column(column.replace("_", " "), justify="right" if numeric else "left", no_wrap=column not in _LONG)
    for row in rows:
        table.add_row(*(cell(row.get(column)) for column in columns))
    return table


_LONG = frozenset(("problem", "payload", "changes", "connection_names", "dead_letter", "structures", "leads_to"))
_COLOURS = {"RUNNING": "green", "STOPPED": "red", "RETRYING": "yellow", "RECOVERING": "yellow"}


def cell(value: object) -> str:
    if value is None or value == "":
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(cell, value))
    if isinstance(value, dict):
        return ", ".join(f"{key}={cell(inner)}" for key, inner in value.items())
    text = str(value)
    return f"[{colour}]{text}[/{colour}]" if (colour := _COLOURS.get(text)) else text.replace("[", "\\[")


def facts(data: Mapping[str, Any]) -> Table:
    """One object: a line for each field that says something."""
    table = Table(show_header=False, box=None)
    for key, value in data.items():
        if value not in ("", None, [], {}):
            table.add_row(f"[bold]{key.replace('_', ' ')}[/bold]", cell(value))
    return table


def show(
    connect: str,
    form: Format,
    ask: Callable[[qsg.QueueManager], Awaitable[Any]],
    draw: Callable[[Any], Any],
    *,
    watch: bool = False,
    interval_s: float = 1.0,
) -> None:
    """Asks and shows, once or again and again. `draw` makes something for rich of what `ask` answers."""

    async def once(qmgr: qsg.QueueManager) -> None:
        data = await ask(qmgr)
        if form is Format.TABLE:
            out.print(draw(data))
            return
        if watch and form is Format.YAML:
            sys.stdout.write("---\n")  # each time a document of its own
        emit(data, form)

    async def again(qmgr: qsg.QueueManager) -> None:
        if form is not Format.TABLE:
            while True:
                await once(qmgr)
                sys.stdout.flush()
                await asyncio.sleep(interval_s)
        with Live(console=out, auto_refresh=False) as live:
            while True:
                live.update(draw(await ask(qmgr)), refresh=True)
                await asyncio.sleep(interval_s)

    call(connect, again if watch else once, form)


def confirm(question: str, yes: bool) -> None:
    """Asks a person; a program has to say --yes."""
    if yes:
        return
    if not sys.stdin.isatty():
        err.print("[bold red]error[/bold red] this needs --yes")
        raise typer.Exit(USAGE)
    typer.confirm(question, abort=True)
