"""The etcd store's pure parts: what an error means, how far a watch has come, how messages are translated, what limits are learnt."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import pytest
from grpc import StatusCode
from structlog.testing import capture_logs

from qsg.pb.etcd import kv_pb2, rpc_pb2
from qsg.store.contract import (
    Compacted,
    Compare,
    Delete,
    Event,
    Get,
    KeyValue,
    LeaseNotFound,
    Limits,
    NoSpace,
    NotApplied,
    Put,
    Relation,
    StoreError,
    Target,
    TooLarge,
    Unavailable,
)
from qsg.store.etcd import EtcdStore, Security, codec, errors
from qsg.store.etcd.endpoints import Endpoint
from qsg.store.etcd.watch import Watch
from support.stores import PATIENT_S

REFUSED = (
    "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1: Failed to connect to remote host: "
    "connect: Connection refused (111)"
)


@pytest.mark.parametrize(
    ("code", "detail", "expected"),
    [
        (StatusCode.UNAVAILABLE, "etcdserver: no leader", NotApplied),
        (StatusCode.RESOURCE_EXHAUSTED, "etcdserver: too many requests", NotApplied),
        (StatusCode.UNKNOWN, "raft proposal dropped", NotApplied),
        (StatusCode.UNAVAILABLE, REFUSED, NotApplied),
        (StatusCode.UNAVAILABLE, "DNS resolution failed for etcd-0.etcd:2379", NotApplied),
        (StatusCode.UNAUTHENTICATED, "etcdserver: invalid auth token", errors.TokenExpired),
        (StatusCode.INVALID_ARGUMENT, "etcdserver: revision of auth store is old", errors.TokenExpired),
        # In doubt: said after the proposal was made, or by a connection that broke with the request on it.
        (StatusCode.UNAVAILABLE, "etcdserver: server stopped", Unavailable),
        (StatusCode.UNAVAILABLE, "etcdserver: request timed out", Unavailable),
        (StatusCode.UNAVAILABLE, "etcdserver: request timed out, possibly due to previous leader failure", Unavailable),
        (StatusCode.UNAVAILABLE, "etcdserver: request timed out, possibly due to connection lost", Unavailable),
        (StatusCode.UNAVAILABLE, "etcdserver: leader changed", Unavailable),
        (StatusCode.UNAVAILABLE, "Socket closed", Unavailable),
        (StatusCode.UNAVAILABLE, "recvmsg:Connection reset by peer", Unavailable),
        (StatusCode.UNAVAILABLE, "Connection refused", Unavailable),
        (StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded", Unavailable),
        (StatusCode.CANCELLED, "", Unavailable),
        (StatusCode.UNKNOWN, "context canceled", Unavailable),
        (StatusCode.INTERNAL, "anything", Unavailable),
        (StatusCode.RESOURCE_EXHAUSTED, "CLIENT: Received message larger than max (300 vs. 200)", Unavailable),
        (StatusCode.RESOURCE_EXHAUSTED, "anything else", Unavailable),
        (StatusCode.RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded", NoSpace),
        (StatusCode.NOT_FOUND, "etcdserver: requested lease not found", LeaseNotFound),
        (StatusCode.INVALID_ARGUMENT, "etcdserver: too many operations in txn request", TooLarge),
        (StatusCode.INVALID_ARGUMENT, "etcdserver: request is too large", TooLarge),
        (StatusCode.RESOURCE_EXHAUSTED, "grpc: received message larger than max (3600018 vs. 2097152)", TooLarge),
        (StatusCode.RESOURCE_EXHAUSTED, "SERVER: Received message larger than max (3600018 vs. 2097152)", TooLarge),
        (StatusCode.OUT_OF_RANGE, "etcdserver: mvcc: required revision has been compacted", Compacted),
    ],
)
def test_what_an_error_means(code: StatusCode, detail: str, expected: type[StoreError]) -> None:
    assert isinstance(errors.from_text(code, detail), expected)


@pytest.mark.parametrize(
    ("code", "detail"),
    [
        (StatusCode.INVALID_ARGUMENT, "etcdserver: duplicate key given in txn request"),
        (StatusCode.PERMISSION_DENIED, "etcdserver: permission denied"),
        (StatusCode.OUT_OF_RANGE, "etcdserver: mvcc: required revision is a future revision"),
        (StatusCode.UNIMPLEMENTED, "unknown service"),
        (StatusCode.INVALID_ARGUMENT, "etcdserver: user name is empty"),  # no token was sent: who has a user never does that
    ],
)
def test_a_plain_refusal_is_neither_in_doubt_nor_worth_repeating(code: StatusCode, detail: str) -> None:
    assert type(errors.from_text(code, detail)) is StoreError


def test_the_size_that_a_server_names_is_learnt() -> None:
    error = errors.from_text(StatusCode.RESOURCE_EXHAUSTED, "grpc: received message larger than max (3600018 vs. 2097152)")
    assert isinstance(error, errors.TooManyBytes)
    assert error.limit == 1_572_864


def learnt(limits: Limits, error: TooLarge, *, compares: int = 0, operations: int = 1, size: int = 100, took: int = 0) -> Limits:
    store = EtcdStore(["127.0.0.1:1"], limits=limits)
    if took:
        store._took(0, took, rpc_pb2.TxnRequest())
    store._learn(error, [Compare(b"k", Target.MOD, Relation.EQUAL, 0)] * compares, operations, size)
    return store.limits


def test_limits_shrink_only_by_refusals_within_them() -> None:
    wide = Limits(10_000, 10_000, 9_000_000)
    too_many = errors.TooManyOperations("")
    assert learnt(wide, too_many, operations=10_001) == wide
    assert learnt(wide, too_many, operations=400) == Limits(200, 200, 9_000_000)
    assert learnt(wide, too_many, operations=400, took=300) == Limits(300, 300, 9_000_000)
    assert learnt(wide, too_many, compares=64, operations=2) == Limits(32, 32, 9_000_000)
    assert learnt(wide, errors.TooManyBytes("", 0), size=4_000_000).bytes == 2_000_000
    assert learnt(wide, errors.TooManyBytes("", 1_572_864), size=4_000_000).bytes == 1_572_864
    assert learnt(Limits(), errors.TooManyBytes("", 0), size=4_000_000) == Limits()


def response(*revisions: int, header: int, fragment: bool = False) -> rpc_pb2.WatchResponse:
    events = [kv_pb2.Event(kv=kv_pb2.KeyValue(key=b"k", value=b"%d" % r, mod_revision=r, create_revision=1, version=1)) for r in revisions]
    return rpc_pb2.WatchResponse(header=rpc_pb2.ResponseHeader(revision=header), events=events, fragment=fragment)


def revisions(watch: Watch) -> tuple[int, list[int]] | None:
    batch = watch.batch()
    return None if batch is None else (batch.revision, [event.kv.mod_revision for event in batch.events])


def created(from_revision: int, header: int = 100) -> Watch:
    watch = Watch(b"k", b"", from_revision)
    watch.id = 1
    watch.take_created(header)
    return watch


def test_a_watch_goes_by_its_events_and_not_by_the_header() -> None:
    watch = created(5)
    watch.take_events(response(5, 7, header=90))
    assert revisions(watch) == (7, [5, 7])
    assert watch.next == 8
    watch.take_events(response(9, header=90))
    watch.take_events(response(11, header=91))
    assert revisions(watch) == (11, [9, 11])
    assert revisions(watch) is None


def test_fragments_count_only_together_and_are_forgotten_with_their_stream() -> None:
    """Interleaving P15: a stream that ends between fragments of one revision is resumed behind the last that came whole."""
    watch = created(5)
    watch.take_events(response(5, 6, header=90, fragment=True))
    assert (revisions(watch), watch.next) == (None, 5)
    watch.leave_stream()
    assert watch.request().create_request.start_revision == 5
    watch.take_created(90)
    watch.take_events(response(5, 6, header=90, fragment=True))
    watch.take_progress(90)  # says nothing while a fragment is outstanding
    assert (revisions(watch), watch.next) == (None, 5)
    watch.take_events(response(6, 7, header=90))
    assert (revisions(watch), watch.next) == ((7, [5, 6, 6, 7]), 8)


def test_progress_moves_a_created_watch_and_never_back() -> None:
    watch = Watch(b"k", b"", 5)
    watch.id = 1
    watch.take_progress(50)
    assert (revisions(watch), watch.next) == (None, 5)
    watch.take_created(49)
    watch.take_progress(50)
    assert (revisions(watch), watch.next) == ((50, []), 51)
    watch.take_progress(30)  # a member that lags behind
    watch.take_progress(50)
    assert (revisions(watch), watch.next) == (None, 51)


def test_a_progress_answer_of_before_the_watch_says_nothing_of_it() -> None:
    """etcd may send it behind *created*, and only then what happened between the watch's first revision and its creation."""
    watch = created(10, header=12)
    watch.take_progress(11)
    watch.take_progress(12)
    assert (revisions(watch), watch.next) == (None, 10)
    watch.take_events(response(11, header=12))
    assert revisions(watch) == (11, [11])


