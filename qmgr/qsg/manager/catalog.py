"""Definitions of queues, channels and settings, live: the group's (admin structure) and this queue manager's own (private store).

Owns the followers of `dq/`, `dc/` and `dg` and what they say. Invariant: what `queue()` and `channel()` answer was the definition at some
moment, and it never goes back; an own definition shadows the group's of the same name. Not guaranteed: that it is current, which is why
every put and get also compares the queue's state `q/<queue>/d` (see `qsg.manager.queues`).
Writes are compare-and-swap; where a local queue's messages lie is made and removed by `qsg.manager.queue_store`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import structlog
from pydantic import ValidationError

from qsg.manager.structure import Structure
from qsg.rules import internal, keys, steps
from qsg.rules.definitions import PRIVATE, Channel, Definition, Queue, Settings
from qsg.rules.names import Names
from qsg.rules.reasons import Reason, Refusal
from qsg.rules.unit import Cell, Change, CompareFailed, Unit
from qsg.store.contract import Compare, Get, KeyValue, StoreError, unchanged
from qsg.store.follow import Follower

log = structlog.get_logger()

ADMIN = "admin"
ATTEMPTS = 5
SETTLE_S = 2.0
DOUBT = b" "
"""Behind the JSON of a queue's definition: it may be removed. It holds as before, but who defines the queue writes it anew."""
D = TypeVar("D", bound=Definition)
_UNSET = Settings()


class _Definitions:
    """Those of one structure."""

    def __init__(self, structure: Structure, changed: Callable[[], None]) -> None:
        self.structure = structure
        self.queues: dict[str, Queue] = {}
        self.channels: dict[str, Channel] = {}
        self.settings: Settings | None = None
        self._changed = changed
        self._followers: dict[bytes, Follower] = {}
        self._known: dict[bytes, dict[bytes, tuple[int, Definition | None]]] = {}
        """By prefix and key: what was parsed at which revision."""

    async def start(self) -> None:
        for prefix in (keys.QUEUE_DEFINITIONS, keys.CHANNEL_DEFINITIONS, keys.GROUP_DEFINITION):
            follower = self.structure.follow(prefix)
            self._followers[prefix] = follower
            follower.add_listener(lambda _: self._read())
        for follower in self._followers.values():
            await follower.ready()
        self._read()

    def seen(self, key: bytes) -> KeyValue | None:
        return self._follower(key).items.get(key)

    def _follower(self, key: bytes) -> Follower:
        return next(f for prefix, f in self._followers.items() if key.startswith(prefix))

    async def saw(self, key: bytes, revision: int) -> None:
        """Returns once the change of `key` at `revision` is known here, or after a while."""
        if not await self._follower(key).wait(revision - 1, SETTLE_S):
            log.warning("a definition just written is not seen yet", key=key.decode(), revision=revision)

    def _read(self) -> None:
        self.queues = self._parsed(keys.QUEUE_DEFINITIONS, Queue)
        self.channels = self._parsed(keys.CHANNEL_DEFINITIONS, Channel)
        kv = self._followers[keys.GROUP_DEFINITION].items.get(keys.GROUP_DEFINITION)
        self.settings = _parse(kv, Settings) if kv else None
        self._changed()

    def _parsed(self, prefix: bytes, kind: type[D]) -> dict[str, D]:
        found = {}
        before, now = self._known.get(prefix, {}), dict[bytes, tuple[int, Definition | None]]()
        for key, kv in self._followers[prefix].items.items():
            known = before.get(key)
            if known is None or known[0] != kv.mod_revision:
                known = kv.mod_revision, _parse(kv, kind)
            now[key] = known
            if isinstance(known[1], kind):
                found[keys.unname(key[len(prefix) :])] = known[1]
        self._known[prefix] = now
        return found

    async def close(self) -> None:
        for follower in self._followers.values():
            await follower.close()


