"""A store in memory with etcd's semantics: one `MemoryServer`, any number of client handles (`MemoryStore`) onto it.

Each handle has a path to the server that a simulation can delay, cut, hold or make lie: a request is a message that arrives at the
server, is evaluated there at one instant, and is answered; the caller waits at most its timeout, whatever becomes of the message. So
*unknown outcome* and *late commit* are what they are in life. Invariant: time is loop time and chance is the given `random.Random`,
so a run is repeatable. Nothing is durable: the state lives as long as the `MemoryServer`.
"""

from __future__ import annotations

import asyncio
import contextvars
import copy
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any, TypeVar

from qsg.bell import Bell
from qsg.store.answers import settle
from qsg.store.contract import (
    Compare,
    Event,
    Get,
    GetResult,
    LeaseNotFound,
    Limits,
    NoSpace,
    NotApplied,
    Op,
    StoreError,
    StoreStatus,
    TxnResult,
    Unavailable,
    WatchBatch,
)
from qsg.store.faults import Fault, Faults
from qsg.store.mvcc import Mvcc, check_limits, in_range

T = TypeVar("T")

TXN_TIMEOUT_S = 0.4
READ_BUDGET_S = 5.0
_RETRY_S = 0.05


@dataclass(slots=True)
class _Lease:
    ttl_s: int
    deadline: float


@dataclass(frozen=True, slots=True)
class Snapshot:
    state: Mvcc
    leases: dict[int, int]
    """Seconds to live, as granted."""


