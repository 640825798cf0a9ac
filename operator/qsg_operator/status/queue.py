"""Status of a SharedQueue: Ready says that it is defined, live and reached."""

from __future__ import annotations

from typing import Any

from qsg_operator.conditions import Condition
from qsg_operator.status.channel import Definedness, Target


def queue_status(name: str, target: Target, defined: Definedness) -> tuple[dict[str, Any], list[Condition]]:
    found: dict[str, Any] = {"name": name}
    if name in target.seen.depths:
        found["depth"] = target.seen.depths[name]
    if defined.live is False:
        ready = Condition("Ready", False, defined.reason, defined.message)
    elif not target.seen.connected:
        ready = Condition("Ready", None, "MembersUnreachable", f"no member of {target.what} answers: {target.seen.error}")
    elif defined.live is None:
        ready = Condition("Ready", False, defined.reason, defined.message)
    else:
        ready = Condition("Ready", True, "Defined", "")
    return found, [ready, defined.condition()]
