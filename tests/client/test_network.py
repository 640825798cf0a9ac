"""Names and certificates."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

import qsg
from qsg.client import network
from qsg.client.link import LinkOptions
from qsg.transport.contract import Unreachable
from support.client_group import ClientGroup

pytestmark = pytest.mark.real_time


async def test_addresses_are_taken_as_they_are() -> None:
    assert await network.resolve("10.0.0.1:1416") == ["10.0.0.1:1416"]
    assert await network.resolve("[::1]:1416") == ["[::1]:1416"]


async def test_a_name_stands_for_all_its_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    async def two(host: str, port: int, **_: object) -> object:
        assert (host, port) == ("qsg", 1416)
        return [(0, 0, 0, "", (ip, port)) for ip in ("10.0.0.1", "10.0.0.2", "10.0.0.1", "fd00::1")]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", two)

    assert await network.resolve("qsg:1416") == ["10.0.0.1:1416", "10.0.0.2:1416", "[fd00::1]:1416"]


async def test_a_name_that_does_not_resolve(monkeypatch: pytest.MonkeyPatch) -> None:
    async def none(*_: object, **__: object) -> object:
        raise socket.gaierror("unknown")

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", none)

    with pytest.raises(Unreachable, match="does not resolve"):
        await network.resolve("nowhere:1416")
    with pytest.raises(qsg.HostNotAvailable, match="does not resolve"):
        await qsg.connect("nowhere:1416", connect_s=0.1).open()


async def test_every_member_behind_a_name_is_tried() -> None:
    async def behind(address: str) -> list[str]:
        return [f"{member}:1416" for member in "XYZ"]

    async with ClientGroup("XYZ") as group:
        options = LinkOptions(("group:1416",), resolve=behind)
        async with qsg.QueueManager(options, group.network.transport("app"), group.world) as qmgr:
            seen = {qmgr.member}
            for _ in range(2):
                group.network.kill(qmgr.member)
                await asyncio.sleep(0.01)
                await qmgr.put("Q", b"")
                seen.add(qmgr.member)

    assert seen == {"X", "Y", "Z"}


def test_certificates_that_cannot_be_had(tmp_path: Path) -> None:
    with pytest.raises(qsg.OptionsError, match="No such file"):
        qsg.connect("x:1", ca=tmp_path / "none.pem")
    with pytest.raises(qsg.OptionsError, match="together"):
        qsg.connect("x:1", certificate="cert.pem")
