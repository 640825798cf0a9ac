"""Name resolution: from the queue and queue manager that a message is addressed to, to the queue that takes it here.

After MQ's rules (IBM MQ documentation, "What is name resolution?" and "How the transmission queue is found"):
own queue manager names (LOCAL NAME, GROUP NAME, blank) mean a queue defined here: local, alias of a local or remote queue, or remote
definition. Other names: queue-manager alias (remote definition with blank remote_queue), then transmission queue of that name, then the
default transmission queue. The LOCAL NAME of another member of the group leads there by an internal transmission queue, which comes
before one that is named after it (IBM MQ: intra-group queuing). An alias of an alias is refused as in MQ, so resolution takes a bounded
number of look-ups. The hop limit stops messages that go round in circles.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from qsg.rules.definitions import Queue
from qsg.rules.reasons import Reason, Refusal

Lookup = Callable[[str], Queue | None]


@dataclass(frozen=True, slots=True)
class Names:
    """What resolution needs to know. `own`: LOCAL NAME and GROUP NAME (blank always counts)."""

    lookup: Lookup
    own: Collection[str]
    default_transmission_queue: str = ""
    hop_limit: int = 16
    members: Lookup = lambda member: None
    """The internal transmission queue that leads to the private store of another member of the group."""

    def is_own(self, queue_manager: str) -> bool:
        return not queue_manager or queue_manager in self.own


@dataclass(frozen=True, slots=True)
class Resolved:
    """`queue` is a local queue; on a transmission queue `destination` is where the message goes: (queue, queue manager)."""

    queue: Queue
    destination: tuple[str, str] | None = None
    path: tuple[Queue, ...] = ()
    """Definitions passed on the way: alias or remote definition."""


def resolve_put(names: Names, queue: str, queue_manager: str = "", *, hops: int = 0) -> Resolved:
    """Where a message addressed to (queue, queue manager) is put; `hops`: channels it has crossed. Raises `Refusal` with MQ's reason."""
    found = _find(names, queue, queue_manager)
    if found.destination is None and found.queue.usage == "transmission":
        raise Refusal(Reason.XMIT_Q_USAGE_ERROR, f"{found.queue.name} is a transmission queue: name the queue at its far end instead")
    if found.destination is not None and hops >= names.hop_limit:
        raise Refusal(Reason.HOP_LIMIT, f"{hops} channels crossed on the way to {queue}@{queue_manager}")
    for definition in (*found.path, found.queue):
        if not definition.put_enabled:
            raise Refusal(Reason.PUT_INHIBITED, definition.name)
    return found


def resolve_home(names: Names, queue: str, queue_manager: str = "") -> str:
    """The structure of what is put to or got from that name, whether or not it takes a put or gives a message now. Raises `Refusal`."""
    return _find(names, queue, queue_manager).queue.structure


def resolve_get(names: Names, queue: str, queue_manager: str = "") -> Resolved:
    """The local queue that a get or browse of `queue` means. Raises `Refusal`."""
    if not names.is_own(queue_manager):
        raise Refusal(Reason.UNKNOWN_OBJECT_Q_MGR, queue_manager)
    definition = names.lookup(queue)
    if definition is None:
        raise Refusal(Reason.UNKNOWN_OBJECT_NAME, queue)
    path: tuple[Queue, ...] = ()
    if definition.type == "alias":
        path, definition = (definition,), _alias_target(names, definition)
    if definition.type != "local":
        raise Refusal(Reason.OPTIONS_ERROR, f"{queue} is a remote queue: messages cannot be got from it here")
    for passed in (*path, definition):
        if not passed.get_enabled:
            raise Refusal(Reason.GET_INHIBITED, passed.name)
    return Resolved(definition, None, path)


def _find(names: Names, queue: str, queue_manager: str) -> Resolved:
    if names.is_own(queue_manager):
        return _own(names, queue)
    alias = names.lookup(queue_manager)
    if alias is not None and alias.type == "remote":
        if alias.remote_queue:
            raise Refusal(Reason.UNKNOWN_REMOTE_Q_MGR, f"{queue_manager} is a remote queue, not a queue-manager alias")
        target = alias.remote_queue_manager or queue_manager
        if alias.transmission_queue:
            return Resolved(_transmission(names, alias.transmission_queue), (queue, target), (alias,))
        if names.is_own(target):
            own = _own(names, queue)
            return Resolved(own.queue, own.destination, (alias, *own.path))
        return Resolved(_towards(names, target), (queue, target), (alias,))
    return Resolved(_towards(names, queue_manager), (queue, queue_manager))


def _own(names: Names, queue: str) -> Resolved:
    definition = names.lookup(queue)
    if definition is None:
        raise Refusal(Reason.UNKNOWN_OBJECT_NAME, queue)
    path: tuple[Queue, ...] = ()
    if definition.type == "alias":
        path, definition = (definition,), _alias_target(names, definition)
    if definition.type == "remote":
        return _remote(names, definition, (*path, definition))
    return Resolved(definition, None, path)


def _alias_target(names: Names, alias: Queue) -> Queue:
    target = names.lookup(alias.target)
    if target is None:
        raise Refusal(Reason.UNKNOWN_ALIAS_BASE_Q, f"{alias.name} is an alias of {alias.target}")
    if target.type == "alias":
        raise Refusal(Reason.ALIAS_BASE_Q_TYPE_ERROR, f"{alias.name} is an alias of {alias.target}, which is an alias too")
    return target


def _remote(names: Names, definition: Queue, path: tuple[Queue, ...]) -> Resolved:
    if not definition.remote_queue:
        raise Refusal(Reason.UNKNOWN_OBJECT_NAME, f"{definition.name} is a queue-manager alias, not a queue")
    destination = (definition.remote_queue, definition.remote_queue_manager or definition.transmission_queue)
    if definition.transmission_queue:
        return Resolved(_transmission(names, definition.transmission_queue), destination, path)
    if names.is_own(definition.remote_queue_manager):
        raise Refusal(Reason.UNKNOWN_REMOTE_Q_MGR, f"{definition.name} names this queue manager as remote")
    return Resolved(_towards(names, definition.remote_queue_manager), destination, path)


def _towards(names: Names, queue_manager: str) -> Queue:
    """The transmission queue that leads to `queue_manager`: that of a member, of its name, else the default one."""
    internal = names.members(queue_manager)
    if internal is not None:
        return internal
    named = names.lookup(queue_manager)
    if named is not None and named.type == "local":
        return _transmission(names, queue_manager)
    default = names.default_transmission_queue
    if not default:
        raise Refusal(Reason.UNKNOWN_REMOTE_Q_MGR, queue_manager)
    definition = names.lookup(default)
    if definition is None:
        raise Refusal(Reason.UNKNOWN_DEF_XMIT_Q, default)
    if definition.type != "local" or definition.usage != "transmission":
        raise Refusal(Reason.DEF_XMIT_Q_USAGE_ERROR, default)
    return definition


def _transmission(names: Names, name: str) -> Queue:
    definition = names.lookup(name)
    if definition is None:
        raise Refusal(Reason.UNKNOWN_XMIT_Q, name)
    if definition.type != "local" or definition.usage != "transmission":
        raise Refusal(Reason.XMIT_Q_USAGE_ERROR, f"{name} is not a transmission queue")
    return definition
