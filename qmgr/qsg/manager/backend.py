"""What a queue manager does for its client connections: the client API's requests in terms of the queue service and the commands."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence

from qsg.bell import Once
from qsg.manager import calls
from qsg.manager.browsing import BrowseSpec
from qsg.manager.clients import Got, Work
from qsg.manager.getting import GetSpec
from qsg.manager.producers import ProducerNumber, ProducerState, Wanted
from qsg.manager.queues import PutRequest, QueueService
from qsg.manager.units import UnitOfWork
from qsg.pb import client_pb2 as pb
from qsg.rules.reasons import Reason, Refusal
from qsg.store.contract import StoreError

Command = Callable[[dict[str, object]], Awaitable[object]]
Inquiry = Callable[[str], Awaitable[object]]


class QueueManagerBackend:
    """Implements `qsg.manager.clients.Backend`. `commands` and `inquiries` by name."""

    def __init__(self, queues: QueueService, commands: Mapping[str, Command], inquiries: Mapping[str, Inquiry]) -> None:
        self._queues = queues
        self._commands = commands
        self._inquiries = inquiries

    def begin(self) -> Work:
        return self._queues.begin()

    async def put(self, put: pb.Put, *, work: Work | None, affinity: str, producer: ProducerNumber | None) -> list[bytes]:
        requests = [PutRequest(put.queue, message, put.queue_manager) for message in put.messages]
        return await self._queues.put(requests, unit=_unit(work), affinity=affinity, producer=producer)

    async def get(self, get: pb.Get, *, work: Work | None, cancel: Once) -> Sequence[Got]:
        spec = GetSpec(
            get.queue,
            messages_max=get.messages_max,
            bytes_max=get.bytes_max,
            wait_ms=get.wait_ms,
            message_id=get.message_id,
            correlation_id=get.correlation_id,
        )
        return await self._queues.get(spec, unit=_unit(work), cancel=cancel)

    async def browse(self, browse: pb.Browse) -> tuple[Sequence[Got], bytes]:
        spec = BrowseSpec(
            browse.queue,
            messages_max=browse.messages_max,
            cursor=browse.cursor,
            message_id=browse.message_id,
            correlation_id=browse.correlation_id,
            headers_only=browse.headers_only,
        )
        return await self._queues.browse(spec)

    async def open_producer(self, opening: pb.OpenProducer, wanted: Wanted) -> ProducerState:
        return await self._queues.open_producer(
            opening.producer,
            opening.queue,
            opening.queue_manager,
            structure=opening.structure,
            lifetime_ms=opening.lifetime_ms,
            wanted=wanted,
            epochs_max=opening.epochs_max,
            opener=opening.opener,
        )

    async def inquire(self, kind: str, name: str) -> object:
        inquiry = self._inquiries.get(kind)
        if inquiry is None:
            raise Refusal(Reason.OPTIONS_ERROR, f"inquire {kind!r}: one of {', '.join(sorted(self._inquiries))}")
        return await inquiry(name)

    async def command(self, name: str, arguments: dict[str, object]) -> object:
        command = self._commands.get(name)
        if command is None:
            raise Refusal(Reason.COMMAND_FAILED, f"command {name!r}: one of {', '.join(sorted(self._commands))}")
        try:
            return await command(arguments)
        except StoreError as error:
            if calls.untouched():
                raise Refusal(Reason.STRUCTURE_NOT_AVAILABLE, str(error)) from error
            raise


def _unit(work: Work | None) -> UnitOfWork | None:
    assert work is None or isinstance(work, UnitOfWork)
    return work
