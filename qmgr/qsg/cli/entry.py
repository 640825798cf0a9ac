"""Where the command `qsg` begins. The two processes of a member begin here without the command line.

Loading the command line takes as long as loading the initiator, and a member that starts takes that time from those that serve beside it.
Invariant: what is not `qsg serve|initiator --config FILE` with a file that is there goes to the command line, which knows what to say.
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn

PROCESSES = ("serve", "initiator")


def become(process: str, config: str) -> NoReturn:
    """This process becomes the queue manager or initiator: same process id, and nothing of the command line stays in its memory."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, "-m", "qsg.process.run", process, config])


def main() -> None:
    match sys.argv[1:]:
        case [process, "--config", config] if process in PROCESSES and os.access(config, os.R_OK) and os.path.isfile(config):
            become(process, config)
    from qsg.cli.main import main as command_line

    command_line()
