"""What a request of an application is by itself: what it must not overtake, whether it changes something, whether it only waits."""

from __future__ import annotations

import json
from collections.abc import Hashable

from qsg.pb import client_pb2 as pb
from qsg.rules.reasons import Reason, Refusal

READING = frozenset({"status", "group", "watch", "ping"})
"""Commands that change nothing. Of any other that fails without a `Refusal` nobody knows whether something of it was done."""


def order(request: pb.ClientRequest) -> Hashable:
    """Requests of one key run one after the other; None = on its own."""
    match request.WhichOneof("kind"):
        case "put":
            put = request.put
            if put.unit:
                return ("unit", put.unit)
            return ("producer", put.structure) if put.producer_number else ("queue", put.queue, put.queue_manager)
        case "get" if request.get.unit:
            return ("unit", request.get.unit)
        case "end_unit":
            return ("unit", request.end_unit.unit)
    return None


def changes(request: pb.ClientRequest) -> bool:
    """Whether something of it may have been done when it fails."""
    match request.WhichOneof("kind"):
        case "put" | "end_unit":
            return True
        case "command":
            return request.command.name not in READING
    return False


def only_waits(request: pb.ClientRequest) -> bool:
    """A get, or a long poll that changes nothing: it ends when its connection ends or the queue manager drains."""
    return request.HasField("get") or request.command.name == "watch"


def arguments(text: str) -> dict[str, object]:
    """Of a command. Raises `Refusal` OPTIONS_ERROR."""
    try:
        found = json.loads(text or "{}")
    except (ValueError, RecursionError) as problem:
        raise Refusal(Reason.OPTIONS_ERROR, f"arguments are not JSON: {problem}") from problem
    if not isinstance(found, dict):
        raise Refusal(Reason.OPTIONS_ERROR, "arguments are not a JSON object")
    return found
