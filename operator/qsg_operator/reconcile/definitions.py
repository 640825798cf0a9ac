"""Definitions of a target made as its resources say, over the client API of any member; channels started and stopped as they ask.

Invariant: a definition is deleted only after the API server said that its resource is gone. What members refuse is remembered for the
resource's status, and tried again with the next full round.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import structlog
from pydantic import ValidationError

import qsg
from qsg.rules import definitions as rules
from qsg.rules.reasons import Reason
from qsg_operator import names
from qsg_operator.cache import Object
from qsg_operator.children.objects import Owner
from qsg_operator.conditions import find
from qsg_operator.definitions import (
    BadDefinition,
    Definition,
    Mark,
    Plan,
    Wanted,
    channel,
    dead_letter_queue,
    kind_of,
    plan,
    queue,
    released,
    settings_of,
)
from qsg_operator.reconcile.children import digest
from qsg_operator.reconcile.context import Context, together
from qsg_operator.reconcile.target import FULL_S, TargetState
from qsg_operator.specs.channel import SharedChannel
from qsg_operator.specs.queue import SharedQueue

log = structlog.get_logger()
COMMAND_AGAIN_S = LEFT_AGAIN_S = 5.0
PASSING = (Reason.STORAGE_NOT_AVAILABLE, Reason.STRUCTURE_NOT_AVAILABLE, Reason.CF_NOT_AVAILABLE, Reason.CHANGED_MEANWHILE)
"""Nothing is wrong with a definition that is refused for one of these."""
UNKNOWN = (Reason.UNKNOWN_OBJECT_NAME, Reason.CHANNEL_NOT_FOUND, Reason.UNKNOWN_CHANNEL_NAME)


def mark_of(resource: Object) -> Mark:
    meta = resource["metadata"]
    return Mark(resource["kind"], meta["namespace"], meta["name"], meta["uid"])


def asked(owner: Owner, resources: list[Object]) -> tuple[list[Wanted], dict[Mark, str]]:
    """What resources ask for, and which ask for nothing that could be."""
    own = Mark(owner.kind, owner.namespace, owner.name, owner.uid)
    dead = dead_letter_queue(owner.spec.settings, own, in_group=owner.group is not None)
    found = [Wanted(own, ("", ""), dead)] if dead is not None else []
    bad: dict[Mark, str] = {}
    for resource in resources:
        mark = mark_of(resource)
        age = resource["metadata"].get("creationTimestamp", ""), mark.uid
        try:
            made: Definition
            if resource["kind"] == names.SHARED_CHANNEL:
                made = channel(SharedChannel.model_validate(resource["spec"]), mark, owner.spec.channel_defaults)
            else:
                made = queue(SharedQueue.model_validate(resource["spec"]), mark)
        except (BadDefinition, ValidationError) as error:
            bad[mark] = str(error)
        else:
            found.append(Wanted(mark, age, made))
    return found, bad


async def reconcile_definitions(context: Context, owner: Owner, state: TargetState, resources: list[Object]) -> None:
    """Raises `NotConnected`, `qsg.QsgError` when members cannot be asked, `ApiError` when the API server does not say who is
    gone."""
    found, bad = asked(owner, resources)
    settings = settings_of(owner.spec.settings).model_dump(mode="json")
    made = [one.definition.model_dump(mode="json") for one in found]
    version = digest([settings, made, [[str(mark), why] for mark, why in bad.items()]])
    now = asyncio.get_running_loop().time()
    if version == state.defined_for and now - state.defined_at < FULL_S:
        return
    state.defined_for = ""  # what is done in part is neither as it was asked for before nor as it is asked for now
    await state.members.command("define", kind="settings", definition=settings)
    queues = (await state.members.inquire("queues"))["queues"]
    channels = (await state.members.inquire("channels"))["channels"]
    todo = plan(found, queues, channels)
    refused = dict(bad)
    over = await _carry_out(context, owner, state, todo, refused)
    state.refused, state.taken = refused, todo.taken
    state.defined_for, state.defined_at = version, now if over else now - FULL_S + LEFT_AGAIN_S


async def _carry_out(context: Context, owner: Owner, state: TargetState, todo: Plan, refused: dict[Mark, str]) -> bool:
    """Whether it is over: a queue cannot go before whoever used it has let it go, nor be made where a structure is away."""
    left: list[str] = []
    await together([_release(context, state, one, refused, left) for one in todo.release])
    await together([_delete(context, state, one, left) for one in todo.clear])
    # Queues one after the other where one needs another; channels together.
    held = [one for one in todo.define if isinstance(one, rules.Queue) and one.type == "local"]
    named = [one for one in todo.define if isinstance(one, rules.Queue) and one.type != "local"]
    channels = [one for one in todo.define if isinstance(one, rules.Channel)]
    for stage in (held, named, channels):
        await together([_define(state, one, refused, left) for one in stage])
    for kind in ("channel", "queue"):
        await together([_delete(context, state, one, left) for one in todo.delete if kind_of(one) == kind])
    if todo:
        log.info(
            "definitions", target=f"{owner.namespace}/{owner.name}", defined=len(todo.define), released=len(todo.release),
            deleted=len(todo.clear) + len(todo.delete), later=len(left), refused=len(refused),
        )  # fmt: skip
    return not left


async def _define(state: TargetState, one: Definition, refused: dict[Mark, str], left: list[str]) -> None:
    definition = one.model_dump(mode="json", exclude_defaults=True) | {"name": one.name, "type": one.type}
    try:
        await state.members.command("define", kind=kind_of(one), definition=definition, replace=True)
    except qsg.QsgError as error:
        _raise_if_lost(error)
        mark = Mark.parse(one.managed_by)
        if mark is not None:
            refused[mark] = error.detail or str(error)
        if error.reason in PASSING:
            left.append(one.name)


async def _release(context: Context, state: TargetState, one: Definition, refused: dict[Mark, str], left: list[str]) -> None:
    if await _gone(context, one):
        await _define(state, released(one), refused, left)


async def _delete(context: Context, state: TargetState, one: Definition, left: list[str]) -> None:
    kind = kind_of(one)
    if not await _gone(context, one):
        return
    try:
        try:
            await state.members.command("delete", kind=kind, name=one.name)
        except qsg.QsgError as error:
            if error.reason is not Reason.CHANNEL_IN_USE:
                raise
            await state.members.command("stop", channel=one.name, mode="quiesce", status="inactive", wait_s=5)
            await state.members.command("delete", kind=kind, name=one.name)
    except qsg.QsgError as error:
        _raise_if_lost(error)
        if error.reason is Reason.Q_NOT_EMPTY:
            log.info("a queue with messages is left", queue=one.name)
            await _define(state, released(one), {}, left)
        elif error.reason not in UNKNOWN:
            left.append(one.name)
            log.warning("not deleted, later again", kind=kind, name=one.name, error=str(error))


def _raise_if_lost(error: qsg.QsgError) -> None:
    if isinstance(error, qsg.ReconnectFailed | qsg.ConnectionBroken | qsg.OutcomeUnknown | qsg.HostNotAvailable):
        raise error


async def _gone(context: Context, one: Definition) -> bool:
    """Whether its resource is no more, by the API server's own word."""
    mark = Mark.parse(one.managed_by)
    if mark is None:
        return False
    if mark.kind not in names.PLURALS:
        return False
    there = await context.api.get(mark.kind, mark.namespace, mark.name)
    return there is None or there["metadata"]["uid"] != mark.uid