class Catalog:
    """`structures`: those this member has joined, by name; "admin" holds the group's definitions, "private" its own.

    `on_change` is called after any definition changed, with everything up to date.
    """

    def __init__(self, structures: Mapping[str, Structure], *, member: str, group: str = "") -> None:
        self.structures = structures
        self.member = member
        self.group = group
        self.on_change: list[Callable[[], None]] = []
        self._own = _Definitions(structures[PRIVATE], self._changed) if PRIVATE in structures else None
        self._group = _Definitions(structures[ADMIN], self._changed) if group and ADMIN in structures else None

    async def start(self) -> None:
        """Returns once all definitions are known."""
        for definitions in (self._own, self._group):
            if definitions is not None:
                await definitions.start()

    async def close(self) -> None:
        for definitions in (self._own, self._group):
            if definitions is not None:
                await definitions.close()

    def queue(self, name: str) -> Queue | None:
        for definitions in (self._own, self._group):
            if definitions is not None and name in definitions.queues:
                return definitions.queues[name]
        return None

    def channel(self, name: str) -> Channel | None:
        for definitions in (self._own, self._group):
            if definitions is not None and name in definitions.channels:
                return definitions.channels[name]
        queue = self.queue(name) if name.startswith(internal.PREFIX) else None
        return internal.sending(queue) if queue is not None and queue.internal_target else None

    def has_channel(self, name: str) -> bool:
        """Whether there is a definition, be it one of another version that is not understood here."""
        found = [keys.channel_definition(name), *([keys.queue_definition(name)] if name.startswith(internal.PREFIX) else [])]
        return any(d is not None and d.seen(key) is not None for d in (self._own, self._group) for key in found)

    def queues(self) -> dict[str, Queue]:
        return {**(self._group.queues if self._group else {}), **(self._own.queues if self._own else {})}

    def channels(self) -> dict[str, Channel]:
        return {**(self._group.channels if self._group else {}), **(self._own.channels if self._own else {})}

    @property
    def settings(self) -> Settings:
        """The group's; outside a group its own."""
        for definitions in (self._group, self._own):
            if definitions is not None and definitions.settings is not None:
                return definitions.settings
        return _UNSET

    def names(self) -> Names:
        """For name resolution."""
        settings = self.settings
        own = frozenset(n for n in (self.member, self.group) if n)
        return Names(self.queue, own, settings.default_transmission_queue, settings.hop_limit, self._member_queue)

    def _member_queue(self, member: str) -> Queue | None:
        if self._group is None or member == self.member:
            return None
        queue = self._group.queues.get(internal.internal_queue(ADMIN, internal.private_of(member)))
        return queue if queue is not None and queue.internal_target else None

    def structure(self, name: str) -> Structure:
        """Raises `Refusal` when this member has not joined it."""
        structure = self.structures.get(name)
        if structure is None:
            raise Refusal(Reason.STRUCTURE_NOT_AVAILABLE, f"structure {name} is not joined here")
        return structure

    def is_group_channel(self, name: str) -> bool:
        """Whether a channel is defined for the group (and not shadowed by an own one)."""
        own = self._own is not None and name in self._own.channels
        return not own and self._group is not None and name in self._group.channels

    # Changing definitions

    async def define_channel(self, channel: Channel, *, replace: bool = True, own: bool | None = None) -> None:
        """Writes a channel's definition; `own` None: private ones and those outside a group are its own. Without `replace` one that is
        there stays, whatever else has become of it since."""
        home, key = self._home(own, channel.disposition == "private"), keys.channel_definition(channel.name)
        if replace or (await self._seen(home, key)).value is None:
            self._check_channel(channel)
        await self._write(home, key, channel, replace)

    def _check_channel(self, channel: Channel) -> None:
        if channel.type == "receiver" and channel.structure and channel.structure not in self.structures:
            raise Refusal(Reason.DEFINITION_ERROR, f"channel {channel.name}: structure: no structure {channel.structure}")
        queue = self.queue(channel.transmission_queue) if channel.type == "sender" else None
        if queue is not None and queue.usage != "transmission":
            raise Refusal(Reason.XMIT_Q_USAGE_ERROR, f"channel {channel.name}: transmission_queue: {queue.name} is no transmission queue")
        before = self.channel(channel.name)
        if before is not None and before.type == channel.type == "receiver" and before.structure != channel.structure:
            raise Refusal(Reason.DEFINITION_ERROR, f"channel {channel.name}: structure: the home of a receiver is for ever")

    async def delete_channel(self, name: str, *, own: bool | None = None) -> None:
        if own is None:
            own = not self.is_group_channel(name)
        await self._remove(self._home(own, own), keys.channel_definition(name), Reason.CHANNEL_NOT_FOUND, name)

    async def define_settings(self, settings: Settings) -> None:
        await self._write(self._home(None, False), keys.GROUP_DEFINITION, settings, replace=True)

    async def write_queue(self, queue: Queue, *, replace: bool, own: bool | None = None) -> bool:
        """Writes the definition alone (see `QueueStore.define` for the whole); without `replace` one that is there stays. Whether there was
        none."""
        home, key = self._home(own, self._is_own(queue)), keys.queue_definition(queue.name)
        value, first = queue.model_dump_json(exclude_defaults=True).encode(), False

        def apply(present: bytes | None) -> bytes:
            nonlocal first
            first = present is None
            before = _parse(KeyValue(key, present, 0, 0), Queue) if present is not None else None
            if present is None or before is None:
                return value
            require_same_place(before, queue)  # somebody else has just defined it
            return value if replace else present.rstrip(DOUBT)

        await self._settled(home, key, await swap(home, key, apply))
        return first

    async def remove_queue(self, queue: Queue, *, own: bool | None = None) -> None:
        """Removes the definition alone, unless the queue was made again where its messages were.

        Who defines a queue writes its state first: we see that, or compare it. In another structure we cannot: there the definition is
        changed to a doubtful one before we look, so that who makes the state behind our look finds that and writes it anew, or finds none.
        """
        name, lay_in = queue.name, self.structure(queue.structure) if queue.type == "local" else None
        if own is None:
            own = self.is_own_queue(name)
        home, key, state = self._home(own, own), keys.queue_definition(name), keys.queue_state(name)
        cell = await self._seen(home, key)
        for _ in range(ATTEMPTS):
            present = _there(cell, queue)
            together = [unchanged(state, 0)] if lay_in is home else []
            try:
                if lay_in not in (None, home) and not present.endswith(DOUBT):
                    await home.commit(_replace(f"doubt {key.decode()}", cell, present + DOUBT))
                if lay_in is not None and (await lay_in.cell(state)).value is not None:
                    if lay_in.name == PRIVATE:
                        raise Refusal(Reason.OBJECT_IN_USE, name)  # its use has made it again: nobody has defined it
                    return
                unit = _replace(f"remove {key.decode()}", cell, None, *together)
                await self._settled(home, key, (await home.commit(unit)).revision)
                return
            except CompareFailed:
                log.debug("changed meanwhile, looking again", key=key.decode())
        raise Refusal(Reason.CHANGED_MEANWHILE, name)

    def is_own_queue(self, name: str) -> bool:
        return self._own is not None and name in self._own.queues

    def _is_own(self, queue: Queue) -> bool:
        """Private local queues are a queue manager's own; everything else is the group's, when there is one."""
        return queue.type == "local" and queue.structure == PRIVATE

    def _home(self, own: bool | None, default: bool) -> Structure:
        if self._group is None or (default if own is None else own):
            if self._own is None:
                raise Refusal(Reason.DEFINITION_ERROR, "this queue manager has no private store")
            return self._own.structure
        return self._group.structure

    async def _write(self, structure: Structure, key: bytes, definition: Definition, replace: bool) -> None:
        value = definition.model_dump_json(exclude_defaults=True).encode()

        def apply(present: bytes | None) -> bytes:
            if present is not None and present != value and not replace:
                raise Refusal(Reason.OBJECT_ALREADY_EXISTS, key.decode())
            return value

        await self._settled(structure, key, await swap(structure, key, apply))

    async def _remove(self, structure: Structure, key: bytes, unknown: Reason, name: str) -> None:
        def apply(present: bytes | None) -> None:
            if present is None:
                raise Refusal(unknown, name)

        await self._settled(structure, key, await swap(structure, key, apply))

    async def _settled(self, structure: Structure, key: bytes, revision: int) -> None:
        """Who defined something finds it: waits (not for ever) until the followers show it."""
        for definitions in (self._own, self._group):
            if definitions is not None and definitions.structure is structure:
                await definitions.saw(key, revision)

    async def catch_up(self, *names: str) -> bool:
        """Whether the group has one of these queues, which was not known here before now."""
        if self._group is None:
            return False
        wanted = [key for key in map(keys.queue_definition, filter(None, names)) if self._group.seen(key) is None]
        if not wanted:
            return False
        try:
            _, found = await self._group.structure.read(*map(Get, wanted))
        except StoreError:
            return False
        new = [result.first for result in found if result.first is not None]
        for kv in new:
            await self._group.saw(kv.key, kv.mod_revision)
        return bool(new)

    async def _seen(self, structure: Structure, key: bytes) -> Cell:
        """As the followers show it, which saves a read; what they do not show is read."""
        for definitions in (self._own, self._group):
            if definitions is not None and definitions.structure is structure and (kv := definitions.seen(key)) is not None:
                return Cell(key, kv.value, kv.mod_revision, kv.create_revision)
        return await structure.cell(key)

    def _changed(self) -> None:
        for callback in list(self.on_change):
            callback()


