"""The reconcile of one target: a group or queue manager with its children, definitions, operations, and the statuses of all of them.

A step that fails holds up only what needs it; the target comes back then, sooner and later. Nothing here is remembered that could not be
found out again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import structlog
from pydantic import ValidationError

from qsg_operator import names
from qsg_operator.cache import Key, Object
from qsg_operator.certificates import BadSecret
from qsg_operator.children.objects import Owner
from qsg_operator.children.services import COMPONENT
from qsg_operator.children.structures import component, structures
from qsg_operator.conditions import Condition, timestamp
from qsg_operator.events import Happened
from qsg_operator.members import Members
from qsg_operator.reconcile import operations
from qsg_operator.reconcile.children import Conflict, apply_children, digest, reconcile_certificates
from qsg_operator.reconcile.context import Context, dependents, is_ours, together
from qsg_operator.reconcile.definitions import mark_of, reconcile_definitions, reconcile_desired_states
from qsg_operator.reconcile.statuses import Statuses
from qsg_operator.reconcile.target import FULL_S, TargetState
from qsg_operator.seen import Seen
from qsg_operator.specs.channel import SharedChannel
from qsg_operator.specs.group import QueueSharingGroup
from qsg_operator.specs.manager import QueueManager
from qsg_operator.specs.queue import SharedQueue
from qsg_operator.status.channel import DEFINED, Definedness, Target, channel_status
from qsg_operator.status.owner import Cluster, Pod, owner_status, pods_by_member, spare
from qsg_operator.status.queue import queue_status

log = structlog.get_logger()
MakeMembers = Callable[[str, Callable[[], None]], Members]


class Reconciler:
    """`again(key)` puts a target back into the work queue: what its members tell has changed."""

    def __init__(self, context: Context, again: Callable[[Key], None], members: MakeMembers = Members) -> None:
        self._context = context
        self._again = again
        self._members = members
        self._statuses = Statuses(context)
        self._targets: dict[Key, TargetState] = {}

    async def close(self) -> None:
        targets, self._targets = self._targets, {}
        for state in targets.values():
            await state.members.close()

    async def __call__(self, key: Key) -> None:
        kind, namespace, name = key
        resources = dependents(self._context.cache, kind, namespace, name)
        found = self._context.cache.get(kind, namespace, name)
        if found is None:
            await self._without_target(key, resources)
            return
        state = await self._state(key, found["metadata"]["uid"])
        try:
            owner = self._owner(found)
        except (ValidationError, ValueError) as error:
            told = [Condition("Ready", False, "InvalidSpec", str(error))]
            await self._statuses.write(found, {}, told)
            return
        await self._target(owner, found, state, resources)

    async def _state(self, key: Key, uid: str) -> TargetState:
        """Of one made again under its name nothing is remembered."""
        state = self._targets.get(key)
        if state is not None and state.uid == uid:
            return state
        if state is not None:
            await state.members.close()
        state = self._targets[key] = TargetState(uid, self._members("/".join(key[1:]), lambda: self._again(key)))
        return state

    def _owner(self, found: Object) -> Owner:
        meta = found["metadata"]
        model = QueueSharingGroup if found["kind"] == names.QUEUE_SHARING_GROUP else QueueManager
        spec = model.model_validate(found["spec"])
        owner = Owner(found["kind"], meta["namespace"], meta["name"], meta["uid"], spec, self._context.images)
        if owner.group and owner.mq_name in {owner.member(ordinal) for ordinal in range(owner.replicas)}:
            raise ValueError(f"groupName: {owner.mq_name} is the name of a member")  # which would not start
        return owner

    async def _without_target(self, key: Key, resources: list[Object]) -> None:
        state = self._targets.pop(key, None)
        if state is not None:
            await state.members.close()
        what = f"{key[0]} {key[2]}"
        missing = Definedness(False, "TargetNotFound", f"there is no {what} in this namespace")
        if not resources:
            return
        target = Target(False, what, Seen(error="it is not there"))
        await together([self._statuses.write(resource, *self._dependent(resource, target, missing)) for resource in resources])
        self._statuses.prune()

    async def _target(self, owner: Owner, found: Object, state: TargetState, resources: list[Object]) -> None:
        now = asyncio.get_running_loop().time()
        all_anew = now - state.full_at >= FULL_S
        cluster = self._cluster(owner)
        failure = await self._children(owner, cluster, state, all_anew=all_anew)
        cluster = replace(cluster, rolled_out=self._rolled_out(owner, state))
        problem = "" if failure is None else str(failure) or repr(failure)
        reachable = self._reach(owner, cluster, state)
        try:
            if state.members.seen.connected:
                await self._definitions(owner, state, resources)
                await reconcile_desired_states(state, resources, self._statuses.present)
        except Exception as error:
            failure = failure or error
        # A replica that has just begun to lead knows nothing yet, and says nothing before it knows. What a person must mend it does know.
        knows = state.members.verdict or not cluster.pods or not found.get("status", {}).get("conditions")
        if knows or (isinstance(failure, Conflict | BadSecret) and not reachable):
            await self._tell(owner, found, state, resources, cluster, problem)
        if failure is not None:
            raise failure
        if all_anew:
            state.full_at = now
            self._statuses.prune()

    async def _children(self, owner: Owner, cluster: Cluster, state: TargetState, *, all_anew: bool) -> Exception | None:
        """Why they are not all as they should be. Budgets follow what can be lost whatever it is, and the reconcile goes on."""
        failure: Exception | None = None
        try:
            await self._certificates(owner, state, all_anew=all_anew)
        except Exception as error:
            failure = error
        can_lose = spare(owner, cluster, state.members.seen)
        if not state.members.verdict:
            can_lose = replace(can_lose, member=sum(pod.ready for pod in cluster.pods.values()) >= 2)
        try:
            await apply_children(self._context, owner, state, can_lose, all_anew=all_anew, budgets_only=failure is not None)
        except Exception as error:
            failure = failure or error
        return failure

    async def _definitions(self, owner: Owner, state: TargetState, resources: list[Object]) -> None:
        try:
            await reconcile_definitions(self._context, owner, state, resources)
        except Exception as error:
            state.hindered = str(error) or type(error).__name__
            raise
        # Also where nothing was to be done: what was edited then is nothing of a definition.
        state.judged, state.hindered = {mark_of(one): one["metadata"].get("generation", 0) for one in resources}, ""

    async def _tell(self, owner: Owner, found: Object, state: TargetState, resources: list[Object], cluster: Cluster, problem: str) -> None:
        """The statuses of a target and of all that is its."""
        what = f"{'group' if owner.group else 'queue manager'} {owner.name}"
        target = Target(True, what, state.members.seen, pods_by_member(owner, cluster))
        channels = sum(one["kind"] == names.SHARED_CHANNEL for one in resources)
        own = owner_status(owner, cluster, state.members.seen, channels=channels, expires=state.expires, problem=problem)
        await together([*(self._one(resource, target, state) for resource in resources), self._statuses.write(found, *own)])

    async def _certificates(self, owner: Owner, state: TargetState, *, all_anew: bool) -> None:
        wanted = digest([owner.pods.tls.model_dump(), owner.mq_name, owner.group.store.model_dump() if owner.group else None])
        if all_anew or state.certificates_for != wanted:
            await reconcile_certificates(self._context, owner, state)
            state.certificates_for = wanted

    def _cluster(self, owner: Owner) -> Cluster:
        cache = self._context.cache
        pods = {pod.name: pod for pod in self._pods(owner, COMPONENT)}
        etcd_ready, etcd_nodes = {}, {}
        for one in structures(owner):
            found = cache.get("StatefulSet", owner.namespace, names.store(owner.base, one.name)) if one.managed else None
            if found is not None and component(one.name) and is_ours(found, owner.uid):
                etcd_ready[one.name] = found.get("status", {}).get("readyReplicas", 0)
                etcd_nodes[one.name] = [pod.node for pod in self._pods(owner, component(one.name)) if pod.node]
        return Cluster(pods, etcd_ready, etcd_nodes)

    def _rolled_out(self, owner: Owner, state: TargetState) -> bool:
        """As it was last applied: what the cache shows may be older, and says nothing of that."""
        _, applied = state.applied.get(("StatefulSet", owner.base), ("", None))
        found = self._context.cache.get("StatefulSet", owner.namespace, owner.base)
        status = (found or {}).get("status") or {}
        newest = status.get("updateRevision")
        return found is not None and status.get("observedGeneration") == applied and newest == status.get("currentRevision", newest)

    def _pods(self, owner: Owner, part: str) -> list[Pod]:
        found = self._context.cache.of("Pod", owner.namespace)
        return [_pod(pod) for pod in found if owner.labels(part).items() <= (pod["metadata"].get("labels") or {}).items()]

    def _reach(self, owner: Owner, cluster: Cluster, state: TargetState) -> bool:
        """False: without certificates members are not even tried."""
        addresses = tuple(sorted(f"{_bracketed(pod.address)}:{names.CLIENT_PORT}" for pod in cluster.pods.values() if pod.address))
        state.way = replace(state.way, addresses=addresses, queue_manager=owner.mq_name)
        if owner.pods.tls.mode != "Off" and not state.way.ca:
            return False
        state.members.reach(state.way)
        return True

    # Channels and queues

    async def _one(self, resource: Object, target: Target, state: TargetState) -> None:
        mark = mark_of(resource)
        if state.judged.get(mark) != resource["metadata"].get("generation", 0):
            why = f": {state.hindered}" if state.hindered else ""
            defined = Definedness(None, "NotYet", f"{target.what} has not taken it as it is now{why}")
        elif mark in state.refused:
            defined = Definedness(False, "Refused", state.refused[mark])
        elif mark in state.taken:
            holder = state.taken[mark]
            defined = Definedness(False, "NameTaken", f"{holder.kind} {holder.name} is older and has the name")
        elif mark in state.start_refused:
            defined = Definedness(None, "StartRefused", state.start_refused[mark])
        else:
            defined = DEFINED
        operation = await self._operation(resource, state) if resource["kind"] == names.SHARED_CHANNEL else None
        if operation is not None:
            state.outcomes[mark] = operation
        status, conditions = self._dependent(resource, target, defined)
        if mark in state.outcomes:
            status["lastOperation"] = state.outcomes[mark]
        await self._statuses.write(resource, status, conditions)
        state.outcomes.pop(mark, None)

    def _dependent(self, resource: Object, target: Target, defined: Definedness) -> tuple[dict[str, Any], list[Condition]]:
        try:
            return self._status(resource, target, defined)
        except ValidationError as error:  # of another version's schema: it holds up nobody else
            refused = Definedness(False, "Refused", str(error))
            last = self._statuses.present(resource).get("lastOperation")  # what it does not have would be begun once more
            kept = {"lastOperation": last} if last else {}
            return kept, [Condition("Ready", False, refused.reason, refused.message), refused.condition()]

    def _status(self, resource: Object, target: Target, defined: Definedness) -> tuple[dict[str, Any], list[Condition]]:
        name = resource["metadata"]["name"]
        if resource["kind"] == names.SHARED_CHANNEL:
            channel = SharedChannel.model_validate(resource["spec"])
            present = self._statuses.present(resource)
            return channel_status(channel, channel.channel_name or names.mq_name(name), target, defined, present, self._context.now())
        queue = SharedQueue.model_validate(resource["spec"])
        return queue_status(queue.queue_name or names.mq_name(name), target, defined)

    async def _operation(self, resource: Object, state: TargetState) -> dict[str, Any] | None:
        """Carries out what an annotation asks for; `lastOperation` as it is then."""
        seen = {**resource, "status": self._statuses.present(resource)}
        now = timestamp(self._context.now())
        try:
            operation = operations.asked_for(seen)
        except operations.BadOperation as error:
            text = resource["metadata"]["annotations"][names.OPERATION]
            done = {"id": operations.bad_id(text), "verb": "", "state": "Failed", "time": now, "message": str(error)}
            await self._context.tell(resource, [Happened("OperationFailed", str(error), warning=True)])
            return done
        if operation is None or not state.members.seen.connected:
            return None
        done = {"id": operation.id, "verb": operation.verb, "state": "Unknown", "time": now, "message": "begun"}
        if not await self._statuses.put(resource, {**seen["status"], "lastOperation": dict(done)}):
            return None
        channel = resource["spec"].get("channelName") or names.mq_name(resource["metadata"]["name"])
        outcome, message = await operations.carry_out(state.members, channel, operation)
        done |= {"state": outcome, "message": message, "time": timestamp(self._context.now())}
        text = f"{operation.verb} ({operation.id}): {message or outcome}"
        await self._context.tell(resource, [Happened(f"Operation{outcome}", text, warning=outcome != "Succeeded")])
        return done


def _pod(pod: Object) -> Pod:
    status = pod.get("status") or {}
    ready = any(c["type"] == "Ready" and c["status"] == "True" for c in status.get("conditions") or ())
    going = pod["metadata"].get("deletionTimestamp") is not None
    return Pod(pod["metadata"]["name"], pod["spec"].get("nodeName", ""), ready and not going, status.get("podIP", ""))


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address
