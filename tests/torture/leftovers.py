"""Keys of a store by what they are, and which of them should not be there any more once everything has arrived."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

from qsg.store.contract import Get
from qsg.store.etcd import EtcdStore
from torture.history import WATCHED

LASTING = frozenset({"d", "l"})
"""Kinds of keys of a queue that stay: its state and its lock. All others but its totals go with its messages."""


def family(key: bytes) -> str:
    """`m`, `t`, ... or `q/<queue>/<kind>`."""
    parts = key.decode(errors="replace").split("/")
    return "/".join(parts[:3]) if parts[0] == "q" else parts[0]


def count(found: Iterable[bytes]) -> Counter[str]:
    return Counter(family(key) for key in found)


async def of_etcd(store: EtcdStore) -> Counter[str]:
    result = await store.get(Get(b"\0", b"\0", keys_only=True))
    return count(kv.key for kv in result.kvs)


def of_sqlite(path: Path) -> Counter[str]:
    with closing(sqlite3.connect(path)) as connection:
        return count(bytes(key) for (key,) in connection.execute("SELECT key FROM head"))


def unused(found: Counter[str]) -> list[str]:
    """What channels write (see `WATCHED`), and is not there yet."""
    return sorted({family(prefix) for prefix in WATCHED} - found.keys())


def leftovers(before: Counter[str], after: Counter[str], lanes: int, interruptions: int = 0) -> list[str]:
    """`before`: as it was once everything had been used. `lanes`: how many a queue may have. `interruptions` of getters: each may have left
    the record of a producer of commits, which goes when its lifetime is over."""
    found: list[str] = []
    for name, number in sorted(after.items()):
        kind = name.split("/")[2] if name.startswith("q/") else ""
        if kind == "n":
            allowed = lanes
        elif kind in LASTING:
            allowed = 1
        elif kind:
            allowed = 0
        else:
            allowed = before[name] + (interruptions if name == "p" else 0)
        if number > allowed:
            found.append(f"{number} of {name}, {allowed} expected")
    return found
