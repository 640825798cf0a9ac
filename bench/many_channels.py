"""What many SharedChannels cost the operator: time until all are live, and memory.

    PYTHONPATH=tests python bench/many_channels.py --channels 1000

on the cluster of KUBECONFIG, where the chart is installed in qsg-system. Makes a group of two members with one etcd in a namespace of its
own, and then the channels: receivers, and every tenth a sender with a queue of its own to an address where nothing listens. Time counts
from the first object that is sent to the API server until the status of the last says that its definition is live.
"""

from __future__ import annotations

import argparse
import json
import time

from support.kubernetes import Namespace, Object, condition, run

SYSTEM = Namespace("qsg-system")
KINDS = {"apiVersion": "qsg.dev/v1alpha1"}
VOLUME = {"storage": {"size": "1Gi", "whenDeleted": "Delete"}}


def group() -> Object:
    spec = {"members": 2, "store": {"managed": {"members": 1, **VOLUME}}, "settings": {"channelsMax": 2000}, **VOLUME}
    return {**KINDS, "kind": "QueueSharingGroup", "metadata": {"name": "many"}, "spec": spec}


def channels(count: int, senders_every: int) -> list[Object]:
    made: list[Object] = []
    for n in range(count):
        spec: Object = {"group": "many", "type": "Receiver"}
        if n % senders_every == 0:
            made.append({**KINDS, "kind": "SharedQueue", "metadata": {"name": f"x-{n}"}, "spec": {"group": "many", "type": "Transmission"}})
            spec = {"group": "many", "type": "Sender", "transmissionQueue": f"X.{n}", "connectionNames": ["127.0.0.1:9"]}
        made.append({**KINDS, "kind": "SharedChannel", "metadata": {"name": f"c-{n}"}, "spec": spec})
    return made


def live(where: Namespace) -> int:
    return sum(condition(one, "Valid").get("status") == "True" for one in where.list("schan"))


def memory_mib() -> dict[str, float]:
    """Of each pod of the operator."""
    found = {}
    for pod in SYSTEM.list("pod"):
        name = pod["metadata"]["name"]
        text = run(["kubectl", "get", "--raw", f"/api/v1/namespaces/{SYSTEM.name}/pods/{name}:8081/proxy/metrics"])
        line = next(line for line in text.splitlines() if line.startswith("process_resident_memory_bytes "))
        found[name] = round(float(line.split()[1]) / 2**20, 1)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--channels", type=int, default=1000)
    parser.add_argument("--senders-every", type=int, default=10)
    parser.add_argument("--keep", action="store_true", help="leave the namespace")
    given = parser.parse_args()
    where = Namespace("qsg-many").create()
    where.apply(group())
    where.wait("queuesharinggroups", "many", timeout_s=240)
    before = memory_mib()
    made = channels(given.channels, given.senders_every)
    began = time.monotonic()
    where.kubectl("create", "-f", "-", given=json.dumps({"apiVersion": "v1", "kind": "List", "items": made}), timeout_s=600)
    created_s = time.monotonic() - began
    while (count := live(where)) < given.channels:
        print(f"{time.monotonic() - began:.0f} s: {count} live", flush=True)  # noqa: T201
        time.sleep(2)
    live_s = time.monotonic() - began
    time.sleep(60)
    result = {
        "channels": given.channels,
        "senders": len(made) - given.channels,
        "created_s": round(created_s, 1),
        "live_s": round(live_s, 1),
        "operator_mib_before": before,
        "operator_mib_a_minute_later": memory_mib(),
    }
    print(json.dumps(result))  # noqa: T201
    if not given.keep:
        where.remove(300)


if __name__ == "__main__":
    main()
