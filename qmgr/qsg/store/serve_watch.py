"""The watch stream of `qsg store`: any number of watches on one stream, each a task.

Invariant: on one watch events go out in commit order, a revision is never cut in two, and a progress answer goes out only after every
event up to its revision. A client that does not read holds up only its own stream; what is held for it is bounded by the watches.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, TypeAlias

import grpc

from qsg.pb.etcd import rpc_pb2
from qsg.store import serve_wire as wire
from qsg.store.contract import Compacted, Event, StoreError
from qsg.store.serve_calls import Calls
from qsg.store.sqlite import SqliteStore
from qsg.store.sqlite_watch import Watch

Context: TypeAlias = Any
"""A `grpc.aio.ServicerContext` (grpc has no types)."""

RESPONSE_BYTES = 1 << 20
"""A response goes out when its events weigh this much; whole revisions only, so a little more."""
ALL_WATCHES = -1
WATCHES_MAX = 4096


class WatchStream:
    """One client's stream, from `run` to its end."""

    def __init__(self, store: SqliteStore, calls: Calls, context: Context) -> None:
        self._store = store
        self._calls = calls
        self._context = context
        self._sending = asyncio.Lock()
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._watches: dict[int, Watch] = {}
        self._sent: dict[int, int] = {}
        """Per watch: every event up to this revision has gone out."""
        self._progress: list[int] = []
        """Revisions for which progress was asked and not answered yet."""
        self._failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._next_id = 0

    async def run(self, requests: AsyncIterator[rpc_pb2.WatchRequest]) -> None:
        reading = asyncio.ensure_future(self._read(requests))
        try:
            await asyncio.wait([reading, self._failed], return_when=asyncio.FIRST_COMPLETED)
            await (self._failed if self._failed.done() else reading)
        finally:
            tasks = [reading, *self._tasks.values()]
            for task in tasks:
                task.cancel()
            self._failed.cancel()
            while self._watches:  # before any await: gRPC cancels this task at any moment, also while it ends by itself
                self._store.close_watch(self._watches.popitem()[1])
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _read(self, requests: AsyncIterator[rpc_pb2.WatchRequest]) -> None:
        async for request in requests:
            kind = request.WhichOneof("request_union")
            if kind == "create_request":
                await self._create(request.create_request)
            elif kind == "cancel_request":
                await self._cancel(request.cancel_request.watch_id)
            elif kind == "progress_request":
                self._progress.append(self._store.revision)
                for watch in self._watches.values():
                    watch.want_progress()
                await self._answer_progress()

    async def _create(self, request: rpc_pb2.WatchCreateRequest) -> None:
        watch_id = request.watch_id
        if not watch_id:
            while self._next_id in self._watches:
                self._next_id += 1
            watch_id = self._next_id
            self._next_id += 1
        if watch_id in self._watches or len(self._watches) >= WATCHES_MAX:
            reason = "etcdserver: duplicate watch ID or too many watches"
            await self._send(rpc_pb2.WatchResponse(watch_id=ALL_WATCHES, created=True, canceled=True, cancel_reason=reason))
            return
        watch = self._store.open_watch(request.key, request.range_end, max(0, request.start_revision))
        self._watches[watch_id] = watch
        self._sent[watch_id] = watch.delivered
        await self._send(rpc_pb2.WatchResponse(watch_id=watch_id, created=True))
        self._tasks[watch_id] = asyncio.get_running_loop().create_task(self._follow(watch_id, watch, request))

    async def _cancel(self, watch_id: int) -> None:
        task = self._tasks.get(watch_id)
        if task is None:
            return
        task.cancel()
        await asyncio.wait([task])
        self._forget(watch_id)
        await self._send(rpc_pb2.WatchResponse(watch_id=watch_id, canceled=True))
        await self._answer_progress()

    def _forget(self, watch_id: int) -> None:
        self._store.close_watch(self._watches.pop(watch_id))
        self._tasks.pop(watch_id)
        self._sent.pop(watch_id)

    async def _follow(self, watch_id: int, watch: Watch, request: rpc_pb2.WatchCreateRequest) -> None:
        try:
            while True:
                batch = await watch.next_batch()
                for events in _portions(batch.events):
                    kept = [wire.event_message(e) for e in events if _passes(e, request)]
                    if kept:
                        await self._send(rpc_pb2.WatchResponse(watch_id=watch_id, events=kept))
                self._sent[watch_id] = batch.revision
                if request.progress_notify and not batch.events:
                    await self._send(rpc_pb2.WatchResponse(watch_id=watch_id, header=self._calls.header(batch.revision)))
                await self._answer_progress()
        except Compacted as e:
            self._forget(watch_id)
            _, reason = wire.refusal(e)
            response = rpc_pb2.WatchResponse(watch_id=watch_id, canceled=True, compact_revision=e.revision, cancel_reason=reason)
            await self._send(response)
        except StoreError as e:
            if not self._failed.done():
                self._failed.set_exception(e)
        except (grpc.aio.BaseError, asyncio.InvalidStateError):  # the client has gone
            if not self._failed.done():
                self._failed.set_result(None)

    async def _answer_progress(self) -> None:
        through = min(self._sent.values(), default=self._store.revision)
        answered = [revision for revision in self._progress if revision <= through]
        self._progress = [revision for revision in self._progress if revision > through]
        if answered:
            await self._send(rpc_pb2.WatchResponse(watch_id=ALL_WATCHES, header=self._calls.header(max(answered))))

    async def _send(self, response: rpc_pb2.WatchResponse) -> None:
        if not response.HasField("header"):
            response.header.CopyFrom(self._calls.header())
        async with self._sending:
            await self._context.write(response)


def _passes(event: Event, request: rpc_pb2.WatchCreateRequest) -> bool:
    unwanted = rpc_pb2.WatchCreateRequest.NODELETE if event.deleted else rpc_pb2.WatchCreateRequest.NOPUT
    return unwanted not in request.filters


def _portions(events: Sequence[Event]) -> Iterator[Sequence[Event]]:
    """Cuts between revisions, about every `RESPONSE_BYTES`."""
    start, size = 0, 0
    for i, event in enumerate(events):
        if size >= RESPONSE_BYTES and event.kv.mod_revision != events[i - 1].kv.mod_revision:
            yield events[start:i]
            start, size = i, 0
        size += len(event.kv.key) + len(event.kv.value) + 64
    if start < len(events):
        yield events[start:]
