"""The product's processes with a wall clock that can be stepped: `python -m torture.process serve|initiator CONFIG`.

The file named by `TORTURE_CLOCK` says by how many seconds this process's clock is off; it may change at any moment. The product has no
such switch: `time.time_ns`, the only clock on the wall that it reads, is replaced before any of it is loaded. (`time.time` is not: gRPC
makes deadlines of it that its own code, in C, holds against the machine's clock.) `TORTURE_PLANTED` names a bug that is planted first.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

CLOCK = "TORTURE_CLOCK"
PLANTED = "TORTURE_PLANTED"
LOOK_S = 0.05


class Clock:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset_ns = 0
        self._real = time.time_ns
        self._look()

    def time_ns(self) -> int:
        return self._real() + self._offset_ns

    def follow(self) -> None:
        while True:
            time.sleep(LOOK_S)
            self._look()

    def _look(self) -> None:
        try:
            self._offset_ns = int(float(self._path.read_text()) * 1e9)
        except (OSError, ValueError):
            return  # not there, or being written


def main() -> int:
    clock = Clock(Path(os.environ[CLOCK]))
    time.time_ns = clock.time_ns
    threading.Thread(target=clock.follow, name="clock", daemon=True).start()
    from qsg.process.run import main as product

    if bug := os.environ.get(PLANTED):
        from planted.bugs import apply

        apply(bug)
    return product(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
