"""`helm test`: messages from a group of its own to a queue manager of its own, with the owner's pod killed on the way.

Proves on the cluster at hand: resources become ready, certificates fit, messages arrive once and in order, and a takeover happens.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from dataclasses import dataclass
from typing import Any

import qsg
from qsg_operator import names
from qsg_operator.api import Api, ApiError
from qsg_operator.children.certificates import decoded
from qsg_operator.conditions import find
from qsg_operator.main import login
from qsg_operator.members import Way

NAME = "qsg-selftest"
PARTNER = f"{NAME}-partner"
QUEUE, TRANSMISSION, CHANNEL = "SELFTEST.IN", "SELFTEST.OUT", "SELFTEST"
READY_S, ARRIVE_S, PACE_S, TOLD_S = 180.0, 60.0, 10.0, 30.0
"""`TOLD_S`: until a takeover is in the channel's status."""

POLL_S = 0.5


class Failed(Exception):
    """What was not as it should be."""


@dataclass(frozen=True)
class Owned:
    """Who has the channel, as its status says. `pod` "" = nobody."""

    pod: str
    epoch: int
    takeovers: int


def resources(namespace: str) -> list[dict[str, Any]]:
    volume = {"storage": {"size": "1Gi", "whenDeleted": "Delete"}}

    def made(kind: str, name: str, **spec: Any) -> dict[str, Any]:
        return {"apiVersion": names.API_VERSION, "kind": kind, "metadata": {"namespace": namespace, "name": name}, "spec": spec}

    partner = f"{names.listener(names.base(names.QUEUE_MANAGER, PARTNER))}:{names.LOCAL_PORT}"
    return [
        made(names.QUEUE_SHARING_GROUP, NAME, members=2, store={"managed": {"members": 1, **volume}}, **volume),
        made(names.QUEUE_MANAGER, PARTNER, **volume),
        made(names.SHARED_QUEUE, f"{NAME}-out", group=NAME, queueName=TRANSMISSION, type="Transmission"),
        made(
            names.SHARED_QUEUE, f"{NAME}-to", group=NAME, queueName=QUEUE, type="Remote", remoteQueue=QUEUE,
            remoteQueueManager=names.mq_name(PARTNER), transmissionQueue=TRANSMISSION,
        ),
        made(
            names.SHARED_CHANNEL, NAME, group=NAME, channelName=CHANNEL, type="Sender", transmissionQueue=TRANSMISSION,
            connectionNames=[partner],
        ),
        made(names.SHARED_CHANNEL, PARTNER, queueManager=PARTNER, channelName=CHANNEL, type="Receiver"),
        made(names.SHARED_QUEUE, PARTNER, queueManager=PARTNER, queueName=QUEUE),
    ]  # fmt: skip


async def main(api: Api, namespace: str, messages: int) -> None:
    made = resources(namespace)
    try:
        for one in made:
            await api.apply(one)
        for one in made:
            await _ready(api, one)
        await _flow(api, namespace, messages)
    finally:
        for one in reversed(made):
            try:
                await api.delete(one["kind"], namespace, one["metadata"]["name"])
            except ApiError as error:  # the others go all the same, and what the test has found counts
                _say(f"{one['kind']} {one['metadata']['name']} is left: {error}")


async def _ready(api: Api, resource: dict[str, Any]) -> None:
    kind, meta = resource["kind"], resource["metadata"]
    ready: Any = {}
    try:
        async with asyncio.timeout(READY_S):
            while ready.get("status") != "True":
                await asyncio.sleep(1)
                found = await api.get(kind, meta["namespace"], meta["name"]) or {}
                ready = find(found.get("status", {}).get("conditions") or (), "Ready")
    except TimeoutError:
        raise Failed(f"{kind} {meta['name']} is not ready: {ready.get('reason')}: {ready.get('message')}") from None
    _say(f"{kind} {meta['name']} is ready")


async def _connect(api: Api, namespace: str, kind: str, name: str, producer: str = "") -> qsg.QueueManager:
    base = names.base(kind, name)
    secret = await api.get("Secret", namespace, names.client_tls(base))
    if secret is None:
        raise Failed(f"there is no Secret {names.client_tls(base)}")
    data, address = decoded(secret), names.server_name(base, namespace)
    way = Way((f"{address}:{names.CLIENT_PORT}",), names.mq_name(name), data["ca.crt"], data["tls.crt"], data["tls.key"], address)
    return qsg.connect(
        list(way.addresses), application="qsg selftest", queue_manager=way.queue_manager, producer=producer, transport=way.transport()
    )


