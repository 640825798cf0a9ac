"""Store contract <-> etcd's protocol buffers. Pure; requests are filled in place, so that values are copied once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qsg.pb.etcd import kv_pb2, rpc_pb2
from qsg.store.contract import Compare, Delete, Event, Get, GetResult, KeyValue, Op, Put, Relation, StoreError, Target, TxnResult

_RESULTS = {
    Relation.EQUAL: rpc_pb2.Compare.EQUAL,
    Relation.NOT_EQUAL: rpc_pb2.Compare.NOT_EQUAL,
    Relation.LESS: rpc_pb2.Compare.LESS,
    Relation.GREATER: rpc_pb2.Compare.GREATER,
}
_TARGETS = {
    Target.CREATE: (rpc_pb2.Compare.CREATE, "create_revision"),
    Target.MOD: (rpc_pb2.Compare.MOD, "mod_revision"),
    Target.VERSION: (rpc_pb2.Compare.VERSION, "version"),
    Target.VALUE: (rpc_pb2.Compare.VALUE, "value"),
    Target.LEASE: (rpc_pb2.Compare.LEASE, "lease"),
}


def txn_request(compares: Sequence[Compare], ops: Sequence[Op], else_ops: Sequence[Op]) -> rpc_pb2.TxnRequest:
    request = rpc_pb2.TxnRequest()
    add = request.compare.add
    for compare in compares:
        target, field = _TARGETS[compare.target]
        operand: dict[str, Any] = {field: compare.operand}
        add(result=_RESULTS[compare.relation], target=target, key=_first(compare), range_end=compare.end, **operand)
    for branch, slots in ((ops, request.success), (else_ops, request.failure)):
        for op in branch:
            _fill(slots.add(), op)
            if isinstance(op, Delete) and op.end == b"\0":
                _refuse_puts_within(op, branch)
    return request


def _first(of: Compare | Delete | Get) -> bytes:
    """etcd has no empty key; as the start of a range it is the first key there can be."""
    return of.key or b"\0" if of.end else of.key


def _refuse_puts_within(delete: Delete, branch: Sequence[Op]) -> None:
    """etcd refuses a put inside a deleted range, but overlooks it in one without an end; the contract knows no difference."""
    for op in branch:
        if isinstance(op, Put) and op.key >= delete.key:
            raise StoreError(f"put of {op.key!r} inside a deleted range")


def _fill(slot: rpc_pb2.RequestOp, op: Op) -> None:
    match op:
        case Put():
            put = slot.request_put
            put.key = op.key
            put.value = op.value
            if op.lease:
                put.lease = op.lease
        case Delete():
            delete = slot.request_delete_range
            delete.key = _first(op)
            delete.range_end = op.end
        case Get():
            _fill_range(slot.request_range, op)


def _fill_range(request: rpc_pb2.RangeRequest, get: Get) -> None:
    request.key = _first(get)
    request.range_end = get.end
    if get.limit:
        request.limit = get.limit
    if get.revision:
        request.revision = get.revision
    if get.mod_after:
        request.min_mod_revision = get.mod_after + 1
    if get.near:
        request.serializable = True
    if get.keys_only:
        request.keys_only = True
    if get.count_only:
        request.count_only = True


def range_request(get: Get) -> rpc_pb2.RangeRequest:
    request = rpc_pb2.RangeRequest()
    _fill_range(request, get)
    return request


def key_value(kv: kv_pb2.KeyValue) -> KeyValue:
    return KeyValue(kv.key, kv.value, kv.create_revision, kv.mod_revision, kv.version, kv.lease)


def get_result(response: rpc_pb2.RangeResponse, revision: int) -> GetResult:
    return GetResult(tuple([key_value(kv) for kv in response.kvs]), response.count, response.more, revision)


def txn_result(response: rpc_pb2.TxnResponse) -> TxnResult:
    revision = response.header.revision
    results = tuple(
        [get_result(r.response_range, revision) if r.WhichOneof("response") == "response_range" else None for r in response.responses]
    )
    return TxnResult(response.succeeded, revision, results)


def event(e: kv_pb2.Event) -> Event:
    return Event(key_value(e.kv), e.type == kv_pb2.Event.DELETE)
