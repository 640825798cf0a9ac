"""The user as whom a pool logs in. Its password may be changed while we run: it is read anew for each login.

Invariant: once etcd has taken user and password, that it refuses them is for the time being (the new ones are not here yet, or not there),
and is asked about again every `AGAIN_S`, or when they have changed. Before, it is an error of the configuration.
"""

from __future__ import annotations

from collections.abc import Callable

import structlog

log = structlog.get_logger()

AGAIN_S = 1.0
"""etcd takes a tenth of a second of CPU time to look at a password."""

Credentials = Callable[[], tuple[str, str]]
"""User and password; raises `OSError` or `ValueError` while they cannot be read."""


class User:
    def __init__(self, name: str, password: str, credentials: Credentials | None = None) -> None:
        self._pair = name, password
        self._credentials = credentials
        self._unreadable = self._taken = False
        self._refused: tuple[str, str] | None = None
        self._again_at = 0.0

    @property
    def exists(self) -> bool:
        return bool(self._pair[0])

    def pair(self) -> tuple[str, str]:
        if self._credentials is not None:
            try:
                self._pair, self._unreadable = self._credentials(), False
            except (OSError, ValueError) as error:
                if not self._unreadable:
                    log.error("user and password cannot be read", error=str(error))
                self._unreadable = True
        return self._pair

    def waits(self, pair: tuple[str, str], now: float) -> bool:
        """They were refused just now."""
        return pair == self._refused and now < self._again_at

    def taken(self) -> None:
        self._taken, self._refused = True, None

    def refused(self, pair: tuple[str, str], now: float, reason: str) -> bool:
        """Whether that is for the time being."""
        if self._taken:
            if self._refused is None:
                log.error("etcd does not take this user and password any more", user=pair[0], error=reason)
            self._refused, self._again_at = pair, now + AGAIN_S
        return self._taken
