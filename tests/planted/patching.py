"""Replacing functions of the product from outside, wherever they are bound, and putting them back.

Owns what is replaced while a bug is planted. Invariant: a name that is no longer there fails loudly, so a planted bug cannot fade away
when the product is rearranged. Code that calls through a reference taken before (a bound method kept by an object) is not reached: plant
before the objects are made.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Any

ROOMS = ("qsg", "support", "model", "simulation", "interleavings")
"""Packages whose modules may have imported a function by its name."""


class GoneError(LookupError):
    """What a bug is planted in does not exist any more: mend the bug."""


class Patches:
    """What one bug has replaced."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []

    def wrap(self, owner: Any, name: str, make: Callable[[Any], Any]) -> None:
        """`owner.name` becomes `make(what it was)`; of a module's function, all that imported it get the new one."""
        if name not in vars(owner):
            raise GoneError(f"{owner.__name__} has no {name}")
        raw = vars(owner)[name]
        original = raw.__func__ if isinstance(raw, staticmethod | classmethod) else raw
        made: Any = make(original)
        if isinstance(raw, staticmethod | classmethod):
            made = type(raw)(made)
        self._set(owner, name, made)
        if not inspect.ismodule(owner):
            return
        for module in [m for n, m in sys.modules.items() if n.split(".")[0] in ROOMS and m is not owner]:
            for bound in [key for key, value in vars(module).items() if value is original]:
                self._set(module, bound, made)

    def _set(self, owner: Any, name: str, value: Any) -> None:
        before = vars(owner)[name]
        setattr(owner, name, value)
        self._undo.append(lambda: setattr(owner, name, before))

    def undo(self) -> None:
        while self._undo:
            self._undo.pop()()
