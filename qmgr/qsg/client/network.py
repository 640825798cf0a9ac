"""The default way to members: gRPC, with TLS when certificates are named, and DNS names resolved to all of their addresses."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from pathlib import Path

from qsg.client.errors import OptionsError
from qsg.transport.contract import Transport, Unreachable


def transport(ca: str = "", certificate: str = "", key: str = "", *, server_name: str = "") -> Transport:
    """`ca`, `certificate`, `key`: PEM files; none of them: no TLS. `server_name`: see `qsg.connect`. Raises OptionsError."""
    import ssl

    from qsg.transport.grpc_ import GrpcTransport
    from qsg.transport.tls import TlsFiles

    if not (ca or certificate or key):
        return GrpcTransport()
    if bool(certificate) != bool(key):
        raise OptionsError("certificate and key go together")
    try:
        return GrpcTransport(TlsFiles(*(Path(path) if path else None for path in (ca, certificate, key))), server_name=server_name)
    except (OSError, ssl.SSLError) as problem:
        raise OptionsError(f"TLS: {problem}") from problem


async def resolve(address: str) -> list[str]:
    """host:port of every address behind a name, so that each member behind one DNS name is tried. Raises Unreachable."""
    host, _, port = address.rpartition(":")
    bare = host.strip("[]")
    try:
        ipaddress.ip_address(bare)
    except ValueError:
        pass
    else:
        return [address]
    try:
        found = await asyncio.get_running_loop().getaddrinfo(bare, int(port), type=socket.SOCK_STREAM)
    except OSError as problem:
        raise Unreachable(f"{address}: the name does not resolve: {problem}") from problem
    hosts = dict.fromkeys(str(entry[4][0]) for entry in found)
    return [f"[{one}]:{port}" if ":" in one else f"{one}:{port}" for one in hosts]
