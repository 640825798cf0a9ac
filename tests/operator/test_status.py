"""Status says what the data path says. Ready of a channel is never true where messages cannot move."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import jsonschema
import pytest

from qsg.manager.status_line import describe
from qsg.pb import records_pb2 as pb
from qsg.rules.reasons import Reason
from qsg_operator import names
from qsg_operator.children.objects import Owner
from qsg_operator.conditions import Condition, merged, timestamp
from qsg_operator.seen import Backlog, Seen
from qsg_operator.status.channel import DEFINED, Definedness, Target, channel_status
from qsg_operator.status.owner import Cluster, Pod, owner_status, pods_by_member, spare
from qsg_operator.status.queue import queue_status
from support.crds import schema, unknown
from support.owners import group, manager
from support.shared import SENDER, shared_channel

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)
NOW_MS = int(NOW.timestamp() * 1000)
NAME = "ORDERS.TO.BANK"


def entry(state: str, **fields: Any) -> dict[str, Any]:
    """As `describe` of a real entry of the table tells it."""
    one = pb.ChannelStatus(
        channel=NAME,
        type=pb.SENDER,
        state=pb.ChannelState.Value(state),
        owner="ORDERS.1",
        partner="BANK",
        transmission_queue="BANK",
        epoch=3,
        last_sequence=40,
        current_sequence=42,
        started_at_ms=NOW_MS - 60_000,
        updated_at_ms=NOW_MS,
        last_message_at_ms=NOW_MS - 1_000,
    )
    for name, value in fields.items():
        setattr(one, name, value)
    if "takeovers" in fields:
        one.takeover.CopyFrom(pb.Takeover(to="ORDERS.1", cause="linkdead", at_ms=NOW_MS, detect_ms=120.4, claim_ms=20.2, resume_ms=9.9))
        setattr(one.takeover, "from", "ORDERS.0")
    return describe(one)


def seen(*lines: dict[str, Any], **fields: Any) -> Seen:
    members = [
        {"member": f"ORDERS.{n}", "linked": True, "initiator": True, "draining": False, "channels": n, "incarnation": 10 + n}
        for n in range(3)
    ]
    channels = {(line["channel"], line["partner"] if line["type"] == "receiver" else ""): line for line in lines}
    given: dict[str, Any] = {"connected": True, "told": True, "error": "", "members": members, "structures": {"admin": True}}
    return Seen(**(given | {"channels": channels} | fields))


def check(kind: str, status: dict[str, Any], conditions: list[Condition]) -> None:
    """What is written is what the schema has: the API server would prune or refuse the rest."""
    whole = {**status, "observedGeneration": 1, "conditions": merged([], conditions, 1, NOW)[0]}
    of = schema(kind, "status")
    assert unknown(whole, of) == []
    jsonschema.validate(whole, of)


def told(
    s: Seen, present: dict[str, Any] | None = None, defined: Definedness = DEFINED, **spec: Any
) -> tuple[dict[str, Any], dict[str, Condition]]:
    target = Target(True, "group orders", s, {"ORDERS.1": ("orders-1", "node-b")})
    status, conditions = channel_status(shared_channel(**SENDER | spec), NAME, target, defined, present or {}, NOW)
    check(names.SHARED_CHANNEL, status, conditions)
    return status, {condition.type: condition for condition in conditions}


def test_a_running_channel_is_ready_and_says_where() -> None:
    status, conditions = told(seen(entry("RUNNING", takeovers=2)))
    assert conditions["Ready"].ok and conditions["Connected"].ok and conditions["Valid"].ok and conditions["Stalled"].ok is False
    assert status["owner"] == {"member": "ORDERS.1", "pod": "orders-1", "node": "node-b", "epoch": 3, "since": "2026-11-25T11:59:00Z"}
    assert status["sequence"] == {"sent": 42, "confirmed": 40}
    assert status["takeovers"]["lastDurationMs"] == 150 and status["takeovers"]["lastCause"] == "linkdead"
    assert status["state"] == "Running" and "lastError" not in status


@pytest.mark.parametrize("state", [name for name in pb.ChannelState.keys() if name not in ("RUNNING", "PAUSED", "INACTIVE")])
def test_a_channel_that_does_not_run_is_not_ready(state: str) -> None:
    _, conditions = told(seen(entry(state)))
    assert conditions["Ready"].ok is False and conditions["Connected"].ok is False


def test_nobody_listens_there() -> None:
    status, conditions = told(seen(entry("RETRYING", reason=int(Reason.HOST_UNREACHABLE), detail="bank:1414: refused")))
    assert (conditions["Ready"].reason, conditions["Ready"].message) == ("Retrying", "bank:1414: refused")
    assert status["lastError"] == {"time": timestamp(NOW), "reason": "HostUnreachable", "message": "bank:1414: refused"}


@pytest.mark.parametrize(("state", "reason"), [("STARTING", "Retrying"), ("BINDING", "Retrying"), ("INITIALIZING", "Initializing")])
def test_a_further_attempt_is_called_retrying_until_one_succeeds(state: str, reason: str) -> None:
    retrying = {"conditions": merged([], [Condition("Ready", False, "Retrying")], 1, NOW)[0]}
    _, conditions = told(seen(entry(state, detail="bank:1414: refused")), retrying)
    assert conditions["Ready"].reason == conditions["Connected"].reason == reason
    assert conditions["Ready"].message == "bank:1414: refused"
    _, conditions = told(seen(entry(state)))
    assert conditions["Ready"].reason == state.capitalize(), "a first attempt"


def test_the_last_error_stays_when_the_channel_runs_again() -> None:
    before = {"lastError": {"time": timestamp(NOW), "reason": "HostUnreachable", "message": "m"}}
    status, _ = told(seen(entry("RUNNING")), before)
    assert status["lastError"] == before["lastError"]


def test_an_inactive_channel_is_ready_only_after_it_ran() -> None:
    _, conditions = told(seen())
    assert conditions["Ready"].ok is False and conditions["Ready"].reason == "Inactive"
    ran = {"conditions": merged([], [Condition("Ready", True, "Running")], 1, NOW)[0]}
    _, conditions = told(seen(), ran)
    assert conditions["Ready"].ok and conditions["Ready"].reason == "Idle"


def test_stopped_by_wish_and_stopped_by_error() -> None:
    line = entry("STOPPED", reason=int(Reason.STOPPED_BY_COMMAND))
    _, conditions = told(seen(line), desiredState="Stopped")
    assert (conditions["Ready"].reason, conditions["Stalled"].ok) == ("Stopped", False)
    _, conditions = told(seen(entry("STOPPED", reason=int(Reason.CHANNEL_CONFIG_ERROR), detail="sequence")))
    assert conditions["Stalled"].ok and conditions["Ready"].ok is False and "sequence" in conditions["Ready"].message


def test_a_backlog_that_does_not_move_is_a_stall() -> None:
    line = entry("RUNNING", last_message_at_ms=NOW_MS - 61_000)
    status, conditions = told(seen(line, backlogs={"BANK": Backlog(7, 90)}))
    assert status["backlog"] == {"messages": 7, "oldestAgeSeconds": 90}
    assert conditions["Stalled"].ok and conditions["Ready"].ok is False and conditions["Ready"].reason == "NoProgress"
    _, conditions = told(seen(entry("RUNNING"), backlogs={"BANK": Backlog(7, 90)}))
    assert conditions["Ready"].ok, "a long backlog that moves is no stall"


def test_without_members_nothing_is_claimed() -> None:
    _, conditions = told(seen(entry("RUNNING"), connected=False, error="refused"))
    assert conditions["Ready"].ok is None and conditions["Connected"].ok is None
    assert "group orders" in conditions["Ready"].message
    _, conditions = told(seen(entry("RUNNING"), told=False))
    assert conditions["Ready"].ok is None


def test_a_definition_that_was_refused_is_not_ready_whatever_runs() -> None:
    refused = Definedness(False, "Refused", "no such queue")
    _, conditions = told(seen(entry("RUNNING")), defined=refused)
    assert conditions["Ready"].ok is False and conditions["Valid"].ok is False


def test_a_receiver_is_ready_when_a_partner_can_connect() -> None:
    spec: dict[str, Any] = {"type": "Receiver", "transmissionQueue": "", "connectionNames": []}
    status, conditions = told(seen(), **spec)
    assert conditions["Ready"].ok and conditions["Ready"].reason == "Listening" and conditions["Connected"].ok is False
    assert status["state"] == "Listening"
    lines = [entry("RUNNING", type=pb.RECEIVER, partner=partner) for partner in ("BANK", "SHOP")]
    status, conditions = told(seen(*lines), **spec)
    assert conditions["Connected"].ok and [s["partner"] for s in status["sessions"]] == ["BANK", "SHOP"]
    nobody = seen()
    nobody.members = [{**line, "initiator": False} for line in nobody.members]
    _, conditions = told(nobody, **spec)
    assert conditions["Ready"].ok is False and conditions["Ready"].reason == "NoListener"


def test_an_operation_and_old_numbers_are_not_lost() -> None:
    before = {"lastOperation": {"id": "1", "verb": "reset", "state": "Succeeded"}, "lastMessageTime": timestamp(NOW)}
    status, _ = told(seen(), before)
    assert status["lastOperation"] == before["lastOperation"] and status["lastMessageTime"] == before["lastMessageTime"]


def cluster(owner: Owner, ready: int = 3, etcd: int = 3, rolled_out: bool = True) -> Cluster:
    pods = {name: Pod(name, f"node-{n}", n < ready, "10.0.0.1") for n, name in enumerate(owner.pod_names())}
    return Cluster(pods, {"admin": etcd}, {"admin": ["node-0", "node-1", "node-2"]}, rolled_out)


def owned(owner: Owner, c: Cluster, s: Seen, problem: str = "") -> tuple[dict[str, Any], dict[str, Condition]]:
    status, conditions = owner_status(owner, c, s, channels=2, expires=timestamp(NOW), problem=problem)
    check(owner.kind, status, conditions)
    return status, {condition.type: condition for condition in conditions}


def test_a_whole_group_is_ready_and_redundant() -> None:
    owner = group()
    status, conditions = owned(owner, cluster(owner), seen(entry("RUNNING")))
    assert all(conditions[name].ok for name in ("Ready", "Available", "Redundant", "StoreReachable"))
    assert status["membersReady"] == "3/3" and status["channels"] == {"total": 2, "running": 1}
    assert status["portal"] == {"service": "orders-portal", "address": "orders-portal.shop.svc:1415"}
    assert status["members"][1] == {
        "name": "ORDERS.1",
        "pod": "orders-1",
        "node": "node-1",
        "ready": True,
        "linked": True,
        "draining": False,
        "incarnation": 11,
        "channels": 1,
    }
    assert pods_by_member(owner, cluster(owner))["ORDERS.2"] == ("orders-2", "node-2")


@pytest.mark.parametrize(
    ("etcd", "structures", "reason", "stores"),
    [(2, {"admin": True}, "NoSpareStoreMember", False), (3, {"admin": False}, "NoSpareMember", True)],
)
def test_what_must_not_be_lost_now(etcd: int, structures: dict[str, bool], reason: str, stores: bool) -> None:
    owner = group()
    s = seen(structures=structures)
    _, conditions = owned(owner, cluster(owner, etcd=etcd), s)
    assert conditions["Redundant"].reason == reason
    assert spare(owner, cluster(owner, etcd=etcd), s).stores == {"admin": stores}


def test_a_node_that_is_no_spare_is_named() -> None:
    """After a drain the store's pods are where there was room, and nothing moves them back by itself."""
    owner = group()
    crowded = replace(cluster(owner), etcd_nodes={"admin": ["node-1", "node-0", "node-1"]})
    _, conditions = owned(owner, crowded, seen())
    found = conditions["Redundant"]
    assert (found.ok, found.reason) == (True, "NodeNotSpare"), "a pod can be lost, and may be evicted"
    assert found.message == ("a member and a store member can be lost now, but not a node with 2 of 3 etcd members of admin (node-1)")
    alone = replace(cluster(owner), pods={name: replace(pod, node="node-0") for name, pod in cluster(owner).pods.items()})
    _, conditions = owned(owner, alone, seen())
    assert conditions["Redundant"].message.endswith("but not a node with all members (node-0)")


