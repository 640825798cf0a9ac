"""An initiator's first stream, which it opens to itself so that a takeover need not pay for it, with certificates as on a cluster."""

from __future__ import annotations

from pathlib import Path

import pytest

from qsg.initiator.service import Initiator
from qsg.process.world import real_world
from qsg.transport.contract import Stream, Unreachable
from qsg.transport.grpc_ import GrpcTransport
from qsg.transport.tls import TlsFiles

CERTIFICATES = Path(__file__).parents[1] / "transport" / "certificates"


class Seeing(GrpcTransport):
    """`opened`: whom a stream was had to."""

    def __init__(self) -> None:
        super().__init__(TlsFiles(CERTIFICATES / "ca.pem", CERTIFICATES / "server.pem", CERTIFICATES / "server.key"))
        self.opened: list[str] = []

    async def connect(self, address: str, service: str, *, timeout_s: float = 5.0) -> Stream:  # type: ignore[override]
        stream = await super().connect(address, service, timeout_s=timeout_s)
        self.opened.append(stream.identity)
        return stream


async def nobody() -> Stream:
    raise Unreachable("no queue manager")


@pytest.mark.real_time
@pytest.mark.parametrize("everywhere", ["0.0.0.0:0", "[::]:0", "127.0.0.1:0"])
async def test_a_listener_everywhere_is_reached_by_a_name_that_certificates_have(everywhere: str) -> None:
    transport = Seeing()
    initiator = Initiator(real_world(), transport, nobody, member="X", group_listener=everywhere)
    await initiator.start()
    try:
        assert transport.opened in (["localhost"], ["127.0.0.1"])
    finally:
        await initiator.close()