async def _flow(api: Api, namespace: str, messages: int) -> None:
    sending = await _connect(api, namespace, names.QUEUE_SHARING_GROUP, NAME, producer="selftest")
    receiving = await _connect(api, namespace, names.QUEUE_MANAGER, PARTNER)
    async with sending, receiving, asyncio.TaskGroup() as group:
        group.create_task(_put(sending, messages))
        killed = group.create_task(_kill_owner(api, namespace))
        got = group.create_task(_get(receiving, messages))
    wanted = list(range(messages))
    lost, more = sorted(set(wanted) - set(got.result())), len(got.result()) - len(set(got.result()))
    _say(
        f"{messages} put, {len(got.result())} arrived, {len(lost)} lost, {more} twice, {'in' if got.result() == wanted else 'not in'} order"
    )
    if got.result() != wanted:
        raise Failed("messages were lost, doubled or out of order")
    before = killed.result()
    after = await taken_over(api, namespace, before)
    _say(f"the channel was with {before.pod} and is with {after.pod} now: {how(before, after)}")


def how(before: Owned, after: Owned) -> str:
    """A pod that is deleted by force may still be told to end, and then hands its channels over first."""
    takeovers = after.takeovers - before.takeovers
    return f"taken over ({takeovers})" if takeovers else "handed over before its pod had ended"


async def _owner(api: Api, namespace: str) -> Owned:
    status = (await api.get(names.SHARED_CHANNEL, namespace, NAME) or {}).get("status") or {}
    owner = status.get("owner") or {}
    return Owned(str(owner.get("pod", "")), int(owner.get("epoch", 0)), int((status.get("takeovers") or {}).get("count", 0)))


async def taken_over(api: Api, namespace: str, before: Owned) -> Owned:
    """Who has the channel once it was taken over: another pod, in a later epoch, or the same one after a takeover that was counted. Raises
    `Failed` when nobody took it over."""
    after = before
    try:
        async with asyncio.timeout(TOLD_S):
            while not after.pod or after.epoch <= before.epoch or (after.pod == before.pod and after.takeovers <= before.takeovers):
                await asyncio.sleep(POLL_S)
                after = await _owner(api, namespace)
    except TimeoutError:
        raise Failed(f"nobody took the channel over: it was with {before.pod} and is with {after.pod or 'nobody'} now") from None
    return after


async def _put(sending: qsg.QueueManager, messages: int) -> None:
    for number in range(messages):
        await sending.put(QUEUE, str(number))
        await asyncio.sleep(PACE_S / messages)


async def _kill_owner(api: Api, namespace: str) -> Owned:
    await asyncio.sleep(PACE_S / 3)
    owner = await _owner(api, namespace)
    if not owner.pod:
        raise Failed("the channel has no owner")
    _say(f"killing {owner.pod}, which owns the channel")
    await api.delete("Pod", namespace, owner.pod, grace_s=0)
    return owner


async def _get(receiving: qsg.QueueManager, messages: int) -> list[int]:
    """What arrives, and whatever comes within a second after all should be there."""
    found: list[int] = []
    loop = asyncio.get_running_loop()
    until = loop.time() + PACE_S + ARRIVE_S
    while loop.time() < until:
        wait_ms = 1_000 if len(found) >= messages else 2_000
        try:
            found += [int(message.payload) for message in await receiving.get_many(QUEUE, 100, wait_ms=wait_ms)]
        except qsg.NoMessageAvailable:
            if len(found) >= messages:
                break
    return found


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


async def _run(namespace: str, messages: int) -> int:
    api = Api(login)
    failures: list[Exception] = []
    try:
        await main(api, namespace, messages)
    except* (Failed, ApiError, qsg.QsgError) as errors:
        failures = list(errors.exceptions)
    finally:
        await api.close()
    for failure in failures:
        _say(f"failed: {failure}")
    _say("failed" if failures else "passed")
    return 1 if failures else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Sends messages from a group of its own to a queue manager of its own, with a takeover.")
    parser.add_argument("--namespace", required=True)
    parser.add_argument("--messages", type=int, default=500)
    given = parser.parse_args()
    sys.exit(asyncio.run(_run(given.namespace, given.messages)))