def require_same_place(before: Queue, queue: Queue) -> None:
    """Raises `Refusal` when `before`, as the queue is defined, is of another kind or lies elsewhere."""
    for field in ("type", *(("structure", "usage") if queue.type == "local" else ())):
        if getattr(before, field) != getattr(queue, field):
            raise Refusal(Reason.DEFINITION_ERROR, f"queue {queue.name}: {field}: cannot be altered, delete the queue first")


def _replace(label: str, cell: Cell, after: bytes | None, *compares: Compare) -> Unit:
    """Fails its compare also when another unit of this process writes the key in the same transaction, instead of being refused."""
    return Unit(label, compares=[unchanged(cell.key, cell.mod_revision), *compares], changes=[steps.swap(cell, after)])


def _there(cell: Cell, queue: Queue) -> bytes:
    """The definition. Raises `Refusal` when it is gone, or is one of a queue elsewhere by now."""
    if cell.value is None:
        raise Refusal(Reason.UNKNOWN_OBJECT_NAME, queue.name)
    found = _parse(KeyValue(cell.key, cell.value, 0, 0), Queue)
    if found is not None and (found.type, found.structure) != (queue.type, queue.structure):
        raise Refusal(Reason.CHANGED_MEANWHILE, queue.name)
    return cell.value


