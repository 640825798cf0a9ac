"""What is asked of a channel, by annotation and by its spec, while messages move over it: done once, told in the status and as an Event."""

from __future__ import annotations

import json
import time
from functools import partial
from typing import Any

import pytest

from support.cluster_flow import Flow
from support.cluster_operations import asked
from support.cluster_shop import CHANNEL, GROUP, STOPPED, Shop, Traffic
from support.kubernetes import Object, eventually

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]

PLANNED_MS, STOPPED_MS = 250, 10_000


def operate(shop: Shop, verb: str, channel: str = CHANNEL, **arguments: Any) -> tuple[str, str]:
    return asked(shop.namespace, channel, verb, **arguments)


def another(shop: Shop, pod: str) -> str:
    """A member that can take a channel from `pod`."""
    members: list[Object] = shop.group()["status"]["members"]
    return next(str(one["pod"]) for one in members if one["pod"] != pod and one["ready"])


def test_a_planned_move_and_what_is_refused_of_a_channel_that_runs(shop: Shop, traffic: Traffic) -> None:
    before = shop.owner()
    to = another(shop, before["pod"])
    with traffic.through("planned move by annotation", PLANNED_MS):
        for told in (operate(shop, "ping"), operate(shop, "reset", sequence=1), operate(shop, "resolve", action="backout")):
            assert told[0] == "Failed" and before["member"] in told[1]
        assert operate(shop, "move", to="orders-9")[0] == "Failed"
        assert shop.owner()["epoch"] == before["epoch"], "nothing was changed by what was refused"

        state, message = operate(shop, "move", to=to)
        assert (state, message) == ("Succeeded", f"from {before['member']} to {to.upper().replace('-', '.')}")
        after = shop.taken_over(before)
        assert after["pod"] == to


def test_of_a_channel_that_is_stopped_ping_and_reset(shop: Shop) -> None:
    """It stays stopped, and what waits for it stays."""
    shop.whole()
    state, message = operate(shop, "ping", STOPPED, bytes=1000)
    assert state == "Succeeded" and "bytes: 1000" in message and "address: bank-qm-listener:1414" in message
    state, message = operate(shop, "reset", STOPPED, sequence=700)
    assert (state, message) == ("Succeeded", "partner: told at the next bind, sequence: 700")
    state, message = operate(shop, "resolve", STOPPED, action="backout")
    assert state == "Failed" and "in doubt" in message
    shop.whole()
    assert shop.channel(STOPPED)["status"]["backlog"]["messages"] == 1


def test_what_goes_beside_a_channel_leaves_it_alone_and_stopped_it_loses_nothing(shop: Shop, traffic: Traffic) -> None:
    before = shop.owner()
    waiting, went = "beside", time.time()
    kinds = {"apiVersion": "qsg.dev/v1alpha1", "metadata": {"name": waiting}}
    sender = {"group": GROUP, "type": "Sender", "transmissionQueue": "BESIDE", "connectionNames": ["bank-qm-0.bank-qm-pods:9"]}
    queue = {**kinds, "kind": "SharedQueue", "spec": {"group": GROUP, "type": "Transmission"}}
    with traffic.through("channel stopped for a while", STOPPED_MS):
        shop.namespace.apply(queue, {**kinds, "kind": "SharedChannel", "spec": sender})
        shop.namespace.wait("schan", waiting, "Valid", timeout_s=30)
        shop.namespace.delete("schan,squeue", waiting)
        eventually(lambda: "BESIDE" not in defined(shop), 30, "its definitions are gone")
        traffic.moves()
        assert shop.owner()["epoch"] == before["epoch"], "the channel is where it was"
        left_alone = time.time()

        shop.namespace.patch("schan", CHANNEL, {"spec": {"desiredState": "Stopped"}})
        eventually(lambda: shop.channel()["status"]["state"] == "Stopped", 30, "it is stopped")
        flow = traffic.flows[0]
        eventually(partial(_silent, flow), 20, "nothing arrives any more")
        put, arrived = flow.last_line()["acknowledged"], flow.arrived()
        eventually(lambda: flow.last_line()["acknowledged"] > put + flow.rate_per_s, 30, "messages are put and wait", every_s=0.2)
        assert flow.arrived() == arrived, "and none arrives"
        shop.namespace.patch("schan", CHANNEL, {"spec": {"desiredState": "Running"}})
    pauses = [flow.longest_pause_ms(went, left_alone) for flow in traffic.flows]
    assert max(pauses) < 4_000, pauses


def _silent(flow: Flow) -> bool:
    arrived = flow.arrived()
    time.sleep(1.5)
    return flow.arrived() == arrived


def defined(shop: Shop) -> set[str]:
    return {one["name"] for kind in ("channel", "queue") for one in json.loads(shop.qsg(kind, "list", "-o", "json"))}
