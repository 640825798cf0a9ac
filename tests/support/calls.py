"""Records what members ask of the registers that ownership rests on, and judges it: status entries, locks, fences at both ends.

Taken where the rules' lists are carried out (`Structure.commit` and `read`), so that all below it is under test: slots, guards, blame,
repetition, and what is told of an outcome that was not known. A commit told as done is a swap, one told as not done is none at all (if
its value is ever read, nothing explains that), one that was never answered may come at any time or never. Reads that may lag
(`read_near`) promise nothing and are not recorded. Invariant of the recorder: it changes nothing of what it records.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import inf
from typing import Any
from unittest import mock

from qsg.manager.structure import Structure
from qsg.rules import keys
from qsg.rules.reasons import Refusal
from qsg.rules.unit import Change, CompareFailed, Fenced, Unit
from support.linearizable import Call, stuck

PREFIXES = (keys.STATUS_OUT, keys.FENCES, keys.RECEIVER_FENCES)
SHOWN = 3


def is_register(key: bytes) -> bool:
    return key.startswith(PREFIXES) or (key.startswith(keys.QUEUES) and key.endswith(b"/l"))


class Calls:
    """`clock`: rises with everything that happens. `private`: structures that are no register of several members."""

    def __init__(self, clock: Callable[[], float], private: frozenset[str] = frozenset({"private"})) -> None:
        self.clock, self.private = clock, private
        self.by_key: dict[tuple[str, bytes], list[Call]] = {}

    def add(self, structure: str, key: bytes, call: Call) -> None:
        self.by_key.setdefault((structure, key), []).append(call)

    @property
    def count(self) -> int:
        return sum(map(len, self.by_key.values()))

    def problems(self) -> list[str]:
        """Registers whose history is not linearizable."""
        found = []
        for (structure, key), calls in self.by_key.items():
            if culprits := stuck(calls):
                told = "; ".join(_told(call) for call in culprits[:SHOWN])
                found.append(f"{structure}: calls on {key.decode(errors='replace')} are not linearizable: {told}")
        return found

    @contextmanager
    def recording(self) -> Iterator[None]:
        """While it lasts, of every structure of this process."""
        commit, read = Structure.commit, Structure.read

        async def recorded_commit(at: Structure, unit: Unit, **options: Any) -> Any:
            changes = [c for c in unit.changes if is_register(c.cell.key)] if at.name not in self.private else []
            if not changes:
                return await commit(at, unit, **options)
            return await self._committed(at, changes, lambda: commit(at, unit, **options))

        async def recorded_read(at: Structure, *gets: Any) -> Any:
            start = self.clock()
            revision, results = await read(at, *gets)
            if at.name not in self.private:
                self._was_read(at, gets, results, start)
            return revision, results

        with mock.patch.object(Structure, "commit", recorded_commit), mock.patch.object(Structure, "read", recorded_read):
            yield

    async def _committed(self, at: Structure, changes: list[Change], go: Callable[[], Any]) -> Any:
        start, end = self.clock(), inf
        swaps: dict[bytes, tuple[bytes | None, bytes | None]] = {}
        for change in changes:
            _watched(change, swaps)
        try:
            done = await go()
            end = self.clock()
            return done
        except (CompareFailed, Refusal, Fenced):
            swaps.clear()  # nothing of it was applied, and never will be
            raise
        finally:
            for key, (before, after) in swaps.items():
                self.add(at.name, key, Call("swap", start, end, after, before, who=at.member))

    def _was_read(self, at: Structure, gets: Any, results: Any, start: float) -> None:
        end = self.clock()
        for get, result in zip(gets, results, strict=True):
            if get.revision or get.keys_only or get.mod_after or get.count_only:
                continue
            if get.end:
                found = [(kv.key, kv.value) for kv in result.kvs if is_register(kv.key)]
            else:
                found = [(get.key, result.kvs[0].value if result.kvs else None)] if is_register(get.key) else []
            for key, value in found:
                self.add(at.name, key, Call("read", start, end, value, who=at.member))


def _watched(change: Change, swaps: dict[bytes, tuple[bytes | None, bytes | None]]) -> None:
    """Notes the before- and after-image of the attempt that was built last."""
    apply = change.apply

    def noted(value: bytes | None) -> bytes | None:
        after = apply(value)
        swaps[change.cell.key] = (value, after)
        return after

    change.apply = noted


def _told(call: Call) -> str:
    end = "" if call.end == inf else f"{call.end:g}"
    return f"{call.who} {call.kind} {_image(call.expected)} {_image(call.value)} in {call.start:g}..{end}"


def _image(value: Any) -> str:
    return "nothing" if value is None else value.hex()[:24] if isinstance(value, bytes) else str(value)
