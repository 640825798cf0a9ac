"""`qsg serve`: a queue manager, until it is told to end."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

Config = Annotated[
    Path,
    typer.Option(
        "--config", envvar="QSG_CONFIG", exists=True, dir_okay=False, readable=True, help="The member's YAML file.", show_default=False
    ),
]


def become(process: str, config: Path) -> NoReturn:
    """This process becomes the queue manager or initiator: same process id, and nothing of the command line stays in its memory."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, "-m", "qsg.process.run", process, str(config)])


def serve(config: Config) -> None:
    """Runs the queue manager of one member, until SIGTERM or Ctrl-C; it hands its channels over first. Logs JSON on standard error."""
    become("serve", config)
