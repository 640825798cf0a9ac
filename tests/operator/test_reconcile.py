"""The reconcile of groups, channels and queues, against an API server and members in memory."""

from __future__ import annotations

import json
from typing import Any

import pytest

import qsg
from qsg.rules.reasons import Reason
from qsg_operator import names
from qsg_operator.api import ApiError
from qsg_operator.certificates import BadSecret
from qsg_operator.reconcile.children import Conflict
from qsg_operator.reconcile.context import Context
from qsg_operator.reconcile.definitions import LEFT_AGAIN_S
from qsg_operator.reconcile.reconciler import Reconciler
from support.fake_cluster import NAMESPACE, FakeMembers
from support.owners import IMAGES
from support.reconciled import CHANNEL, QUEUE, World
from support.shared import SENDER


async def test_a_group_comes_up() -> None:
    w = World()
    w.api.user_applies(names.QUEUE_SHARING_GROUP, "orders", {})
    await w()
    assert set(w.api.of("StatefulSet")) == {"orders", "orders-store"}
    assert set(w.api.of("Secret")) == {
        "qsg-ca", "orders-store-ca", "orders-tls", "orders-client-tls", "orders-store-tls", "orders-store-client-tls",
    }  # fmt: skip
    assert w.api.condition(names.QUEUE_SHARING_GROUP, "orders")[0] == "False"
    w = await World().up()
    for type_ in ("Ready", "Available", "Redundant", "StoreReachable"):
        assert w.api.condition(names.QUEUE_SHARING_GROUP, "orders", type_)[0] == "True", type_
    assert w.members.way.addresses == ("10.0.0.1:1416", "10.0.0.2:1416", "10.0.0.3:1416")
    assert w.members.way.ca and w.members.way.server_name == "orders-client.shop.svc"
    assert "SYSTEM.DEAD.LETTER.QUEUE" in w.members.queues and w.members.settings["dead_letter_queue"] == "SYSTEM.DEAD.LETTER.QUEUE"
    await w()
    assert w.api.of("PodDisruptionBudget")["orders"]["spec"]["maxUnavailable"] == 1


async def test_nothing_is_written_when_nothing_has_changed() -> None:
    w = await World().up()
    w.api.user_applies(CHANNEL, "orders-to-bank", SENDER)
    for _ in range(3):
        await w()
    w.api.calls.clear()
    w.members.commands.clear()
    await w()
    assert w.api.calls == [] and w.members.commands == []


async def test_what_was_removed_or_changed_by_hand_is_made_again() -> None:
    w = await World().up()
    await w()
    w.api.user_deletes("Service", "orders-portal")
    budget = w.api.objects["PodDisruptionBudget", NAMESPACE, "orders"]
    w.api._store({**budget, "spec": {**budget["spec"], "maxUnavailable": 3}})
    await w()
    assert "orders-portal" in w.api.of("Service")
    assert w.api.of("PodDisruptionBudget")["orders"]["spec"]["maxUnavailable"] == 1


async def test_what_belongs_to_somebody_else_is_not_touched() -> None:
    w = World()
    theirs = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"namespace": NAMESPACE, "name": "orders-portal"},
        "spec": {"theirs": True},
    }
    w.api._store(theirs)
    w.api.user_applies(names.QUEUE_SHARING_GROUP, "orders", {})
    with pytest.raises(Conflict, match="orders-portal"):
        await w()
    assert w.api.of("Service")["orders-portal"]["spec"] == {"theirs": True}
    assert w.api.condition(names.QUEUE_SHARING_GROUP, "orders") == ("False", "ReconcileFailed")
    assert "orders-client" in w.api.of("Service"), "the others are made"


async def test_a_secret_of_the_users_own_that_is_no_good_is_said() -> None:
    w = World()
    w.api.user_applies(names.QUEUE_SHARING_GROUP, "orders", {"tls": {"mode": "Secret", "secretName": "mine"}})
    with pytest.raises(BadSecret, match="mine is not there"):
        await w()
    (ready, *_) = w.api.status(names.QUEUE_SHARING_GROUP, "orders")["conditions"]
    assert ready["reason"] == "ReconcileFailed" and "mine" in ready["message"]


