"""From what a server or gRPC said to what the store contract says.

Owns the one judgement that matters: was the request *provably not applied*? Only texts that etcd or gRPC use before a proposal is
handed to raft are on that list; whatever is not known is in doubt (`Unavailable`). "server stopped" and "request timed out" are in
doubt: etcd says so after the proposal was made.
"""

from __future__ import annotations

import re

import grpc

from qsg.store.contract import Compacted, LeaseNotFound, NoSpace, NotApplied, StoreError, TooLarge, Unavailable

_NOT_APPLIED = (
    "etcdserver: no leader",  # refused by the interceptor that looks at `hasleader`
    "etcdserver: too many requests",  # refused before the proposal
    "raft proposal dropped",  # this member knows no leader to give it to
    "failed to connect to all addresses",  # no connection was picked, so nothing was sent
    "DNS resolution failed",
    "Name resolution failure",
)
_OLD_TOKEN = (
    "invalid auth token",
    "revision of auth store is old",  # of users and roles, which a JWT names: told before a write is applied, on every member alike
)
_REFUSED_BY_SERVER = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.OUT_OF_RANGE,
        grpc.StatusCode.UNIMPLEMENTED,
    }
)
_REQUEST_SIZE = re.compile(r"received message larger than max \(\d+ vs\.? (\d+)\)", re.IGNORECASE)
_FRAMING_BYTES = 512 * 1024
"""etcd lets gRPC take this much more than --max-request-bytes."""


class TooManyOperations(TooLarge):
    """The server counts operations; `Limits.operations` must shrink."""


class TooManyBytes(TooLarge):
    """The server weighs requests; `limit` is what it takes, 0 when it does not say."""

    def __init__(self, detail: str, limit: int = 0) -> None:
        super().__init__(detail)
        self.limit = limit


class TokenExpired(NotApplied):
    """The auth token is no longer good: log in again and repeat."""


class Unsent(NotApplied):
    """No connection to the endpoint."""


def from_rpc(error: grpc.aio.AioRpcError) -> StoreError:
    return from_text(error.code(), error.details() or "")


def from_text(code: grpc.StatusCode, detail: str) -> StoreError:
    """The error that `code` and `detail` stand for, as it is safe to tell a writer."""
    known = _known(code, detail)
    if known is not None:
        return known
    if code in _REFUSED_BY_SERVER:
        return StoreError(f"{code.name}: {detail}")
    return Unavailable(f"{code.name}: {detail}")


def _known(code: grpc.StatusCode, detail: str) -> StoreError | None:
    if "database space exceeded" in detail:
        return NoSpace(detail)
    if "requested lease not found" in detail:
        return LeaseNotFound(detail)
    if "has been compacted" in detail:
        return Compacted(0)
    if "too many operations" in detail:
        return TooManyOperations(detail)
    if "request is too large" in detail:
        return TooManyBytes(detail)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in detail:
        return _by_size(detail)
    if any(text in detail for text in _OLD_TOKEN):
        return TokenExpired(detail)
    if any(text in detail for text in _NOT_APPLIED):
        return Unsent(detail) if "etcdserver" not in detail and "raft" not in detail else NotApplied(detail)
    return None


def _by_size(detail: str) -> StoreError:
    """An answer that is too large for *us* says nothing about the request: it stays in doubt."""
    if detail.startswith("CLIENT: Received"):
        return Unavailable(detail)
    match = _REQUEST_SIZE.search(detail)
    return TooManyBytes(detail, max(int(match.group(1)) - _FRAMING_BYTES, 1) if match else 0)
