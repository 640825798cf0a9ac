"""One etcd endpoint: its channel, its calls, and what we think of its health.

A channel of its own per endpoint (never a load-balanced one): a frozen member would keep its share of the calls until keep-alive
fires, and a write whose endpoint is not known cannot be judged. An endpoint that fails is *ejected* for a while.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import structlog
from google.protobuf.message import Message

from qsg.pb.etcd import rpc_pb2
from qsg.store.etcd import errors

log = structlog.get_logger()

_SERVICE = "/etcdserverpb."
_UNARY: dict[str, tuple[str, type[Message]]] = {
    "txn": ("KV/Txn", rpc_pb2.TxnResponse),
    "range": ("KV/Range", rpc_pb2.RangeResponse),
    "compact": ("KV/Compact", rpc_pb2.CompactionResponse),
    "grant": ("Lease/LeaseGrant", rpc_pb2.LeaseGrantResponse),
    "revoke": ("Lease/LeaseRevoke", rpc_pb2.LeaseRevokeResponse),
    "status": ("Maintenance/Status", rpc_pb2.StatusResponse),
    "authenticate": ("Auth/Authenticate", rpc_pb2.AuthenticateResponse),
}
_STREAMS: dict[str, tuple[str, type[Message]]] = {
    "watch": ("Watch/Watch", rpc_pb2.WatchResponse),
    "keep_alive": ("Lease/LeaseKeepAlive", rpc_pb2.LeaseKeepAliveResponse),
}
_DOWNLOADS: dict[str, tuple[str, type[Message]]] = {"snapshot": ("Maintenance/Snapshot", rpc_pb2.SnapshotResponse)}
_OPTIONS: list[tuple[str, Any]] = [
    ("grpc.enable_retries", 0),  # also no transparent retry: a write is sent once
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),  # a new channel is a new connection
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),  # really the shortest connect deadline: room for a TLS handshake
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.dns_min_time_between_resolutions_ms", 500),
    ("grpc.keepalive_time_ms", 5_000),  # etcd ends connections that ping more often
    ("grpc.keepalive_timeout_ms", 2_000),
    ("grpc.keepalive_permit_without_calls", 0),  # nor those that ping without a call: an idle connection is tried by its next call
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", 256 << 20),
    ("grpc.max_send_message_length", -1),
]
_EJECT_S = 1.0
_EJECT_MAX_S = 8.0
_RENEW_AFTER_MISSES = 2
_CLOSE_GRACE_S = 6.0


@dataclass(frozen=True, slots=True)
class Security:
    """PEM files of TLS; read anew for each channel. One that cannot connect is made anew when they have changed, so that rotated
    certificates are taken up; it stays while one of them is missing or empty, as it may be for a moment meanwhile."""

    ca: Path
    cert: Path | None = None
    key: Path | None = None
    server_name: str = ""

    def stamp(self) -> tuple[object, ...]:
        """Changes when the files do."""
        try:
            stats = [path.stat() for path in (self.ca, self.cert, self.key) if path is not None]
        except OSError:
            return ()
        return tuple((s.st_ino, s.st_mtime_ns, s.st_size) for s in stats)

    def credentials(self) -> Any:
        """Raises `OSError`, also for an empty file: gRPC ends the process for one."""
        ca, cert, key = (_content(path) if path is not None else None for path in (self.ca, self.cert, self.key))
        return grpc.ssl_channel_credentials(ca, key, cert)


def _content(path: Path) -> bytes:
    content = path.read_bytes()
    if not content:
        raise OSError(f"{path} is empty")
    return content


class Endpoint:
    """`address` is host:port or unix:path. Not connected before it is first used."""

    def __init__(self, address: str, security: Security | None) -> None:
        self.address = address.split("://", 1)[1] if address.startswith(("http://", "https://")) else address
        self.ejected_until = 0.0
        self.failures = 0
        """In a row."""
        self.misses = 0
        """Deadlines missed in a row."""
        self.mute = False
        """It left somebody without an answer, and nobody has had one since: that it tells who leads does not make up for it."""
        self._security = security
        self._stamp: tuple[object, ...] = ()
        """Of the files that the channel was made with."""
        self._unreadable = False
        self._channel: Any = None
        self._calls: dict[str, Callable[..., Any]] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def calls(self, name: str) -> Callable[..., Awaitable[Any]]:
        """The call `name`, for the channel as it is now. Raises `Unsent` while there is none, as the files of TLS cannot be read."""
        return self._call(name)

    def stream(self, name: str, metadata: tuple[tuple[str, str], ...]) -> Any:
        return self._call(name)(metadata=metadata)

    def download(self, name: str, request: Message, metadata: tuple[tuple[str, str], ...]) -> Any:
        return self._call(name)(request, metadata=metadata)

    def _call(self, name: str) -> Callable[..., Any]:
        if not self._open():
            raise errors.Unsent(f"no connection to {self.address}")
        return self._calls[name]

    def _open(self) -> bool:
        """False: there is no channel."""
        if self._channel is None and (channel := self._made()) is not None:
            self._use(channel)
        return self._channel is not None

    def _made(self) -> Any:
        """A new channel; None while the files of TLS cannot be read."""
        options = list(_OPTIONS)
        if self._security is None:
            return grpc.aio.insecure_channel(self.address, options=options)
        if self._security.server_name:
            options.append(("grpc.ssl_target_name_override", self._security.server_name))
        stamp = self._security.stamp()
        try:
            credentials = self._security.credentials()
        except OSError as error:
            if not self._unreadable:
                log.error("files of TLS cannot be read", endpoint=self.address, error=str(error))
            self._unreadable = True
            return None
        self._stamp, self._unreadable = stamp, False
        return grpc.aio.secure_channel(self.address, credentials, options=options)

    def _use(self, channel: Any) -> None:
        self._channel = channel
        for name, (path, response) in _UNARY.items():
            self._calls[name] = self._channel.unary_unary(_SERVICE + path, _serialize, response.FromString)
        for name, (path, response) in _DOWNLOADS.items():
            self._calls[name] = self._channel.unary_stream(_SERVICE + path, _serialize, response.FromString)
        for name, (path, response) in _STREAMS.items():
            self._calls[name] = self._channel.stream_stream(_SERVICE + path, _serialize, response.FromString)

    def state(self) -> grpc.ChannelConnectivity:
        """The connection's state now; asks for a connection when there is none."""
        if not self._open():
            return grpc.ChannelConnectivity.TRANSIENT_FAILURE
        state: grpc.ChannelConnectivity = self._channel.get_state(try_to_connect=True)
        if state is grpc.ChannelConnectivity.TRANSIENT_FAILURE and self._security is not None and self._security.stamp() != self._stamp:
            # A channel connects again and again with the certificates that it began with.
            self.renew()
            state = self._channel.get_state(try_to_connect=True)
        return state

    async def connected(self, until: float) -> bool:
        """Waits for a connection until loop time `until`, or until connecting has failed."""
        # Polled: a connectivity watch of grpc.aio that is cancelled lives on in its core until the channel ends.
        clock = asyncio.get_running_loop().time
        pause = 0.002
        failed_before = self.state() is grpc.ChannelConnectivity.TRANSIENT_FAILURE
        while (state := self.state()) is not grpc.ChannelConnectivity.READY:
            if state is grpc.ChannelConnectivity.TRANSIENT_FAILURE and not failed_before:
                return False
            failed_before = state is grpc.ChannelConnectivity.TRANSIENT_FAILURE
            left = until - clock()
            if left <= 0:
                return False
            await asyncio.sleep(min(pause, left))
            pause = min(pause * 2, 0.02)
        return True

    def succeeded(self) -> None:
        self.failures = 0
        self.misses = 0
        self.mute = False
        self.ejected_until = 0.0

    def told_who_leads(self) -> None:
        """It is in touch with the others again; to be used at once, unless it tells that and no more."""
        if not self.mute:
            self.succeeded()

    def eject(self, now: float, *, silent: bool) -> None:
        """Not to be chosen for a while; a connection that was silent twice in a row is replaced."""
        self.failures += 1
        self.mute = self.mute or silent
        self.ejected_until = now + min(_EJECT_S * 2 ** min(self.failures - 1, 8), _EJECT_MAX_S)
        if silent:
            self.misses += 1
            if self.misses >= _RENEW_AFTER_MISSES:
                self.misses = 0
                self.renew()

    def renew(self) -> None:
        """Gives up the connection: to a member that vanished it would stay silent until keep-alive fires."""
        if self._channel is None or (channel := self._made()) is None:
            return
        # Calls on the old one end by their own deadlines.
        task = asyncio.get_running_loop().create_task(_close(self._channel, _CLOSE_GRACE_S))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
        self._use(channel)

    async def close(self) -> None:
        for task in list(self._closing):
            task.cancel()
        await asyncio.gather(*self._closing, return_exceptions=True)
        if self._channel is not None:
            await _close(self._channel, None)
            self._channel = None


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()


async def _close(channel: Any, grace_s: float | None) -> None:
    if grace_s is not None:
        try:
            await asyncio.sleep(grace_s)
        finally:
            await channel.close(None)
    else:
        await channel.close(None)
