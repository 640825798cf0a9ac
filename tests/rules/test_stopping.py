"""Stopping, starting, resolving and resetting a channel: what each list of steps does for itself.

How they must not meet is in `tests/interleavings/test_stopping.py`.
"""

from __future__ import annotations

from typing import Any

import pytest

from qsg.pb import records_pb2 as pb
from qsg.rules.ownership import (
    Occasion,
    release,
    take,
)
from qsg.rules.reasons import Reason
from qsg.rules.steps import Steps
from qsg.rules.stopping import Resolution, StopOrder, ask_stop, carry_stop, command_start, pass_stop, reset_sender, resolve
from support.group_lists import APART, TRIGGER, go_on, in_doubt, refused, running, stop, taken, unconfirmed
from support.group_model import Model


@APART
def test_stop_settles_with_the_partner_and_only_a_command_starts_again(apart: bool) -> None:
    model = Model("X", "Y", apart=apart)
    model.put(2)
    running(model, "X")
    model.put(1)

    assert model.run(model.me["Y"], stop(model, model.me["Y"])) is True
    assert model.state() == pb.STOPPED and model.lock() is None and not model.fence().open
    for occasion in (TRIGGER, Occasion("request", 1, requester="X"), Occasion("own", 1)):
        refused(Reason.CHANNEL_DISABLED, model, "Y", take(model.me["Y"], model.place, occasion, model.draw))
    model.run(model.me["Y"], command_start(model.me["Y"], model.place, model.now, model.draw))
    assert model.state() == pb.INITIALIZING
    taken(model, "X", Occasion("request", model.now, requester="Y"))


@APART
def test_stop_without_the_partner_stays_stopping_and_is_carried_on_by_another(apart: bool) -> None:
    model = Model("X", "Y", apart=apart)
    unconfirmed(model, 1)
    model.partner.reachable = False
    assert model.run(model.me["X"], stop(model, model.me["X"])) is False
    entry = model.entry()
    assert entry is not None and entry.state == pb.STOPPING and entry.partner_not_fenced and model.left() == 1

    model.kill("X")
    model.partner.reachable = True
    model.run(model.me["Y"], go_on(model, model.me["Y"]))
    assert model.state() == pb.STOPPED and model.left() == 0 and not model.fence().open


@APART
def test_a_stop_is_passed_on_by_its_carrier_alone_to_a_member_that_lives(apart: bool) -> None:
    model = Model("X", "Y", "Z", apart=apart)
    unconfirmed(model, 1)
    model.partner.reachable = False
    assert model.run(model.me["X"], stop(model, model.me["X"])) is False
    model.kill("Z")
    for me, to in (("X", "Z"), ("Y", "Y")):
        assert model.run(model.me[me], pass_stop(model.me[me], model.place, to, model.now)) is False
    assert model.run(model.me["X"], pass_stop(model.me["X"], model.place, "Y", model.now)) is True
    assert model.fence().open and model.left() == 1

    assert carry_on(model, "Y") is False
    model.partner.reachable = True
    refused(Reason.CHANGED_MEANWHILE, model, "X", carry_stop(model.me["X"], model.place, model.now, model.draw, "QSG"))
    assert carry_on(model, "Y") is True
    assert model.state() == pb.STOPPED and model.left() == 0 and not model.fence().open


def carry_on(model: Model, member: str) -> object:
    return model.run(model.me[member], carry_stop(model.me[member], model.place, model.now, model.draw, "QSG"))


def test_stop_of_a_channel_that_never_bound_needs_no_partner() -> None:
    model = Model("X")
    model.partner.reachable = False
    taken(model, "X")

    assert model.run(model.me["X"], stop(model, model.me["X"])) is True
    assert model.state() == pb.STOPPED and not model.fence().open


def test_stop_to_inactive_leaves_no_entry() -> None:
    model = Model("X")
    running(model, "X")

    assert model.run(model.me["X"], stop(model, model.me["X"], pb.INACTIVE)) is True
    assert model.entry() is None
    refused(Reason.CHANNEL_NOT_ACTIVE, model, "X", stop(model, model.me["X"], pb.INACTIVE))


def test_quiesce_is_left_to_a_living_owner_and_force_is_not() -> None:
    model = Model("X", "Y")
    running(model, "X")
    order = StopOrder(pb.STOPPED, False, model.now)
    assert model.run(model.me["Y"], ask_stop(model.me["Y"], model.place, order, model.draw)) == "X"

    assert model.run(model.me["Y"], stop(model, model.me["Y"])) is True  # the escalation


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("before", ["inactive", "running", "wanted by the asked"])
def test_what_only_one_member_can_run_is_stopped_by_that_one(before: str, force: bool) -> None:
    model = Model("X", "Y")
    if before == "running":
        running(model, "X")
    elif before == "wanted by the asked":
        model.run(model.me["Y"], command_start(model.me["Y"], model.place, model.now, model.draw))
    order = StopOrder(pb.STOPPED, force, model.now)
    assert model.run(model.me["Y"], ask_stop(model.me["Y"], model.place, order, model.draw, only="X")) == "X"
    entry = model.entry()
    assert entry is not None and (entry.state, entry.owner) == (pb.STOPPING, "X")
    assert entry.owner_incarnation == model.me["X"].incarnations["admin"]
    model.run(model.me["X"], carry_stop(model.me["X"], model.place, model.now, model.draw, "QSG"))
    assert model.state() == pb.STOPPED


def test_resolve_needs_force_while_the_partner_is_not_fenced() -> None:
    model = Model("X")
    in_doubt(model)

    def backout(force: bool) -> Steps[Any]:
        return resolve(model.me["X"], model.place, Resolution("backout", force), model.draw, "QSG")

    assert "delivered twice" in refused(Reason.IN_DOUBT, model, "X", backout(False))
    assert model.fence().open
    model.risked = True
    resolved = model.run(model.me["X"], backout(True))
    assert resolved.deleted == 0 and "R is not fenced" in resolved.risk and not model.fence().open and model.left() == 2


def test_resolve_and_reset_leave_a_running_channel_alone() -> None:
    model = Model("X")
    running(model, "X")

    refused(Reason.CHANNEL_IN_USE, model, "X", resolve(model.me["X"], model.place, Resolution("backout", True), model.draw, "QSG"))
    refused(Reason.CHANNEL_IN_USE, model, "X", reset_sender(model.me["X"], model.place, 1))
    refused(Reason.OPTIONS_ERROR, model, "X", reset_sender(model.me["X"], model.place, 0))
    assert model.state() == pb.RUNNING and model.lock() is not None and model.fence().open


def test_a_failed_release_never_gives_up_anothers_lock() -> None:
    """A failed compare brings the cells up to date: what they show then is not ours."""
    model = Model("X", "Y", apart=False)
    held = running(model, "X")
    model.run(model.me["Y"], stop(model, model.me["Y"]))
    model.run(model.me["Y"], command_start(model.me["Y"], model.place, model.now, model.draw))
    taken(model, "Y", Occasion("own", model.now))

    assert model.run(model.me["X"], release(held, lambda e: None, clean=True)) is False
    lock, entry = model.lock(), model.entry()
    assert lock is not None and lock.member == "Y" and entry is not None and entry.owner == "Y" and model.fence().open
