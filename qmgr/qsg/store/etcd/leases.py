"""Keeping leases alive on one kept stream.

A renewal that is not answered is repeated on a new stream, to another endpoint if there is one: during an election a member holds
back all answers behind the first that it cannot give.
"""

from __future__ import annotations

import asyncio
from collections import deque

from qsg.pb.etcd import rpc_pb2
from qsg.store.contract import LeaseNotFound, NotApplied, StoreError, Unavailable
from qsg.store.etcd.duplex import Duplex
from qsg.store.etcd.endpoints import Endpoint
from qsg.store.etcd.pool import EndpointPool

_ATTEMPT_S = 0.5
_TOTAL_S = 2.0
_PAUSE_S = 0.05


class _LeaseStream:
    def __init__(self, pool: EndpointPool) -> None:
        self._pool = pool
        self._waiting: dict[int, deque[asyncio.Future[float]]] = {}
        self.duplex: Duplex | None = None

    def open_on(self, duplex: Duplex) -> None:
        self.duplex = duplex
        duplex.ended.add_done_callback(self._end)

    def _end(self, ended: asyncio.Future[StoreError]) -> None:
        error = Unavailable(str(ended.result()))
        for futures in self._waiting.values():
            for future in futures:
                if not future.done():
                    future.set_exception(error)
        self._waiting.clear()

    @property
    def usable(self) -> bool:
        duplex = self.duplex
        return duplex is not None and not duplex.ended.done() and not self._pool.has_better_than(duplex.endpoint)

    def renew(self, lease: int) -> asyncio.Future[float]:
        assert self.duplex is not None
        future: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(lease, deque()).append(future)
        self.duplex.send(rpc_pb2.LeaseKeepAliveRequest(ID=lease))
        return future

    def on_message(self, response: rpc_pb2.LeaseKeepAliveResponse) -> None:
        # One stream is answered in order, so the oldest waiter of a lease is the one meant.
        assert self.duplex is not None
        if not self._pool.ours(self.duplex.endpoint, response.header):
            return  # whoever waits asks once more, elsewhere
        self._pool.observe(response.header)
        self.duplex.endpoint.succeeded()
        futures = self._waiting.get(response.ID)
        if not futures:
            return
        future = futures.popleft()
        if not futures:
            del self._waiting[response.ID]
        if not future.done():
            future.set_result(float(response.TTL))


class LeaseKeeper:
    def __init__(self, pool: EndpointPool) -> None:
        self._pool = pool
        self._stream: _LeaseStream | None = None
        self._opening = asyncio.Lock()
        self._leaving: set[asyncio.Task[None]] = set()
        pool.on_eject.append(self._on_eject)

    def _on_eject(self, endpoint: Endpoint) -> None:
        """Left at once, not at the next renewal: a leader that is to end hands over only when its clients are gone."""
        stream = self._stream
        if stream is not None and stream.duplex is not None and stream.duplex.endpoint is endpoint and not stream.usable:
            self._stream = None
            task = asyncio.get_running_loop().create_task(stream.duplex.close())
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)

    async def keep_alive(self, lease: int) -> float:
        """Renews `lease`; its seconds to live. Raises `LeaseNotFound`, or `Unavailable` after about 2 s."""
        clock = asyncio.get_running_loop().time
        until = clock() + _TOTAL_S
        while True:
            attempt_until = min(clock() + _ATTEMPT_S, until)
            try:
                ttl_s = await self._attempt(lease, attempt_until)
            except (NotApplied, Unavailable) as error:
                if self._pool.closed or clock() + 2 * _PAUSE_S >= until:
                    raise Unavailable(f"lease not renewed: {error}") from error
                await asyncio.sleep(_PAUSE_S)
                continue
            if ttl_s <= 0:
                raise LeaseNotFound(f"lease {lease:x}")
            return ttl_s

    async def _attempt(self, lease: int, until: float) -> float:
        stream = await self._usable_stream(until)
        future = stream.renew(lease)
        try:
            async with asyncio.timeout_at(until):
                return await future
        except TimeoutError:
            assert stream.duplex is not None
            if stream is self._stream:
                self._stream = None
                await stream.duplex.close()
                self._pool.silent(stream.duplex.endpoint)
            raise Unavailable("no answer to a lease's renewal") from None
        finally:
            future.cancel()

    async def _usable_stream(self, until: float) -> _LeaseStream:
        async with self._opening:
            if self._stream is not None and self._stream.usable:
                return self._stream
            await self.close()
            endpoint = await self._pool.connected(until)
            stream = _LeaseStream(self._pool)
            stream.open_on(Duplex(self._pool, endpoint, "keep_alive", stream.on_message))
            self._stream = stream
            return stream

    async def close(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None and stream.duplex is not None:
            await stream.duplex.close()
        await asyncio.gather(*self._leaving)