def test_the_second_answer_counts_in_a_store_that_stands_still() -> None:
    watch = created(10, header=12)
    watch.take_progress(12)
    watch.take_progress(12)
    assert revisions(watch) == (12, [])


def test_an_event_that_was_said_to_have_come_ends_the_watch() -> None:
    """Whoever follows lists again."""
    watch = created(10, header=12)
    watch.take_events(response(11, header=12))
    watch.take_progress(14)
    watch.take_events(response(13, 15, header=15))
    watch.take_events(response(16, header=16))
    assert revisions(watch) == (14, [11])
    assert isinstance(watch.error, StoreError)
    late = created(0, header=12)  # began at its creation, a little before the header's revision was read
    late.take_events(response(12, header=12))
    assert (revisions(late), late.error) == ((12, [12]), None)


def test_from_now_on_is_behind_the_revision_at_which_it_was_created() -> None:
    watch = created(0, header=41)
    assert watch.next == 42
    watch.leave_stream()
    watch.take_created(60)
    assert watch.next == 42


def test_deletions_and_puts_are_told_apart() -> None:
    kv = kv_pb2.KeyValue(key=b"k", mod_revision=9)
    assert codec.event(kv_pb2.Event(type=kv_pb2.Event.DELETE, kv=kv)) == Event(KeyValue(b"k", b"", 0, 9, 0), deleted=True)


