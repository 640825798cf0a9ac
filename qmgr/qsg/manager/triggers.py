"""Triggers: a channel that has messages and no entry is started where it runs best (one with an entry runs, is wanted, or is stopped).

By event, when this member has put to a transmission queue, and by level. Invariant: a put that came while the channel still had an entry is
looked at again when that entry goes: it may have been committed together with, or just behind, the end of an idle channel. Does not
guarantee that the channel starts: whoever is asked may refuse, and the next look is by level.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING

import structlog

from qsg.manager.peers import PeerUnreachable
from qsg.pb import peer_pb2
from qsg.pb import records_pb2 as pb
from qsg.rules import balance, keys
from qsg.rules.definitions import PRIVATE
from qsg.rules.ownership import Occasion
from qsg.rules.reasons import Reason, Refusal
from qsg.rules.records import Damaged, read_record
from qsg.rules.steps import Place
from qsg.rules.unit import Fenced, OutcomeUnknown
from qsg.store.contract import StoreError, get_prefix

if TYPE_CHECKING:
    from qsg.manager.channels import ChannelSupervisor

log = structlog.get_logger()

ASKED_S = 0.5
"""A start that another member was asked for is not asked for again so soon."""


class Triggers:
    def __init__(self, supervisor: ChannelSupervisor) -> None:
        self._supervisor = supervisor
        self._senders_of: dict[str, list[str]] = {}
        """Transmission queue -> its sender channels."""
        self._asked: dict[str, float] = {}
        self._put_to: set[str] = set()
        """Channels whose queue was put to here while they had an entry, or ended here."""

    def start(self) -> None:
        self._supervisor.catalog.on_change.append(self._definitions_changed)
        self._definitions_changed()
        for structure in self._supervisor.structures.values():
            structure.on_commit.append(self._committed)

    def close(self) -> None:
        for structure in self._supervisor.structures.values():
            if self._committed in structure.on_commit:
                structure.on_commit.remove(self._committed)
        if self._definitions_changed in self._supervisor.catalog.on_change:
            self._supervisor.catalog.on_change.remove(self._definitions_changed)

    def ask_anew(self) -> None:
        """Others can run channels now, or we can."""
        self._asked.clear()

    def gone(self, channel: str) -> None:
        """Its entry is gone, or it has ended here."""
        if channel not in self._put_to or self._busy(channel):
            return
        self._put_to.discard(channel)
        place = self._supervisor.find(channel)
        if place is not None:
            self._supervisor.spawn(self._look_again(place), f"trigger {channel}, again")

    async def look(self) -> None:
        """By level: whatever was missed (H6b)."""
        free = [channel for channels in self._senders_of.values() for channel in channels if not self._busy(channel)]
        await self._look_at(place for channel in free if (place := self._supervisor.find(channel)) is not None)

    async def _look_again(self, place: Place) -> None:
        try:
            await self._look_at([place])
        except (StoreError, Fenced, OutcomeUnknown) as error:
            log.info("queue not looked at again", queue=place.queue, error=repr(error))

    def _busy(self, channel: str) -> bool:
        if self._supervisor.looks_after(channel):
            return True
        place = self._supervisor.find(channel)
        return place is not None and self._supervisor.tables[place.admin].has(channel)

    def _definitions_changed(self) -> None:
        senders: dict[str, list[str]] = {}
        for name, channel in self._supervisor.catalog.channels().items():
            if channel.type == "sender":
                senders.setdefault(channel.transmission_queue, []).append(name)
        for name, queue in self._supervisor.catalog.queues().items():
            if queue.internal_target:
                senders.setdefault(name, []).append(name)
        self._senders_of = senders

    def _committed(self, revision: int, queues: frozenset[str]) -> None:
        """By event: a transmission queue was put to here."""
        for queue in sorted(queues):
            for channel in self._senders_of.get(queue, ()):
                self._trigger(channel)

    def _trigger(self, channel: str) -> None:
        supervisor = self._supervisor
        if self._busy(channel):
            self._put_to.add(channel)
            return
        place = None if supervisor.office.draining else supervisor.find(channel)
        now = asyncio.get_running_loop().time()
        if place is None or now - self._asked.get(channel, -ASKED_S) < ASKED_S:
            return
        loads = supervisor.office.loads() if place.admin != PRIVATE else [supervisor.own_load()]
        only = supervisor.only_at(place)
        if only:
            loads = [load for load in loads if load.member == only]
        best = balance.choose(loads, channel, {place.admin, place.structure})
        if best is None:
            return
        self._asked[channel] = now
        supervisor.spawn(self._triggered(place, best), f"trigger {channel}")

    async def _triggered(self, place: Place, target: str) -> None:
        name, peers = place.channel.name, self._supervisor.peers
        try:
            if target != self._supervisor.member and peers is not None:
                try:
                    await peers.request(target, peer_pb2.Request(start=peer_pb2.StartChannel(channel=name, cause="trigger")))
                    return
                except PeerUnreachable as error:
                    log.info("trigger not answered", channel=name, member=target, error=str(error))
                except Refusal as refusal:
                    if refusal.reason is not Reason.CHANNEL_NOT_FOUND:
                        raise
                    log.info("not defined there, started here", channel=name, member=target)  # it would be chosen again and again
            await self._supervisor.start_channel(name, Occasion("trigger", self._supervisor.world.wall_ms()))
        except Refusal as refusal:
            log.info("trigger refused", channel=name, member=target, reason=refusal.reason.name, detail=refusal.detail)

    async def _look_at(self, places: Iterable[Place]) -> None:
        waiting: dict[str, list[Place]] = {}
        for place in places:
            waiting.setdefault(place.structure, []).append(place)
        structures = self._supervisor.structures
        for structure, there in waiting.items():
            if structure not in structures or not structures[structure].reachable:
                continue
            _, results = await structures[structure].read(*(get_prefix(keys.totals(place.queue)) for place in there))
            for place, result in zip(there, results, strict=True):
                try:
                    totals = [read_record(pb.Totals, kv.value, kv.key) for kv in result.kvs]
                except Damaged as damaged:
                    log.error("a queue's totals cannot be read", queue=place.queue, detail=damaged.detail)
                    continue
                if sum(t.put - t.got for t in totals) > 0:
                    self._trigger(place.channel.name)
