"""Damaged values in a store, etcd's API as `qsg store` serves it, and what an etcd may answer."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError, Message

from fuzz import wire
from fuzz.target import Loop, Target, Violation, mutate_frames
from qsg.manager.browsing import BrowseSpec
from qsg.manager.getting import GetSpec
from qsg.manager.steps import Driver
from qsg.manager.table import StatusTable
from qsg.pb import records_pb2 as pb
from qsg.pb.etcd import kv_pb2, rpc_pb2
from qsg.rules import keys, status
from qsg.rules.definitions import Channel
from qsg.rules.ownership import Occasion, leftovers, release_own_lock, take
from qsg.rules.reasons import Refusal
from qsg.rules.steps import Me, Place
from qsg.rules.unit import CompareFailed, Unit
from qsg.store import serve_wire
from qsg.store.contract import Put, StoreError
from qsg.store.etcd import codec
from qsg.store.mvcc import Mvcc
from qsg.store.serve import LIMITS
from qsg.store.serve_calls import Calls
from qsg.store.serve_watch import WatchStream
from qsg.store.sqlite import SqliteStore
from support.members import Group, Member, shared

ENDS_S = 120.0
"""In virtual time: a read of a store is repeated for seconds."""
CHANNEL = Channel(name="C", type="sender", transmission_queue="R", connection_names=("r:1",))
SIZES = (1, 100, 5_000, 70_000)


class _NoInitiator:
    initiator = 5


class _Stored:
    """A group's store with one value changed: a member starts on it and is used; it tells what is damaged, and no wrong message."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.states: dict[str, Mvcc] = {}
        self.values: dict[str, list[tuple[bytes, bytes]]] = {}
        self.sizes: dict[bytes, int] = {}
        """Of what was put: message id -> bytes of the payload. (Damage inside a payload is not noticed.)"""
        self.loop.run(self._fill())

    async def _fill(self) -> None:
        group = Group()
        x, y = await group.member("X"), await group.member("Y")
        for name, usage in (("A", "normal"), ("B", "normal"), ("R", "transmission")):
            await x.queues.define(shared(name, usage=usage))
        for member in (x, y):
            for size in SIZES:
                payload = (f"{member.name}{size}".encode() * size)[:size]
                self.sizes.update((one, size) for one in await member.put("A", payload, payload))
        self.sizes.update((one, 400_000) for one in await x.put("B", bytes(400_000)))
        unit = x.queues.begin()
        await x.queues.get(GetSpec("A", messages_max=3), unit=unit)
        await y.get("A", 1)
        driver = Driver("X", x.structures, _NoInitiator())  # type: ignore[arg-type]
        held = await driver.run(take(driver.me, self._place(), Occasion("trigger", 5), x.world.id))
        assert held.status.state == pb.STARTING
        await x.structures["admin"].commit(
            Unit("inbound", ops=[Put(keys.status_in("IN", "P"), status.image(pb.ChannelStatus(channel="IN", partner="P", owner="Y")))])
        )
        for name in ("admin", "app1"):
            self.states[name] = copy.deepcopy(group.server(name).state)
            found = await (x if name == "admin" else y).stores[name].get(_everything())
            self.values[name] = [(kv.key, kv.value) for kv in found.kvs if not kv.key.startswith(b"q/B/x/")]

    @staticmethod
    def _place() -> Place:
        return Place(CHANNEL, "admin", "app1")

    def check(self, data: bytes) -> None:
        frames = wire.split(data)
        if len(frames) < 2 or frames[0] not in {key for values in self.values.values() for key, _ in values}:
            return
        self.loop.hold(self._check(frames[0], frames[1]))

    async def _check(self, key: bytes, value: bytes) -> None:
        group = Group()
        for name, state in self.states.items():
            group.server(name).state = copy.deepcopy(state)
            if any(key == known for known, _ in self.values[name]):
                group.server(name).state.apply([], [Put(key, value)], [])
        async with asyncio.timeout(ENDS_S):
            member = await group.member("X")
            member.world.random.seed("not the ids of what was put before")
            await self._use(member)
            await self._channels(member)
            await group.close()

    async def _use(self, member: Member) -> None:
        for queue in "AB":
            await _told(lambda queue=queue: member.queues.inquire(queue))  # type: ignore[misc]
            cursor, pages = b"", 0
            while (page := await _told(lambda: member.queues.browse(BrowseSpec(queue, messages_max=5, cursor=cursor)))) and pages < 20:  # noqa: B023
                self._known([got.raw for got in page[0]])
                cursor, pages = page[1], pages + 1
            unit = member.queues.begin()
            got = await _told(lambda: member.queues.get(GetSpec(queue, messages_max=2), unit=unit))  # noqa: B023
            self._known([one.raw for one in got or ()])
            await _told(unit.backout)
            self.sizes.update((one, 3) for one in await _told(lambda: member.put(queue, b"new")) or ())  # noqa: B023
            for _ in range(24):
                got = await _told(lambda: member.queues.get(GetSpec(queue, messages_max=4)))  # noqa: B023
                if not got:
                    break
                self._known([one.raw for one in got])
        if member.structures["app1"].fenced.is_set() or member.structures["admin"].fenced.is_set():
            raise Violation("a damaged value took the member down")

    def _known(self, found: list[bytes]) -> None:
        for raw in found:
            message = pb.Message.FromString(raw)
            if self.sizes.get(message.message_id) != len(message.payload):
                raise Violation("a message that nobody put")

    async def _channels(self, member: Member) -> None:
        table = StatusTable(member.structures["admin"])
        await table.start()
        table.entries(), table.entry("C")
        driver = Driver("X", member.structures, _NoInitiator())  # type: ignore[arg-type]
        me: Me = driver.me
        list(leftovers(me, table.sight({}, (keys.initiator("X"), 0))))
        await _told(lambda: driver.run(take(me, self._place(), Occasion("trigger", 9), member.world.id)))
        entry = await table.structure.cell(keys.status_out("C"))
        await _told(lambda: driver.run(release_own_lock(me, self._place(), entry)))
        await table.close()