async def test_a_channel_is_defined_started_and_ready() -> None:
    w = await World().up()
    w.api.user_applies(QUEUE, "bank", {"group": "orders", "type": "Transmission"})
    w.api.user_applies(CHANNEL, "orders-to-bank", SENDER)
    await w()
    defined = [what for name, what in w.members.commands if name == "define" and what]
    assert defined.index("BANK") < defined.index("ORDERS.TO.BANK")
    assert ("start", "ORDERS.TO.BANK") in w.members.commands
    await w()
    assert w.api.condition(CHANNEL, "orders-to-bank") == ("True", "Running")
    assert w.api.condition(QUEUE, "bank") == ("True", "Defined")
    assert w.api.status(CHANNEL, "orders-to-bank")["owner"] == {"member": "ORDERS.0", "pod": "orders-0", "node": "node-0", "epoch": 1}


async def test_a_channel_that_is_stopped_by_wish_stays_so_and_starts_by_wish() -> None:
    w = await World().up()
    w.api.user_applies(CHANNEL, "orders-to-bank", SENDER | {"desiredState": "Stopped"})
    await w()
    assert ("stop", "ORDERS.TO.BANK") in w.members.commands and ("start", "ORDERS.TO.BANK") not in w.members.commands
    await w()
    assert w.api.condition(CHANNEL, "orders-to-bank") == ("False", "Stopped")
    w.api.user_applies(CHANNEL, "orders-to-bank", SENDER)  # within the time in which the same command would not be given again
    await w()
    await w()
    assert w.api.condition(CHANNEL, "orders-to-bank") == ("True", "Running")
    assert w.api.status(CHANNEL, "orders-to-bank")["observedGeneration"] == 2


async def test_a_channel_stops_by_wish_also_where_the_rest_of_the_wish_is_refused() -> None:
    w = await World().up()
    w.api.user_applies(CHANNEL, "orders-to-bank", SENDER)
    await w()
    w.api.user_applies(CHANNEL, "orders-to-bank", SENDER | {"connectionNames": ["bank:99999"], "desiredState": "Stopped"})
    await w()
    assert w.members.seen.channels["ORDERS.TO.BANK", ""]["status"] == "STOPPED"
    w.api.user_applies(CHANNEL, "orders-to-bank", SENDER | {"connectionNames": ["bank:99999"]})
    await w()
    assert w.members.seen.channels["ORDERS.TO.BANK", ""]["status"] == "STOPPED"


async def test_the_same_command_is_not_given_again_at_once() -> None:
    w = await World().up()
    w.api.user_applies(CHANNEL, "orders-to-bank", SENDER)
    start = "start", "ORDERS.TO.BANK"
    w.members.refuse[start] = qsg.QsgError("no transmission queue BANK", Reason.UNKNOWN_XMIT_Q)
    await w()
    await w()
    assert w.members.commands.count(start) == 1
    _let_time_pass(w)
    await w()
    assert w.members.commands.count(start) == 2


@pytest.mark.parametrize("error", [qsg.OutcomeUnknown("away"), qsg.StructureNotAvailable("away")])
async def test_a_store_that_is_away_is_no_refusal_of_the_start(error: qsg.QsgError) -> None:
    w = await World().up()
    w.api.user_applies(CHANNEL, "orders-to-bank", SENDER)
    w.members.refuse["start", "ORDERS.TO.BANK"] = error
    await w()
    assert w.members.commands.count(("start", "ORDERS.TO.BANK")) == 1
    assert not [state.start_refused for state in w.reconciler._targets.values() if state.start_refused]


def _let_time_pass(w: World) -> None:
    for state in w.reconciler._targets.values():
        state.commanded.clear()


async def test_what_an_error_has_stopped_is_not_started() -> None:
    w = await World().up()
    w.api.user_applies(CHANNEL, "orders-to-bank", SENDER)
    await w()
    w.members.commands.clear()
    w.members.state("ORDERS.TO.BANK", "STOPPED", reason=int(Reason.CHANNEL_CONFIG_ERROR), detail="sequence numbers do not fit")
    _let_time_pass(w)
    await w()
    assert ("start", "ORDERS.TO.BANK") not in w.members.commands
    assert w.api.condition(CHANNEL, "orders-to-bank", "Stalled") == ("True", "StoppedByError")