class MemoryServer:
    """The shared state: keys, history, leases. Give each member its own `client()`.

    `context`: in which requests are evaluated and answers delivered; None: in that of the caller. `on_commit` is told of every commit.
    """

    def __init__(
        self, *, random: Random | None = None, limits: Limits | None = None, quota: int = 0, context: contextvars.Context | None = None
    ) -> None:
        self.random = random or Random(0)
        self.context = context
        self.on_commit: Callable[[Sequence[Event]], None] | None = None
        self.limits = limits or Limits()
        self.state = Mvcc(quota=quota)
        self._leases: dict[int, _Lease] = {}
        self._earliest = float("inf")
        """No lease is overdue before."""
        self._timer: asyncio.TimerHandle | None = None
        self._watchers: dict[tuple[bytes, bytes], dict[_Watcher, None]] = {}
        """By range, so that a commit wakes only those that it concerns."""

    def client(self, faults: Faults | None = None) -> MemoryStore:
        return MemoryStore(self, faults)

    def leader_change(self) -> None:
        """A new leader: every lease has its full time to live again."""
        self._expire()
        now = asyncio.get_running_loop().time()
        for lease in self._leases.values():
            lease.deadline = now + lease.ttl_s
        self._arm()

    def snapshot(self) -> Snapshot:
        return Snapshot(copy.deepcopy(self.state), {lease: entry.ttl_s for lease, entry in self._leases.items()})

    def restore(self, snapshot: Snapshot, *, bump_revision: int = 1_000_000_000) -> None:
        """Goes back to a snapshot, as `etcdutl snapshot restore --bump-revision --mark-compacted` does; 0 = without both."""
        self.state = copy.deepcopy(snapshot.state)
        if bump_revision:
            self.state.revision += bump_revision
            self.state.compact(self.state.revision)
        now = asyncio.get_running_loop().time()
        self._leases = {lease: _Lease(ttl_s, now + ttl_s) for lease, ttl_s in snapshot.leases.items()}
        self._arm()
        for watchers in self._watchers.values():
            for watcher in watchers:
                watcher.broken = True
                watcher.wake.set()

    def close(self) -> None:
        """Stops the clock of leases; the state can still be read."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # What requests do on arrival. Each is one instant.

    def txn(self, compares: Sequence[Compare], ops: Sequence[Op], else_ops: Sequence[Op]) -> TxnResult:
        check_limits(self.limits, compares, ops, else_ops)
        before = self._expire()
        result = self.state.apply(compares, ops, else_ops)
        self._changed(before)
        return result

    def get(self, get: Get) -> GetResult:
        self._expire()
        return self.state.read(get)

    def grant(self, ttl_s: int) -> int:
        if ttl_s <= 0:
            raise StoreError(f"time to live must be positive, not {ttl_s}")
        lease = self.random.getrandbits(62) + 1
        self.state.grant(lease)
        self._leases[lease] = _Lease(ttl_s, asyncio.get_running_loop().time() + ttl_s)
        self._arm()
        return lease

    def keep_alive(self, lease: int) -> int:
        self._expire()
        entry = self._leases.get(lease)
        if entry is None:
            raise LeaseNotFound(f"lease {lease} is not known")
        entry.deadline = asyncio.get_running_loop().time() + entry.ttl_s
        return entry.ttl_s

    def revoke(self, lease: int) -> None:
        before = self._expire()
        self._leases.pop(lease, None)
        self.state.revoke(lease)
        self._changed(before)

    def compact(self, revision: int) -> None:
        self.state.compact(revision)

    def status(self) -> StoreStatus:
        self._expire()
        return StoreStatus(self.state.revision, self.state.bytes_in_use, self.state.quota, "memory", "memory")

    # Leases

    def _expire(self) -> int:
        """Ends overdue leases, each in a revision of its own; returns the revision reached."""
        before = self.state.revision
        now = asyncio.get_running_loop().time()
        if now < self._earliest:
            return before
        overdue = sorted((entry.deadline, lease) for lease, entry in self._leases.items() if entry.deadline <= now)
        for _, lease in overdue:
            del self._leases[lease]
            self.state.revoke(lease)
        self._earliest = min((entry.deadline for entry in self._leases.values()), default=float("inf"))
        self._changed(before)
        return self.state.revision

    def _arm(self) -> None:
        self.close()
        self._earliest = min((entry.deadline for entry in self._leases.values()), default=float("inf"))
        if self._leases:
            self._timer = asyncio.get_running_loop().call_at(self._earliest, self._tick, context=self.context)

    def _tick(self) -> None:
        self._expire()
        self._arm()

    # Watches

    def _changed(self, before: int) -> None:
        if self.state.revision == before:
            return
        events = self.state.events(b"", b"\0", before + 1)
        if self.on_commit is not None:
            self.on_commit(events)
        changed = [event.kv.key for event in events]
        for (start, end), watchers in self._watchers.items():
            for key in changed:
                if key >= start and (key < end or in_range(key, start, end)):
                    for watcher in watchers:
                        watcher.wake.set()
                    break

    def add_watcher(self, watcher: _Watcher) -> None:
        self._watchers.setdefault(watcher.range, {})[watcher] = None

    def remove_watcher(self, watcher: _Watcher) -> None:
        watchers = self._watchers.get(watcher.range, {})
        watchers.pop(watcher, None)
        if not watchers:
            self._watchers.pop(watcher.range, None)


@dataclass(slots=True, eq=False)
class _Watcher:
    range: tuple[bytes, bytes]
    from_revision: int
    wake: Bell = field(default_factory=Bell)
    delivered: int = 0
    broken: bool = False
    """The stream broke since the last delivery: it is resumed behind what was delivered, and says so with a progress batch."""

    def __post_init__(self) -> None:
        self.delivered = self.from_revision - 1


class MemoryStore:
    """One client's handle. Implements `qsg.store.contract.Store`.

    `cut()` loses every request and delivery until `heal()`; `pause()` holds them until `resume()` (a request that is held may be applied
    long after its caller gave up).
    """

    def __init__(self, server: MemoryServer, faults: Faults | None = None) -> None:
        self.server = server
        self.limits = server.limits
        self.faults = faults or Faults()
        self._cut = False
        self._closed = False
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._held: list[Callable[[], None]] = []
        self._waiting: deque[tuple[float, str, asyncio.Future[Any]]] = deque()
        """When a request is given up, what it is, and its answer: those with the usual timeout, in order."""
        self._expiry: asyncio.TimerHandle | None = None
        self._watchers: dict[_Watcher, None] = {}

    # The path to the server

    def cut(self) -> None:
        self._cut = True
        self._flowing.clear()

    def heal(self) -> None:
        self._cut = False
        self._break_watches()
        self.resume()

    def abandon(self) -> None:
        """Its process was killed: nothing more is sent, what is on its way arrives."""
        self._closed = True
        self._flowing.set()
        self._break_watches()

    def pause(self) -> None:
        self._flowing.clear()

    def resume(self) -> None:
        if self._cut:
            return
        self._flowing.set()
        held, self._held = self._held, []
        for deliver in held:
            deliver()

    def cut_watches(self) -> None:
        """Breaks every watch once; each resumes by itself."""
        self._break_watches()

    def _break_watches(self) -> None:
        for watcher in self._watchers:
            watcher.broken = True
            watcher.wake.set()

    async def _request(self, kind: str, action: Callable[[], T], timeout_s: float) -> T:
        """Sends one request; `action` runs when it arrives."""
        if self._closed:
            raise StoreError("the store's handle is closed")
        fault = self.faults.request(kind)
        if fault.refused:
            await asyncio.sleep(fault.delay_s)
            raise NotApplied(f"{kind}: refused")
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()

        if not fault.lost:
            _later(fault.delay_s + fault.late_s, self.server.context, self._arrived, answer, action, fault)
        if fault.late_s:
            await asyncio.sleep(fault.delay_s)
            raise Unavailable(f"{kind}: connection lost")
        # No `asyncio.timeout`, and nearly always no timer: simulations make millions of requests.
        if timeout_s == TXN_TIMEOUT_S:
            self._waiting.append((loop.time() + timeout_s, kind, answer))
            if self._expiry is None:
                self._expiry = loop.call_later(timeout_s, self._expire_waiting)
            return await answer
        expiry = loop.call_later(timeout_s, _expire, answer, kind, timeout_s)
        try:
            return await answer
        finally:
            expiry.cancel()

    def _expire_waiting(self) -> None:
        """One timer for all requests with the usual timeout, set anew when it goes off and some still wait."""
        loop, waiting = asyncio.get_running_loop(), self._waiting
        while waiting and (waiting[0][2].done() or waiting[0][0] <= loop.time()):
            _, kind, answer = waiting.popleft()
            _expire(answer, kind, TXN_TIMEOUT_S)
        self._expiry = loop.call_at(waiting[0][0], self._expire_waiting) if waiting else None

    # A message on the path, either way, goes on, is held, or is lost.

    def _arrived(self, answer: asyncio.Future[T], action: Callable[[], T], fault: Fault) -> None:
        if self._cut:
            return
        if self._flowing.is_set():
            self._settle(answer, action, fault)
        else:
            self._held.append(partial(self._settle, answer, action, fault))

    def _answered(self, answer: asyncio.Future[T], result: T | StoreError) -> None:
        if self._cut:
            return
        if self._flowing.is_set():
            settle(answer, result)
        else:
            self._held.append(partial(settle, answer, result))

    def _settle(self, answer: asyncio.Future[T], action: Callable[[], T], fault: Fault) -> None:
        """Evaluates a request that has arrived, and sends its answer off."""
        delay_s = self._answer_delay_s(fault)
        result: T | StoreError
        try:
            result = action()
            if fault.full:
                raise NoSpace("the store is full")
        except StoreError as error:
            result = error
        if not fault.reply_lost and not fault.late_s:
            _later(delay_s, self.server.context, self._answered, answer, result)

    def _answer_delay_s(self, fault: Fault) -> float:
        return fault.reply_delay_s

    # The contract

    async def txn(
        self, compares: Sequence[Compare], ops: Sequence[Op], else_ops: Sequence[Op] = (), *, timeout_s: float | None = None
    ) -> TxnResult:
        asked = tuple(compares), tuple(ops), tuple(else_ops)
        return await self._request("txn", lambda: self.server.txn(*asked), TXN_TIMEOUT_S if timeout_s is None else timeout_s)

    async def get(self, get: Get) -> GetResult:
        return await self._repeated("get", lambda: self.server.get(get))

    async def _repeated(self, kind: str, action: Callable[[], T]) -> T:
        """For requests that can be repeated."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + READ_BUDGET_S
        while True:
            try:
                return await self._request(kind, action, TXN_TIMEOUT_S)
            except (Unavailable, NotApplied) as e:
                if loop.time() + _RETRY_S >= deadline:
                    raise Unavailable(f"{kind}: no answer within {READ_BUDGET_S} s") from e
            await asyncio.sleep(_RETRY_S)

    async def watch(self, key: bytes, end: bytes, from_revision: int) -> AsyncIterator[WatchBatch]:
        """As the contract; `from_revision` 0 = from the revision after the one when the first batch is asked for."""
        watcher = _Watcher((key, end), from_revision or self.server.state.revision + 1)
        self._watchers[watcher] = None
        self.server.add_watcher(watcher)
        try:
            while True:
                batch = await self._next_batch(watcher, key, end)
                watcher.delivered = batch.revision
                yield batch
        finally:
            self._watchers.pop(watcher, None)
            self.server.remove_watcher(watcher)

    async def _next_batch(self, watcher: _Watcher, key: bytes, end: bytes) -> WatchBatch:
        seen = watcher.delivered
        while True:
            if not self._flowing.is_set():
                await self._flowing.wait()
            if self._closed:
                raise StoreError("the store's handle is closed")
            resumed, watcher.broken = watcher.broken, False
            if resumed:
                seen = watcher.delivered
            watcher.wake.clear()
            state = self.server.state
            revision = max(state.revision, seen)
            events = state.events(key, end, seen + 1) if seen < state.revision else []
            if events or resumed:
                await asyncio.sleep(self.faults.watch_delay_s())
                if watcher.broken or not self._flowing.is_set():
                    watcher.broken = True  # lost on its way: asked for again
                    continue
                return WatchBatch(revision, tuple(events))
            seen = revision
            await watcher.wake.wait()

    async def grant(self, ttl_s: int) -> int:
        return await self._request("grant", lambda: self.server.grant(ttl_s), READ_BUDGET_S)

    async def keep_alive(self, lease: int) -> float:
        loop = asyncio.get_running_loop()
        sent = loop.time()
        ttl_s = await self._request("keep_alive", lambda: self.server.keep_alive(lease), READ_BUDGET_S)
        return max(0.0, sent + ttl_s - loop.time())

    async def revoke(self, lease: int) -> None:
        await self._request("revoke", lambda: self.server.revoke(lease), READ_BUDGET_S)

    async def compact(self, revision: int) -> None:
        await self._request("compact", lambda: self.server.compact(revision), READ_BUDGET_S)

    async def status(self) -> StoreStatus:
        return await self._repeated("status", self.server.status)

    async def close(self) -> None:
        self._closed = True
        self._cut = True
        self._held.clear()
        self._flowing.set()
        for watcher in list(self._watchers):
            watcher.wake.set()


def _expire(answer: asyncio.Future[T], kind: str, timeout_s: float) -> None:
    if not answer.done():
        answer.set_exception(Unavailable(f"{kind}: no answer within {timeout_s} s"))


def _later(delay_s: float, context: contextvars.Context | None, action: Callable[..., None], *arguments: Any) -> None:
    loop = asyncio.get_running_loop()
    if delay_s > 0:
        loop.call_later(delay_s, action, *arguments, context=context)
    else:
        loop.call_soon(action, *arguments, context=context)  # timers of one instant have no order
