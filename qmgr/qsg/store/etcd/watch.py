"""One watch: how far it has seen everything, and what waits to be taken. Pure: responses in, batches out.

Invariant: a watch resumes behind the last revision of which it holds *everything*: that of the last event once no fragment of its
response is outstanding, or that of a progress notification. Never that of a response's header, which runs ahead while a watch catches up.
Progress counts only after the server said that the watch was created on this stream (until then its events are held back), and only if
the question came behind the creation: an answer of before it may be sent after *created*, which etcd and its watches put on two channels,
and knows nothing of this watch. etcd handles the requests of a stream one by one, and the revision in the header of *created* is read
while it handles the creation, whether the watch is new, fragmented or resumed (v3rpc/watch.go, recvLoop): an older answer is never higher.
"""

from __future__ import annotations

import asyncio

from qsg.pb.etcd import rpc_pb2
from qsg.store.contract import Event, StoreError, WatchBatch
from qsg.store.etcd import codec


class Watch:
    """One watch: where it stands, and what has come for it and is not yet taken."""

    __slots__ = ("created", "end", "error", "fragments", "id", "key", "news", "next", "pending", "reached", "revision", "suspect")

    def __init__(self, key: bytes, end: bytes, from_revision: int) -> None:
        self.key, self.end = key, end
        self.next = from_revision
        """The first revision not seen whole; 0 = from whatever is next when it is created."""
        self.id = 0
        """On the present stream; 0 = on none."""
        self.created = False
        self.suspect = 0
        """A progress answer up to this revision may be of before the watch."""
        self.reached = 0
        """Nothing comes any more from up to here."""
        self.fragments: list[Event] = []
        self.pending: list[Event] = []
        self.revision = 0
        """`pending` is everything up to here."""
        self.error: StoreError | None = None
        self.news = asyncio.Event()

    def request(self) -> rpc_pb2.WatchRequest:
        request = rpc_pb2.WatchRequest()
        create = request.create_request
        create.key, create.range_end, create.start_revision = self.key or b"\0", self.end, self.next
        create.watch_id, create.fragment = self.id, True
        return request

    def leave_stream(self) -> None:
        self.id, self.created = 0, False
        self.fragments.clear()

    def take_created(self, revision: int) -> None:
        self.created, self.suspect = True, revision
        if not self.next:
            self.next = revision + 1

    def take_events(self, response: rpc_pb2.WatchResponse) -> None:
        if self.error is None and response.events and (came := response.events[0].kv.mod_revision) <= self.reached:
            self.fail(StoreError(f"an event of revision {came} came when all up to {self.reached} was said to have come"))
        if self.error is not None:
            return
        self.fragments.extend([codec.event(e) for e in response.events])
        if response.fragment:
            return
        self.pending.extend(self.fragments)
        self.fragments.clear()
        self._reach(self.pending[-1].kv.mod_revision)

    def take_progress(self, revision: int) -> None:
        # A member that lags behind the one before it says less than is known.
        if not self.created or self.fragments or not 0 < self.next <= revision:
            return
        if revision > self.suspect:
            self._reach(revision)
        elif revision == self.suspect:
            self.suspect -= 1  # one question is out at a time: in a store that stands still the next answer is of behind the creation

    def _reach(self, revision: int) -> None:
        self.next = revision + 1
        self.revision = self.reached = revision
        self.news.set()

    def fail(self, error: StoreError) -> None:
        self.error = error
        self.news.set()

    def batch(self) -> WatchBatch | None:
        if not self.revision:
            return None
        batch = WatchBatch(self.revision, tuple(self.pending))
        self.pending.clear()
        self.revision = 0
        return batch
