"""All addresses behind a connection name (patent: a session found by name resolution). Used by the real process; a simulation has its own.

Does not guarantee an answer: a name that cannot be resolved is returned as it is, and connecting to it fails with its own reason.
"""

from __future__ import annotations

import asyncio
import socket

RESOLVE_S = 1.0


async def resolve_host(address: str) -> list[str]:
    """host:port -> [address:port, ...] in the resolver's order."""
    host, _, port = address.rpartition(":")
    try:
        async with asyncio.timeout(RESOLVE_S):
            found = await asyncio.get_running_loop().getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    except (OSError, TimeoutError, UnicodeError):
        return [address]
    addresses = [f"[{target[0]}]:{port}" if family == socket.AF_INET6 else f"{target[0]}:{port}" for family, _, _, _, target in found]
    return list(dict.fromkeys(addresses)) or [address]
