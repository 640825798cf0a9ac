"""All targets by name; each is made anew when it is asked for."""

from __future__ import annotations

from collections.abc import Callable

from fuzz.target import Target
from fuzz.targets import channel, client, network, peer, plain, socket, store, texts

TARGETS: dict[str, Callable[[], Target]] = {
    "frames": plain.frames,
    "batches": plain.batches,
    "records": plain.records,
    "unix": plain.unix,
    "texts": texts.definitions,
    "config": texts.configuration,
    "receiver": channel.receiver,
    "sender": channel.sender,
    "client": client.service,
    "client-library": client.library,
    "peer": peer.serving,
    "socket": socket.queue_manager,
    "socket-initiator": socket.initiator,
    "stored": store.stored,
    "etcd-api": store.api,
    "etcd-answers": store.answers,
    "grpc": network.grpc_bytes,
}
