"""Statuses are true: nothing is called valid that was not taken. And they are few: what changes all the time is written now and then."""

from __future__ import annotations

from typing import Any

import pytest

import qsg
from qsg.rules.reasons import Reason
from qsg_operator import names
from qsg_operator.api import ApiError
from qsg_operator.reconcile import statuses
from support.fake_cluster import NAMESPACE
from support.reconciled import CHANNEL, QUEUE, World
from support.shared import SENDER


@pytest.mark.parametrize("error", [qsg.ConnectionBroken("cut off"), qsg.OutcomeUnknown("cut off")])
async def test_what_was_not_taken_is_not_called_valid(error: qsg.QsgError) -> None:
    w = await World().up()
    w.api.user_applies(QUEUE, "in", {"group": "orders"})
    await w()
    assert w.api.condition(QUEUE, "in", "Valid") == ("True", "Defined")
    receiver = {"group": "orders", "type": "Receiver"}
    new = ((QUEUE, "new", {"group": "orders"}, "NEW"), (CHANNEL, "bank-to-orders", receiver, "BANK.TO.ORDERS"))
    for kind, name, spec, defined in new:
        w.api.user_applies(kind, name, spec)
        w.members.refuse["define", defined] = error
    with pytest.raises(type(error)):
        await w()
    for kind, name, *_ in new:
        assert w.api.condition(kind, name) == ("False", "NotYet")
        assert w.api.condition(kind, name, "Valid") == ("Unknown", "NotYet")
        assert "cut off" in w.api.status(kind, name)["conditions"][0]["message"]
    assert w.api.condition(QUEUE, "in") == ("True", "Defined"), "nothing of it has changed"
    w.members.refuse.clear()
    await w()
    for kind, name, *_ in new:
        assert w.api.condition(kind, name)[0] == w.api.condition(kind, name, "Valid")[0] == "True"


async def test_statuses_are_told_also_when_nobody_says_whether_a_resource_is_gone() -> None:
    w = await World().up()
    w.api.user_applies(QUEUE, "old", {"group": "orders"})
    w.api.user_applies(CHANNEL, "orders-to-bank", SENDER)
    await w()
    w.api.user_deletes(QUEUE, "old")
    w.api.user_applies(QUEUE, "new", {"group": "orders"})
    w.members.state("ORDERS.TO.BANK", "RETRYING")
    w.api.failing = lambda verb, kind, name: ApiError(500, "overloaded") if (verb, name) == ("get", "old") else None
    with pytest.raises(ApiError):
        await w()
    assert w.api.condition(CHANNEL, "orders-to-bank") == ("False", "Retrying")
    assert w.api.condition(QUEUE, "new", "Valid") == ("Unknown", "NotYet")
    assert "overloaded" in w.api.status(QUEUE, "new")["conditions"][0]["message"]


async def test_an_edit_is_not_called_valid_before_it_was_taken() -> None:
    w = await World().up()
    w.api.user_applies(QUEUE, "in", {"group": "orders"})
    w.api.user_applies(CHANNEL, "bank-to-orders", {"group": "orders", "type": "Receiver", "structure": "nowhere"})
    w.members.refuse["define", "BANK.TO.ORDERS"] = qsg.QsgError("no structure nowhere", Reason.DEFINITION_ERROR)
    await w()
    assert w.api.condition(CHANNEL, "bank-to-orders", "Valid") == ("False", "Refused")
    w.members.seen.connected = False
    w.api.user_applies(QUEUE, "in", {"group": "orders", "maxDepth": 5})
    w.api.user_applies(CHANNEL, "bank-to-orders", {"group": "orders", "type": "Receiver"})
    await w()
    for kind, name in ((QUEUE, "in"), (CHANNEL, "bank-to-orders")):
        assert w.api.status(kind, name)["observedGeneration"] == 2
        assert w.api.condition(kind, name, "Valid") == ("Unknown", "NotYet")
    w.members.refuse.clear()
    w.members.seen.connected = True
    await w()
    assert w.members.queues["IN"].max_depth == 5
    for kind, name in ((QUEUE, "in"), (CHANNEL, "bank-to-orders")):
        assert w.api.condition(kind, name, "Valid") == ("True", "Defined")


async def test_what_is_no_definition_is_not_called_valid_beside_others_that_were_taken() -> None:
    """The schema takes it: members are never asked, and nothing changes for them."""
    w = await World().up()
    await w()
    for port in (99998, 99999):
        w.api.user_applies(CHANNEL, "orders-to-bank", SENDER | {"connectionNames": [f"bank:{port}"]})
        await w()
        assert w.api.condition(CHANNEL, "orders-to-bank") == ("False", "Refused")
        assert w.api.condition(CHANNEL, "orders-to-bank", "Valid") == ("False", "Refused")
        assert f"'bank:{port}'" in w.api.status(CHANNEL, "orders-to-bank")["conditions"][0]["message"]
    w.members.commands.clear()
    await w()
    assert not [what for what, _ in w.members.commands if what == "define"], "it does not make work again and again"


