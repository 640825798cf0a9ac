"""Room for puts that wait to be sent: so many bytes at once, given in the order in which the puts came.

Invariant: items are submitted in the order in which they entered. One item alone always has room, however large. Who gives up in the line
holds up nobody behind it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from qsg.client.errors import QsgError
from qsg.client.puts import Item


class Room:
    def __init__(self, bytes_max: int, submit: Callable[[Item], None]) -> None:
        self._bytes_max = bytes_max
        self._submit = submit
        self._bytes = 0
        self._line: OrderedDict[Item, None] = OrderedDict()
        self._closed = False

    def enter(self, item: Item) -> None:
        """Submits it, now or once it has room. Who enters leaves."""
        self._line[item] = None
        self._admit()

    def leave(self, item: Item) -> None:
        """Its caller has its answer, or has gone."""
        if item in self._line:
            del self._line[item]
        else:
            self._bytes -= item.size
        self._admit()

    def _admit(self) -> None:
        # Submitted here and not by its caller once that wakes: a put that is called until then would pass it.
        while self._line and not self._closed:
            item = next(iter(self._line))
            if self._bytes and self._bytes + item.size > self._bytes_max:
                return
            del self._line[item]
            self._bytes += item.size
            try:
                self._submit(item)
            except Exception as problem:
                # Its own caller is told, not the one whose leaving made room.
                if item.wanted:
                    item.answer.set_exception(problem)

    def close(self, error: QsgError) -> None:
        """Whoever is in the line is told; nothing is submitted any more."""
        self._closed = True
        for item in self._line:
            item.failed(error)
