"""What a step has changed in the stores of a model, in words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from google.protobuf import text_format

from model.canonical import record_type
from model.snapshot import Snapshot
from qsg.store.contract import KeyValue


def changes(before: Any, after: Any) -> Iterator[str]:
    """One line for each key that was written or deleted."""
    for n, (old, new) in enumerate(zip(_stores(before), _stores(after), strict=True)):
        name = f"store {n}: " if len(_stores(after)) > 1 else ""
        for key in sorted(old.kvs.keys() | new.kvs.keys()):
            was, now = old.kvs.get(key), new.kvs.get(key)
            if was != now:
                yield f"{name}{key.decode()} {'is deleted' if now is None else _shown(now)}"


def _stores(state: Any) -> tuple[Snapshot, ...]:
    return tuple(state.stores) if hasattr(state, "stores") else (state.store,)


def _shown(kv: KeyValue) -> str:
    kind = record_type(kv.key)
    if kind is None:
        return f"= {kv.value!r} @{kv.mod_revision}"
    return f"= {{{text_format.MessageToString(kind.FromString(kv.value), as_one_line=True).strip()}}} @{kv.mod_revision}"
