"""Between etcd's messages and the store contract: requests to operations, results to responses, errors to gRPC's codes and etcd's texts.

Parts of etcd's API that are not served are refused as unimplemented, never ignored where that would change a result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import grpc

from qsg.pb.etcd import kv_pb2, rpc_pb2
from qsg.store.contract import (
    Compacted,
    Compare,
    Delete,
    Event,
    Get,
    GetResult,
    KeyValue,
    LeaseNotFound,
    NoSpace,
    NotApplied,
    Op,
    Put,
    Relation,
    StoreError,
    Target,
    TooLarge,
)
from qsg.store.sqlite_engine import Applied

Code = grpc.StatusCode
_TEXTS = (
    ("key is not provided", Code.INVALID_ARGUMENT, "etcdserver: key is not provided"),
    ("duplicate key", Code.INVALID_ARGUMENT, "etcdserver: duplicate key given in txn request"),
    ("put and deleted", Code.INVALID_ARGUMENT, "etcdserver: duplicate key given in txn request"),
    ("future revision", Code.OUT_OF_RANGE, "etcdserver: mvcc: required revision is a future revision"),
    ("already exists", Code.FAILED_PRECONDITION, "etcdserver: lease already exists"),
)


class Refused(StoreError):
    """A request that is refused with this code and text."""

    def __init__(self, code: grpc.StatusCode, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


def refusal(error: StoreError) -> tuple[grpc.StatusCode, str]:
    """Code and text by which etcd says the same."""
    if isinstance(error, Refused):
        return error.code, error.text
    if isinstance(error, Compacted):
        return Code.OUT_OF_RANGE, "etcdserver: mvcc: required revision has been compacted"
    if isinstance(error, NoSpace):
        return Code.RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded"
    if isinstance(error, TooLarge):
        return Code.INVALID_ARGUMENT, "etcdserver: request is too large" if "bytes" in str(
            error
        ) else "etcdserver: too many operations in txn request"
    if isinstance(error, LeaseNotFound):
        return Code.NOT_FOUND, "etcdserver: requested lease not found"
    if isinstance(error, NotApplied):
        return Code.UNAVAILABLE, "etcdserver: no leader"
    for part, code, text in _TEXTS:
        if part in str(error):
            return code, text
    return Code.UNAVAILABLE, f"etcdserver: request timed out ({error})"


def kv_message(kv: KeyValue) -> kv_pb2.KeyValue:
    return kv_pb2.KeyValue(
        key=kv.key,
        value=kv.value,
        create_revision=kv.create_revision,
        mod_revision=kv.mod_revision,
        version=kv.version,
        lease=kv.lease,
    )


def event_message(event: Event) -> kv_pb2.Event:
    kind = kv_pb2.Event.DELETE if event.deleted else kv_pb2.Event.PUT
    return kv_pb2.Event(type=kind, kv=kv_message(event.kv))


_RELATIONS = {
    rpc_pb2.Compare.EQUAL: Relation.EQUAL,
    rpc_pb2.Compare.NOT_EQUAL: Relation.NOT_EQUAL,
    rpc_pb2.Compare.LESS: Relation.LESS,
    rpc_pb2.Compare.GREATER: Relation.GREATER,
}
_TARGETS = {
    rpc_pb2.Compare.VERSION: (Target.VERSION, "version"),
    rpc_pb2.Compare.CREATE: (Target.CREATE, "create_revision"),
    rpc_pb2.Compare.MOD: (Target.MOD, "mod_revision"),
    rpc_pb2.Compare.VALUE: (Target.VALUE, "value"),
    rpc_pb2.Compare.LEASE: (Target.LEASE, "lease"),
}


def compare(message: rpc_pb2.Compare) -> Compare:
    if message.target not in _TARGETS or message.result not in _RELATIONS:
        raise Refused(Code.INVALID_ARGUMENT, "etcdserver: unknown compare")
    if not message.key:
        raise Refused(Code.INVALID_ARGUMENT, "etcdserver: key is not provided")
    target, name = _TARGETS[message.target]
    return Compare(message.key, target, _RELATIONS[message.result], getattr(message, name), message.range_end)


@dataclass(frozen=True, slots=True)
class Plan:
    """The operations of one request, and how to build its response from their results."""

    ops: tuple[Op, ...]
    build: Callable[[Sequence[GetResult | int | None], int], rpc_pb2.ResponseOp]


def plan(request: rpc_pb2.RequestOp) -> Plan:
    kind = request.WhichOneof("request")
    if kind == "request_range":
        return _plan_range(request.request_range)
    if kind == "request_put":
        return _plan_put(request.request_put)
    if kind == "request_delete_range":
        return _plan_delete(request.request_delete_range)
    raise Refused(Code.UNIMPLEMENTED, "transactions inside transactions are not served")


def _result(result: GetResult | int | None) -> GetResult:
    assert isinstance(result, GetResult)
    return result


def _plan_put(request: rpc_pb2.PutRequest) -> Plan:
    if request.ignore_value or request.ignore_lease:
        raise Refused(Code.UNIMPLEMENTED, "ignore_value and ignore_lease are not served")
    put = Put(request.key, request.value, request.lease)
    previous = (Get(request.key),) if request.prev_kv else ()

    def build(results: Sequence[GetResult | int | None], revision: int) -> rpc_pb2.ResponseOp:
        response = rpc_pb2.PutResponse(header=rpc_pb2.ResponseHeader(revision=revision))
        if previous and (kv := _result(results[0]).first) is not None:
            response.prev_kv.CopyFrom(kv_message(kv))
        return rpc_pb2.ResponseOp(response_put=response)

    return Plan((*previous, put), build)


def _plan_delete(request: rpc_pb2.DeleteRangeRequest) -> Plan:
    delete = Delete(request.key, request.range_end)
    previous = (Get(request.key, request.range_end),) if request.prev_kv else ()

    def build(results: Sequence[GetResult | int | None], revision: int) -> rpc_pb2.ResponseOp:
        deleted = results[-1]
        assert isinstance(deleted, int)
        response = rpc_pb2.DeleteRangeResponse(header=rpc_pb2.ResponseHeader(revision=revision), deleted=deleted)
        if previous:
            response.prev_kvs.extend(kv_message(kv) for kv in _result(results[0]).kvs)
        return rpc_pb2.ResponseOp(response_delete_range=response)

    return Plan((*previous, delete), build)


def _plan_range(request: rpc_pb2.RangeRequest) -> Plan:
    if request.limit < 0 or request.revision < 0:
        raise Refused(Code.INVALID_ARGUMENT, "etcdserver: negative limit or revision")
    pick = _picker(request)
    get = Get(
        request.key,
        request.range_end,
        limit=0 if pick else request.limit,
        revision=request.revision,
        keys_only=request.keys_only and request.sort_target != rpc_pb2.RangeRequest.VALUE,
        count_only=request.count_only,
        mod_after=max(0, request.min_mod_revision - 1),
    )

    def build(results: Sequence[GetResult | int | None], revision: int) -> rpc_pb2.ResponseOp:
        result = _result(results[0])
        kvs: Iterable[KeyValue] = result.kvs
        more = result.more
        if pick:
            chosen = pick(result.kvs)
            more = 0 < request.limit < len(chosen)
            kvs = chosen[: request.limit] if more else chosen
        messages = [kv_message(kv) for kv in kvs]
        if request.keys_only and not get.keys_only:
            for message in messages:
                message.ClearField("value")
        header = rpc_pb2.ResponseHeader(revision=revision)
        return rpc_pb2.ResponseOp(response_range=rpc_pb2.RangeResponse(header=header, kvs=messages, more=more, count=result.count))

    return Plan((get,), build)


_SORT_KEYS: dict[int, Callable[[KeyValue], int | bytes]] = {
    rpc_pb2.RangeRequest.KEY: lambda kv: kv.key,
    rpc_pb2.RangeRequest.VERSION: lambda kv: kv.version,
    rpc_pb2.RangeRequest.CREATE: lambda kv: kv.create_revision,
    rpc_pb2.RangeRequest.MOD: lambda kv: kv.mod_revision,
    rpc_pb2.RangeRequest.VALUE: lambda kv: kv.value,
}


def _picker(request: rpc_pb2.RangeRequest) -> Callable[[Sequence[KeyValue]], list[KeyValue]] | None:
    """Filters and order that the store does not do by itself; None when there are none."""
    bounded = request.max_mod_revision or request.min_create_revision or request.max_create_revision
    by_key = request.sort_target == rpc_pb2.RangeRequest.KEY and request.sort_order != rpc_pb2.RangeRequest.DESCEND
    if by_key and not bounded:
        return None
    if request.sort_target not in _SORT_KEYS:
        raise Refused(Code.INVALID_ARGUMENT, "etcdserver: invalid sort option")

    def pick(kvs: Sequence[KeyValue]) -> list[KeyValue]:
        most_mod = request.max_mod_revision or 1 << 63
        most_create = request.max_create_revision or 1 << 63
        chosen = [kv for kv in kvs if kv.mod_revision <= most_mod and request.min_create_revision <= kv.create_revision <= most_create]
        # An order that is not by key sorts upwards unless downwards is asked for, as etcd does.
        chosen.sort(key=_SORT_KEYS[request.sort_target], reverse=request.sort_order == rpc_pb2.RangeRequest.DESCEND)
        return chosen

    return pick


def responses(plans: Sequence[Plan], applied: Applied) -> list[rpc_pb2.ResponseOp]:
    """Of the branch that was taken, in its order."""
    built = []
    at = 0
    for one in plans:
        built.append(one.build(applied.results[at : at + len(one.ops)], applied.revision))
        at += len(one.ops)
    return built