def test_what_an_external_store_can_lose_is_unknown() -> None:
    """One endpoint may be one etcd, or a balancer before three."""
    owner = group(store={"external": {"endpoints": ["etcd:2379"]}})
    _, conditions = owned(owner, cluster(owner), seen())
    assert (conditions["Redundant"].ok, conditions["Redundant"].reason) == (None, "ExternalStore")
    assert conditions["Redundant"].message.endswith("is unknown: admin") and conditions["Ready"].ok
    assert spare(owner, cluster(owner), seen()).member, "members may be drained all the same"
    _, conditions = owned(owner, cluster(owner), seen(structures={"admin": False}))
    assert conditions["Redundant"].reason == "NoSpareMember"
    mixed = group(store={"managed": {"members": 3}, "structures": [{"name": "fast", "external": {"endpoints": ["etcd:2379"]}}]})
    s = seen(structures={"admin": True, "fast": True})
    _, conditions = owned(mixed, cluster(mixed, etcd=2), s)
    assert conditions["Redundant"].reason == "NoSpareStoreMember", "of its own store it is known"
    _, conditions = owned(mixed, cluster(mixed), s)
    assert conditions["Redundant"].message.endswith("is unknown: fast")


def test_one_serving_member_is_not_redundant_and_still_available() -> None:
    owner = group()
    s = seen()
    s.members = [{**line, "initiator": n == 0} for n, line in enumerate(s.members)]
    _, conditions = owned(owner, cluster(owner, ready=1), s)
    assert conditions["Available"].ok and not conditions["Redundant"].ok and conditions["Ready"].reason == "MembersMissing"


