"""How often idle parts beat and look, in one seed.

Most of what a queue manager does when nothing happens is beats and looks at fixed intervals. In a calm seed these are further apart, which
makes it about twice as fast to play; what is found out by silence is found out as soon as ever, since the silences that count are left as
they are, and there are always two beats in them. Lively seeds have the product's own intervals.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from qsg.client import session
from qsg.manager import channels, compaction, getting, inbound, inflow, membership, peers, structure, tenure
from qsg.transport import mux

HEARTBEAT_MS = {False: 500, True: 700}
"""Of the channels, in a lively seed and a calm one."""
CALM: dict[tuple[ModuleType, str], float] = {
    (mux, "BEAT_S"): 0.7,
    (peers, "BEAT_S"): 0.6,
    (peers, "LOOK_S"): 0.15,
    (session, "HEARTBEAT_S"): 0.7,
    (session, "MISSES_MAX"): 2,
    (membership, "BEAT_S"): 2.0,
    (structure, "QUOTA_EVERY_S"): 6.0,
    (compaction, "EVERY_S"): 4.0,
    (channels, "WATCH_S"): 0.5,
    (channels, "LEVEL_S"): 4.0,
    (getting, "POLL_S"): 3.0,
    (inflow, "PROGRESS_S"): 0.7,
    (inbound, "REPORT_S"): 3.0,
    (tenure, "REPORT_S"): 3.0,
}


@contextmanager
def tempo(*, calm: bool) -> Iterator[None]:
    """Until the end of one run."""
    before = {(module, name): getattr(module, name) for module, name in CALM}
    try:
        for (module, name), value in CALM.items() if calm else ():
            setattr(module, name, value)
        yield
    finally:
        for (module, name), value in before.items():
            setattr(module, name, value)