async def test_what_members_refuse_is_said_in_the_status() -> None:
    w = await World().up()
    w.members.refuse["define", "ORDERS.TO.BANK"] = qsg.QsgError("no structure fast", Reason.DEFINITION_ERROR)
    w.api.user_applies(CHANNEL, "orders-to-bank", SENDER)
    w.api.user_applies(QUEUE, "in", {"group": "orders"})
    await w()
    assert w.api.condition(CHANNEL, "orders-to-bank") == ("False", "Refused")
    assert w.api.condition(CHANNEL, "orders-to-bank", "Valid") == ("False", "Refused")
    assert w.api.condition(QUEUE, "in") == ("True", "Defined")
    assert ("orders-to-bank", "Refused", "Warning") in w.api.events()


async def test_what_is_refused_while_a_structure_is_away_is_asked_again_soon() -> None:
    w = await World().up()
    w.members.refuse["define", "IN"] = qsg.StructureNotAvailable("structure fast is not joined here")
    w.api.user_applies(QUEUE, "in", {"group": "orders", "structure": "fast"})
    await w()
    assert w.api.condition(QUEUE, "in") == ("False", "Refused")
    w.members.refuse.clear()
    for state in w.reconciler._targets.values():
        state.defined_at -= LEFT_AGAIN_S
    await w()
    assert w.api.condition(QUEUE, "in") == ("True", "Defined")


async def test_settings_that_were_changed_are_taken_at_once() -> None:
    w = await World().up()
    w.api.user_applies(names.QUEUE_SHARING_GROUP, "orders", {"settings": {"hopLimit": 7}})
    await w()
    assert w.members.settings["hop_limit"] == 7


async def test_what_was_taken_back_while_it_was_done_in_part_is_made_as_it_was() -> None:
    w = await World().up()
    for name in ("a", "b"):
        w.api.user_applies(QUEUE, name, {"group": "orders"})
    await w()
    w.members.refuse["define", "B"] = qsg.ConnectionBroken("cut off")
    for name in ("a", "b"):
        w.api.user_applies(QUEUE, name, {"group": "orders", "maxDepth": 5})
    with pytest.raises(qsg.ConnectionBroken):
        await w()
    w.members.refuse.clear()
    for name in ("a", "b"):
        w.api.user_applies(QUEUE, name, {"group": "orders"})
    await w()
    assert w.members.queues["A"].max_depth == w.members.queues["B"].max_depth == 999_999_999


async def test_the_younger_of_one_name_is_told() -> None:
    w = await World().up()
    w.api.user_applies(QUEUE, "one", {"group": "orders", "queueName": "Q"}, creationTimestamp="2026-01-01T00:00:00Z")
    w.api.user_applies(QUEUE, "two", {"group": "orders", "queueName": "Q"}, creationTimestamp="2026-01-02T00:00:00Z")
    await w()
    assert w.api.condition(QUEUE, "one") == ("True", "Defined")
    assert w.api.condition(QUEUE, "two") == ("False", "NameTaken")


async def test_a_deleted_resource_takes_its_definition_with_it_and_messages_stay() -> None:
    w = await World().up()
    w.api.user_applies(QUEUE, "bank", {"group": "orders", "type": "Transmission"})
    w.api.user_applies(QUEUE, "full", {"group": "orders"})
    w.api.user_applies(QUEUE, "kept", {"group": "orders", "deletionPolicy": "Retain"})
    w.api.user_applies(CHANNEL, "orders-to-bank", SENDER)
    await w()
    await w()
    w.members.depths["FULL"] = 3
    for kind, name in ((QUEUE, "bank"), (QUEUE, "full"), (QUEUE, "kept"), (CHANNEL, "orders-to-bank")):
        w.api.user_deletes(kind, name)
    await w()
    assert not w.members.channels and ("stop", "ORDERS.TO.BANK") in w.members.commands
    assert set(w.members.queues) == {"SYSTEM.DEAD.LETTER.QUEUE", "FULL", "KEPT"}
    assert w.members.queues["FULL"].managed_by == w.members.queues["KEPT"].managed_by == ""