async def test_an_edit_of_something_else_than_the_definition_leaves_it_valid() -> None:
    w = await World().up()
    w.api.user_applies(CHANNEL, "orders-to-bank", SENDER)
    await w()
    w.members.commands.clear()
    w.api.user_applies(CHANNEL, "orders-to-bank", SENDER | {"desiredState": "Stopped"})
    await w()
    assert not [what for what, _ in w.members.commands if what == "define"]
    assert w.api.condition(CHANNEL, "orders-to-bank", "Valid") == ("True", "Defined")


async def test_numbers_alone_are_not_written_at_once() -> None:
    w = await World().up()
    w.api.user_applies(CHANNEL, "orders-to-bank", SENDER)
    await w()
    await w()
    w.api.calls.clear()
    w.members.state("ORDERS.TO.BANK", "RUNNING", last_sequence=99, current_sequence=99)
    await w()
    assert ("status", CHANNEL, "orders-to-bank") not in w.api.calls
    w.members.state("ORDERS.TO.BANK", "RETRYING", last_sequence=99)
    await w()
    assert w.api.status(CHANNEL, "orders-to-bank")["sequence"]["confirmed"] == 99


async def test_retries_that_fail_alike_are_written_and_told_once() -> None:
    """Each is an attempt of some member, with an epoch and times of its own."""
    w = await World().up()
    w.api.user_applies(CHANNEL, "orders-to-bank", SENDER)
    await w()
    error = {"reason": int(Reason.HOST_UNREACHABLE), "detail": "bank:1414: refused"}

    async def attempt(number: int) -> None:
        at_ms = 1_000 * number
        tried = error | {"owner": f"ORDERS.{number % 3}", "epoch": number, "started_at_ms": at_ms}
        for state in ("STARTING", "BINDING", "RETRYING"):
            w.members.state("ORDERS.TO.BANK", state, updated_at_ms=at_ms + 10, **tried)
            await w()

    w.members.state("ORDERS.TO.BANK", "RETRYING", updated_at_ms=1_000, **error)
    await w()
    w.api.calls.clear()
    for number in range(2, 10):
        await attempt(number)
    assert not [call for call in w.api.calls if call[0] in ("status", "create")]
    status = w.api.status(CHANNEL, "orders-to-bank")
    assert (status["state"], status["lastError"]["time"]) == ("Retrying", "1970-01-01T00:00:01Z")
    assert w.api.condition(CHANNEL, "orders-to-bank") == w.api.condition(CHANNEL, "orders-to-bank", "Connected") == ("False", "Retrying")
    w.members.state("ORDERS.TO.BANK", "RETRYING", **error | {"reason": int(Reason.PARTNER_SILENT)})
    await w()
    assert w.api.status(CHANNEL, "orders-to-bank")["lastError"]["reason"] == "PartnerSilent"
    w.members.state("ORDERS.TO.BANK", "RUNNING", owner="ORDERS.2")
    await w()
    assert w.api.status(CHANNEL, "orders-to-bank")["owner"]["pod"] == "orders-2"
    told = [reason for name, reason, _ in w.api.events() if name == "orders-to-bank" and reason != "ChannelTakenOver"]
    assert told.count("Retrying") == 1 and told[-1] == "Running"


async def test_the_time_of_an_error_that_stays_is_written_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    w = await World().up()
    w.api.user_applies(CHANNEL, "orders-to-bank", SENDER)
    await w()
    for at_ms in (1_000, 9_000):
        w.members.state("ORDERS.TO.BANK", "RETRYING", reason=int(Reason.HOST_UNREACHABLE), updated_at_ms=at_ms)
        await w()
    assert w.api.status(CHANNEL, "orders-to-bank")["lastError"]["time"] == "1970-01-01T00:00:01Z"
    monkeypatch.setattr(statuses, "NUMBERS_S", 0.0)
    await w()
    assert w.api.status(CHANNEL, "orders-to-bank")["lastError"]["time"] == "1970-01-01T00:00:09Z"


def late(w: World, kind: str, name: str, status: dict[str, Any]) -> None:
    """A status that another replica sent before it was cut off, and that comes now."""
    w.api._store({**w.api.objects[kind, NAMESPACE, name], "status": status})


