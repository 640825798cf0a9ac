"""Status of a SharedChannel, from the data path: Ready says that messages can move now, and nothing less."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from qsg.rules.reasons import Reason
from qsg_operator.conditions import Condition, find, from_ms, timestamp
from qsg_operator.seen import Line, Seen
from qsg_operator.specs.channel import SharedChannel

STALLED_S = 60
"""A backlog that does not move for so long is a stall."""
SESSIONS_MAX = 64
ACTIVE = ("RUNNING", "PAUSED")
ON_ITS_WAY = ("INITIALIZING", "STARTING", "BINDING", "RECOVERING")
ATTEMPTS = ("STARTING", "BINDING")
"""What a channel goes through at every retry: it is called Retrying until one has succeeded."""


@dataclass(frozen=True)
class Target:
    """The group or queue manager of a channel or queue, as far as it is known. `exists`: the resource is there."""

    exists: bool
    what: str
    seen: Seen
    pods: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """Member -> (pod, node)."""


@dataclass(frozen=True)
class Definedness:
    """What came of the definition: `reason` "" = it is live."""

    live: bool | None
    reason: str
    message: str

    def condition(self) -> Condition:
        return Condition("Valid", self.live, self.reason, self.message)


DEFINED = Definedness(True, "Defined", "")


def title(state: str) -> str:
    return state.capitalize()


def channel_status(
    spec: SharedChannel, name: str, target: Target, defined: Definedness, present: Mapping[str, Any], now: datetime
) -> tuple[dict[str, Any], list[Condition]]:
    """The status without conditions, and the conditions. `present`: the status as it is."""
    if spec.type == "Receiver":
        return _receiver(name, target, defined, present)
    line = target.seen.sender(name)
    found: dict[str, Any] = {"name": name, "state": title(str(line["status"])) if line else "Inactive"}
    if line is not None:
        found |= _of_line(line, target)
    backlog = target.seen.backlogs.get(spec.transmission_queue)
    if backlog is not None:
        found["backlog"] = {"messages": backlog.messages} | (
            {"oldestAgeSeconds": backlog.oldest_age_s} if backlog.oldest_age_s is not None else {}
        )
    error = _last_error(line, now) or present.get("lastError")
    if error:
        found["lastError"] = error
    for kept in ("lastMessageTime", "takeovers", "lastOperation"):
        if kept not in found and kept in present:
            found[kept] = present[kept]
    stalled = _stalled(spec, line, found, present, now)
    connected = _connected(line, target, present)
    ready = _ready(spec, line, target, defined, stalled, present)
    return found, [ready, defined.condition(), connected, stalled]


def _of_line(line: Line, target: Target) -> dict[str, Any]:
    pod, node = target.pods.get(str(line["owner"]), ("", ""))
    owner = {"member": line["owner"], "pod": pod, "node": node, "epoch": line["epoch"]}
    if line["started_at_ms"]:
        owner["since"] = from_ms(line["started_at_ms"])
    found: dict[str, Any] = {
        "owner": {key: value for key, value in owner.items() if value != ""},
        "partner": line["partner"],
        "address": line["address"],
        "sequence": {"sent": line["current_sequence"] or line["last_sequence"], "confirmed": line["last_sequence"]},
        "inDoubt": line["in_doubt"],
    }
    if line["last_message_at_ms"]:
        found["lastMessageTime"] = from_ms(line["last_message_at_ms"])
    if line["takeovers"]:
        found["takeovers"] = {"count": line["takeovers"]} | _takeover(line)
    return {key: value for key, value in found.items() if value != ""}


def _takeover(line: Line) -> dict[str, Any]:
    if "takeover" not in line:
        return {}
    last = line["takeover"]
    return {
        "lastFrom": last["from"],
        "lastTo": last["to"],
        "lastCause": last["cause"],
        "lastTime": from_ms(last["at_ms"]),
        "lastDurationMs": round(last["detect_ms"] + last["claim_ms"] + last["resume_ms"]),
    }


def _last_error(line: Line | None, now: datetime) -> dict[str, Any] | None:
    if line is None or not line["reason"] or line["reason"] == Reason.STOPPED_BY_COMMAND:
        return None
    return {
        "time": from_ms(line["updated_at_ms"]) if line["updated_at_ms"] else timestamp(now),
        "reason": reason_name(line["reason"]),
        "message": line["detail"],
    }


def reason_name(number: int) -> str:
    """`HOST_UNREACHABLE` -> `HostUnreachable`."""
    try:
        name = Reason(number).name
    except ValueError:
        return f"Reason{number}"
    return "".join(part.capitalize() for part in name.split("_"))


def _retries(line: Line, present: Mapping[str, Any]) -> bool:
    before = find(present.get("conditions", ()), "Ready")
    return line["status"] == "RETRYING" or (line["status"] in ATTEMPTS and before.get("reason") == "Retrying")


def _connected(line: Line | None, target: Target, present: Mapping[str, Any]) -> Condition:
    if not target.seen.connected:
        return Condition("Connected", None, "MembersUnreachable", target.seen.error)
    if line is not None and line["status"] in ACTIVE:
        return Condition("Connected", True, "SessionBound", f"with {line['partner'] or line['address']}")
    if line is None:
        return Condition("Connected", False, "Inactive", "the channel is not active")
    return Condition("Connected", False, "Retrying" if _retries(line, present) else title(line["status"]), str(line["detail"]))


def _stalled(spec: SharedChannel, line: Line | None, found: Mapping[str, Any], present: Mapping[str, Any], now: datetime) -> Condition:
    if line is not None and line["status"] == "STOPPED" and spec.desired_state == "Running" and line["reason"] != Reason.STOPPED_BY_COMMAND:
        return Condition("Stalled", True, "StoppedByError", f"{line['detail'] or reason_name(line['reason'])}: it waits for a command")
    if line is not None and line["status"] == "STOPPING" and line.get("note"):
        return Condition("Stalled", True, "PartnerNotFenced", "it cannot be stopped for certain while the partner is not reached")
    oldest = found.get("backlog", {}).get("oldestAgeSeconds") or 0
    if line is not None and line["status"] in ACTIVE and oldest > STALLED_S:
        moved_ms = line["last_message_at_ms"]
        quiet_s = now.timestamp() - moved_ms / 1000 if moved_ms else float(oldest)
        if quiet_s > STALLED_S:
            return Condition("Stalled", True, "NoProgress", "messages wait, and none has gone for more than a minute")
    return Condition("Stalled", False, "Moving", "")


def _ready(
    spec: SharedChannel, line: Line | None, target: Target, defined: Definedness, stalled: Condition, present: Mapping[str, Any]
) -> Condition:
    def no(reason: str, message: str) -> Condition:
        return Condition("Ready", False, reason, message)

    if defined.live is False:
        return no(defined.reason, defined.message)
    if not target.seen.connected or not target.seen.told:
        return Condition("Ready", None, "MembersUnreachable", f"no member of {target.what} answers: {target.seen.error}")
    if defined.live is None:
        return no(defined.reason, defined.message)
    if spec.desired_state == "Stopped":
        return no("Stopped", "stopped, as desiredState asks")
    if stalled.ok:
        return no(stalled.reason, stalled.message)
    if line is None:
        before = find(present.get("conditions", ()), "Ready")
        if before.get("status") == "True" and before.get("reason") in ("Running", "Idle"):
            return Condition("Ready", True, "Idle", "it ended because nothing was to be sent; the next message starts it")
        return no("Inactive", "not started yet")
    state, detail = str(line["status"]), str(line["detail"])
    if state in ACTIVE:
        return Condition("Ready", True, "Running", f"{line['owner']} sends to {line['partner'] or line['address']}")
    if _retries(line, present):
        return no("Retrying", detail or "the partner was not reached")
    if state in ON_ITS_WAY:
        return no(title(state), detail or "it is being started")
    return no(title(state), detail or f"it is {state.lower()}")


def _receiver(name: str, target: Target, defined: Definedness, present: Mapping[str, Any]) -> tuple[dict[str, Any], list[Condition]]:
    seen = target.seen
    lines = seen.receivers(name)
    active = [line for line in lines if line["status"] in ACTIVE]
    found: dict[str, Any] = {"name": name, "state": "Running" if active else "Listening"}
    if active:
        latest = max(active, key=lambda line: int(line["updated_at_ms"]))
        found |= _of_line(latest, target)
        found["sessions"] = [
            {"partner": s["partner"], "member": s["owner"], "state": title(s["status"]), "sequence": s["last_sequence"]}
            for s in active[:SESSIONS_MAX]
        ]
    for kept in ("lastMessageTime", "lastOperation", "takeovers"):
        if kept not in found and kept in present:
            found[kept] = present[kept]
    if not seen.connected:
        connected = Condition("Connected", None, "MembersUnreachable", seen.error)
    elif active:
        connected = Condition("Connected", True, "SessionBound", f"with {', '.join(sorted({s['partner'] for s in active}))}"[:200])
    else:
        connected = Condition("Connected", False, "NoSession", "no partner is connected")
    if defined.live is False:
        ready = Condition("Ready", False, defined.reason, defined.message)
    elif not seen.connected or not seen.told:
        ready = Condition("Ready", None, "MembersUnreachable", f"no member of {target.what} answers: {seen.error}")
    elif defined.live is None:
        ready = Condition("Ready", False, defined.reason, defined.message)
    elif not seen.able():
        ready = Condition("Ready", False, "NoListener", "no member has a channel initiator now")
    elif active:
        ready = Condition("Ready", True, "Running", "messages come in")
    else:
        ready = Condition("Ready", True, "Listening", "a partner can connect now")
    return found, [ready, defined.condition(), connected, Condition("Stalled", False, "Moving", "")]