def test_a_lost_store_is_said() -> None:
    owner = group()
    _, conditions = owned(owner, cluster(owner), seen(structures={"admin": True, "fast": False}))
    assert conditions["StoreReachable"].message == "not reached: fast" and conditions["Ready"].ok is False


def reaching(*structures: list[str], **fields: Any) -> list[dict[str, Any]]:
    """Members as they tell of each other, with the structures that each has joined and reaches."""
    told = {"linked": True, "initiator": True, "draining": False, "channels": 0, "incarnation": 1}
    there: list[dict[str, Any]] = [{"member": f"ORDERS.{n}", "structures": names} | told for n, names in enumerate(structures)]
    there[-1] |= fields
    return there


TWO_STRUCTURES = {"managed": {"members": 3}, "structures": [{"name": "fast", "managed": {"members": 1}}]}


def test_a_structure_that_no_member_has_joined_is_not_reached() -> None:
    owner = group(store=TWO_STRUCTURES)
    admin = ["admin"]
    _, conditions = owned(owner, cluster(owner), seen(members=reaching(admin, admin, admin)))
    assert (conditions["StoreReachable"].ok, conditions["StoreReachable"].reason) == (False, "StructureLost")
    assert conditions["StoreReachable"].message == "not reached: fast (by ORDERS.0, ORDERS.1, ORDERS.2)"
    assert conditions["Ready"].ok is False


