"""`qsg store serve`: the embedded store of a group on one machine."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from qsg.cli.common import FAILED, err

app = typer.Typer(no_args_is_help=True, help="The embedded store of a group on one machine.")


@app.command()
def serve(
    path: Annotated[Path, typer.Option("--path", help="The SQLite file; made when it is absent.", show_default=False)],
    address: Annotated[str, typer.Option("--address", help="host:port or unix:PATH")] = "127.0.0.1:2379",
    quota_bytes: Annotated[int, typer.Option(min=0, help="Puts beyond this are refused; 0 = only when the disk is full.")] = 0,
) -> None:
    """Serves one SQLite file to the members of a group, with the part of etcd's API that they use."""
    from qsg.process.run import configure_logging
    from qsg.store.contract import StoreError
    from qsg.store.serve import serve_until_signal

    configure_logging()
    try:
        asyncio.run(serve_until_signal(path, address, quota_bytes=quota_bytes))
    except StoreError as error:
        err.print(f"[bold red]error[/bold red] {error}", highlight=False)
        raise typer.Exit(FAILED) from error


@app.callback()
def _only_a_group() -> None:
    """Keeps `serve` a subcommand although it is the only one."""
