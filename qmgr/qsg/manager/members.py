"""Who is a member now, and the carrying out of verdicts (design, failure and recovery).

Owns the live copies of `m/` in each structure. A verdict deletes the victim's member key, comparing our own key and the victim's
incarnation: first in the admin structure, where one of several accusers wins, then in the others. Invariant: a key of another
incarnation than the dead one's is not deleted on purpose; members register in the admin structure first and leave it first, so a key
elsewhere without one in the admin structure belongs to a verdict that was carried out half, and is finished by whoever sees it (N14).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import structlog

from qsg.manager.structure import Structure
from qsg.pb import records_pb2 as pb
from qsg.rules import keys
from qsg.rules.ownership import execution
from qsg.rules.reasons import Refusal
from qsg.rules.records import Damaged, read_record
from qsg.rules.unit import CompareFailed, Fenced, OutcomeUnknown
from qsg.store.contract import Event, StoreError
from qsg.store.follow import Follower

log = structlog.get_logger()

HALF_DONE_S = 1.0
"""A key elsewhere without one in the admin structure is left alone for so long: its member may be leaving."""

Gone = Callable[[str, int, str, float], None]
"""(member, incarnation in the admin structure, cause, milliseconds that it took to notice)"""


class Members:
    """`on_gone` is called once for each incarnation that ceases to be a member, as soon as this member knows."""

    def __init__(self, member: str, structures: Mapping[str, Structure], admin: str) -> None:
        self.member = member
        self.on_gone: list[Gone] = []
        self.on_change: list[Callable[[], None]] = []
        self._structures = structures
        self._admin = admin
        self._followers: dict[str, Follower] = {}
        self._known: dict[str, int] = {}
        self._gone: dict[str, int] = {}
        """The newest incarnation of a member that was told to be gone."""
        self._accused: dict[str, tuple[int, str, float]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._orphans: dict[tuple[str, str], float] = {}

    async def start(self) -> None:
        for name, structure in self._structures.items():
            self._followers[name] = structure.follow(keys.MEMBERS)
        self._followers[self._admin].add_listener(self._changed)
        for follower in self._followers.values():
            await follower.ready()
        self._known = dict(self.registered)

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for follower in self._followers.values():
            await follower.close()

    @property
    def registered(self) -> dict[str, int]:
        """Member -> incarnation, as far as is known and not judged dead here."""
        items = self._followers[self._admin].items
        found = {keys.unname(key[len(keys.MEMBERS) :]): kv.create_revision for key, kv in items.items()}
        return {name: incarnation for name, incarnation in found.items() if incarnation > self._gone.get(name, 0)}

    def record(self, member: str) -> pb.MemberRecord | None:
        kv = self._followers[self._admin].items.get(keys.member(member))
        try:
            return None if kv is None else read_record(pb.MemberRecord, kv.value, kv.key)
        except Damaged as damaged:
            log.error("a member's record cannot be read", member=member, detail=damaged.detail)
            return None

    def in_structure(self, structure: str) -> set[str]:
        follower = self._followers.get(structure)
        return set() if follower is None else {keys.unname(key[len(keys.MEMBERS) :]) for key in follower.items}

    def execute(self, member: str, incarnation: int, cause: str, silent_ms: float) -> None:
        """Carries a verdict out, in the background. Recovery is told at once when the admin structure has it."""
        self._accused[member] = incarnation, cause, silent_ms
        task = asyncio.get_running_loop().create_task(self._execute(member, incarnation, cause, silent_ms), name=f"verdict on {member}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def cut_off(self, structure: str, member: str, incarnation: int) -> None:
        """Deletes a member key at its own member's request (scenario 1b). Raises `CompareFailed`, `Fenced`."""
        await self._structures[structure].commit(execution(member, incarnation))

    async def _execute(self, member: str, incarnation: int, cause: str, silent_ms: float) -> None:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        elsewhere = self._elsewhere(member)
        done = await self._delete(self._admin, member, incarnation)
        if done is False or (done is None and incarnation == self.registered.get(member)):
            return
        log.warning(
            "member is dead",
            member=member,
            incarnation=incarnation,
            cause=cause,
            silent_ms=round(silent_ms, 1),
            verdict_ms=round(1000 * (loop.time() - begun), 1),
        )
        self._tell(member, incarnation, cause, silent_ms + 1000 * (loop.time() - begun))
        # If somebody else was faster, that may be its successor: our copy of another structure can be ahead of that of admin.
        also = self._delete if done else self._finish_in
        await asyncio.gather(*(also(name, member, there) for name, there in elsewhere.items()))

    def _elsewhere(self, member: str) -> dict[str, int]:
        """Its keys in the other structures: not a successor's if its key in admin is deleted after this, for one comes there first."""
        found = {}
        for name, follower in self._followers.items():
            kv = follower.items.get(keys.member(member))
            if name != self._admin and kv is not None:
                found[name] = kv.create_revision
        return found

    async def _delete(self, structure: str, member: str, incarnation: int) -> bool | None:
        """None: it was not there. False: whether it is, is not known."""
        try:
            await self._structures[structure].commit(execution(member, incarnation))
        except CompareFailed:
            return None
        except (Fenced, OutcomeUnknown, Refusal) as error:
            log.info("verdict not carried out", member=member, structure=structure, error=repr(error))
            return False
        return True

    def _changed(self, events: list[Event]) -> None:
        for event in events:
            member = keys.unname(event.kv.key[len(keys.MEMBERS) :])
            before = self._known.get(member, 0)
            if event.deleted:
                self._known.pop(member, None)
            else:
                self._known[member] = event.kv.create_revision
            if before and before != self._known.get(member):
                accused, cause, silent_ms = self._accused.get(member, (0, "", 0.0))
                # Another accuser may have been faster; what we saw of it ourselves tells more.
                self._tell(member, before, *((cause, silent_ms) if accused == before else ("member key gone", 0.0)))
                if event.deleted:
                    self._finish(member)
        for callback in self.on_change:
            callback()

    def _tell(self, member: str, incarnation: int, cause: str, detect_ms: float) -> None:
        if member == self.member or incarnation <= self._gone.get(member, 0):
            return
        self._gone[member] = incarnation
        for callback in self.on_gone:
            callback(member, incarnation, cause, detect_ms)

    def _finish(self, member: str) -> None:
        for name, incarnation in self._elsewhere(member).items():
            task = asyncio.get_running_loop().create_task(self._finish_in(name, member, incarnation), name=f"verdict on {member} in {name}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _finish_in(self, structure: str, member: str, incarnation: int) -> None:
        """`incarnation` was seen there before this is called. What is in admin *now* decides: our copy of it may lag behind that of
        `structure`, and the key be that of a successor (which comes to admin first, and clears away what is left of its predecessor)."""
        try:
            if (await self._structures[self._admin].cell(keys.member(member))).value is not None:
                return
        except StoreError as error:
            log.info("verdict not finished", member=member, structure=structure, error=repr(error))
            return
        if await self._delete(structure, member, incarnation):
            log.info("verdict finished in another structure", member=member, structure=structure)

    def sweep(self) -> None:
        """By level: finishes verdicts that were left half done while this member was not looking."""
        now = asyncio.get_running_loop().time()
        registered = self._followers[self._admin].items
        seen: dict[tuple[str, str], float] = {}
        for name in self._followers:
            if name == self._admin:
                continue
            for key, kv in self._followers[name].items.items():
                member = keys.unname(key[len(keys.MEMBERS) :])
                if key in registered or member == self.member:
                    continue
                since = seen[name, member] = self._orphans.get((name, member), now)
                if now - since >= HALF_DONE_S:
                    seen[name, member] = now
                    task = asyncio.get_running_loop().create_task(self._finish_in(name, member, kv.create_revision))
                    self._tasks.add(task)
                    task.add_done_callback(self._tasks.discard)
        self._orphans = seen
