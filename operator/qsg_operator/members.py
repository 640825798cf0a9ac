"""The way to the members of a group, or to a queue manager outside: the client API, as the command line uses it.

Owns one connection a target, the long poll of the status table over it, and `seen`. Any member will do: the connection moves to another
when its own is lost or drains. Not guaranteed: that `seen` is current; `seen.connected` says whether it is being kept up, or
was a moment ago.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import structlog

import qsg
from qsg.endings import ended
from qsg.transport.grpc_ import GrpcTransport
from qsg.transport.tls import Pems, TlsInMemory
from qsg_operator.names import ADMIN_STRUCTURE
from qsg_operator.seen import Backlog, Seen

log = structlog.get_logger()

WATCH_S = 5.0
ANSWER_S = 20.0
NUMBERS_S = 15.0
AGES_MAX = 50
"""Transmission queues whose oldest message is looked at in one round; of more, others in each round."""
RETRY_S = (0.5, 5.0)
GRACE_S = 5.0
"""So long another member may take to answer until anybody is told that none does: a member that ends is nothing to tell of."""


@dataclass(frozen=True)
class Way:
    """How the members are reached. `server_name`: what all of their certificates say."""

    addresses: tuple[str, ...]
    queue_manager: str
    ca: bytes = b""
    certificate: bytes = b""
    key: bytes = b""
    server_name: str = ""

    def transport(self) -> GrpcTransport:
        if not self.ca:
            return GrpcTransport()
        return GrpcTransport(TlsInMemory(Pems(self.ca, self.certificate, self.key)), server_name=self.server_name)


class NotConnected(Exception):
    """No member answers."""


class Members:
    """`changed` is called when `seen` says something new."""

    def __init__(self, name: str, changed: Callable[[], None]) -> None:
        self.seen = Seen()
        self.verdict = False
        """Whether `seen` says anything about the members: an attempt to reach them has succeeded or failed."""
        self._name, self._changed = name, changed
        self._way = Way((), "")
        self._qmgr: qsg.QueueManager | None = None
        self._aged = ""
        """The last queue whose oldest message was looked at."""
        self._lost_at: float | None = None
        """Since when nobody has answered."""
        self._moved = asyncio.Event()
        self._task = asyncio.get_running_loop().create_task(self._run(), name=f"members of {name}")

    async def close(self) -> None:
        await ended(self._task)

    def reach(self, way: Way) -> None:
        """A connection that works goes on; it is the next that is made this way."""
        if way != self._way:
            self._way = way
            self._moved.set()

    async def command(self, name: str, /, **arguments: Any) -> Any:
        """Raises `NotConnected`, `qsg.QsgError`."""
        return await self._ask(lambda qmgr: qmgr.command(name, **arguments))

    async def inquire(self, kind: str, name: str = "") -> Any:
        return await self._ask(lambda qmgr: qmgr.inquire(kind, name))

    async def _ask(self, ask: Callable[[qsg.QueueManager], Any]) -> Any:
        qmgr = self._qmgr
        if qmgr is None:
            raise NotConnected(self.seen.error)
        try:
            async with asyncio.timeout(ANSWER_S):
                return await ask(qmgr)
        except TimeoutError:
            raise NotConnected(f"no answer within {ANSWER_S:.0f} s") from None

    # The long poll

    async def _run(self) -> None:
        pause = RETRY_S[0]
        while True:
            self._moved.clear()
            if not self._way.addresses:
                self._lost("there is no pod yet", at_once=True)
                await self._moved.wait()
                continue
            began = asyncio.get_running_loop().time()
            try:
                await self._connected(self._way)
            except (qsg.QsgError, TimeoutError, NotConnected) as error:
                self._lost(str(error) or "no answer in time", tried=True)
            except Exception as error:  # whatever a member answers: the others' statuses must go on
                log.exception("following the status table failed", target=self._name)
                self._lost(repr(error), tried=True)
            lasted = asyncio.get_running_loop().time() - began > 10
            pause = RETRY_S[0] if lasted or self.seen.connected else min(2 * pause, RETRY_S[1])
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._moved.wait()

    async def _connected(self, way: Way) -> None:
        link = qsg.connect(
            list(way.addresses),
            application="qsg operator",
            queue_manager=way.queue_manager,
            connect_s=5.0,
            reconnect_s=2.0,
            transport=way.transport(),
        )
        async with link as qmgr:
            self._qmgr = qmgr
            numbers = asyncio.get_running_loop().create_task(self._numbers(qmgr), name=f"numbers of {self._name}")
            try:
                await self._follow(qmgr)
            finally:
                self._qmgr = None
                await ended(numbers)

    async def _follow(self, qmgr: qsg.QueueManager) -> None:
        after, member = 0, qmgr.member
        blind_since: float | None = None
        while True:
            async with asyncio.timeout(ANSWER_S):
                answer = await qmgr.command("watch", after=after, wait_s=WATCH_S)
            now = asyncio.get_running_loop().time()
            blind_since = None if answer["structures"].get(ADMIN_STRUCTURE, True) else now if blind_since is None else blind_since
            if blind_since is not None and now - blind_since >= GRACE_S and len(self._way.addresses) > 1:
                raise NotConnected(f"{answer['member']} does not reach the group's store")  # another may; what it told stands till then
            if answer["member"] != member:
                # Another member, and perhaps another store: all of it once more.
                member, after = answer["member"], 0
                continue
            self._take(answer, whole=after == 0)
            after = answer["revision"]

    def _take(self, answer: dict[str, Any], *, whole: bool) -> None:
        seen = self.seen
        before = (seen.connected, seen.told, seen.members, seen.structures, seen.channels)
        lines = {} if whole else dict(seen.channels)
        for line in answer["channels"]:
            lines[line["channel"], line["partner"] if line["type"] == "receiver" else ""] = line
        there = {(channel, partner) for channel, partner in answer["there"]}
        seen.channels = {key: line for key, line in lines.items() if key in there}
        seen.members = [{k: v for k, v in line.items() if k != "silent_ms"} for line in answer["members"]]
        seen.structures = answer["structures"]
        seen.connected, seen.error, seen.told = True, "", True
        self._lost_at = None
        self.verdict = True
        if before != (seen.connected, seen.told, seen.members, seen.structures, seen.channels):
            self._changed()

    def _lost(self, error: str, *, tried: bool = False, at_once: bool = False) -> None:
        now = asyncio.get_running_loop().time()
        if self.seen.connected:
            self._lost_at = now if self._lost_at is None else self._lost_at
            if not at_once and now - self._lost_at < GRACE_S:
                self.seen.error = error
                return
        self.seen.told = False
        if self.seen.connected or self.seen.error != error or tried > self.verdict:
            self.verdict = self.verdict or tried
            self.seen.connected, self.seen.error = False, error
            self._changed()

    # Depths and ages, which the status table does not have

    async def _numbers(self, qmgr: qsg.QueueManager) -> None:
        while True:
            try:
                await self._count(qmgr)
            except qsg.QsgError as error:
                log.debug("depths were not told", target=self._name, error=str(error))
            await asyncio.sleep(NUMBERS_S)

    async def _count(self, qmgr: qsg.QueueManager) -> None:
        rows = (await qmgr.inquire("queues"))["queues"]
        depths = {row["name"]: row["depth"] for row in rows if "depth" in row}
        waiting = sorted(row["name"] for row in rows if row.get("usage") == "transmission" and row.get("depth"))
        # Of what is not looked at now the last look counts, unless something has gone since.
        known = self.seen.backlogs
        ages = {name: known[name].oldest_age_s for name in waiting if name in known and depths[name] >= known[name].messages}
        for name in _after(self._aged, waiting)[:AGES_MAX]:
            ages[name], self._aged = await _oldest_age(qmgr, name), name
        transmission = [row["name"] for row in rows if row.get("usage") == "transmission"]
        before = self.seen.depths, self.seen.backlogs
        self.seen.depths = depths
        self.seen.backlogs = {name: Backlog(depths.get(name, 0), ages.get(name)) for name in transmission}
        if before != (self.seen.depths, self.seen.backlogs):
            self._changed()


def _after(last: str, queues: list[str]) -> list[str]:
    """Those behind `last` in the order of names, then the others."""
    return [name for name in queues if name > last] + [name for name in queues if name <= last]


async def _oldest_age(qmgr: qsg.QueueManager, queue: str) -> int | None:
    try:
        async with contextlib.aclosing(qmgr.browse(queue, headers_only=True)) as messages:
            async for message in messages:
                if message.put_at is not None:
                    return max(0, int((datetime.now(UTC) - message.put_at).total_seconds()))
                return None
    except qsg.QsgError:
        return None
    return None
