"""From resources to queue-manager definitions, and what differs from the definitions that a group or queue manager has. Pure.

Invariants: a definition that names no resource (`managed_by` "") is never deleted; of several resources with one name the oldest has it.
Whether a resource is really gone is asked by the caller before anything is deleted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import ValidationError

from qsg.rules import definitions as rules
from qsg_operator import names
from qsg_operator.specs.channel import SharedChannel, Tuning
from qsg_operator.specs.common import Settings
from qsg_operator.specs.queue import SharedQueue

DISPOSITIONS = {"Shared": "shared", "FixedShared": "fixed-shared"}
Definition = rules.Queue | rules.Channel
D = TypeVar("D", bound=rules.Definition)


class BadDefinition(Exception):
    """Allowed by the schema, and yet not a definition that a queue manager takes."""


@dataclass(frozen=True, order=True)
class Mark:
    """`managed_by`: which resource a definition comes from."""

    kind: str
    namespace: str
    name: str
    uid: str

    def __str__(self) -> str:
        return f"{self.kind}/{self.namespace}/{self.name}/{self.uid}"

    @classmethod
    def parse(cls, text: str) -> Mark | None:
        parts = text.split("/")
        return cls(*parts) if len(parts) == 4 else None


def channel(spec: SharedChannel, mark: Mark, defaults: Tuning) -> rules.Channel:
    """Raises `BadDefinition`."""
    own, general = spec.model_dump(), defaults.model_dump()

    def tuned(*path: str) -> Any:
        for tree in (own, general):
            value: Any = tree
            for step in path:
                value = value[step]
            if value is not None:
                return value
        return None

    given = {
        "batch_messages": tuned("batch", "messages"),
        "batch_bytes": tuned("batch", "bytes"),
        "batch_interval_ms": tuned("batch", "interval_ms"),
        "batch_window": tuned("batch", "window"),
        "heartbeat_ms": tuned("heartbeat_ms"),
        "silence_ms": tuned("silence_ms"),
        "connect_timeout_ms": tuned("connect_timeout_ms"),
        "disconnect_interval_s": tuned("disconnect_interval_seconds"),
        "max_message_bytes": tuned("max_message_bytes"),
        "message_retry_count": tuned("message_retry_count"),
        "message_retry_ms": tuned("message_retry_ms"),
        "use_dead_letter_queue": tuned("use_dead_letter_queue"),
        "sequence_wrap": spec.sequence_wrap,
    }
    retry = {name: tuned("retry", name) for name in ("first_ms", "short_count", "short_ms", "long_count", "long_ms")}
    return _made(
        rules.Channel,
        {
            "name": spec.channel_name or names.mq_name(mark.name),
            "type": spec.type.lower(),
            "description": spec.description,
            "transmission_queue": spec.transmission_queue,
            "connection_names": spec.connection_names,
            "partner": spec.partner,
            "disposition": DISPOSITIONS[spec.disposition],
            "structure": spec.structure,
            "allowed_identities": spec.allowed_identities,
            "managed_by": str(mark),
            "deletion_policy": spec.deletion_policy.lower(),
            "retry": {name: value for name, value in retry.items() if value is not None},
            **{name: value for name, value in given.items() if value is not None},
        },
    )


def queue(spec: SharedQueue, mark: Mark) -> rules.Queue:
    """Raises `BadDefinition`."""
    held = spec.type in ("Local", "Transmission")
    home = spec.structure or (names.ADMIN_STRUCTURE if spec.group else names.PRIVATE_STRUCTURE)
    return _made(
        rules.Queue,
        {
            "name": spec.queue_name or names.mq_name(mark.name),
            "type": "local" if held else spec.type.lower(),
            "usage": "transmission" if spec.type == "Transmission" else "normal",
            **({"structure": home} if held else {}),
            "description": spec.description,
            "max_depth": spec.max_depth,
            "max_message_bytes": spec.max_message_bytes,
            "default_priority": spec.default_priority,
            "put_enabled": spec.put_enabled,
            "get_enabled": spec.get_enabled,
            "backout_threshold": spec.backout_threshold,
            "backout_queue": spec.backout_queue,
            "remote_queue": spec.remote_queue,
            "remote_queue_manager": spec.remote_queue_manager,
            "transmission_queue": spec.transmission_queue,
            "target": spec.target,
            "managed_by": str(mark),
            "deletion_policy": spec.deletion_policy.lower(),
        },
    )


def dead_letter_queue(settings: Settings, mark: Mark, *, in_group: bool) -> rules.Queue | None:
    """Made with the group, so that what cannot be delivered has a place from the first message on; never deleted."""
    if not settings.dead_letter_queue:
        return None
    structure = names.ADMIN_STRUCTURE if in_group else names.PRIVATE_STRUCTURE
    return rules.Queue(name=settings.dead_letter_queue, structure=structure, managed_by=str(mark), deletion_policy="retain")


def settings_of(settings: Settings) -> rules.Settings:
    return rules.Settings(**settings.model_dump())


def _made(kind: type[D], data: Mapping[str, Any]) -> D:
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        told = "; ".join(
            f"{'.'.join(map(str, e['loc'])) or 'definition'}: {e['msg'].removeprefix('Value error, ')}" for e in error.errors()
        )
        raise BadDefinition(told) from error


@dataclass(frozen=True)
class Wanted:
    """A definition that a resource asks for. `age`: (creation time, uid), the smaller the older."""

    mark: Mark
    age: tuple[str, str]
    definition: Definition

    @property
    def key(self) -> tuple[str, str]:
        return kind_of(self.definition), self.definition.name


def kind_of(definition: Definition) -> str:
    return "queue" if isinstance(definition, rules.Queue) else "channel"


@dataclass
class Plan:
    """What is to be done, in this order: release, clear, define (queues before channels), delete (channels before queues)."""

    define: list[Definition] = field(default_factory=list)
    release: list[Definition] = field(default_factory=list)
    """Their resource is no more, and they are to stay."""
    delete: list[Definition] = field(default_factory=list)
    clear: list[Definition] = field(default_factory=list)
    """Queues that go with their resource, and that could not become what another one of their name asks for."""
    taken: dict[Mark, Mark] = field(default_factory=dict)
    """Resource that asks for a name -> the older one that has it."""

    def __bool__(self) -> bool:
        return bool(self.define or self.release or self.delete)


def owners_of_names(wanted: Iterable[Wanted]) -> tuple[dict[tuple[str, str], Wanted], dict[Mark, Mark]]:
    """(the oldest that wants each name; who is too late -> who has it)."""
    first: dict[tuple[str, str], Wanted] = {}
    taken: dict[Mark, Mark] = {}
    for one in sorted(wanted, key=lambda w: (_made_with_the_group(w), w.age)):
        holder = first.setdefault(one.key, one)
        if holder is not one and not _made_with_the_group(one):
            taken[one.mark] = holder.mark
    return first, taken


def _made_with_the_group(one: Wanted) -> bool:
    """A resource of its own has the name before the dead-letter queue that comes with a group."""
    return one.mark.kind in (names.QUEUE_SHARING_GROUP, names.QUEUE_MANAGER)


def plan(wanted: Iterable[Wanted], queues: Sequence[Mapping[str, Any]], channels: Sequence[Mapping[str, Any]]) -> Plan:
    """`queues`, `channels`: the definitions that are there, as inquired; what is not part of a definition is left out of account."""
    first, taken = owners_of_names(wanted)
    present: dict[tuple[str, str], Definition] = {}
    for kind, model, rows in (("queue", rules.Queue, queues), ("channel", rules.Channel, channels)):
        for row in rows:
            try:
                definition = model.model_validate({k: v for k, v in row.items() if k in model.model_fields})
            except ValidationError:
                continue  # made by members of another version: it is defined anew, or left alone
            assert isinstance(definition, rules.Queue | rules.Channel)
            present[kind, definition.name] = definition
    made = Plan(taken=taken)
    made.define = [one.definition for key, one in sorted(first.items(), key=_queues_first) if present.get(key) != one.definition]
    made.clear = [before for key, one in sorted(first.items()) if (before := present.get(key)) and _in_the_way(before, one.definition)]
    for key, definition in sorted(present.items()):
        if definition.managed_by and key not in first:
            (made.release if definition.deletion_policy == "retain" else made.delete).append(definition)
    return made


def _in_the_way(before: Definition, after: Definition) -> bool:
    """A queue manager alters neither a queue's kind nor where its messages lie: that of a resource before is to go first."""
    if not (isinstance(before, rules.Queue) and isinstance(after, rules.Queue)):
        return False
    same = before.type == after.type and (after.type != "local" or (before.structure, before.usage) == (after.structure, after.usage))
    return not same and before.deletion_policy == "delete" and before.managed_by not in ("", after.managed_by)


def _queues_first(item: tuple[tuple[str, str], Wanted]) -> tuple[bool, str, str]:
    (kind, name), one = item
    held = isinstance(one.definition, rules.Queue) and one.definition.type == "local"
    return kind != "queue", "0" if held else "1", name


def released(definition: Definition) -> Definition:
    return definition.model_copy(update={"managed_by": "", "deletion_policy": "delete"})
