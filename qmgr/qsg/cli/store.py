"""`qsg store`: the embedded store of a group on one machine, snapshots of stores, and the way back from one."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from qsg.cli.common import FAILED, USAGE, err, out

app = typer.Typer(no_args_is_help=True, help="The embedded store, snapshots, and the way back from one.")


def _fail(error: Exception, code: int = FAILED) -> typer.Exit:
    err.print("[bold red]error[/bold red] ", end="")
    err.print(str(error), markup=False, highlight=False)
    return typer.Exit(code)


@app.command()
def serve(
    path: Annotated[Path, typer.Option("--path", help="The SQLite file; made when it is absent.", show_default=False)],
    address: Annotated[str, typer.Option("--address", help="host:port or unix:PATH")] = "127.0.0.1:2379",
    quota_bytes: Annotated[int, typer.Option(min=0, help="Puts beyond this are refused; 0 = only when the disk is full.")] = 0,
) -> None:
    """Serves one SQLite file to the members of a group, with the part of etcd's API that they use."""
    import uvloop

    from qsg.process.run import configure_logging
    from qsg.store.contract import StoreError
    from qsg.store.serve import serve_until_signal

    configure_logging()
    try:
        uvloop.run(serve_until_signal(path, address, quota_bytes=quota_bytes))
    except StoreError as error:
        raise _fail(error) from error


@app.command()
def snapshot(
    path: Annotated[
        Path, typer.Argument(help="The file of an embedded store, or a member's private.db; it may be in use.", show_default=False)
    ],
    target: Annotated[Path, typer.Argument(help="The snapshot, a new file.", show_default=False)],
) -> None:
    """Copies a store to a new file while work goes on."""
    from qsg.store.contract import StoreError
    from qsg.store.sqlite_files import snapshot as take

    try:
        if not path.is_file():
            raise StoreError(f"{path} does not exist")
        revision = take(path, target)
    except (StoreError, OSError) as error:
        raise _fail(error) from error
    out.print(f"{target}: revision {revision}", highlight=False, soft_wrap=True)


@app.command()
def save(
    structure: Annotated[str, typer.Argument(help='"admin", or a further one.', show_default=False)],
    target: Annotated[str, typer.Argument(help="A new file; - is standard output.", show_default=False)],
    config: Annotated[Path, typer.Option("--config", envvar="QSG_CONFIG", exists=True, dir_okay=False, show_default=False)],
) -> None:
    """Saves a structure that lies in etcd, while work goes on, as a file for `etcdutl snapshot restore`."""
    from qsg.process.config import ConfigError, load
    from qsg.process.saving import save as save_to
    from qsg.store.contract import StoreError

    try:
        member = load(config)
        if structure not in member.structures:
            raise ConfigError(f"{config}: there is no structure {structure} here")
        size = save_to(member.structures[structure], target)
    except ConfigError as error:
        raise _fail(error, USAGE) from error
    except (StoreError, OSError) as error:
        raise _fail(error) from error
    err.print(f"{structure}: {size} bytes saved", highlight=False, soft_wrap=True)


@app.command()
def restore(
    source: Annotated[Path, typer.Argument(metavar="SNAPSHOT", show_default=False)],
    path: Annotated[Path, typer.Argument(help="The store's file; there must be none.", show_default=False)],
) -> None:
    """Makes a store of a snapshot. Members refuse it until it is confirmed to each of them: what happened since is gone."""
    from qsg.store.contract import StoreError
    from qsg.store.sqlite import restore as bring_back

    try:
        if not path.exists():
            for beside in ("-wal", "-shm"):  # of a store that was there before: its log must not be applied to the new one
                path.with_name(path.name + beside).unlink(missing_ok=True)
        revision = bring_back(source, path)
    except (StoreError, OSError) as error:
        raise _fail(error) from error
    out.print(f"{path}: revision {revision}", highlight=False, soft_wrap=True)
    err.print("Members refuse it until `qsg store confirm --config FILE` with the configuration of each.", highlight=False)


@app.command()
def confirm(
    config: Annotated[
        list[Path],
        typer.Option("--config", exists=True, dir_okay=False, help="A member's YAML file; once for each member.", show_default=False),
    ],
) -> None:
    """Your word that structures which came back from a snapshot may be used: what happened since the snapshot is lost, or happens again."""
    from qsg.process.config import ConfigError, load
    from qsg.process.revisions import confirm as give_word
    from qsg.store.contract import StoreError

    try:
        members = [load(path) for path in config]
    except ConfigError as error:
        raise _fail(error, USAGE) from error
    for member in members:
        try:
            confirmed = asyncio.run(give_word(member))
        except (StoreError, OSError) as error:
            raise _fail(error) from error
        for c in confirmed:
            out.print(
                f"{member.member}: {c.structure} confirmed at revision {c.revision}, last seen {c.highest}", highlight=False, soft_wrap=True
            )
        if not confirmed:
            out.print(f"{member.member}: nothing was restored", highlight=False, soft_wrap=True)