async def test_a_queue_that_is_let_go_a_moment_later_goes_soon() -> None:
    """As a transmission queue does, whose channel was deleted together with it."""
    w = await World().up()
    w.api.user_applies(QUEUE, "bank", {"group": "orders", "type": "Transmission"})
    await w()
    delete = "delete", "BANK"
    w.members.refuse[delete] = qsg.QsgError("BANK: channel ORDERS.TO.BANK on ORDERS.1", Reason.OBJECT_IN_USE)
    w.api.user_deletes(QUEUE, "bank")
    await w()
    del w.members.refuse[delete]
    await w()
    assert w.members.commands.count(delete) == 1, "not at every look"
    for state in w.reconciler._targets.values():
        state.defined_at -= LEFT_AGAIN_S
    await w()
    assert w.members.commands.count(delete) == 2 and "BANK" not in w.members.queues


@pytest.mark.parametrize("depth", [0, 3])
async def test_a_queue_made_again_as_another_kind_needs_no_look_in_between(depth: int) -> None:
    """Deleted and made again within a moment, or while there is no operator."""
    w = await World().up()
    w.api.user_applies(QUEUE, "in", {"group": "orders"})
    await w()
    w.members.depths["IN"] = depth
    w.api.user_deletes(QUEUE, "in")
    w.api.user_applies(QUEUE, "in", {"group": "orders", "type": "Transmission"})
    await w()
    if depth:  # messages stay, and the queue they lie in
        assert w.api.condition(QUEUE, "in") == ("False", "Refused") and w.members.queues["IN"].managed_by == ""
    else:
        assert w.api.condition(QUEUE, "in") == ("True", "Defined") and w.members.queues["IN"].usage == "transmission"


async def test_a_cache_that_is_behind_deletes_nothing() -> None:
    """The resource is there by the API server's word, though no list or watch has shown it here yet."""
    w = await World().up()
    w.api.user_applies(QUEUE, "in", {"group": "orders"})
    await w()
    found = w.cache._objects[QUEUE].pop((NAMESPACE, "in"))
    assert found["metadata"]["name"] == "in"
    await w()
    assert "IN" in w.members.queues and ("delete", "IN") not in w.members.commands


async def test_what_was_made_by_hand_is_left_alone() -> None:
    w = await World().up()
    await w.members.command("define", kind="queue", definition={"name": "BY.HAND", "type": "local", "structure": "admin"})
    w.api.user_applies(QUEUE, "in", {"group": "orders"})
    await w()
    assert {"BY.HAND", "IN"} <= set(w.members.queues)


async def test_without_its_group_a_channel_says_so_and_comes_to_life_with_it() -> None:
    w = World()
    w.api.user_applies(CHANNEL, "orders-to-bank", SENDER)
    await w()
    assert w.api.condition(CHANNEL, "orders-to-bank") == ("False", "TargetNotFound")
    w.api.user_applies(names.QUEUE_SHARING_GROUP, "orders", {})
    await w()
    w.members.serve(["ORDERS.0"])
    await w()
    await w()
    assert w.api.condition(CHANNEL, "orders-to-bank", "Valid") == ("True", "Defined")


async def test_a_group_that_goes_ends_its_connection_and_a_new_one_starts_afresh() -> None:
    w = await World().up()
    first = w.members
    w.api.user_applies(CHANNEL, "orders-to-bank", SENDER)
    w.api.user_deletes(names.QUEUE_SHARING_GROUP, "orders")
    await w()
    assert first.closed and w.api.condition(CHANNEL, "orders-to-bank") == ("False", "TargetNotFound")
    for kind in ("StatefulSet", "Service", "ConfigMap", "PodDisruptionBudget", "Secret"):  # the garbage collector
        for name in list(w.api.of(kind)):
            w.api.user_deletes(kind, name)
    await w.up()
    assert w.members is not first and w.api.condition(names.QUEUE_SHARING_GROUP, "orders")[0] == "True"


