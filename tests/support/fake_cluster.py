"""A small API server, and members that answer commands, in memory: what the reconcile is tested against.

`FakeApi` implements `qsg_operator.api.Api`; what is written shows in the cache at once, as a fast watch would show it.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import qsg
from qsg.manager.catalog import require_same_place
from qsg.rules import definitions as rules
from qsg.rules.reasons import Reason, Refusal
from qsg_operator import names
from qsg_operator.api import Api, ApiError, Object
from qsg_operator.cache import Cache
from qsg_operator.members import Members, NotConnected, Way
from qsg_operator.seen import Seen
from support.crds import defaulted, schema

NAMESPACE = "shop"


class FakeApi(Api):
    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        self.objects: dict[tuple[str, str, str], Object] = {}
        self.calls: list[tuple[str, str, str]] = []
        self.showing = True
        """What is written shows in the cache; else only later writes do."""
        self.failing: Callable[[str, str, str], ApiError | None] = lambda verb, kind, name: None
        self._numbers = itertools.count(1)

    def of(self, kind: str) -> dict[str, Object]:
        return {name: found for (k, _, name), found in self.objects.items() if k == kind}

    def _call(self, verb: str, kind: str, name: str) -> None:
        self.calls.append((verb, kind, name))
        error = self.failing(verb, kind, name)
        if error is not None:
            raise error

    def _store(self, found: Object) -> Object:
        found = copy.deepcopy(found)
        meta = found["metadata"]
        key = found["kind"], meta["namespace"], meta["name"]
        before = self.objects.get(key)
        meta["uid"] = before["metadata"]["uid"] if before else meta.get("uid") or f"uid-{next(self._numbers)}"
        meta["resourceVersion"] = str(next(self._numbers))
        if before is not None and "status" in before and "status" not in found:
            found["status"] = before["status"]
        self.objects[key] = found
        if self.showing:
            self.cache.watched(copy.deepcopy(found), deleted=False)
        return copy.deepcopy(found)

    def user_applies(self, kind: str, name: str, spec: dict[str, Any], **meta: Any) -> Object:
        """As with kubectl: defaults are set, the generation grows with the spec."""
        spec = defaulted(spec, schema(kind, "spec"))
        before = self.objects.get((kind, NAMESPACE, name))
        generation = 1 if before is None else before["metadata"]["generation"] + (before["spec"] != spec)
        created = f"2026-11-25T12:00:{next(self._numbers) % 60:02d}Z"
        whole = {"namespace": NAMESPACE, "name": name, "generation": generation, "creationTimestamp": created} | meta
        return self._store({"apiVersion": names.API_VERSION, "kind": kind, "metadata": whole, "spec": spec})

    def user_deletes(self, kind: str, name: str) -> None:
        found = self.objects.pop((kind, NAMESPACE, name))
        found["metadata"]["resourceVersion"] = str(next(self._numbers))
        self.cache.watched(found, deleted=True)

    def status(self, kind: str, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.objects[kind, NAMESPACE, name].get("status", {})
        return found

    def condition(self, kind: str, name: str, type_: str = "Ready") -> tuple[str, str]:
        for one in self.status(kind, name).get("conditions", ()):
            if one["type"] == type_:
                return one["status"], one["reason"]
        return "", ""

    def events(self) -> list[tuple[str, str, str]]:
        return [(e["involvedObject"]["name"], e["reason"], e["type"]) for e in self.of("Event").values()]

    def pods_run(self, stateful_set: str, count: int, *, etcd: bool = False) -> None:
        """What the controllers of a cluster would do."""
        found = self.objects["StatefulSet", NAMESPACE, stateful_set]
        labels = found["spec"]["template"]["metadata"]["labels"]
        generation = found["metadata"]["generation"]
        found["status"] = {"observedGeneration": generation, "readyReplicas": count, "currentRevision": "1", "updateRevision": "1"}
        self._store(found)
        for number in range(0 if etcd else count):
            pod = {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"namespace": NAMESPACE, "name": f"{stateful_set}-{number}", "labels": labels},
                "spec": {"nodeName": f"node-{number}"},
                "status": {"podIP": f"10.0.0.{number + 1}", "conditions": [{"type": "Ready", "status": "True"}]},
            }
            self._store(pod)

    # qsg_operator.api.Api

    async def get(self, kind: str, namespace: str, name: str) -> Object | None:
        self._call("get", kind, name)
        return copy.deepcopy(self.objects.get((kind, namespace, name)))

    async def apply(self, child: Object) -> Object:
        meta = child["metadata"]
        self._call("apply", child["kind"], meta["name"])
        present = self.objects.get((child["kind"], meta["namespace"], meta["name"]))
        if "resourceVersion" in meta and (present is None or present["metadata"]["resourceVersion"] != meta["resourceVersion"]):
            raise ApiError(409, "Conflict")
        if child["kind"] == "StatefulSet":
            generation = present["metadata"]["generation"] + (present["spec"] != child["spec"]) if present else 1
            child = {**child, "metadata": {**meta, "generation": generation}}
        return self._store(child)

    async def create(self, child: Object) -> Object:
        meta = child["metadata"]
        self._call("create", child["kind"], meta["name"])
        if (child["kind"], meta["namespace"], meta["name"]) in self.objects:
            raise ApiError(409, "AlreadyExists")
        return self._store(child)

    async def replace(self, child: Object) -> Object:
        meta = child["metadata"]
        self._call("replace", child["kind"], meta["name"])
        if self.objects[child["kind"], meta["namespace"], meta["name"]]["metadata"]["resourceVersion"] != meta["resourceVersion"]:
            raise ApiError(409, "Conflict")
        return self._store(child)

    async def apply_status(self, kind: str, namespace: str, name: str, status: Object, version: str) -> Object | None:
        self._call("status", kind, name)
        found = self.objects.get((kind, namespace, name))
        if found is None:
            return None
        if found["metadata"]["resourceVersion"] != version:
            raise ApiError(409, "Conflict")
        return self._store({**found, "status": copy.deepcopy(status)})


class FakeMembers(Members):
    """Members with definitions and a status table of their own. `refuse`: what a command is refused with; `answers`: what else it tells."""

    def __init__(self, name: str, changed: Callable[[], None]) -> None:
        self.seen = Seen()
        self.verdict = True
        self.way = Way((), "")
        self.queues: dict[str, rules.Queue] = {}
        self.channels: dict[str, rules.Channel] = {}
        self.depths: dict[str, int] = {}
        self.settings: dict[str, Any] = {}
        self.commands: list[tuple[str, str]] = []
        self.arguments: dict[str, dict[str, Any]] = {}
        """The last of each command."""
        self.refuse: dict[tuple[str, str], qsg.QsgError] = {}
        self.answers: dict[str, dict[str, Any]] = {}
        self.closed = False

    async def close(self) -> None:
        self.closed = True

    def reach(self, way: Way) -> None:
        self.way = way

    def serve(self, members: list[str], **structures: bool) -> None:
        """Members answer from now on."""
        lines: list[Mapping[str, Any]] = [
            {"member": m, "linked": True, "initiator": True, "draining": False, "channels": 0, "incarnation": n + 1}
            for n, m in enumerate(members)
        ]
        self.seen.connected = self.seen.told = True
        self.seen.error = ""
        self.seen.members, self.seen.structures = lines, structures or {"admin": True, "private": True}

    def state(self, channel: str, state: str, **fields: Any) -> None:
        line = {
            "channel": channel, "type": "sender", "status": state, "owner": "ORDERS.0", "partner": "BANK", "address": "bank:1414",
            "epoch": 1, "started_at_ms": 0, "updated_at_ms": 0, "last_message_at_ms": 0, "current_sequence": 0, "last_sequence": 0,
            "in_doubt": False, "takeovers": 0, "reason": 0, "detail": "",
        }  # fmt: skip
        self.seen.channels[channel, ""] = line | fields

    async def inquire(self, kind: str, name: str = "") -> Any:
        if not self.seen.connected:
            raise NotConnected(self.seen.error)
        found = self.queues if kind == "queues" else self.channels
        return {kind: [one.model_dump(mode="json") | {"depth": self.depths.get(one.name, 0)} for one in found.values()]}

    async def command(self, name: str, /, **arguments: Any) -> Any:
        if not self.seen.connected:
            raise NotConnected(self.seen.error)
        what = str(arguments.get("channel") or arguments.get("name") or arguments.get("definition", {}).get("name", ""))
        self.commands.append((name, what))
        self.arguments[name] = arguments
        if (name, what) in self.refuse:
            raise self.refuse[name, what]
        if name == "define":
            self._define(arguments)
        elif name == "delete":
            if self.depths.get(what):
                raise qsg.QsgError(what, Reason.Q_NOT_EMPTY)
            line = self.seen.channels.get((what, ""))
            if arguments["kind"] == "channel" and line is not None and line["status"] in ("RUNNING", "RETRYING"):
                raise qsg.QsgError(what, Reason.CHANNEL_IN_USE)
            del (self.queues if arguments["kind"] == "queue" else self.channels)[what]
        elif name == "start":
            self.state(what, "RUNNING")
        elif name == "stop" and arguments["status"] == "inactive":
            self.seen.channels.pop((what, ""), None)
        elif name == "stop":
            self.state(what, "STOPPED", reason=int(Reason.STOPPED_BY_COMMAND))
        return {"channel": what, "done": True} | self.answers.get(name, {})

    def _define(self, arguments: dict[str, Any]) -> None:
        definition = arguments["definition"]
        match arguments["kind"]:
            case "queue":
                queue = rules.Queue.model_validate(definition)
                try:
                    require_same_place(self.queues.get(queue.name, queue), queue)
                except Refusal as refusal:
                    raise qsg.QsgError(refusal.detail, refusal.reason) from None
                self.queues[queue.name] = queue
            case "channel":
                self.channels[definition["name"]] = rules.Channel.model_validate(definition)
            case "settings":
                self.settings = definition