def test_a_request_in_etcds_words() -> None:
    request = codec.txn_request(
        [Compare(b"a", Target.VALUE, Relation.NOT_EQUAL, b"v"), Compare(b"", Target.MOD, Relation.LESS, 8, b"\0")],
        [Put(b"p", b"v", 7), Delete(b"d", b"e")],
        [Get(b"g", b"h", limit=3, revision=4, keys_only=True, mod_after=5)],
    )
    first, second = request.compare
    assert (first.target, first.result, first.value) == (rpc_pb2.Compare.VALUE, rpc_pb2.Compare.NOT_EQUAL, b"v")
    assert (second.key, second.range_end, second.mod_revision) == (b"\0", b"\0", 8)
    put, delete = request.success
    assert (put.request_put.key, put.request_put.value, put.request_put.lease) == (b"p", b"v", 7)
    assert (delete.request_delete_range.key, delete.request_delete_range.range_end) == (b"d", b"e")
    read = request.failure[0].request_range
    assert not read.serializable, "the newest state, unless a near one will do"
    assert (read.key, read.range_end, read.limit, read.revision, read.keys_only, read.min_mod_revision) == (b"g", b"h", 3, 4, True, 6)
    assert codec.range_request(Get(b"g", near=True)).serializable


def test_a_put_behind_an_endless_deletion_is_refused_here_as_etcd_overlooks_it() -> None:
    with pytest.raises(StoreError):
        codec.txn_request([], [Put(b"k", b""), Delete(b"a", b"\0")], [])
    assert codec.txn_request([], [Put(b"a", b""), Delete(b"b", b"\0")], []).success


CERTIFICATES = Path(__file__).parent.parent / "transport" / "certificates"


async def test_files_of_tls_that_are_missing_or_empty_for_a_moment_leave_the_channel_that_is_there(tmp_path: Path) -> None:
    """An empty one would end the process."""
    files = {name: tmp_path / name for name in ("ca.pem", "client.pem", "client.key")}

    def write() -> None:
        for name, path in files.items():
            path.write_bytes((CERTIFICATES / name).read_bytes())

    endpoint = Endpoint("127.0.0.1:1", Security(files["ca.pem"], files["client.pem"], files["client.key"]))
    with capture_logs() as lines:
        for _ in range(2):
            assert endpoint.state() is grpc.ChannelConnectivity.TRANSIENT_FAILURE
        with pytest.raises(NotApplied):
            endpoint.calls("status")
    assert [line["log_level"] for line in lines] == ["error"]
    write()
    await endpoint.connected(asyncio.get_running_loop().time() + PATIENT_S)  # refused
    channel = endpoint._channel
    for left in (None, b""):
        for path in files.values():
            path.unlink()
            if left is not None:
                path.write_bytes(left)
            assert endpoint.state() is grpc.ChannelConnectivity.TRANSIENT_FAILURE
            endpoint.renew()
            assert endpoint._channel is channel
            write()
    endpoint.state()
    assert endpoint._channel is not channel
    await endpoint.close()


async def test_a_store_without_its_certificates_is_out_of_reach_and_its_watches_wait(tmp_path: Path) -> None:
    store = EtcdStore(["127.0.0.1:1"], ca=tmp_path / "ca.pem")
    watching = asyncio.ensure_future(anext(store.watch(b"a", b"b", 1)))
    with pytest.raises(NotApplied):
        await store.txn([], [Get(b"a")])
    assert not watching.done()
    await store.close()
    with pytest.raises(Unavailable):
        await watching


async def test_whoever_watches_is_told_of_a_defect(monkeypatch: pytest.MonkeyPatch) -> None:
    store = EtcdStore(["127.0.0.1:1"])
    monkeypatch.setattr(store._pool, "connected", lambda until: 1 // 0)
    with pytest.raises(Unavailable, match="ZeroDivisionError"):
        await asyncio.wait_for(anext(store.watch(b"a", b"b", 1)), PATIENT_S)
    await store.close()