async def test_a_new_leader_says_nothing_before_it_knows() -> None:
    w = await World().up()
    w.api.user_applies(CHANNEL, "orders-to-bank", SENDER)
    for _ in range(3):
        await w()

    def not_tried_yet(name: str, changed: Any) -> FakeMembers:
        made = w._make(name, changed)
        made.verdict = False
        return made

    w.reconciler = Reconciler(Context(w.api, w.cache, IMAGES, "operator-1"), lambda key: None, not_tried_yet)
    w.api.calls.clear()
    await w()
    assert not [call for call in w.api.calls if call[0] in ("status", "create")]
    assert w.api.of("PodDisruptionBudget")["orders"]["spec"]["maxUnavailable"] == 1
    w.members.verdict = True
    await w()
    assert w.api.condition(names.QUEUE_SHARING_GROUP, "orders") == ("Unknown", "MembersUnreachable")
    assert w.api.condition(CHANNEL, "orders-to-bank") == ("Unknown", "MembersUnreachable")


async def test_a_takeover_is_one_event() -> None:
    w = await World().up()
    w.api.user_applies(CHANNEL, "orders-to-bank", SENDER)
    await w()
    await w()
    last = {
        "from": "ORDERS.0",
        "to": "ORDERS.1",
        "cause": "linkdead",
        "at_ms": 1_000,
        "detect_ms": 100.0,
        "claim_ms": 20.0,
        "resume_ms": 5.0,
    }
    w.members.state("ORDERS.TO.BANK", "RUNNING", owner="ORDERS.1", takeovers=1, takeover=last)
    await w()
    await w()
    assert [e for e in w.api.events() if e[1] == "ChannelTakenOver"] == [("orders-to-bank", "ChannelTakenOver", "Normal")]
    assert w.api.status(CHANNEL, "orders-to-bank")["takeovers"]["lastDurationMs"] == 125


async def test_an_operation_is_done_once() -> None:
    w = await World().up()
    w.api.user_applies(CHANNEL, "orders-to-bank", SENDER)
    await w()
    asked = {"annotations": {names.OPERATION: json.dumps({"id": "1", "verb": "reset", "sequence": 1})}}
    w.api.user_applies(CHANNEL, "orders-to-bank", SENDER, **asked)
    for _ in range(3):
        await w()
    assert w.members.commands.count(("reset", "ORDERS.TO.BANK")) == 1
    last = w.api.status(CHANNEL, "orders-to-bank")["lastOperation"]
    assert (last["id"], last["verb"], last["state"]) == ("1", "reset", "Succeeded")
    assert ("orders-to-bank", "OperationSucceeded", "Normal") in w.api.events()


@pytest.mark.parametrize(("owner", "state"), [("ORDERS.1", "Succeeded"), ("ORDERS.0", "Failed")])
async def test_a_planned_move_names_a_pod_and_tells_where_the_channel_is(owner: str, state: str) -> None:
    w = await World().up()
    answer = {"moved": owner == "ORDERS.1", "from": "ORDERS.0", "owner": owner, "ready": "ORDERS.1", "status": "RUNNING"}
    w.members.answers["move"] = answer
    asked = {"annotations": {names.OPERATION: json.dumps({"id": "1", "verb": "move", "to": "orders-1"})}}
    w.api.user_applies(CHANNEL, "orders-to-bank", SENDER, **asked)
    for _ in range(3):
        await w()
    assert w.members.arguments["move"] == {"channel": "ORDERS.TO.BANK", "to": "ORDERS.1"}
    last = w.api.status(CHANNEL, "orders-to-bank")["lastOperation"]
    assert (last["verb"], last["state"]) == ("move", state)
    assert "from ORDERS.0 to ORDERS.1" in last["message"] or "it is RUNNING on ORDERS.0" in last["message"]
    assert ("orders-to-bank", f"Operation{state}", "Normal" if state == "Succeeded" else "Warning") in w.api.events()


async def test_an_operation_that_was_cut_off_is_not_repeated() -> None:
    w = await World().up()
    asked = {"annotations": {names.OPERATION: json.dumps({"id": "1", "verb": "ping"})}}
    w.members.refuse["ping", "ORDERS.TO.BANK"] = qsg.OutcomeUnknown("cut off")
    w.api.user_applies(CHANNEL, "orders-to-bank", SENDER, **asked)
    for _ in range(3):
        await w()
    assert w.members.commands.count(("ping", "ORDERS.TO.BANK")) == 1
    assert w.api.status(CHANNEL, "orders-to-bank")["lastOperation"]["state"] == "Unknown"


