"""Carries out lists of steps (`qsg.rules.steps`) against structures and, for a fence bind, through the channel initiator.

Owns nothing between steps: whoever is cancelled here leaves its list cut off, which every list allows for. Each list is logged in one
line with the milliseconds of its steps. Not guaranteed: an end in time; commits wait while a structure is out of reach, so callers that
must give up use `asyncio.timeout`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, TypeVar

import structlog

from qsg.failpoint import task_failpoint
from qsg.manager import calls
from qsg.manager.link import InitiatorLink, SessionFailed
from qsg.manager.structure import Structure
from qsg.pb import channel_pb2, initiator_pb2
from qsg.rules.reasons import Reason, Refusal
from qsg.rules.steps import Commit, FenceAtPartner, Me, PartnerNotReached, Read, Step, Steps

log = structlog.get_logger()
T = TypeVar("T")

_MARKED = {
    "lock": ("ownership.before_lock", "ownership.after_lock"),
    "entry starting": ("ownership.before_entry", "ownership.after_entry"),
    "entry": ("ownership.before_entry", "ownership.after_entry"),
    "unlock": ("ownership.before_release", "ownership.after_release"),
}
"""Steps, by the label of their unit, and the failpoints around them."""


class Driver:
    """`structures`: those that this member has joined, by name."""

    def __init__(self, member: str, structures: Mapping[str, Structure], link: InitiatorLink) -> None:
        self.member = member
        self.structures = structures
        self.link = link

    @property
    def me(self) -> Me:
        """This member as its records name it now."""
        return Me(self.member, {name: s.incarnation for name, s in self.structures.items()}, self.link.initiator)

    async def run(self, steps: Steps[T], label: str = "") -> T:
        """Runs a list to its end. Raises what the list raises: `Refusal`, `Fenced`, `OutcomeUnknown`, `StoreError`."""
        loop = asyncio.get_running_loop()
        begun = at = loop.time()
        took: list[str] = []
        try:
            step = next(steps)
            while True:
                name = step.unit.label if isinstance(step, Commit) else "read" if isinstance(step, Read) else "bind at the partner"
                try:
                    answer = await self.execute(step)
                except Exception as error:
                    at = _took(took, name, loop.time(), at)
                    step = steps.throw(error)
                else:
                    at = _took(took, name, loop.time(), at)
                    step = steps.send(answer)
        except StopIteration as stop:
            result: T = stop.value
            if label:
                log.info(label, ms=round(1000 * (loop.time() - begun), 1), steps=took)
            return result
        except Refusal as refusal:
            if label:
                log.info(label, refused=refusal.reason.name, detail=refusal.detail, steps=took)
            raise
        finally:
            steps.close()

    async def execute(self, step: Step) -> Any:
        if isinstance(step, FenceAtPartner):
            return await self._fence_at_partner(step)
        structure = self.structures.get(step.structure)
        if structure is None:
            raise Refusal(Reason.STRUCTURE_NOT_AVAILABLE, f"{self.member} has not joined structure {step.structure}")
        if isinstance(step, Read):
            return await structure.read(*step.gets)
        before, after = _MARKED.get(step.unit.label, ("", ""))
        await task_failpoint(before)
        committed = await structure.commit(step.unit)
        await task_failpoint(after)
        return committed

    async def _fence_at_partner(self, step: FenceAtPartner) -> channel_pb2.Bound:
        channel = step.channel
        order = initiator_pb2.Open(
            channel=channel.name,
            addresses=channel.connection_names,
            bind=step.bind,
            connect_timeout_ms=channel.connect_timeout_ms,
            silence_ms=channel.silence_ms,
            heartbeat_ms=channel.heartbeat_ms,
        )
        calls.changing()
        try:
            bound, _ = await self.link.ask(order)
        except SessionFailed as failed:
            raise PartnerNotReached(failed.reason, failed.detail, failed.epoch_seen) from failed
        return bound


def _took(took: list[str], name: str, now: float, before: float) -> float:
    took.append(f"{name} {1000 * (now - before):.1f}")
    return now
