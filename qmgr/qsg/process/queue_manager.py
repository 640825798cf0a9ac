"""The queue manager as a process: one incarnation after the other, until it is told to end or finds another process in its place."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Collection, Coroutine, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog
from pydantic import ValidationError

from qsg.manager.manager import Options, QueueManager
from qsg.manager.membership import Displaced, process_of
from qsg.process.aliases import AliasedTransport
from qsg.process.config import ADMIN, ConfigError, MemberConfig
from qsg.process.revisions import Revisions, accept
from qsg.process.security import store_of, transport_of
from qsg.process.watched import watched
from qsg.process.world import real_world
from qsg.rules import keys
from qsg.rules.definitions import PRIVATE, Definitions
from qsg.rules.reasons import Reason, Refusal
from qsg.rules.texts import NotYaml, read_yaml
from qsg.rules.unit import Fenced, OutcomeUnknown
from qsg.store.contract import Get, Store, StoreError
from qsg.store.sqlite import SqliteStore
from qsg.transport.contract import Transport, TransportError
from qsg.transport.unix import listen_unix

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

log = structlog.get_logger()

AGAIN_S = 0.2
RESTORED_HINT = (
    "a store came back from a snapshot: what happened since is lost, or happens again. When that is as intended, "
    "run `qsg store confirm --config FILE` with the configuration of every member; it starts then"
)


def read_definitions(path: Path | None, structures: Collection[str]) -> Definitions:
    """Raises `ConfigError`. `structures`: those that this member has."""
    if path is None:
        return Definitions()
    try:
        definitions = Definitions.model_validate(read_yaml(path.read_text())[0] or {})
    except (OSError, NotYaml) as error:
        raise ConfigError(f"{path}: {error}") from error
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in error.errors())
        raise ConfigError(f"{path}: {wrong}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not text: {error}") from error
    places = [(f"queues.{n}", q.structure) for n, q in enumerate(definitions.queues) if q.type == "local"]
    places += [(f"channels.{n}", c.structure) for n, c in enumerate(definitions.channels) if c.type == "receiver" and c.structure]
    for where, structure in places:
        if structure not in structures:
            raise ConfigError(f"{path}: {where}.structure: there is no structure {structure} here")
    return definitions


async def run(config: MemberConfig) -> int:
    """Exit status 0 when told to end, 1 when it cannot go on, 3 when another process has taken its name."""
    structlog.contextvars.bind_contextvars(at=config.member, process="queue manager")
    config.data.mkdir(parents=True, exist_ok=True)
    config.socket.parent.mkdir(parents=True, exist_ok=True)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    private = SqliteStore(config.data / "private.db", quota_bytes=config.private_quota_bytes)
    try:
        definitions = read_definitions(config.definitions, {PRIVATE, *config.structures})
        transport = AliasedTransport(transport_of(config, to_members=True), config.aliases)
        await accept(config)
        await private.open()
    except (ConfigError, StoreError) as error:
        log.error("cannot start", error=str(error))
        return 1
    stores: dict[str, Store] = {PRIVATE: private, **{name: store_of(s) for name, s in config.structures.items()}}
    try:
        doors = Doors(stop)
        with watched(config.monitor, doors.why_not, doors.metrics):
            return await _incarnations(config, stores, transport, definitions, doors, private.failed)
    except OSError as error:
        log.error("cannot start", error=str(error))
        return 1
    finally:
        for store in stores.values():
            await store.close()


class Doors:
    """What the surroundings are told of the incarnations."""

    def __init__(self, stop: asyncio.Event) -> None:
        self.stop = stop
        self.manager: QueueManager | None = None
        self.served = False

    def why_not(self) -> str:
        """Ready from the first incarnation that serves, until told to end: neither a lost store nor the next incarnation changes it."""
        return "ending" if self.stop.is_set() else "" if self.served else "starting"

    async def metrics(self) -> Iterable[Metric]:
        from qsg.process.metrics import collect

        if self.manager is None or not self.served or self.manager.fenced.is_set():
            return []
        return await collect(self.manager)


async def _incarnations(
    config: MemberConfig,
    stores: dict[str, Store],
    transport: Transport,
    definitions: Definitions,
    doors: Doors,
    failed: asyncio.Event,
) -> int:
    world = real_world()
    process = world.id().hex()
    revisions = Revisions(config.data)

    def incarnation(again: bool) -> QueueManager:
        revisions.write()
        options = Options(
            member=config.member,
            group=config.group,
            address=config.address,
            advertise=config.advertise,
            group_listener=config.group_listener,
            local_listener=config.local_listener,
            process=process,
            again=again,
            slots=config.slots,
            lease_ttl_s=config.lease_ttl_s,
            definitions=definitions,
            highest=dict(revisions.seen),
            peer_names=config.tls.peers if config.tls else (),
            client_names=config.tls.clients if config.tls else (),
        )
        return QueueManager(
            options,
            world,
            stores,
            transport,
            lambda handler: listen_unix(str(config.socket), handler),
            kill=_end_process,
            on_revision=revisions.note,
        )

    try:
        return await incarnations(incarnation, stores[ADMIN if config.group else PRIVATE], doors, failed)
    finally:
        revisions.write()


async def incarnations(make: Callable[[bool], QueueManager], admin: Store, doors: Doors, failed: asyncio.Event) -> int:
    """Runs what `make` makes, one behind the other; it is told whether this process had one before. Returns the exit status."""
    again = False
    stop = doors.stop
    while not stop.is_set():
        manager = make(again)
        again = True
        doors.manager = manager
        try:
            if not await _started(manager, stop, failed):
                break
        except Displaced as error:
            log.error("another process has taken this member's name", detail=str(error))
            return 3
        except (Fenced, OutcomeUnknown) as error:
            log.warning("the start was cut off, once more", error=repr(error))
            await asyncio.sleep(AGAIN_S)
            continue
        doors.served = True
        await _first(stop.wait(), manager.fenced.wait(), failed.wait())
        fenced = manager.fenced.is_set()
        if failed.is_set() or not await _unless(failed, work=manager.stop(drain=not fenced)):
            break
        if fenced and await _displaced(admin, manager.options):
            log.error("another process has taken this member's name")
            return 3
    if failed.is_set():
        log.error("the private store failed")
        return 1
    return 0


async def _started(manager: QueueManager, stop: asyncio.Event, failed: asyncio.Event) -> bool:
    """Starts an incarnation. False: it did not start, and the process is to end."""
    try:
        return await _unless(stop, failed, work=manager.start())
    except (Refusal, StoreError, TransportError, OSError) as error:
        restored = isinstance(error, Refusal) and error.reason is Reason.STRUCTURE_RESTORED
        log.error("cannot start", error=str(error), **({"what_to_do": RESTORED_HINT} if restored else {}))
        raise SystemExit(1) from error


async def _unless(*events: asyncio.Event, work: Coroutine[Any, Any, None]) -> bool:
    """Runs `work`. False: one of `events` came first, and it was cancelled."""
    task = asyncio.ensure_future(work)
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    await asyncio.wait({task, *waits}, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()
    if not task.done():
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return False
    task.result()
    return True


async def _first(*waits: object) -> None:
    tasks = [asyncio.ensure_future(w) for w in waits]  # type: ignore[call-overload]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _displaced(admin: Store, options: Options) -> bool:
    """Whether the member key now names another process: then this one is the old one."""
    try:
        found = (await admin.get(Get(keys.member(options.member)))).first
    except StoreError:
        return False
    return found is not None and process_of(found) not in ("", options.process)


def _end_process(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
