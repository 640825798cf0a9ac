"""`qsg queue …`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer
from pydantic import ValidationError
from rich.console import Group

import qsg
from qsg.cli.common import Connect, Format, Output, Watch, call, confirm, emit, facts, out, queue_names, show, table_of
from qsg.cli.definitions import from_options, refuse_invalid
from qsg.rules.definitions import Queue

app = typer.Typer(no_args_is_help=True, help="Queues: list, show, define, alter, delete, purge.")

Name = Annotated[str, typer.Argument(help="Name of the queue.", show_default=False, autocompletion=queue_names)]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", "-s", metavar="KEY=VALUE", help="Any other attribute of a definition.", show_default=False)
]


@app.command("list")
def list_(
    prefix: Annotated[str, typer.Argument(help="Only names that begin so.")] = "",
    watch: Watch = False,
    connect: Connect = "",
    output: Output = Format.TABLE,
) -> None:
    """Lists queues with their depths."""

    async def ask(qmgr: qsg.QueueManager) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = (await qmgr.inquire("queues", prefix))["queues"]
        return rows

    def draw(rows: list[dict[str, Any]]) -> Any:
        for row in rows:
            row["leads_to"] = row.get("target") or "@".join(
                part for part in (row.get("remote_queue"), row.get("remote_queue_manager")) if part
            )
        columns = ["name", "type", "structure", "usage", "depth", "depth_bytes", "leads_to"]
        local = [row if row["type"] == "local" else row | {"structure": "", "usage": ""} for row in rows]
        return table_of(local, [*columns, *(["problem"] if any(row.get("problem") for row in rows) else [])])

    show(connect, output, ask, draw, watch=watch)


@app.command("show")
def show_(name: Name, watch: Watch = False, connect: Connect = "", output: Output = Format.TABLE) -> None:
    """Shows a queue's definition and depth."""
    show(connect, output, lambda qmgr: qmgr.inquire_queue(name), lambda data: Group(facts(_relevant(data))), watch=watch)


def _relevant(data: dict[str, Any]) -> dict[str, Any]:
    """Without attributes that a queue of this type does not have."""
    of_local = {"structure", "usage", "max_depth", "max_message_bytes", "default_priority", "backout_threshold", "backout_queue"}
    hidden = set() if data.get("type") == "local" else of_local
    return {key: value for key, value in data.items() if key not in hidden}


@app.command()
def define(
    name: Name,
    kind: Annotated[Literal["local", "remote", "alias"], typer.Option("--type", "-t")] = "local",
    structure: Annotated[str | None, typer.Option(help="private, or a structure of the group.", show_default=False)] = None,
    usage: Annotated[Literal["normal", "transmission"] | None, typer.Option(show_default=False)] = None,
    max_depth: Annotated[int | None, typer.Option(show_default=False)] = None,
    backout_threshold: Annotated[int | None, typer.Option(show_default=False)] = None,
    backout_queue: Annotated[str | None, typer.Option(show_default=False)] = None,
    remote_queue: Annotated[str | None, typer.Option(show_default=False)] = None,
    remote_queue_manager: Annotated[str | None, typer.Option(show_default=False)] = None,
    transmission_queue: Annotated[str | None, typer.Option(show_default=False)] = None,
    target: Annotated[str | None, typer.Option(help="What an alias stands for.", show_default=False)] = None,
    settings: Settings = None,
    replace: Annotated[bool, typer.Option("--replace", help="Alter it when it exists.")] = False,
    connect: Connect = "",
    output: Output = Format.TABLE,
) -> None:
    """Defines a queue."""
    given = {
        "name": name,
        "type": kind,
        "structure": structure,
        "usage": usage,
        "max_depth": max_depth,
        "backout_threshold": backout_threshold,
        "backout_queue": backout_queue,
        "remote_queue": remote_queue,
        "remote_queue_manager": remote_queue_manager,
        "transmission_queue": transmission_queue,
        "target": target,
    }
    queue = _checked(from_options(given, settings), output)
    defined = call(connect, lambda qmgr: qmgr.command("define", kind="queue", definition=_sparse(queue), replace=replace), output)
    _told(defined, f"queue {name} is defined", output)


@app.command()
def alter(
    name: Name, settings: Annotated[list[str], typer.Argument(metavar="KEY=VALUE…")], connect: Connect = "", output: Output = Format.TABLE
) -> None:
    """Alters attributes of a queue, e.g. `qsg queue alter A put_enabled=false max_depth=5000`."""
    changes = from_options({}, settings)

    async def work(qmgr: qsg.QueueManager) -> Any:
        present = await qmgr.inquire_queue(name)
        known = {key: value for key, value in present.items() if key in Queue.model_fields}
        return await qmgr.command("define", kind="queue", definition=_sparse(_checked(known | changes, output)), replace=True)

    _told(call(connect, work, output), f"queue {name} is altered", output)


@app.command()
def delete(
    name: Name,
    purge: Annotated[bool, typer.Option("--purge", help="With its messages.")] = False,
    yes: Yes = False,
    connect: Connect = "",
    output: Output = Format.TABLE,
) -> None:
    """Deletes a queue; one with messages only with --purge."""
    if purge:
        confirm(f"Delete {name} and all messages on it?", yes)
    _told(
        call(connect, lambda qmgr: qmgr.command("delete", kind="queue", name=name, purge=purge), output), f"queue {name} is deleted", output
    )


@app.command("purge")
def purge_(name: Name, yes: Yes = False, connect: Connect = "", output: Output = Format.TABLE) -> None:
    """Removes all messages of a queue."""
    confirm(f"Remove all messages of {name}?", yes)
    _told(call(connect, lambda qmgr: qmgr.command("purge", name=name), output), f"queue {name} is empty", output)


def _checked(given: dict[str, Any], form: Format) -> Queue:
    try:
        return Queue.model_validate(given)
    except ValidationError as error:
        raise refuse_invalid(error, form) from error


def _sparse(queue: Queue) -> dict[str, Any]:
    return queue.model_dump(mode="json", exclude_defaults=True) | {"name": queue.name, "type": queue.type}


def _told(result: object, text: str, form: Format) -> None:
    if form is Format.TABLE:
        out.print(text, highlight=False)
    else:
        emit(result, form)
