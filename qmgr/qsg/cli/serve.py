"""`qsg serve`: a queue manager, until it is told to end."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qsg.cli.entry import become

Config = Annotated[
    Path,
    typer.Option(
        "--config", envvar="QSG_CONFIG", exists=True, dir_okay=False, readable=True, help="The member's YAML file.", show_default=False
    ),
]


def serve(config: Config) -> None:
    """Runs the queue manager of one member, until SIGTERM or Ctrl-C; it hands its channels over first. Logs JSON on standard error."""
    become("serve", str(config))
