"""Live copies of prefixes (`qsg.store.follow`): once all is quiet, each shows exactly what is in its store."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from qsg.store.contract import get_prefix
from qsg.store.follow import Follower

AGAIN_S = 0.5
"""What differs for so long was not on its way."""


class Copies:
    def __init__(self) -> None:
        self._made: list[weakref.ref[Follower]] = []

    @contextmanager
    def recording(self) -> Iterator[None]:
        begin, made = Follower.__init__, self._made

        def noted(follower: Follower, *arguments: Any) -> None:
            begin(follower, *arguments)
            made.append(weakref.ref(follower))

        with mock.patch.object(Follower, "__init__", noted):
            yield

    async def problems(self) -> list[str]:
        before = self._differences()
        await asyncio.sleep(AGAIN_S)
        return [f"a live copy of {prefix} shows {shown}, not {there}" for prefix, shown, there in sorted(before & self._differences())]

    def _differences(self) -> set[tuple[str, str, str]]:
        """(prefix and key, revision shown, revision there) of each key that a copy has wrong."""
        found = set()
        for follower in [f for ref in self._made if (f := ref()) is not None]:
            if follower._closed or follower._task is None or follower._task.done():
                continue
            server = follower._store.server  # type: ignore[attr-defined]  # of a store in memory
            there = {kv.key: kv.mod_revision for kv in server.state.read(get_prefix(follower.prefix)).kvs}
            shown = {key: kv.mod_revision for key, kv in follower.items.items()}
            for key in there.keys() | shown.keys():
                if there.get(key) != shown.get(key):
                    found.add((key.decode(), str(shown.get(key, "nothing")), str(there.get(key, "nothing"))))
        return found
