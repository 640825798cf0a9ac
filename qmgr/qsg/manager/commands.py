"""Channel commands: start, stop, resolve, reset, ping, status, and the group's status. MQ's terms and fields; dict in, dict out.

Owns the reading of arguments and the shape of answers. Every command works from any member, also for a channel whose owner is dead: it
changes the shared table and the queue's fence by lists of steps (`qsg.rules.stopping`), and whoever owns the entry follows. Raises
`Refusal`; a command that was refused has changed nothing, except where it says so. Raises `OutcomeUnknown` for one that may have changed
something when it met a store that does not answer.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Callable
from typing import Any, TypeVar

from google.protobuf.message import DecodeError

from qsg.manager import calls
from qsg.manager.catalog import ADMIN
from qsg.manager.channels import ChannelSupervisor
from qsg.manager.link import SessionFailed
from qsg.manager.planned import begin_move
from qsg.manager.status_line import describe, saved
from qsg.pb import channel_pb2, initiator_pb2
from qsg.pb import records_pb2 as pb
from qsg.rules import keys, ping, status
from qsg.rules.definitions import PRIVATE, SEQUENCE_WRAP, Channel
from qsg.rules.reasons import Reason, Refusal
from qsg.rules.records import read_record
from qsg.rules.requests import READING
from qsg.rules.steps import Place, Steps
from qsg.rules.stopping import Resolution, StopOrder, ask_stop, command_start, reset_receiver, reset_sender, resolve
from qsg.rules.unit import OutcomeUnknown
from qsg.store.contract import Get, StoreError, get_prefix

T = TypeVar("T")
START_WAIT_S = 5.0
"""How long `start` waits to tell where it runs; it goes on anyway."""
STOP_WAIT_S = 10.0
MOVE_WAIT_S = 5.0
SAVED_S = 0.5
"""How long `status` waits for what a store has, a channel; a store that is known to be out of reach is not asked."""
WATCH_WAIT_S = 20.0
WATCH_GATHER_S = 0.1
"""How long `watch` waits for further changes after the first, so that a recovery of many channels is not told one by one."""
LOOK_S = 0.02
_INSTEAD = ". A receiver runs while its partner is bound: stop the sender at its own end, or name others in `allowed_identities`"
DECIDE_S = 2.0
"""How long a command that others overtake reads again and decides anew; a takeover under way is over by then."""


class ChannelCommands:
    def __init__(self, supervisor: ChannelSupervisor) -> None:
        self._supervisor = supervisor

    async def command(self, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Commands by name, with these arguments (all but `channel` optional):

        start {channel, wait_s}; stop {channel, mode: quiesce|force, status: stopped|inactive, wait_s}; move {channel, to, wait_s};
        resolve {channel, action: commit|backout, force, record}; reset {channel, sequence}; ping {channel, bytes};
        status {channel} ("" = all, a trailing * matches); group {}; watch {after, wait_s}.

        A receiver takes `reset` and `status` only: it cannot be stopped at its own end.
        """
        handler = {
            "start": self.start,
            "stop": self.stop,
            "move": self.move,
            "resolve": self.resolve,
            "reset": self.reset,
            "ping": self.ping,
            "status": self.status,
            "group": self.group,
            "watch": self.watch,
        }.get(name)
        if handler is None:
            raise Refusal(Reason.COMMAND_FAILED, f"no command {name!r}")
        try:
            return await handler(arguments)
        except StoreError as error:
            if name in READING or calls.untouched():
                raise Refusal(Reason.STRUCTURE_NOT_AVAILABLE, str(error)) from error
            raise OutcomeUnknown(str(error)) from error

    # Arguments

    def _definition(self, arguments: dict[str, Any]) -> Channel:
        name = arguments.get("channel")
        if not isinstance(name, str) or not name:
            raise Refusal(Reason.OPTIONS_ERROR, "channel: a name is needed")
        channel = self._supervisor.catalog.channel(name)
        if channel is None:
            raise Refusal(Reason.CHANNEL_NOT_FOUND, f"no channel {name}")
        return channel

    def _place(self, arguments: dict[str, Any]) -> Place:
        channel = self._definition(arguments)
        if channel.type != "sender":
            raise Refusal(Reason.CHANNEL_TYPE_ERROR, f"{channel.name} is a {channel.type}: this command is for senders{_INSTEAD}")
        place = self._supervisor.find(channel.name)
        if place is None:
            raise Refusal(Reason.UNKNOWN_XMIT_Q, f"{channel.name}: no transmission queue {channel.transmission_queue} that is reached here")
        return place

    # Start and stop

    async def start(self, arguments: dict[str, Any]) -> dict[str, Any]:
        place, wait_s = self._place(arguments), _seconds(arguments, START_WAIT_S)
        supervisor = self._supervisor
        await self._decided(
            lambda: command_start(supervisor.driver.me, place, supervisor.world.wall_ms(), supervisor.world.id),
            f"start command {place.channel.name}",
        )
        await supervisor.adopt(place.channel.name)
        entry = await self._until(place, lambda e: e is None or e.state not in status.WANTED, wait_s)
        return self._answer(place.channel, entry)

    async def stop(self, arguments: dict[str, Any]) -> dict[str, Any]:
        place, wait_s = self._place(arguments), _seconds(arguments, STOP_WAIT_S)
        force = _choice(arguments, "mode", ("quiesce", "force")) == "force"
        to = pb.INACTIVE if _choice(arguments, "status", ("stopped", "inactive")) == "inactive" else pb.STOPPED
        supervisor = self._supervisor
        order = StopOrder(to, force, supervisor.world.wall_ms(), int(Reason.STOPPED_BY_COMMAND), "stopped by command")
        carrier = await self._decided(
            lambda: ask_stop(supervisor.driver.me, place, order, supervisor.world.id, only=supervisor.only_at(place)),
            f"stop command {place.channel.name}",
        )
        if carrier == supervisor.member:
            await supervisor.adopt(place.channel.name)

        def over(entry: pb.ChannelStatus | None) -> bool:
            return entry is None or entry.state != pb.STOPPING or entry.partner_not_fenced

        return self._answer(place.channel, await self._until(place, over, wait_s))

    async def move(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """A planned move to the member `to`, or to the best other. `moved` False: it was begun, and the channel is not seen elsewhere yet,
        or is back."""
        place, wait_s = self._place(arguments), _seconds(arguments, MOVE_WAIT_S)
        to = arguments.get("to") or ""
        if not isinstance(to, str):
            raise Refusal(Reason.OPTIONS_ERROR, "to: the name of a member")
        before, ready = await begin_move(self._supervisor, place, to)

        def over(entry: pb.ChannelStatus | None) -> bool:
            return entry is None or (entry.state == pb.RUNNING and (entry.owner, entry.epoch) != (before.owner, before.epoch))

        entry = await self._until(place, over, wait_s)
        moved = over(entry) and entry is not None and entry.owner != before.owner
        return {**self._answer(place.channel, entry), "from": before.owner, "ready": ready, "moved": moved}

    async def _until(self, place: Place, over: Any, wait_s: float) -> pb.ChannelStatus | None:
        """The entry once `over` holds, or as it is when the time has passed or nobody wants to know any more."""
        table = self._supervisor.tables[place.admin]
        loop = asyncio.get_running_loop()
        until = loop.time() + wait_s
        entry = await table.read(place.channel.name)
        while not over(entry) and loop.time() < until and calls.wanted():
            await asyncio.sleep(LOOK_S)
            entry = await table.read(place.channel.name)
        return entry

    async def _decided(self, steps: Callable[[], Steps[T]], label: str) -> T:
        """What these steps answer; once more when somebody has changed meanwhile what they had read. Raises `Refusal`."""
        loop = asyncio.get_running_loop()
        until = loop.time() + DECIDE_S
        while True:
            try:
                return await self._supervisor.driver.run(steps(), label)
            except Refusal as refusal:
                if refusal.reason is not Reason.CHANGED_MEANWHILE or loop.time() >= until:
                    raise
            await asyncio.sleep(LOOK_S)

    async def deletable(self, name: str) -> None:
        """Raises `Refusal` CHANNEL_IN_USE for a sender that runs or tries to (MQRCCF_CHANNEL_IN_USE: stop it first)."""
        for table in self._supervisor.tables.values():
            entry = await table.read(name)
            if entry is not None and (entry.state in status.HELD or entry.state in status.WANTED):
                raise Refusal(Reason.CHANNEL_IN_USE, f"{name} is {status.name(entry.state).lower()} on {entry.owner}: stop it first")

    async def alterable(self, after: Channel) -> None:
        """Raises `Refusal` for a sender that is to leave its transmission queue: CHANNEL_IN_USE unless it is inactive or stopped, IN_DOUBT
        while the queue is open under it. Nobody else could have the queue then, and nobody would look after it."""
        supervisor, name = self._supervisor, after.name
        before, place = supervisor.catalog.channel(name), supervisor.find(name)
        if before is None or before.type != "sender" or before.transmission_queue == after.transmission_queue:
            return
        for table in supervisor.tables.values():
            entry = await table.read(name)
            if entry is not None and entry.state != pb.STOPPED:
                raise Refusal(
                    Reason.CHANNEL_IN_USE,
                    f"{name} is {status.name(entry.state).lower()} on {entry.owner}: stop it before its transmission queue is altered",
                )
        if place is None:
            return
        cell = await supervisor.catalog.structure(place.structure).cell(keys.sender_fence(place.queue))
        fence = read_record(pb.SenderFence, cell.value or b"", cell.key)
        if fence.open and fence.channel == name:
            raise Refusal(Reason.IN_DOUBT, f"{name} has {place.queue} in doubt: resolve it before its transmission queue is altered")

    # Resolve, reset, ping

    async def resolve(self, arguments: dict[str, Any]) -> dict[str, Any]:
        place = self._place(arguments)
        stream, known = _record(arguments.get("record"))
        action = _choice(arguments, "action", ("commit", "backout"), needed=True)
        resolution = Resolution("commit" if action == "commit" else "backout", bool(arguments.get("force")), known, stream)
        me, world, sender = self._supervisor.driver.me, self._supervisor.world, self._supervisor.office.sender_name(place)
        only, peers = self._supervisor.only_at(place), self._supervisor.peers
        if only != self._supervisor.member and peers is not None and only in peers.members.registered:
            # It alone reaches the partner, which must be asked; once it is gone for good, anybody may decide with force.
            raise Refusal(Reason.CHANNEL_CONFIG_ERROR, f"{place.channel.name} runs on {only} only: resolve it there")
        # Whoever carries the stop on may be at it at the same moment.
        resolved = await self._decided(lambda: resolve(me, place, resolution, world.id, sender), f"resolve {place.channel.name}")
        return {"channel": place.channel.name, "action": action, "deleted": resolved.deleted, "risk": resolved.risk}

    async def reset(self, arguments: dict[str, Any]) -> dict[str, Any]:
        channel = self._definition(arguments)
        number = arguments.get("sequence", 1)
        if not isinstance(number, int) or isinstance(number, bool):
            raise Refusal(Reason.OPTIONS_ERROR, "sequence: a number is needed")
        supervisor = self._supervisor
        if channel.type == "sender":
            place = self._place(arguments)
            await self._decided(lambda: reset_sender(supervisor.driver.me, place, number), f"reset {channel.name}")
            return {"channel": channel.name, "sequence": number, "partner": "told at the next bind"}
        count = 0
        for structure in self._homes(channel):
            count += await supervisor.driver.run(reset_receiver(structure, channel.name, number), f"reset {channel.name}")
        if not count:
            raise Refusal(Reason.CHANNEL_NOT_ACTIVE, f"{channel.name} has never received anything")
        return {"channel": channel.name, "sequence": number, "streams": count}

    def _homes(self, channel: Channel) -> list[str]:
        """Where a receiver's records lie: its home structure, and the private store for what came through the local portal."""
        homes = {channel.structure or (ADMIN if self._supervisor.group else PRIVATE), PRIVATE}
        return [name for name in sorted(homes) if name in self._supervisor.structures]

    async def ping(self, arguments: dict[str, Any]) -> dict[str, Any]:
        place = self._place(arguments)
        size = arguments.get("bytes", ping.BYTES_MIN)
        if not isinstance(size, int) or isinstance(size, bool) or not ping.BYTES_MIN <= size <= ping.BYTES_MAX:
            raise Refusal(Reason.OPTIONS_ERROR, f"bytes: {ping.BYTES_MIN} to {ping.BYTES_MAX}")
        supervisor = self._supervisor
        channel = place.channel
        entry = await supervisor.tables[place.admin].read(channel.name)
        if entry is not None and entry.state in status.HELD:
            raise Refusal(Reason.CHANNEL_IN_USE, f"{channel.name} is {status.name(entry.state).lower()} on {entry.owner}")
        sender = supervisor.office.sender_name(place)
        order = initiator_pb2.Open(
            channel=channel.name,
            addresses=channel.connection_names,
            bind=channel_pb2.Bind(channel=channel.name, sender=sender, receiver=channel.partner),
            connect_timeout_ms=channel.connect_timeout_ms,
            silence_ms=channel.silence_ms,
            heartbeat_ms=channel.heartbeat_ms,
            ping=True,
            ping_bytes=size,
        )
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            address, came_back = await supervisor.link.ping(order)
        except SessionFailed as failed:
            raise Refusal(failed.reason, failed.detail) from failed
        return {"channel": channel.name, "address": address, "bytes": came_back, "ms": round(1000 * (loop.time() - began), 1)}

    # Status

    async def status(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """For the whole group what DISPLAY CHSTATUS tells of one queue manager: every defined channel, INACTIVE ones too, and every inbound
        session. Which of its fields there are: `qsg.manager.status_line`."""
        wanted = arguments.get("channel") or "*"
        if not isinstance(wanted, str):
            raise Refusal(Reason.OPTIONS_ERROR, "channel: a name, or the beginning of names and a *")
        supervisor = self._supervisor
        lines: list[dict[str, Any]] = []
        seen: set[str] = set()
        for table in supervisor.tables.values():
            for entry in table.entries():
                if _matches(entry.channel, wanted):
                    seen.add(entry.channel)
                    lines.append(await self._with_saved(self._line(entry)))
        for name, channel in sorted(supervisor.catalog.channels().items()):
            if name not in seen and _matches(name, wanted):
                lines.append(await self._with_saved(self._answer(channel, None)))
        if not lines and not wanted.endswith("*"):
            raise Refusal(Reason.CHANNEL_NOT_FOUND, f"no channel {wanted}")
        return {"channels": sorted(lines, key=lambda line: (line["channel"], line["partner"]))}

    async def _with_saved(self, line: dict[str, Any]) -> dict[str, Any]:
        """Without, when the store does not answer soon: on either side of a split a member tells what it knows."""
        try:
            async with asyncio.timeout(SAVED_S):
                await self._add_saved(line)
        except TimeoutError:
            pass
        except Refusal as refusal:
            if refusal.reason is not Reason.STRUCTURE_NOT_AVAILABLE:
                raise
        return line

    async def _add_saved(self, line: dict[str, Any]) -> None:
        """MQ's SAVED: what the SYNCQ records say. For an inbound channel also the token that `resolve commit` takes at the sender."""
        supervisor = self._supervisor
        if line["type"] == "sender":
            place = supervisor.find(line["channel"])
            structure = supervisor.structures.get(place.structure) if place is not None else None
            if place is not None and structure is not None and structure.reachable:
                _, (fence, progress, totals) = await structure.read(
                    Get(keys.sender_fence(place.queue)), Get(keys.sender_progress(place.queue)), get_prefix(keys.totals(place.queue))
                )
                line["saved"] = saved(fence.first.value if fence.first else b"", progress.first.value if progress.first else b"")
                counted = [read_record(pb.Totals, kv.value, kv.key) for kv in totals.kvs]
                line["depth"] = sum(t.put - t.got for t in counted)
        elif line["stream"]:
            line["record"] = await self._receiver_record(line["channel"], bytes.fromhex(line["stream"]))

    async def _receiver_record(self, name: str, stream: bytes) -> str:
        channel = self._supervisor.catalog.channel(name)
        for structure in self._homes(channel) if channel is not None else ():
            if not self._supervisor.structures[structure].reachable:
                continue
            _, (result,) = await self._supervisor.structures[structure].read(Get(keys.receiver_progress(stream)))
            if result.first is not None:
                return token(stream, read_record(pb.Progress, result.first.value, result.first.key))
        return ""

    async def group(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """The members, as this one sees them."""
        supervisor = self._supervisor
        own = supervisor.own_load()
        me: dict[str, Any] = {
            "member": supervisor.member,
            "incarnation": supervisor.structures[supervisor.office.initiators].incarnation,
            "linked": True,
            "silent_ms": 0,
            "channels": own.channels,
            "initiator": own.initiator,
            "draining": own.draining,
            "structures": sorted(own.structures),
        }
        others = supervisor.peers.status() if supervisor.peers is not None else []
        return {"group": supervisor.group, "member": supervisor.member, "members": [me, *others]}

    async def watch(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """A long poll of the status table: what was written after the revision `after` (0 = all), as soon as there is something.

        `there` names every entry (channel; of an inbound one also the partner), so that who follows knows which are gone. Private
        channels of a member of a group are not in it. A revision means something to the member that told it and, in a group, to all.
        """
        after, supervisor = arguments.get("after", 0), self._supervisor
        if not isinstance(after, int) or isinstance(after, bool) or after < 0:
            raise Refusal(Reason.OPTIONS_ERROR, "after: a revision, or 0")
        table = supervisor.tables[ADMIN if supervisor.group else PRIVATE]
        if await table.later_than(after, _seconds(arguments, WATCH_WAIT_S)):
            await asyncio.sleep(WATCH_GATHER_S)
        revision = table.revision
        return {
            "revision": revision,
            "channels": [self._line(entry) for entry in table.later(after)],
            "there": [[entry.channel, entry.partner if entry.type == pb.RECEIVER else ""] for entry in table.entries()],
            "structures": {name: structure.reachable for name, structure in sorted(supervisor.structures.items())},
            **await self.group({}),
        }

    def _answer(self, channel: Channel, entry: pb.ChannelStatus | None) -> dict[str, Any]:
        if entry is None:
            entry = pb.ChannelStatus(channel=channel.name, transmission_queue=channel.transmission_queue, partner=channel.partner)
            entry.type = pb.SENDER if channel.type == "sender" else pb.RECEIVER
        return describe(entry, channel.sequence_wrap)

    def _line(self, entry: pb.ChannelStatus) -> dict[str, Any]:
        channel = self._supervisor.catalog.channel(entry.channel)
        return describe(entry, channel.sequence_wrap if channel is not None else SEQUENCE_WRAP)


def token(stream: bytes, progress: pb.Progress) -> str:
    """A receiver's record in one word, for `resolve commit` at the sender: the stream, and how far the record goes."""
    known = pb.Progress(luwid=progress.luwid, sequence=progress.sequence)
    for priority, position in progress.confirmed.items():
        known.confirmed[priority].CopyFrom(position)
    return stream.hex() + "." + base64.urlsafe_b64encode(known.SerializeToString(deterministic=True)).decode().rstrip("=")


def _record(word: object) -> tuple[bytes, pb.Progress | None]:
    if word is None or word == "":
        return b"", None
    try:
        stream, _, known = str(word).partition(".")
        return bytes.fromhex(stream), pb.Progress.FromString(base64.urlsafe_b64decode(known + "=" * (-len(known) % 4)))
    except (ValueError, binascii.Error, DecodeError) as error:
        raise Refusal(Reason.OPTIONS_ERROR, "record: not one that a receiver's status shows") from error


def _choice(arguments: dict[str, Any], name: str, choices: tuple[str, ...], *, needed: bool = False) -> str:
    value = arguments.get(name) or ("" if needed else choices[0])
    if value not in choices:
        raise Refusal(Reason.OPTIONS_ERROR, f"{name}: {' or '.join(choices)}")
    return str(value)


def _seconds(arguments: dict[str, Any], default: float) -> float:
    value = arguments.get("wait_s", default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 60:
        raise Refusal(Reason.OPTIONS_ERROR, "wait_s: 0 to 60 seconds")
    return float(value)


def _matches(name: str, wanted: str) -> bool:
    return name.startswith(wanted[:-1]) if wanted.endswith("*") else name == wanted
