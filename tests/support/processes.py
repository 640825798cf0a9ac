"""What tests ask of processes that they did not start themselves."""

from __future__ import annotations

import psutil


def is_alive(process: psutil.Process) -> bool:
    """False also for one that has ended and that nobody has waited for."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
