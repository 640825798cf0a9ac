"""Runs a level's command in a process of its own, in which a bug may be planted for good.

Processes are forked from a server that has loaded everything once: loading takes longer than most searches. Invariant: one that does not
end in time is killed, and has found nothing.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import multiprocessing
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection

LEVELS = {"planted.named": "planted.named", "model": "model.__main__", "simulation": "simulation.__main__"}
BROKEN, LATE = 70, -1
FORKS = multiprocessing.get_context("forkserver")


@dataclass(frozen=True, slots=True)
class Ended:
    status: int
    """As a command's exit status; `BROKEN`: it raised, `LATE`: it was killed."""
    output: str
    seconds: float = 0.0
    """Of processor time."""


def prepare() -> None:
    """Before the first `run`."""
    FORKS.set_forkserver_preload(list(LEVELS.values()))


def run(command: str, arguments: Sequence[str], seconds: float) -> Ended:
    """`python -m command arguments`, for so long at most."""
    ours, theirs = FORKS.Pipe(duplex=False)
    child = FORKS.Process(target=_child, args=(theirs, LEVELS[command], list(arguments)), daemon=True)
    child.start()
    theirs.close()
    try:
        if not ours.poll(seconds):
            return Ended(LATE, f"not ended within {seconds:g} s\n")
        return Ended(*ours.recv())
    except EOFError:
        return Ended(BROKEN, "ended without a word\n")
    finally:
        child.kill()
        child.join()
        ours.close()


def _child(answer: Connection, module: str, arguments: list[str]) -> None:
    output, began = io.StringIO(), time.process_time()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            status = importlib.import_module(module).main(arguments)
        except Exception:
            traceback.print_exc()
            status = BROKEN
    answer.send((status, output.getvalue(), time.process_time() - began))
