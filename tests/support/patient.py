"""Limits of silence that a machine which stands still for seconds does not exceed, for tests that are about something else.

The product calls a process dead after 1.5 s of silence, and a store out of reach after a second: an initiator is ended then, sessions
break, units of work are backed out, binds are refused. Where a test asks what an input does, or a full store, none of that may come from a
slow machine; so its processes (`program`) and its own client (`patience`) wait for `PATIENCE_S`. What stands still for longer is noticed as
always.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

PATIENCE_S = 12.0
LEASE_TTL_S = 60
HEARTBEAT_MS = 4_000
"""Of a channel whose partner is a test: three without a word are too many."""


@contextmanager
def patience() -> Iterator[None]:
    """In this process: servers of the product may be silent for so long."""
    import pytest

    from qsg.client import session

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "MISSES_MAX", int(PATIENCE_S / session.HEARTBEAT_S))
        yield


def program() -> list[str]:
    """Of both processes of a member, instead of `python -m qsg.process.run`."""
    return [sys.executable, "-P", __file__]


def main(arguments: list[str]) -> int:
    from qsg.process import run

    run.configure_logging()
    from qsg.initiator import service
    from qsg.manager import channels, clients, membership, peers, receiving
    from qsg.rules import verdict
    from qsg.transport import mux

    mux.SILENCE_S = peers.SILENT_S = service.FIRST_FRAME_S = PATIENCE_S
    membership.SILENT_S = channels.OUT_OF_REACH_S = receiving.BIND_S = PATIENCE_S
    verdict.SILENCE_MS = int(1000 * PATIENCE_S)
    limits = partial(clients.ClientLimits, connect_timeout_s=PATIENCE_S, silence_s=60.0)
    clients.ClientLimits = limits  # type: ignore[misc, assignment]
    return run.main(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
