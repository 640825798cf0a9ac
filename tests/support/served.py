"""A queue manager over gRPC in a thread of its own, for tests of programs that bring their own event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

from qsg.manager.administration import Administration
from qsg.manager.backend import QueueManagerBackend
from qsg.manager.clients import SERVICE, ClientService
from qsg.rules.reasons import Reason, Refusal
from qsg.transport.grpc_ import GrpcTransport
from qsg.transport.tls import TlsFiles
from support.members import Group, Member, shared

STATUS = {
    "channel": "G.TO.R",
    "type": "sender",
    "status": "RUNNING",
    "owner": "X",
    "partner": "R",
    "epoch": 3,
    "last_sequence": 17,
    "messages": 400,
    "depth": 0,
    "takeovers": 2,
    "updated_at_ms": 1,
    "in_doubt": False,
    "detail": "bind refused",
}


class Served:
    """Member X of group G with queues A and B; channel commands are only recorded."""

    def __init__(self, tls: TlsFiles | None = None) -> None:
        self._tls = tls
        self.loop = asyncio.new_event_loop()
        self.group = Group()
        self.address = ""
        self.commands: list[tuple[str, dict[str, object]]] = []
        self.member: Member
        self._service: ClientService
        self._listener: Any

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(60)

    async def start(self) -> None:
        self.member = await self.group.member("X")
        administration = Administration(self.member.catalog, self.member.queues)
        commands, inquiries = administration.commands(), administration.inquiries()
        for name in ("start", "stop", "move", "resolve", "reset", "ping"):
            commands[name] = self._recorder(name)
        inquiries["status"] = self._status
        inquiries["group"] = self._group
        backend = QueueManagerBackend(self.member.queues, commands, inquiries)
        self._service = ClientService(member="X", group="G", backend=backend, world=self.member.world)
        self._listener = await GrpcTransport(self._tls).listen("127.0.0.1:0", {SERVICE: self._service.handler})
        self.address = self._listener.address
        for name in "AB":
            await self.member.queues.define(shared(name))

    def _recorder(self, name: str) -> Any:
        async def command(arguments: dict[str, object]) -> object:
            self.commands.append((name, arguments))
            if arguments.get("channel") == "NONE":
                raise Refusal(Reason.CHANNEL_NOT_FOUND, "no channel NONE")
            if name == "move":
                return STATUS | {"moved": arguments["to"] != "Z", "from": "Y", "ready": arguments["to"]}
            if name == "ping" and arguments["bytes"] != 16:
                return {"channel": arguments["channel"], "address": "r:1414", "bytes": arguments["bytes"], "ms": 1.5}
            return STATUS | {"deleted": 5, "risk": "", "sequence": arguments.get("sequence", 1), "address": "r:1414", "ms": 1.5}

        return command

    async def _status(self, name: str) -> object:
        return {"channels": [STATUS]}

    async def _group(self, name: str) -> object:
        me = {"member": "X", "incarnation": 7, "linked": True, "silent_ms": 0, "initiator": True, "channels": 1, "structures": ["admin"]}
        return {"group": "G", "member": "X", "members": [me]}

    async def stop(self) -> None:
        await self._service.close()
        await self._listener.close()
        await self.group.close()


@contextmanager
def served(tls: TlsFiles | None = None) -> Iterator[Served]:
    made = Served(tls)
    thread = threading.Thread(target=made.loop.run_forever, name="served")
    thread.start()
    try:
        made.run(made.start())
        yield made
    finally:
        made.run(made.stop())
        made.loop.call_soon_threadsafe(made.loop.stop)
        thread.join()
        made.loop.close()
