"""What was observed of the cluster: resources and children, by kind, namespace and name.

Fed by watches and, every minute, by lists. Invariant: an object is never replaced by an older one of its name, nor brought back by one. Not
guaranteed: that it is current; whoever decides something that cannot be undone asks the API server.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

Object = dict[str, Any]
Key = tuple[str, str, str]
"""(kind, namespace, name)"""


def key_of(found: Object) -> Key:
    meta = found["metadata"]
    return found["kind"], meta.get("namespace", ""), meta["name"]


def _within(key: Key, kind: str, namespace: str) -> bool:
    return key[0] == kind and namespace in ("", key[1])


def version(found: Object) -> int:
    text = str(found["metadata"].get("resourceVersion", ""))
    return int(text) if text.isdigit() else 0


class Cache:
    """`on_change` is called with each object that came, changed or went."""

    def __init__(self) -> None:
        self.on_change: list[Callable[[Object], None]] = []
        self._objects: dict[str, dict[tuple[str, str], Object]] = {}
        self._watched: dict[Key, int] = {}
        """Version that a watch has shown."""
        self._listed: dict[Key, tuple[int, str]] = {}
        """Version and uid that the list before has shown."""
        self._deleted: dict[Key, int] = {}
        """Version in which a watch has shown the end of it, until a list shows that too: one that is older still has it."""
        self._behind: set[tuple[str, str]] = set()

    @property
    def behind(self) -> set[str]:
        """Kinds whose watch (of some namespace) has not shown for a minute what a list has: it is dead."""
        return {kind for kind, _ in self._behind}

    def get(self, kind: str, namespace: str, name: str) -> Object | None:
        return self._objects.get(kind, {}).get((namespace, name))

    def of(self, kind: str, namespace: str = "") -> list[Object]:
        return [found for (place, _), found in self._objects.get(kind, {}).items() if not namespace or place == namespace]

    def count(self, kind: str) -> int:
        return len(self._objects.get(kind, {}))

    def watched(self, found: Object, *, deleted: bool) -> None:
        """A watch has shown it."""
        key = key_of(found)
        if deleted:
            self._watched.pop(key, None)
            self._deleted[key] = max(self._deleted.get(key, 0), version(found))
            self._remove(key, version(found))
        else:
            self._watched[key] = max(self._watched.get(key, 0), version(found))
            self._put(found)

    def listed(self, kind: str, found: Iterable[Object], namespace: str = "") -> None:
        """All objects of a kind (in a namespace) as a list has them. What it does not have is gone."""
        there = {key_of(one): one for one in found}
        behind = False
        for key, one in there.items():
            now = version(one)
            if now <= self._deleted.get(key, -1):
                continue
            if self._listed.get(key, (0, ""))[0] == now and self._watched.get(key, 0) < now:
                behind = True
            self._put(one)
        for place, name in list(self._objects.get(kind, {})):
            key = (kind, place, name)
            if (not namespace or place == namespace) and key not in there and self._was_listed(key):
                self._remove(key, None)
        self._listed = {key: v for key, v in self._listed.items() if not _within(key, kind, namespace)}
        self._listed |= {key: (version(one), str(one["metadata"].get("uid"))) for key, one in there.items()}
        self._deleted = {key: v for key, v in self._deleted.items() if key in there or not _within(key, kind, namespace)}
        (self._behind.add if behind else self._behind.discard)((kind, namespace))

    def _was_listed(self, key: Key) -> bool:
        """Whether the list before had this very object: one made since may be newer than the list that does not have it."""
        return self._listed.get(key, (0, ""))[1] == str(self._objects[key[0]][key[1:]]["metadata"].get("uid"))

    def _put(self, found: Object) -> None:
        kind, namespace, name = key_of(found)
        before = self._objects.get(kind, {}).get((namespace, name))
        if before is not None and version(before) >= version(found):
            return
        found["metadata"].pop("managedFields", None)
        self._objects.setdefault(kind, {})[namespace, name] = found
        self._tell(found)

    def _remove(self, key: Key, seen: int | None) -> None:
        kind, namespace, name = key
        before = self._objects.get(kind, {}).get((namespace, name))
        if before is None or (seen is not None and version(before) > seen):
            return
        del self._objects[kind][namespace, name]
        self._tell(before)

    def _tell(self, found: Object) -> None:
        for callback in self.on_change:
            callback(found)