async def test_a_status_that_another_replica_wrote_late_is_mended() -> None:
    w = await World().up()
    w.api.user_applies(CHANNEL, "orders-to-bank", SENDER)
    await w()
    resources = (names.QUEUE_SHARING_GROUP, "orders"), (CHANNEL, "orders-to-bank")
    right = [w.api.status(*one) for one in resources]
    for one in resources:
        late(w, *one, {"observedGeneration": 1, "conditions": [{"type": "Ready", "status": "False", "reason": "StructureLost"}]})
    await w()
    shown = [w.api.status(*one) for one in resources]
    for before, after in zip(right, shown, strict=True):
        for status in (before, after):
            for one in status["conditions"]:
                del one["lastTransitionTime"]
        assert before == after
    assert ("orders", "Serving", "Normal") in w.api.events()
    w.api.calls.clear()
    await w()
    assert not [call for call in w.api.calls if call[0] == "status"], "once"


async def test_no_operation_is_begun_over_a_status_that_was_not_seen() -> None:
    """Another replica may have begun it."""
    w = await World().up()
    w.api.user_applies(CHANNEL, "orders-to-bank", SENDER, annotations={names.OPERATION: '{"id": "1", "verb": "ping"}'})
    begun = {"lastOperation": {"id": "1", "verb": "ping", "state": "Unknown", "time": "", "message": "begun"}}
    w.api.showing = False
    late(w, CHANNEL, "orders-to-bank", begun)
    with pytest.raises(ApiError, match="Conflict"):
        await w()
    assert ("ping", "ORDERS.TO.BANK") not in w.members.commands
    w.api.showing = True
    late(w, CHANNEL, "orders-to-bank", begun)
    await w()
    assert ("ping", "ORDERS.TO.BANK") not in w.members.commands
    assert w.api.status(CHANNEL, "orders-to-bank")["lastOperation"]["state"] == "Unknown"
    assert w.api.condition(CHANNEL, "orders-to-bank", "Valid") == ("True", "Defined")


async def test_a_status_is_written_also_when_the_rest_of_the_resource_was_changed_meanwhile() -> None:
    w = await World().up()
    w.api.user_applies(QUEUE, "in", {"group": "orders"})
    found = w.cache.get(QUEUE, NAMESPACE, "in")
    assert found is not None
    w.api.user_applies(QUEUE, "in", {"group": "orders"}, labels={"team": "a"})
    written = statuses.Statuses(w.reconciler._context)
    assert await written.put(found, {"depth": 1})
    w.api.user_applies(QUEUE, "in", {"group": "orders"}, labels={"team": "b"})
    assert await written.put(found, {"depth": 2})
    assert w.api.status(QUEUE, "in") == {"depth": 2}
    late(w, QUEUE, "in", {"depth": 3})
    with pytest.raises(ApiError, match="Conflict"):
        await written.put(found, {"depth": 4})
    w.api.user_deletes(QUEUE, "in")
    assert not await written.put(found, {"depth": 5})
    w.api.user_applies(QUEUE, "in", {"group": "orders"}, uid="another")
    assert not await written.put(found, {"depth": 6}) and not w.api.status(QUEUE, "in")


@pytest.mark.parametrize("showing", [True, False])
async def test_a_group_is_not_called_ready_as_it_is_now_before_its_members_are(showing: bool) -> None:
    """Whoever waits for the status of a generation must not be told of the one before, which was rolled out."""
    w = await World().up()
    await w()
    assert w.api.condition(names.QUEUE_SHARING_GROUP, "orders") == ("True", "Serving")
    w.api.user_applies(names.QUEUE_SHARING_GROUP, "orders", {"image": "newer"})
    w.api.showing = showing
    await w()
    assert w.api.status(names.QUEUE_SHARING_GROUP, "orders")["observedGeneration"] == 2
    assert w.api.condition(names.QUEUE_SHARING_GROUP, "orders") == ("False", "RollingOut")
    w.api.showing = True
    w.api.pods_run("orders", 3)
    await w()
    assert w.api.condition(names.QUEUE_SHARING_GROUP, "orders") == ("True", "Serving")


async def test_a_conflict_about_a_version_that_was_known_is_not_asked_for_again_at_once() -> None:
    w = await World().up()
    w.api.user_applies(QUEUE, "in", {"group": "orders"})

    def always(verb: str, kind: str, name: str) -> ApiError | None:
        assert len(w.api.calls) < 100, "without end"
        return ApiError(409, "Conflict") if (verb, kind) == ("status", QUEUE) else None

    w.api.calls.clear()
    w.api.failing = always
    with pytest.raises(ApiError, match="Conflict"):
        await w()