def _everything() -> Any:
    from qsg.store.contract import Get

    return Get(b"\0", b"\0")


async def _told(call: Callable[[], Any]) -> Any:
    """The answer; None when it was refused, with words."""
    try:
        return await call()
    except (Refusal, CompareFailed) as error:
        if not str(error):
            raise Violation("refused without words") from error
        return None


def stored() -> Target:
    made = _Stored()
    seeds = [wire.join([key, value]) for values in made.values.values() for key, value in values if len(value) < 20_000]

    def mutate(data: bytes, seeds: list[bytes], random: Any) -> bytes:
        frames = wire.split(data)
        if len(frames) < 2:
            return bytes(random.choice(seeds))
        value = random.choice((wire.mutate_message, wire.mutate_bytes))(frames[1], random)
        if random.random() < 0.05:
            value = wire.split(random.choice(seeds))[1]
        return wire.join([frames[0], value])

    return Target("stored", seeds, made.check, mutate, made.loop.close)


# etcd's API


class _Aborted(Exception):
    pass


class _Context:
    """A gRPC call whose answers are kept."""

    def __init__(self) -> None:
        self.code: Any = None
        self.written: list[Message] = []

    def time_remaining(self) -> None:
        return None

    async def abort(self, code: Any, words: str) -> None:
        self.code = code
        raise _Aborted(f"{code} {words}")

    async def write(self, response: Message) -> None:
        response.SerializeToString()
        self.written.append(response)


CALLS: list[tuple[str, type[Message]]] = [
    ("range", rpc_pb2.RangeRequest),
    ("put", rpc_pb2.PutRequest),
    ("delete_range", rpc_pb2.DeleteRangeRequest),
    ("txn", rpc_pb2.TxnRequest),
    ("compact", rpc_pb2.CompactionRequest),
    ("lease_grant", rpc_pb2.LeaseGrantRequest),
    ("lease_revoke", rpc_pb2.LeaseRevokeRequest),
    ("lease_time_to_live", rpc_pb2.LeaseTimeToLiveRequest),
    ("lease_leases", rpc_pb2.LeaseLeasesRequest),
    ("status", rpc_pb2.StatusRequest),
    ("alarm", rpc_pb2.AlarmRequest),
    ("watch", rpc_pb2.WatchRequest),
    ("lease_keep_alive", rpc_pb2.LeaseKeepAliveRequest),
]


