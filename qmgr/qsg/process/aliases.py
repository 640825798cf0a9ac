"""Names of other queue managers on machines without DNS: a transport that connects to where the configuration says a name leads."""

from __future__ import annotations

from collections.abc import Mapping

from qsg.transport.contract import Handler, Listener, Stream, Transport


class AliasedTransport:
    """`aliases`: host:port as others are known -> host:port to connect to."""

    def __init__(self, transport: Transport, aliases: Mapping[str, str]) -> None:
        self._transport, self._aliases = transport, aliases

    async def connect(self, address: str, service: str, *, timeout_s: float = 1.0) -> Stream:
        return await self._transport.connect(self._aliases.get(address, address), service, timeout_s=timeout_s)

    async def listen(self, address: str, handlers: Mapping[str, Handler]) -> Listener:
        return await self._transport.listen(address, handlers)
