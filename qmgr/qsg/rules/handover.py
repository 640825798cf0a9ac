"""What the owner of a channel that has just released it tells the next one, so that this need not read it.

Owns no step. Invariant: what is told is the state behind one transaction, the release; the taker compares all of it by revision, so that
telling it late, or to several, does no harm. Does not guarantee that there is anything to tell: without it the taker reads.
"""

from __future__ import annotations

from qsg.rules.ownership import Held
from qsg.rules.steps import Sight
from qsg.store.contract import KeyValue


def left_behind(held: Held) -> Sight | None:
    """Entry, lock, fence and progress behind a clean release in one store; None: there was none.

    Claims need no reading: none was there when the channel was taken, and while the fence was open nobody could claim (H8). One that was
    made since is newer than this revision, which the taker compares.
    """
    revision = held.entry.mod_revision
    if not held.place.together or held.lock.value is not None or held.fence.mod_revision != revision:
        return None  # not one transaction that unlocked, closed the fence and changed the entry
    cells = (held.entry, held.fence, held.progress)
    return Sight(revision, {c.key: KeyValue(c.key, c.value, c.create_revision, c.mod_revision) for c in cells if c.value is not None})
