"""Roads of a group on one machine: what is cut passes nothing, a half-open one lies, and names lead where the configuration says."""

from __future__ import annotations

import asyncio
import contextlib

from process.test_proxy import Client, Echo
from qsg.process.aliases import AliasedTransport
from qsg.process.roads import APPLICATIONS, STORE, Roads
from qsg.transport.contract import Stream
from qsg.transport.memory import MemoryNetwork
from support.group import READY_S, eventually


async def roads() -> tuple[Roads, list[Echo], dict[str, Client]]:
    made, echoes, clients = Roads(), [Echo("x"), Echo("r")], {}
    x, r = [await echo.start() for echo in echoes]
    for name, source, target, to in (("a", APPLICATIONS, "X", x), ("out", "X", "R", r), ("store", "X", STORE, r), ("other", "Y", "R", r)):
        host, port = (await made.open(source, target, to)).split(":")
        clients[name] = Client(*await asyncio.open_connection(host, int(port)))
        assert (await clients[name].ask(b"1\n")).endswith(b" 1\n")
    return made, echoes, clients


async def end(made: Roads, echoes: list[Echo], clients: dict[str, Client]) -> None:
    for client in clients.values():
        client.writer.transport.abort()
    await made.close()
    for echo in echoes:
        await echo.stop()


async def test_who_is_isolated_hears_and_says_nothing() -> None:
    made, echoes, clients = await roads()
    assert set(made.between("X")) == {(APPLICATIONS, "X"), ("X", "R"), ("X", STORE)}
    assert made.between("X", ["R"]) == [("X", "R")]
    made.cut(*made.between("X"))
    for name in ("a", "out", "store"):
        clients[name].writer.write(b"2\n")
        assert await clients[name].hears_nothing()
    assert await clients["other"].ask(b"2\n") == b"r 2\n"
    made.heal(*made.between("X"))
    for name in ("a", "out", "store"):
        assert (await clients[name].reader.readline()).endswith(b" 2\n")
    await end(made, echoes, clients)


async def test_a_half_open_road() -> None:
    """The far end has forgotten the connection; the near end learns that when the road is whole again, and not before."""
    made, echoes, clients = await roads()
    made.break_off(("X", "R"))
    clients["out"].writer.write(b"2\n")
    assert await clients["out"].hears_nothing()
    assert b"2\n" not in echoes[1].lines
    made.heal()
    async with asyncio.timeout(READY_S):
        with contextlib.suppress(ConnectionResetError):
            assert await clients["out"].reader.read() == b""
    await end(made, echoes, clients)


async def test_one_way() -> None:
    made, echoes, clients = await roads()
    made.cut(("X", "R"), direction="from_target")
    clients["out"].writer.write(b"2\n")
    assert await clients["out"].hears_nothing()
    await eventually(lambda: b"2\n" in echoes[1].lines, what="it arrives")
    await end(made, echoes, clients)


async def test_names_of_others() -> None:
    network = MemoryNetwork()
    seen: list[bytes] = []

    async def serve(stream: Stream) -> None:
        seen.append(await stream.receive())

    await network.transport("b").listen("b:2", {"s": serve})
    transport = AliasedTransport(network.transport("a"), {"y:1416": "b:2"})
    for name in ("y:1416", "b:2"):
        stream = await transport.connect(name, "s")
        await stream.send(name.encode())
        await stream.close()
    await eventually(lambda: len(seen) == 2)
    assert seen == [b"y:1416", b"b:2"]
