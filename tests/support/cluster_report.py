"""Why a test on a cluster may have failed: what pods, conditions and logs say at that moment, in few lines.

Read through kubectl, which may not answer while the test has broken something: then that is said instead. Not guaranteed: anything about
what has gone already; of a container that was started again the log before is looked at too.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from support.kubernetes import CommandFailed, Object, run

NAMESPACES = re.compile(r"qsg-")
"""Of the tests and of the operator."""
LINES_MAX, WIDTH = 150, 300
LINES_OF_ONE, LINES_OF_CONDITIONS = 12, 40
ALIKE_MAX = 3
"""Of lines that say the same of one container."""
SINCE = "10m"
ANSWER_S = 15.0
WORSE = re.compile(r"(warn(ing)?|error|critical|dpanic|panic|fatal)\b", re.IGNORECASE)
GOOD = re.compile(r"INFO|DEBUG|I\d{4} ")
"""Lines of libraries that log in their own way."""
USUAL = ("Stalled",)
"""Conditions that are as they should be when they are False."""


@dataclass(frozen=True)
class Container:
    namespace: str
    pod: str
    name: str
    restarts: int

    def logs(self) -> list[str]:
        """What is worth telling, the latest last."""
        before = self._read("--previous") if self.restarts else ""
        return worse((before + self._read()).splitlines())

    def _read(self, *options: str) -> str:
        asked = ["kubectl", "-n", self.namespace, "logs", self.pod, "-c", self.name, f"--since={SINCE}", *options]
        try:
            return run(asked, timeout_s=ANSWER_S)
        except (CommandFailed, subprocess.TimeoutExpired) as error:
            return f"ERROR its log was not had: {error}\n"


def report() -> str:
    """Never raises for what a cluster does."""
    try:
        pods = [one for one in _all("pods") if NAMESPACES.match(one["metadata"]["namespace"])]
        resources = [one for one in _all("qsg") if NAMESPACES.match(one["metadata"]["namespace"])]
    except (CommandFailed, subprocess.TimeoutExpired) as error:
        return f"the cluster does not answer: {error}"
    lines = [*map(pod_line, pods), *untrue(resources)[:LINES_OF_CONDITIONS]]
    found = [one for pod in pods for one in containers(pod)]
    with ThreadPoolExecutor(8) as pool:
        logs = list(pool.map(Container.logs, found))
    told = [(f"{one.namespace}/{one.pod} {one.name}:", log) for one, log in zip(found, logs, strict=True) if log]
    return "\n".join(line[:WIDTH] for line in [*lines, *shared_out(told, LINES_MAX - len(lines))])


def _all(kind: str) -> list[Object]:
    found: list[Object] = json.loads(run(["kubectl", "get", kind, "-A", "-o", "json"], timeout_s=ANSWER_S))["items"]
    return found


def pod_line(pod: Object) -> str:
    meta, status = pod["metadata"], pod.get("status") or {}
    told = status.get("containerStatuses") or []
    going = " terminating" if "deletionTimestamp" in meta else ""
    ready, restarts = sum(one["ready"] for one in told), sum(one["restartCount"] for one in told)
    where = f"on {pod['spec'].get('nodeName') or 'no node'}, {status.get('phase')}{going}"
    return f"pod {meta['namespace']}/{meta['name']} {where}, {ready}/{len(pod['spec']['containers'])} ready, {restarts} restarts"


def containers(pod: Object) -> list[Container]:
    meta, told = pod["metadata"], (pod.get("status") or {}).get("containerStatuses") or []
    return [Container(meta["namespace"], meta["name"], one["name"], one["restartCount"]) for one in told]


def untrue(resources: Iterable[Object]) -> list[str]:
    """Conditions that are not True, where they should be."""
    found = []
    for one in resources:
        meta, status = one["metadata"], one.get("status") or {}
        name = f"{one['kind']} {meta['namespace']}/{meta['name']}"
        if status.get("observedGeneration") != meta.get("generation"):
            found.append(f"{name}: of generation {meta.get('generation')} its status knows {status.get('observedGeneration')}")
        for condition in status.get("conditions") or ():
            good = "False" if condition["type"] in USUAL else "True"
            if condition["status"] != good:
                told = " ".join(condition.get("message", "").split())
                found.append(f"{name}: {condition['type']} is {condition['status']} {condition['reason']}: {told}")
    return found


def worse(lines: Iterable[str]) -> list[str]:
    """Of a log the last lines that are no good news, by their level, or because they are none of it, as a traceback's are not."""
    found: list[str] = []
    times: Counter[str] = Counter()
    for line in reversed(list(lines)):
        what, told = _told(line)
        times[what] += 1
        if told and times[what] <= ALIKE_MAX:
            found.append(told)
    return found[:LINES_OF_ONE][::-1]


def _told(line: str) -> tuple[str, str]:
    """What happened, and how it is told; "" = it is no bad news."""
    try:
        entry = json.loads(line)
    except ValueError:
        return line, "" if GOOD.match(line) else line.strip()
    if not isinstance(entry, dict) or not WORSE.match(str(entry.get("level", ""))):
        return line, ""
    time, level = (str(entry.pop(first, entry.pop(other, ""))) for first, other in (("timestamp", "ts"), ("level", "level")))
    what = str(entry.pop("event", entry.pop("msg", "")))
    if "exception" in entry:
        entry["exception"] = str(entry["exception"]).strip().splitlines()[-1:]
    return what, f"{time[11:23]} {level} {what} {json.dumps(entry)}"


def shared_out(logs: Sequence[tuple[str, list[str]]], room: int) -> list[str]:
    """Each with its title, the latest lines of each, as many of all alike as there is room for; at least one."""
    each = LINES_OF_ONE
    while each > 1 and sum(1 + min(each, len(log)) for _, log in logs) > room:
        each -= 1
    return [line for title, log in logs for line in (title, *(f"  {line}" for line in log[-each:]))]
