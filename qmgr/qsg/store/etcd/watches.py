"""Watches: all of a store share one stream to one endpoint, and survive its loss.

Not guaranteed: memory for a consumer that never takes its events is bounded by giving up its place on the stream; it resumes when it
has taken what is there, and is told `Compacted` if history is gone by then.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import grpc
import structlog

from qsg.pb.etcd import rpc_pb2
from qsg.store.contract import Compacted, NotApplied, StoreError, Unavailable, WatchBatch
from qsg.store.etcd import errors
from qsg.store.etcd.duplex import Duplex
from qsg.store.etcd.endpoints import Endpoint
from qsg.store.etcd.pool import EndpointPool
from qsg.store.etcd.watch import Watch

log = structlog.get_logger()

_CHECK_S = 0.5
"""How often a quiet stream is asked for progress."""
_SILENCE_S = 1.0
"""Without any answer for so long a stream is given up; longer after each that said nothing (a long catch-up answers no question)."""
_SILENCE_MAX_S = 12.0
_CONNECT_S = 1.0
_PAUSE_S = 0.05
_PENDING_EVENTS_MAX = 20_000


class WatchHub:
    def __init__(self, pool: EndpointPool) -> None:
        self._pool = pool
        self._watches: set[Watch] = set()
        self._by_id: dict[int, Watch] = {}
        self._last_id = 0
        self._stream: Duplex | None = None
        self._task: asyncio.Task[None] | None = None
        self._kick = asyncio.Event()
        self._broken = False
        """The present stream lost one of its watches."""
        self._answered = False
        """The present stream brought more than confirmations of creation."""
        self._silence_s = _SILENCE_S
        pool.on_eject.append(self._on_eject)

    async def watch(self, key: bytes, end: bytes, from_revision: int) -> AsyncGenerator[WatchBatch, None]:
        watch = Watch(key, end, from_revision)
        self._add(watch)
        try:
            while True:
                await watch.news.wait()
                watch.news.clear()
                if (batch := watch.batch()) is not None:
                    yield batch
                if watch.error is not None:
                    raise watch.error
                if watch.id == 0 and self._stream is not None:
                    self._create(watch)
        finally:
            self._remove(watch)

    def _add(self, watch: Watch) -> None:
        if self._pool.closed:
            raise Unavailable("the store is closed")
        self._watches.add(watch)
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run())
            self._task.add_done_callback(self._ended)
        elif self._stream is not None:
            self._create(watch)

    def _remove(self, watch: Watch) -> None:
        self._watches.discard(watch)
        self._leave(watch)
        if not self._watches:
            self._kick.set()

    def _create(self, watch: Watch) -> None:
        assert self._stream is not None
        self._last_id += 1  # never used again, so that what still comes for an old one is known by its number
        watch.leave_stream()
        watch.id = self._last_id
        self._by_id[watch.id] = watch
        self._stream.send(watch.request())

    def _leave(self, watch: Watch) -> None:
        """Ends it on the stream, if it is on one."""
        if self._by_id.pop(watch.id, None) is not None and self._stream is not None:
            request = rpc_pb2.WatchRequest()
            request.cancel_request.watch_id = watch.id
            self._stream.send(request)
        watch.leave_stream()

    async def _run(self) -> None:
        clock = asyncio.get_running_loop().time
        while self._watches:
            try:
                endpoint = await self._pool.connected(clock() + _CONNECT_S)
            except NotApplied:
                await asyncio.sleep(_PAUSE_S)
                continue
            except StoreError as error:  # logging in was refused
                for watch in self._watches:
                    watch.fail(error)
                return
            await self._serve(endpoint)
            if self._watches:
                await asyncio.sleep(0 if self._answered else _PAUSE_S)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """A defect: whoever watches is told, and begins anew."""
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("etcd watches failed", exc_info=error)
            for watch in self._watches:
                watch.fail(Unavailable(f"watches failed: {error!r}"))

    async def _serve(self, endpoint: Endpoint) -> None:
        """One stream, from its start to its end."""
        self._kick.clear()
        self._answered = self._broken = False
        self._stream = stream = Duplex(self._pool, endpoint, "watch", self._on_message)
        try:
            for watch in self._watches:
                if len(watch.pending) <= _PENDING_EVENTS_MAX:
                    self._create(watch)
            await self._keep(stream)
        finally:
            self._stream = None
            self._by_id.clear()
            for watch in self._watches:
                watch.leave_stream()
            await stream.close()

    async def _keep(self, stream: Duplex) -> None:
        """Returns when the stream has ended, is silent, is wanted elsewhere or by nobody."""
        clock = asyncio.get_running_loop().time
        stream.ended.add_done_callback(lambda _: self._kick.set())
        asked_at = 0.0
        while True:
            try:
                async with asyncio.timeout(_CHECK_S):
                    await self._kick.wait()
            except TimeoutError:
                pass
            self._kick.clear()
            if stream.ended.done() or self._broken or not self._watches or self._pool.has_better_than(stream.endpoint):
                return
            if stream.endpoint.state() is not grpc.ChannelConnectivity.READY:
                return  # a server that ends gracefully waits for its streams
            now = clock()
            if asked_at > stream.last_heard:
                if now - asked_at >= self._silence_s:
                    self._give_up(stream)
                    return
            elif now - stream.last_heard >= _CHECK_S:
                request = rpc_pb2.WatchRequest()
                request.progress_request.SetInParent()
                stream.send(request)
                asked_at = now

    def _give_up(self, stream: Duplex) -> None:
        log.info("etcd watch stream silent", endpoint=stream.endpoint.address, seconds=self._silence_s)
        self._silence_s = _SILENCE_S if self._answered else min(self._silence_s * 2, _SILENCE_MAX_S)
        self._pool.silent(stream.endpoint)

    def _on_eject(self, endpoint: Endpoint) -> None:
        if self._stream is not None and self._stream.endpoint is endpoint:
            self._kick.set()

    def _on_message(self, response: rpc_pb2.WatchResponse) -> None:
        if self._broken or (self._stream is not None and not self._pool.ours(self._stream.endpoint, response.header)):
            self._broken = True  # nothing that is behind an answer of another cluster is taken, nor what makes up for a watch that is gone
            self._kick.set()
            return
        watch = self._by_id.get(response.watch_id)
        if response.canceled:
            if watch is None and response.created:
                # A refused creation bears no number; creations are answered in order.
                watch = next((each for each in self._by_id.values() if not each.created), None)
            if watch is not None:
                self._canceled(watch, response)
        elif response.created:
            if watch is not None:
                watch.take_created(response.header.revision)
        elif response.events or response.fragment:
            self._heard()
            if watch is not None:
                watch.take_events(response)
                if len(watch.pending) > _PENDING_EVENTS_MAX:
                    self._leave(watch)
        else:
            self._heard()
            for each in list(self._by_id.values()) if watch is None else [watch]:
                each.take_progress(response.header.revision)

    def _heard(self) -> None:
        if not self._answered:
            self._answered = True
            self._silence_s = _SILENCE_S
            if self._stream is not None:
                self._stream.endpoint.succeeded()

    def _canceled(self, watch: Watch, response: rpc_pb2.WatchResponse) -> None:
        """The server ended it: for lost history, for good, or only on this stream."""
        del self._by_id[watch.id]
        watch.leave_stream()
        reason = response.cancel_reason
        if response.compact_revision or "compacted" in reason:
            watch.fail(Compacted(response.compact_revision))
        elif "permission denied" in reason or "user name is empty" in reason or ("invalid" in reason and "token" not in reason):
            watch.fail(StoreError(f"watch refused: {reason}"))
        else:
            log.info("etcd watch cancelled by the server", reason=reason)
            if self._stream is not None:
                self._pool.failed(self._stream.endpoint, errors.from_text(grpc.StatusCode.UNAVAILABLE, reason), missed=False)
            self._broken = True
            self._kick.set()

    async def close(self) -> None:
        for watch in self._watches:
            watch.fail(Unavailable("the store is closed"))
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
