"""The choice of endpoint: stick to one that works, prefer the leader, leave one that fails.

Invariant: a request is sent at most once by `call`. A request that found no connection was not sent, and says so (`NotApplied`).
Leadership is a hint for speed only: it is looked up when a response shows a new raft term, after failures, and when an answer is slow.

What was under way when the leader changed may have been dropped without a word (a follower forwards it to whoever leads, dead or just
handing over): a call that was sent in an older term is ended soon after a newer one is seen, in doubt, and not by its deadline. Nothing is
held back meanwhile: a leader that ends gracefully refuses its clients first, and leads on for a second or more.

Whose answers count is told by `clusters`: before the first call all endpoints are asked once, where there are several.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import grpc
import structlog
from google.protobuf.message import Message

from qsg.pb.etcd import rpc_pb2
from qsg.store.contract import NotApplied, StoreError, Unavailable
from qsg.store.etcd import errors
from qsg.store.etcd.clusters import Clusters
from qsg.store.etcd.endpoints import Endpoint, Security
from qsg.store.etcd.user import User

log = structlog.get_logger()

_CONNECT_S = 0.25
"""For one endpoint, while there are others to try."""
_PAUSE_S = 0.02
_LEADER_ASK_S = 0.15
_LEADER_PAUSE_S = 0.05
_LEADER_SEARCH_S = 5.0
_STRANGERS_S = 5.0
"""How often those are asked again that have not said yet that they are of our cluster."""
_SLOW_S = 0.1
"""A call that takes longer asks who leads now."""
_OVERTAKEN_S = 0.02
"""So long a call of an older term may still be answered: what was committed is known by then."""
_HAS_LEADER = ("hasleader", "true")


class EndpointPool:
    def __init__(self, addresses: Sequence[str], security: Security | None, user: User) -> None:
        assert addresses, "no endpoints"
        self.endpoints = [Endpoint(address, security) for address in addresses]
        self.metadata: tuple[tuple[str, str], ...] = (_HAS_LEADER,)
        self.on_eject: list[Callable[[Endpoint], None]] = []
        """Called when an endpoint is given up, for those who hold a stream to it."""
        self.closed = False
        self._user = user
        self._current = self.endpoints[0]
        self._leader: Endpoint | None = None
        self._term = 0
        self._search: asyncio.Task[None] | None = None
        self._clusters = Clusters(self.endpoints)
        self._asked = asyncio.Event()
        """All were asked once which cluster they are of, or there is only one."""
        if len(self.endpoints) == 1:
            self._asked.set()
        self._again: asyncio.TimerHandle | None = None
        self._out: dict[Any, int] = {}
        """Calls under way, and the term in which they were sent; 0 = none was known."""
        self._login_lock = asyncio.Lock()

    async def call(self, name: str, request: Message, until: float) -> Any:
        """One attempt that ends by loop time `until`; raises what the store contract says."""
        endpoint = await self.connected(until)
        loop = asyncio.get_running_loop()
        slow = loop.call_later(_SLOW_S, self._search_leader)
        call = endpoint.calls(name)(request, timeout=max(until - loop.time(), 0.001), metadata=self.metadata)
        self._out[call] = self._term
        try:
            response = await call
        except grpc.aio.AioRpcError as rpc_error:
            raise self.failed(endpoint, errors.from_rpc(rpc_error), missed=_missed(rpc_error)) from rpc_error
        except asyncio.CancelledError:
            if this_task_is_cancelled():
                raise
            raise Unavailable("connection closed, or another leader since") from None
        finally:
            slow.cancel()
            del self._out[call]
        if not self.ours(endpoint, response.header):
            raise Unavailable(f"{endpoint.address} answered for another etcd cluster")
        endpoint.succeeded()
        self.observe(response.header)
        return response

    async def connected(self, until: float) -> Endpoint:
        """A connected endpoint, by loop time `until`; logged in, if there is a user."""
        clock = asyncio.get_running_loop().time
        if not self._asked.is_set() and not self.closed:
            await self._ask_all(until)
        while True:
            if self.closed:
                raise NotApplied("the store is closed")
            if self._clusters.divided:
                self._search_leader()
                raise NotApplied("the endpoints belong to several etcd clusters")
            endpoint = self._choose(clock())
            if endpoint.state() is grpc.ChannelConnectivity.READY:
                break
            limit = until if len(self.endpoints) == 1 else min(until, clock() + _CONNECT_S)
            if await endpoint.connected(limit) and not self._clusters.foreign(endpoint):
                break
            self._eject(endpoint, silent=False)
            if clock() + _PAUSE_S >= until:
                raise errors.Unsent(f"no connection to {', '.join(e.address for e in self.endpoints)}")
            await asyncio.sleep(_PAUSE_S if self._choose(clock()).ejected_until > clock() else 0)
        if self._user.exists and len(self.metadata) == 1:
            await self._login(endpoint, until)
        return endpoint

    async def _ask_all(self, until: float) -> None:
        self._search_leader()
        try:
            async with asyncio.timeout_at(until):
                await self._asked.wait()
        except TimeoutError:
            raise NotApplied("not all endpoints were asked yet") from None

    def ours(self, endpoint: Endpoint, header: rpc_pb2.ResponseHeader) -> bool:
        """An answer has come. False: it says nothing of our store, and the endpoint is left."""
        counts = self._note(endpoint, header.cluster_id)
        if not counts:
            self._eject(endpoint, silent=False)
        return counts

    def _note(self, endpoint: Endpoint, cluster: int) -> bool:
        clusters = self._clusters
        before = clusters.said.get(endpoint, 0)
        counts = clusters.heard(endpoint, cluster)
        if cluster in (0, before):
            return counts
        found = clusters.by_cluster
        if before or len(found) > 1:
            told = {f"{each:x}": [e.address for e in of] for each, of in found.items()}
            tell = log.error if len(found) > 1 or len(self.endpoints) == 1 else log.info
            tell("etcd clusters behind one structure's endpoints", clusters=told, used=f"{clusters.used:x}" if clusters.used else "none")
            self._term = 0  # another cluster counts its terms by itself
            if self._leader is not None and clusters.foreign(self._leader):
                self._leader = None
        return counts

    def _choose(self, now: float) -> Endpoint:
        leader = self._leader
        if leader is not None and not self._is_left(leader, now):
            self._current = leader
        elif self._is_left(self._current, now):
            # Where all are ejected: the one that will be back first, which also takes them in turn.
            at = self.endpoints.index(self._current)
            in_turn = self.endpoints[at + 1 :] + self.endpoints[: at + 1]
            of_ours = [e for e in in_turn if not self._clusters.foreign(e)]
            self._current = min(of_ours or in_turn, key=lambda e: e.ejected_until if e.ejected_until > now else 0.0)
        return self._current

    def _is_left(self, endpoint: Endpoint, now: float) -> bool:
        return endpoint.ejected_until > now or self._clusters.foreign(endpoint)

    def has_better_than(self, endpoint: Endpoint) -> bool:
        now = asyncio.get_running_loop().time()
        return self._is_left(endpoint, now) and not all(self._is_left(e, now) for e in self.endpoints)

    def failed(self, endpoint: Endpoint, error: StoreError, *, missed: bool) -> StoreError:
        """Takes note of a failed call on `endpoint`; returns `error` for raising."""
        if isinstance(error, errors.TokenExpired):
            self.metadata = (_HAS_LEADER,)
        elif isinstance(error, (Unavailable, NotApplied)):
            self._eject(endpoint, silent=missed)
        return error

    def silent(self, endpoint: Endpoint) -> None:
        """A stream of `endpoint` has gone silent: its connection is not to be used again."""
        self._eject(endpoint, silent=True)
        endpoint.renew()

    def _eject(self, endpoint: Endpoint, *, silent: bool) -> None:
        endpoint.eject(asyncio.get_running_loop().time(), silent=silent)
        if endpoint is self._leader:
            self._leader = None
        if endpoint.failures == 1:
            log.info("etcd endpoint left for a while", endpoint=endpoint.address)
        for callback in self.on_eject:
            callback(endpoint)
        self._search_leader()

    def observe(self, header: rpc_pb2.ResponseHeader) -> None:
        """A response has come: a new term means a new leader."""
        if header.raft_term > self._term:
            self._see(header.raft_term)
            self._search_leader()

    def _see(self, term: int) -> None:
        if term > self._term:
            self._term = term
            asyncio.get_running_loop().call_later(_OVERTAKEN_S, self._end_overtaken, term)

    def _end_overtaken(self, term: int) -> None:
        for call, sent_in in list(self._out.items()):
            if 0 < sent_in < term:
                call.cancel()

    def _search_leader(self) -> None:
        if len(self.endpoints) > 1 and not self.closed and (self._search is None or self._search.done()):
            self._search = asyncio.get_running_loop().create_task(self._find_leader())

    async def _find_leader(self) -> None:
        """Asks all endpoints until one of them says that it is the leader, or for a few seconds."""
        clock = asyncio.get_running_loop().time
        start = clock()
        while clock() < start + _LEADER_SEARCH_S:
            try:
                answers = await asyncio.gather(*(self._leads(endpoint) for endpoint in self.endpoints))
            finally:
                self._asked.set()
            # Some are known to be of another cluster only now that all have answered.
            answers = [0 if self._clusters.foreign(e) else term for e, term in zip(self.endpoints, answers, strict=True)]
            if term := max(answers):
                leader = self._leader = self.endpoints[answers.index(term)]
                leader.told_who_leads()
                break
            await asyncio.sleep(_LEADER_PAUSE_S)
        if not self._clusters.complete:
            if self._again is not None:
                self._again.cancel()
            self._again = asyncio.get_running_loop().call_later(_STRANGERS_S, self._search_leader)

    async def _leads(self, endpoint: Endpoint) -> int:
        """The term in which it says that it leads, else 0. (A leader that is cut off says so for a while: the highest term is right.)"""
        until = asyncio.get_running_loop().time() + _LEADER_ASK_S
        if endpoint.state() is grpc.ChannelConnectivity.TRANSIENT_FAILURE or not await endpoint.connected(until):
            return 0
        try:
            status = await endpoint.calls("status")(rpc_pb2.StatusRequest(), timeout=_LEADER_ASK_S, metadata=self.metadata)
        except grpc.aio.AioRpcError:
            return 0
        except asyncio.CancelledError:
            if this_task_is_cancelled():
                raise
            return 0
        self._note(endpoint, status.header.cluster_id)
        if self._clusters.foreign(endpoint):
            return 0
        self._see(status.header.raft_term)
        if status.leader:
            endpoint.told_who_leads()
        return int(status.header.raft_term) if status.leader == status.header.member_id else 0

    async def _login(self, endpoint: Endpoint, until: float) -> None:
        async with self._login_lock:
            if len(self.metadata) > 1:
                return
            clock = asyncio.get_running_loop().time
            pair = self._user.pair()
            if self._user.waits(pair, clock()):
                raise NotApplied("user and password were refused")
            request = rpc_pb2.AuthenticateRequest(name=pair[0], password=pair[1])
            left = max(until - clock(), 0.001)
            try:
                response = await endpoint.calls("authenticate")(request, timeout=left, metadata=self.metadata)
            except grpc.aio.AioRpcError as rpc_error:
                error = self.failed(endpoint, errors.from_rpc(rpc_error), missed=_missed(rpc_error))
                # The request behind this login was not sent.
                passing = isinstance(error, (Unavailable, NotApplied)) or self._user.refused(pair, clock(), str(error))
                raise NotApplied(str(error)) if passing else error from rpc_error
            if not self.ours(endpoint, response.header):
                raise NotApplied(f"{endpoint.address} is of another etcd cluster")
            self._user.taken()
            self.metadata = (_HAS_LEADER, ("token", response.token))

    async def close(self) -> None:
        self.closed = True
        self._asked.set()
        if self._again is not None:
            self._again.cancel()
        if self._search is not None:
            self._search.cancel()
            await asyncio.gather(self._search, return_exceptions=True)
        await asyncio.gather(*(endpoint.close() for endpoint in self.endpoints))


def this_task_is_cancelled() -> bool:
    """Whether a `CancelledError` is meant for this task. (gRPC raises it also in those who wait for a call that was cancelled.)"""
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


def _missed(error: grpc.aio.AioRpcError) -> bool:
    return bool(error.code() is grpc.StatusCode.DEADLINE_EXCEEDED)