def test_a_structure_that_one_member_does_not_reach_is_said_whoever_was_asked() -> None:
    owner = group(store=TWO_STRUCTURES)
    both = ["admin", "fast"]
    s = seen(members=reaching(both, both, ["admin"]), structures={"admin": True, "fast": True})
    _, conditions = owned(owner, cluster(owner), s)
    assert conditions["StoreReachable"].message == "not reached: fast (by ORDERS.2)"
    assert spare(owner, cluster(owner), s).member, "two others can take over what is there"
    s = seen(members=reaching(both, ["admin"], ["admin"]), structures={"admin": True, "fast": True})
    assert not spare(owner, cluster(owner), s).member


@pytest.mark.parametrize("fields", [{"linked": False}, {"draining": True}, {"initiator": False, "structures": []}])
def test_of_a_member_that_ends_or_has_just_come_nothing_is_claimed(fields: dict[str, Any]) -> None:
    owner = group(store=TWO_STRUCTURES)
    both = ["admin", "fast"]
    s = seen(members=reaching(both, both, ["admin"], **fields), structures={"admin": True, "fast": True})
    _, conditions = owned(owner, cluster(owner), s)
    assert conditions["StoreReachable"].ok


def test_without_an_answer_the_group_is_not_called_ready() -> None:
    owner = group()
    _, conditions = owned(owner, cluster(owner), seen(connected=False, error="refused"))
    assert conditions["Ready"].ok is None and conditions["Available"].ok is None
    _, conditions = owned(owner, cluster(owner, ready=0), seen(connected=False, error="refused"))
    assert conditions["Ready"].ok is False and conditions["Available"].ok is False


def test_a_problem_with_children_and_a_rollout_are_said() -> None:
    owner = group()
    _, conditions = owned(owner, cluster(owner), seen(), problem="forbidden")
    assert (conditions["Ready"].reason, conditions["Ready"].message) == ("ReconcileFailed", "forbidden")
    _, conditions = owned(owner, cluster(owner, rolled_out=False), seen())
    assert conditions["Ready"].reason == "RollingOut"


def test_a_queue_manager_outside_a_group() -> None:
    owner = manager()
    line = {"member": "BANK", "linked": True, "initiator": True, "draining": False, "channels": 0, "incarnation": 5}
    status, conditions = owned(owner, cluster(owner), seen(members=[line], structures={"private": True}))
    assert conditions["Ready"].ok and "Redundant" not in conditions
    assert status["listener"]["address"] == "bank-qm-listener.shop.svc:1414" and status["pod"] == "bank-qm-0" and status["incarnation"] == 5


def test_a_queue() -> None:
    status, conditions = queue_status("IN", Target(True, "group orders", seen(depths={"IN": 4})), DEFINED)
    check(names.SHARED_QUEUE, status, conditions)
    assert status["depth"] == 4 and conditions[0].ok
    fields = schema(names.SHARED_QUEUE, "status")["properties"]
    assert set(fields) == {*status, "observedGeneration", "conditions"}, "nothing is promised that nobody writes"
    _, conditions = queue_status("IN", Target(True, "group orders", seen(connected=False)), DEFINED)
    assert conditions[0].ok is None


def test_ages_are_of_the_clock_that_was_given() -> None:
    line = entry("RUNNING", last_message_at_ms=NOW_MS - 61_000)
    target = Target(True, "g", seen(line, backlogs={"BANK": Backlog(1, 90)}))
    _, early = channel_status(shared_channel(**SENDER), NAME, target, DEFINED, {}, NOW - timedelta(seconds=30))
    assert early[0].ok