# Started and stopped as desired


async def reconcile_desired_states(state: TargetState, resources: list[Object], status: Callable[[Object], Any]) -> None:
    """`status`: a resource's, as it was last written. Raises `NotConnected`."""
    seen = state.members.seen
    if not (seen.connected and seen.told):
        return
    work = []
    now = asyncio.get_running_loop().time()
    for resource in resources:
        mark = mark_of(resource)
        spec = resource["spec"]
        if resource["kind"] != names.SHARED_CHANNEL or spec.get("type") != "Sender" or mark in state.taken:
            continue
        if mark in state.refused and spec.get("desiredState") != "Stopped":
            continue  # what it is defined as is not what it asks for; it stops all the same
        name = spec.get("channelName") or names.mq_name(mark.name)
        line = seen.sender(name)
        verb = _verb(spec, line, status(resource))
        if verb is None:
            state.start_refused.pop(mark, None)
            continue
        before, at = state.commanded.get(mark, ("", float("-inf")))
        if verb == before and now - at < COMMAND_AGAIN_S:
            continue  # another one is a new wish, which does not wait
        state.commanded[mark] = verb, now
        work.append(_command(state, mark, name, verb))
    await together(work)


def _verb(spec: Any, line: Any, status: Any) -> str | None:
    """What the channel needs to be as desired. One that an error has stopped needs a person; one that has nothing to send needs nothing."""
    if spec["desiredState"] == "Stopped":
        return None if line is not None and line["status"] in ("STOPPED", "STOPPING") else "stop"
    if line is None:
        ready = find(status.get("conditions") or (), "Ready")
        return None if ready.get("status") == "True" and ready.get("reason") in ("Running", "Idle") else "start"
    if line["status"] == "STOPPED" and line["reason"] == Reason.STOPPED_BY_COMMAND:
        return "start"
    return None


async def _command(state: TargetState, mark: Mark, name: str, verb: str) -> None:
    arguments: dict[str, Any] = {"mode": "quiesce", "status": "stopped"} if verb == "stop" else {}
    try:
        await state.members.command(verb, channel=name, wait_s=0, **arguments)
    except qsg.QsgError as error:
        if isinstance(error, qsg.OutcomeUnknown | qsg.StructureNotAvailable) or error.reason is Reason.CHANNEL_ALREADY_RUNNING:
            return
        _raise_if_lost(error)
        state.start_refused[mark] = error.detail or str(error)
    else:
        state.start_refused.pop(mark, None)
