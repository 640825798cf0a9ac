"""Operations that are not state: start, move, reset, resolve, ping. An annotation asks, it is done once, the status has the outcome.

    kubectl annotate --overwrite schan/orders-to-bank qsg.dev/operation='{"id": "1", "verb": "reset", "sequence": 1}'

Invariant: an operation of one id is begun at most once: `lastOperation` says Unknown before it is begun, and the outcome after. When the
operator ends between the two it stays Unknown, and is not repeated.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import qsg
from qsg_operator import names
from qsg_operator.cache import Object
from qsg_operator.members import Members, NotConnected

VERBS: dict[str, tuple[str, ...]] = {
    "start": (),
    "move": ("to",),
    "ping": ("bytes",),
    "reset": ("sequence",),
    "resolve": ("action", "record", "force"),
}


class BadOperation(Exception):
    """What is wrong with the annotation."""


@dataclass(frozen=True)
class Operation:
    id: str
    verb: str
    arguments: dict[str, Any]


def asked_for(resource: Object) -> Operation | None:
    """The operation that was not begun yet. Raises `BadOperation`, with the text of the annotation as its id, once."""
    text = (resource["metadata"].get("annotations") or {}).get(names.OPERATION)
    if not text:
        return None
    last = (resource.get("status") or {}).get("lastOperation", {}).get("id")
    try:
        operation = parse(text)
    except BadOperation:
        if last == bad_id(text):
            return None
        raise
    return None if operation.id == last else operation


def bad_id(text: str) -> str:
    return text[:64]


def parse(text: str) -> Operation:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadOperation(f"not JSON: {error}") from error
    if not isinstance(data, dict) or not isinstance(data.get("id"), str) or not data["id"]:
        raise BadOperation('expected {"id": "...", "verb": "..."}, with an id of your own that was not used before')
    verb = data.get("verb")
    if not isinstance(verb, str) or verb not in VERBS:
        raise BadOperation(f"verb: one of {', '.join(sorted(VERBS))}")
    arguments = {key: value for key, value in data.items() if key not in ("id", "verb")}
    wrong = sorted(set(arguments) - set(VERBS[verb]))
    if wrong:
        raise BadOperation(f"{verb} has no {', '.join(wrong)}")
    if isinstance(arguments.get("to"), str):
        arguments["to"] = names.mq_name(arguments["to"])  # a pod will do: its member is called after it
    return Operation(data["id"][:64], verb, arguments)


async def carry_out(members: Members, channel: str, operation: Operation) -> tuple[str, str]:
    """(state, message)."""
    try:
        answer = await members.command(operation.verb, channel=channel, **operation.arguments)
    except (qsg.OutcomeUnknown, NotConnected) as error:
        return "Unknown", str(error)
    except qsg.QsgError as error:
        return "Failed", error.detail or str(error)
    if operation.verb == "move":
        return _moved(answer)
    told = ", ".join(f"{key}: {value}" for key, value in sorted(answer.items()) if key != "channel" and value not in ("", None))
    return "Succeeded", told[:500]


def _moved(answer: dict[str, Any]) -> tuple[str, str]:
    if answer["moved"]:
        return "Succeeded", f"from {answer['from']} to {answer['owner']}"
    now = f"{answer['status']} on {answer['owner']}" if answer["owner"] else answer["status"]
    return "Failed", f"{answer['ready'] or 'the other member'} was not seen to run it: it is {now}"
