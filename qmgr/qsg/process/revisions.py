"""The highest revision that a member saw of each structure, kept in files, and an operator's word that a restored one may be used.

Invariant: soon after a member has joined a structure its revision is on disk, about `REVISION_STEP` behind at most, so that a structure
which comes back from a snapshot is noticed and refused. A confirmation is a file of its own, read and used up at the member's next start:
the member's process may run, or be started again and again, meanwhile. Not guaranteed: that what was lost with the restore can be told,
nor any of this while the disk takes no write: a member goes on without.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import structlog

from qsg.manager.membership import RESTORED_JUMP, check_restored, confirm_restored
from qsg.process.config import MemberConfig
from qsg.process.security import store_of
from qsg.rules import keys
from qsg.rules.definitions import PRIVATE
from qsg.rules.reasons import Refusal
from qsg.store.contract import Get, Store, StoreError, Unavailable, prefix_end
from qsg.store.files import sync
from qsg.store.sqlite import SqliteStore

log = structlog.get_logger()

REVISION_STEP = 1_000
"""How far the highest revision seen may run ahead of the one on disk."""
AGAIN_S = 1.0
"""After a write that failed."""
FILE = "revisions.json"
CONFIRMED = "confirmed.json"
ANSWER_S = 5.0
ACCEPTED = "accepted"
"""Holds the word of the configuration that was used last."""
IN_USE_S = 3.0
"""A private store in use for so long is one that its member has accepted: one that refuses it ends at once, but is started again."""


def _read(path: Path) -> dict[str, int]:
    try:
        return {str(k): int(v) for k, v in dict(json.loads(path.read_text())).items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, RecursionError) as error:
        log.error("revisions cannot be read: a restore before now would not be noticed", path=str(path), error=str(error))
        return {}


def _write(path: Path, text: str) -> None:
    """Durable, and whole or not at all: an empty file would say that nothing was ever seen."""
    temporary = path.with_suffix(".new")
    temporary.write_text(text)
    sync(temporary)
    temporary.replace(path)
    sync(path.parent)


class Revisions:
    """Of one member; `data` is its folder. A confirmation that lies there is taken over."""

    def __init__(self, data: Path) -> None:
        self._path = data / FILE
        self.seen = _read(self._path)
        self._written = dict(self.seen)
        self._writing = threading.Lock()
        self._wanted = False
        """A thread writes, or is to."""
        self._failed_at = 0.0
        """0 = the last write did not fail."""
        if confirmed := _read(data / CONFIRMED):
            self.seen.update(confirmed)
            if self.write():
                (data / CONFIRMED).unlink()

    def note(self, structure: str, revision: int) -> None:
        """To be called in the event loop, which does not wait for the disk."""
        self.seen[structure] = max(revision, self.seen.get(structure, 0))
        if structure in self._written and self.seen[structure] - self._written[structure] < REVISION_STEP:
            return
        if not self._wanted and (not self._failed_at or time.monotonic() - self._failed_at >= AGAIN_S):
            self._wanted = True
            asyncio.get_running_loop().run_in_executor(None, self.write)

    def write(self) -> bool:
        """False when it could not be written."""
        with self._writing:
            seen = dict(self.seen)
            try:
                if seen != self._written:
                    _write(self._path, json.dumps(seen))
            except OSError as error:
                if not self._failed_at:
                    log.error("revisions cannot be written: a restore might not be noticed", path=str(self._path), error=str(error))
                self._failed_at = time.monotonic()
                return False
            finally:
                self._wanted = False
            self._written, self._failed_at = seen, 0.0
            return True


@dataclass(frozen=True, slots=True)
class Confirmed:
    structure: str
    highest: int
    """What the member had seen last."""
    revision: int
    """What it will accept at its next start."""


async def confirm(config: MemberConfig) -> list[Confirmed]:
    """Confirms each restored structure to one member; empty when none was. Raises `StoreError`.

    Member keys that came back with the snapshot are deleted (interleaving P16), so that no process of the time before can write.
    """
    seen = _read(config.data / FILE) | _read(config.data / CONFIRMED)
    done = [
        Confirmed(name, seen[name], revision)
        for name in (PRIVATE, *config.structures)
        if name in seen and (revision := await _confirm(config, name, seen[name]))
    ]
    if done:
        _write(config.data / CONFIRMED, json.dumps(_read(config.data / CONFIRMED) | {c.structure: c.revision for c in done}))
    return done


async def accept(config: MemberConfig) -> None:
    """Confirms restored structures if the configuration has a word for it that was not used before. Raises `StoreError`.

    The word is used up whether or not anything was restored, so that it never accepts what is restored later.
    """
    used = config.data / ACCEPTED
    word = config.accept_restored
    if not word or (used.exists() and used.read_text() == word):
        return
    for c in await confirm(config):
        log.warning("a restored structure is accepted", structure=c.structure, revision=c.revision, last_seen=c.highest, word=word)
    _write(used, word)


async def _confirm(config: MemberConfig, name: str, highest: int) -> int:
    """The revision to be accepted from now on; 0 when the structure was not restored."""
    store: Store | None = await _open_private(config) if name == PRIVATE else store_of(config.structures[name])
    if store is None:
        return 0
    try:
        async with asyncio.timeout(ANSWER_S):
            return await _confirm_store(store, highest)
    except (TimeoutError, Unavailable) as error:
        raise StoreError(f"structure {name}: its store does not answer: {error}") from error
    finally:
        await store.close()


async def _confirm_store(store: Store, highest: int) -> int:
    found = await store.get(Get(keys.MEMBERS, prefix_end(keys.MEMBERS), keys_only=True))
    try:
        check_restored(highest, found.revision)
    except Refusal:
        # Members that were confirmed before this one, and joined since, are left alone. Where revisions were not raised they join anew.
        if found.revision < highest or any(kv.create_revision <= found.revision - RESTORED_JUMP for kv in found.kvs):
            return await confirm_restored(store)
        return found.revision
    return 0


async def _open_private(config: MemberConfig) -> SqliteStore | None:
    """None: it is in use."""
    loop = asyncio.get_running_loop()
    end = loop.time() + IN_USE_S
    while True:
        store = SqliteStore(config.data / "private.db")
        try:
            await store.open()
            return store
        except StoreError as error:
            if "in use" not in str(error):
                raise
        if loop.time() > end:
            return None
        await asyncio.sleep(0.05)