class _Api:
    """Frames: one byte of which call, then its request."""

    def __init__(self) -> None:
        self.loop = Loop(virtual=False)
        self.folder = tempfile.TemporaryDirectory()
        self.store = SqliteStore(Path(self.folder.name) / "store.db", limits=LIMITS, compact_interval_s=0)
        self.loop.run(self.store.open())
        self.calls = Calls(self.store)

    def close(self) -> None:
        self.loop.run(self.store.close())
        self.loop.close()
        self.folder.cleanup()

    def check(self, data: bytes) -> None:
        self.loop.hold(self._check(wire.split(data)))

    async def _check(self, frames: list[bytes]) -> None:
        for frame in frames[:20]:
            name, kind = CALLS[frame[0] % len(CALLS)] if frame else CALLS[0]
            try:
                request = kind.FromString(frame[1:])
            except DecodeError:
                continue  # gRPC answers that
            async with asyncio.timeout(10):
                await self._call(name, request)
        if self.store.failed.is_set():
            raise Violation("the store failed")
        async with asyncio.timeout(10):
            await self.calls.put(rpc_pb2.PutRequest(key=b"alive", value=b"yes"), _Context())
            answer = await self.calls.range(rpc_pb2.RangeRequest(key=b"alive"), _Context())
        if [kv.value for kv in answer.kvs] != [b"yes"]:
            raise Violation("the store does not keep what it is given")

    async def _call(self, name: str, request: Any) -> None:
        context = _Context()

        async def requests() -> Any:
            yield request

        try:
            if name == "watch":
                watching = asyncio.ensure_future(WatchStream(self.store, self.calls, context).run(requests()))
                await asyncio.wait([watching], timeout=0.01)
                watching.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await watching
                if self.store._hub._watches:
                    raise Violation("a watch is left")
            elif name == "lease_keep_alive":
                async for response in self.calls.lease_keep_alive(requests(), context):
                    response.SerializeToString()
            else:
                (await getattr(self.calls, name)(request, context)).SerializeToString()
        except StoreError as error:
            code, words = serve_wire.refusal(error)
            if not words or code is None:
                raise Violation(f"refused without words: {error!r}") from error
        except _Aborted:
            return


def api() -> Target:
    def call(name: str, request: Message) -> bytes:
        return bytes((next(i for i, (known, _) in enumerate(CALLS) if known == name),)) + request.SerializeToString()

    put = rpc_pb2.PutRequest(key=b"a", value=b"1", lease=0)
    txn = rpc_pb2.TxnRequest()
    txn.compare.add(key=b"a", target=rpc_pb2.Compare.MOD, result=rpc_pb2.Compare.EQUAL, mod_revision=3)
    txn.compare.add(key=b"b", target=rpc_pb2.Compare.VALUE, result=rpc_pb2.Compare.EQUAL, value=b"x", range_end=b"c")
    txn.success.add().request_put.CopyFrom(put)
    txn.success.add().request_range.CopyFrom(rpc_pb2.RangeRequest(key=b"a", range_end=b"b", limit=5, min_mod_revision=2))
    txn.failure.add().request_delete_range.CopyFrom(rpc_pb2.DeleteRangeRequest(key=b"c", range_end=b"d", prev_kv=True))
    watch = rpc_pb2.WatchRequest()
    watch.create_request.CopyFrom(rpc_pb2.WatchCreateRequest(key=b"a", range_end=b"b", start_revision=2, watch_id=3))
    ranged = rpc_pb2.RangeRequest(key=b"\0", range_end=b"\0", revision=2, keys_only=True, limit=10)
    seeds = [
        wire.join([call("put", put), call("txn", txn), call("range", ranged), call("watch", watch)]),
        wire.join(
            [call("lease_grant", rpc_pb2.LeaseGrantRequest(TTL=5, ID=77)), call("lease_keep_alive", rpc_pb2.LeaseKeepAliveRequest(ID=77))]
        ),
        wire.join(
            [
                call("lease_time_to_live", rpc_pb2.LeaseTimeToLiveRequest(ID=77, keys=True)),
                call("lease_revoke", rpc_pb2.LeaseRevokeRequest(ID=77)),
            ]
        ),
        wire.join(
            [call("put", rpc_pb2.PutRequest(key=b"l", value=b"1", lease=77)), call("compact", rpc_pb2.CompactionRequest(revision=3))]
        ),
        wire.join([call("alarm", rpc_pb2.AlarmRequest(action=rpc_pb2.AlarmRequest.GET)), call("status", rpc_pb2.StatusRequest())]),
    ]
    made = _Api()
    return Target("etcd-api", seeds, made.check, mutate_frames(1), made.close)


# What an etcd answers


def _check_answers(data: bytes) -> None:
    for frame in wire.split(data):
        try:
            codec.txn_result(rpc_pb2.TxnResponse.FromString(frame))
            codec.get_result(rpc_pb2.RangeResponse.FromString(frame), 5)
            codec.event(kv_pb2.Event.FromString(frame))
        except DecodeError:
            continue


def answers() -> Target:
    response = rpc_pb2.TxnResponse(header=rpc_pb2.ResponseHeader(revision=9), succeeded=True)
    kv = kv_pb2.KeyValue(key=b"a", value=b"b", create_revision=3, mod_revision=4, version=2)
    response.responses.add().response_range.CopyFrom(rpc_pb2.RangeResponse(kvs=[kv], count=1, more=True))
    response.responses.add().response_put.SetInParent()
    event = kv_pb2.Event(type=kv_pb2.Event.DELETE, kv=kv)
    return Target("etcd-answers", [wire.join([response.SerializeToString(), event.SerializeToString()])], _check_answers, mutate_frames(0))