async def swap(structure: Structure, key: bytes, apply: Callable[[bytes | None], bytes | None], cell: Cell | None = None) -> int:
    """Compare-and-swap of one key that is rarely written; its revision. What is so already is not written again: others need not look.

    `cell`: as read just now.
    """
    cell = cell or await structure.cell(key)
    for _ in range(ATTEMPTS):
        if cell.value is not None and apply(cell.value) == cell.value:
            return cell.mod_revision
        try:
            return (await structure.commit(Unit(f"swap {key.decode()}", changes=[Change(cell, apply)]))).revision
        except CompareFailed:
            log.debug("changed meanwhile, trying again", key=key.decode())
    raise Refusal(Reason.CHANGED_MEANWHILE, key.decode())


def parse_definition(data: object, kind: type[D]) -> D:
    """A definition from what a user wrote. Raises `Refusal` DEFINITION_ERROR that says what is wrong in which field."""
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        told = "; ".join(f"{'.'.join(str(part) for part in e['loc']) or kind.__name__.lower()}: {e['msg']}" for e in error.errors())
        name = data.get("name", "") if isinstance(data, dict) else ""
        raise Refusal(Reason.DEFINITION_ERROR, f"{kind.__name__.lower()} {name}: {told}") from error


def _parse(kv: KeyValue, kind: type[D]) -> D | None:
    try:
        return kind.model_validate_json(kv.value)
    except ValidationError as error:
        # Written by another version, or by hand: the others must go on working.
        log.error("definition is not understood", key=kv.key.decode(errors="replace"), error=str(error))
        return None