async def test_the_outcome_of_an_operation_is_told_also_when_it_could_not_be_written_at_first() -> None:
    w = await World().up()
    asked = {"annotations": {names.OPERATION: json.dumps({"id": "1", "verb": "ping"})}}
    w.api.user_applies(CHANNEL, "orders-to-bank", SENDER, **asked)
    writes = iter([None, ApiError(500, "overloaded")])
    w.api.failing = lambda verb, kind, name: next(writes, None) if (verb, kind) == ("status", CHANNEL) else None
    with pytest.raises(ApiError, match="overloaded"):
        await w()
    assert w.api.status(CHANNEL, "orders-to-bank")["lastOperation"]["state"] == "Unknown"
    await w()
    assert w.api.status(CHANNEL, "orders-to-bank")["lastOperation"]["state"] == "Succeeded"
    assert w.members.commands.count(("ping", "ORDERS.TO.BANK")) == 1


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("reset", "not JSON"),
        ("[]", "expected"),
        ('{"id": "1", "verb": "format"}', "verb: one of move, ping, reset, resolve, start"),
        ('{"id": "1", "verb": "ping", "sequence": 1}', "ping has no sequence"),
    ],
)
async def test_a_bad_operation_is_said_once(text: str, problem: str) -> None:
    w = await World().up()
    w.api.user_applies(CHANNEL, "orders-to-bank", SENDER, annotations={names.OPERATION: text})
    for _ in range(3):
        await w()
    last = w.api.status(CHANNEL, "orders-to-bank")["lastOperation"]
    assert last["state"] == "Failed" and problem in last["message"]
    assert [e[1] for e in w.api.events()].count("OperationFailed") == 1


async def test_a_store_that_fails_does_not_hold_up_statuses() -> None:
    """A child that cannot be applied: the channels' statuses are written all the same."""
    w = await World().up()
    w.api.user_applies(CHANNEL, "orders-to-bank", SENDER)
    await w()
    await w()
    w.api.user_deletes("ConfigMap", "orders-config")
    w.api.failing = lambda verb, kind, name: ApiError(403, "forbidden") if kind == "ConfigMap" else None
    w.members.state("ORDERS.TO.BANK", "RETRYING", detail="refused")
    with pytest.raises(ApiError, match="forbidden"):
        await w()
    assert w.api.condition(CHANNEL, "orders-to-bank") == ("False", "Retrying")
    assert w.api.condition(names.QUEUE_SHARING_GROUP, "orders") == ("False", "ReconcileFailed")


async def test_a_resource_that_goes_while_its_status_is_written_harms_nothing() -> None:
    w = await World().up()
    w.api.user_applies(QUEUE, "in", {"group": "orders"})
    del w.api.objects[QUEUE, NAMESPACE, "in"]
    await w()
    assert w.api.condition(names.QUEUE_SHARING_GROUP, "orders")[0] == "True"


async def test_a_queue_manager_outside_a_group() -> None:
    w = World()
    key = names.QUEUE_MANAGER, NAMESPACE, "bank"
    w.api.user_applies(names.QUEUE_MANAGER, "bank", {})
    w.api.user_applies(QUEUE, "payments", {"queueManager": "bank"})
    await w(key)
    w.api.pods_run("bank-qm", 1)
    w.members.serve(["BANK"], private=True)
    await w(key)
    assert w.members.way.queue_manager == "BANK" and w.members.queues["PAYMENTS"].structure == "private"
    await w(key)
    assert w.api.condition(names.QUEUE_MANAGER, "bank") == ("True", "Serving")
    assert w.api.condition(QUEUE, "payments") == ("True", "Defined")


async def test_a_thousand_channels_are_defined_in_one_round() -> None:
    w = await World().up()
    for number in range(1000):
        w.api.user_applies(CHANNEL, f"c-{number}", SENDER)
    await w()
    assert len(w.members.channels) == 1000
    await w()
    assert all(w.api.condition(CHANNEL, f"c-{number}")[0] == "True" for number in range(1000))
