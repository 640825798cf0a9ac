"""The operator put together: what is observed fills the cache and the work queue; the holder of the lease reconciles.

Every replica observes, so that it can take over at once; only the leader reconciles. Events and lists only say *what* to look at. Lists
come every minute: they repair what a watch missed, and show a watch that is dead.
"""

from __future__ import annotations

import asyncio
import time

import structlog

from qsg.endings import ended
from qsg_operator import leader, names
from qsg_operator.api import Api, ApiError
from qsg_operator.cache import Cache, Key, Object
from qsg_operator.leader import Leader
from qsg_operator.metrics import Metrics
from qsg_operator.queue import WorkQueue
from qsg_operator.reconcile.context import Context
from qsg_operator.reconcile.reconciler import Reconciler
from qsg_operator.reconcile.target import FULL_S
from qsg_operator.settings import Settings

log = structlog.get_logger()

OURS = f"{names.MANAGED_BY}={names.FIELD_MANAGER}"
"""Selects children, and the lease."""
RESOURCES = tuple(names.PLURALS)
CHILDREN = ("StatefulSet", "Pod", "Service", "ConfigMap", "PodDisruptionBudget")
LIST_S = 60.0
LEASE_SILENT_S = 60.0
MISSING_S = 60.0


class Runtime:
    def __init__(self, settings: Settings, api: Api, metrics: Metrics) -> None:
        self.settings, self.metrics = settings, metrics
        self.cache = Cache()
        self._api = api
        self._listed: set[str] = set()
        """Namespaces of which everything was listed once; "" = all of them."""
        self._missing_since: float | None = None
        self._lease_told_at = asyncio.get_running_loop().time()
        self.queue = WorkQueue(self._work)
        self.leader = Leader(api, settings.lease_namespace, settings.identity, self._leadership)
        self._reconciler = self._new()
        self._working: set[asyncio.Task[None]] = set()
        """Reconciles under way."""
        self.cache.on_change.append(self._changed)

    def _new(self) -> Reconciler:
        context = Context(self._api, self.cache, self.settings.images, self.settings.identity)
        return Reconciler(context, self.queue.add)

    async def run(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._listing(), name="lists")
                group.create_task(self.leader.run(), name="leader")
                group.create_task(self.queue.run(self.settings.workers), name="queue")
                group.create_task(self._rounds(), name="rounds")
        finally:
            await self._reconciler.close()

    # Observed

    def observed(self, found: Object, *, deleted: bool) -> None:
        """A watch has told of it."""
        self.metrics.last_event.labels(found["kind"]).set(time.time())
        if found["kind"] == "Lease":
            if found["metadata"]["name"] == leader.NAME:
                self._lease_told_at = asyncio.get_running_loop().time()
            return
        self.cache.watched(found, deleted=deleted)

    async def _listing(self) -> None:
        pause = 1.0
        while True:
            try:
                await self._list()
                self._missing_since, pause = None, LIST_S
            except ApiError as error:
                if error.status == 404 and self._missing_since is None:
                    self._missing_since = asyncio.get_running_loop().time()
                log.warning("lists were not had", error=str(error))
                pause = min(2 * pause, LIST_S) if self._listed else 1.0
            await asyncio.sleep(pause)

    async def _list(self) -> None:
        """Raises the first `ApiError` after all: a namespace that is gone with its rights holds up no other."""
        failure: ApiError | None = None
        for namespace in self.settings.watch or ("",):
            try:
                for kind in (*RESOURCES, *CHILDREN):
                    self.cache.listed(kind, await self._api.list(kind, namespace, "" if kind in RESOURCES else OURS), namespace)
                self._listed.add(namespace)
            except ApiError as error:
                failure = failure or error
        if failure is not None:
            raise failure

    def _changed(self, found: Object) -> None:
        kind, meta = found["kind"], found["metadata"]
        if kind in (names.QUEUE_SHARING_GROUP, names.QUEUE_MANAGER):
            self.queue.add((kind, meta["namespace"], meta["name"]))
        elif kind in RESOURCES:
            self._ask_for_target_of(found)
        else:
            labels = meta.get("labels") or {}
            owner_kind, owner = labels.get(names.OWNER_KIND), labels.get(names.INSTANCE)
            if owner_kind in (names.QUEUE_SHARING_GROUP, names.QUEUE_MANAGER) and owner:
                self.queue.add((owner_kind, meta["namespace"], owner))

    def _ask_for_target_of(self, found: Object) -> None:
        key = target_of(found)
        if key is not None:
            self.queue.add(key)

    # Reconciled

    async def _work(self, key: Key) -> None:
        if not self.leader.leading or self._listed.isdisjoint(("", key[1])):
            return
        began = time.monotonic()
        result = "error"
        work = asyncio.get_running_loop().create_task(self._reconciler(key), name=f"reconcile {'/'.join(key)}")
        self._working.add(work)
        try:
            await asyncio.wait({work})
            if work.cancelled():  # another leads now
                result = "ended"
            else:
                work.result()
                result = "success"
        finally:
            self._working.discard(work)
            await ended(work)
            self.metrics.reconciles.labels(key[0], result).inc()
            self.metrics.duration.labels(key[0]).observe(time.monotonic() - began)
        if not self._exists(key):
            self.queue.forget(key)

    def _exists(self, key: Key) -> bool:
        return self.cache.get(*key) is not None

    async def _rounds(self) -> None:
        """Everything once a minute, spread over it by the work queue itself."""
        while True:
            self._all()
            self._count()
            await asyncio.sleep(FULL_S / 4)

    def _all(self) -> None:
        for kind in (names.QUEUE_SHARING_GROUP, names.QUEUE_MANAGER):
            for found in self.cache.of(kind):
                self.queue.add((kind, found["metadata"]["namespace"], found["metadata"]["name"]))
        for kind in (names.SHARED_CHANNEL, names.SHARED_QUEUE):
            for found in self.cache.of(kind):
                self._ask_for_target_of(found)

    def _count(self) -> None:
        self.metrics.queue.set(len(self.queue))
        self.metrics.conditions.clear()
        self.metrics.expiry.clear()
        for kind in RESOURCES:
            self.metrics.resources.labels(kind).set(self.cache.count(kind))
            for found in self.cache.of(kind):
                self.metrics.of_resource(found)

    def _leadership(self) -> None:
        """What a replica remembers of targets is not right any more once another has worked on them; what it has begun ends here."""
        self.metrics.leading.set(self.leader.leading)
        if self.leader.leading:
            self._all()
        else:
            for work in self._working:
                work.cancel()
            before, self._reconciler = self._reconciler, self._new()
            self._closing = asyncio.get_running_loop().create_task(before.close(), name="close targets")

    # Alive

    def problem(self) -> str:
        """Why this process is of no use any more; "" = it is."""
        if self.cache.behind:
            return f"the watch does not tell what a list shows: {', '.join(sorted(self.cache.behind))}"
        now = asyncio.get_running_loop().time()
        if self._missing_since is not None and now - self._missing_since > MISSING_S:
            return "the custom resources are not defined: whoever defines them later needs a new start of this process"
        if self.leader.renewed_at - self._lease_told_at > LEASE_SILENT_S and now - self.leader.renewed_at < LEASE_SILENT_S:
            return "the watch does not tell of the lease that this replica renews"
        return ""


def target_of(found: Object) -> Key | None:
    """The group or queue manager of a channel or queue."""
    spec, namespace = found.get("spec") or {}, found["metadata"]["namespace"]
    if spec.get("group"):
        return names.QUEUE_SHARING_GROUP, namespace, spec["group"]
    if spec.get("queueManager"):
        return names.QUEUE_MANAGER, namespace, spec["queueManager"]
    return None
