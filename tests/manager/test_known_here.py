"""Channels whose definition a member does not have, or does not understand: they are started elsewhere, and stopped they stay so."""

from __future__ import annotations

from qsg.rules.balance import choose
from support.simulated import simulated
from support.whole import numbered, queue, receiver, sender, universe, xmitq

NAME = "G.TO.R"


@simulated
async def test_one_that_the_best_member_does_not_know_is_started_where_it_is_defined() -> None:
    async with universe("admin") as u:
        await u.host("R", "", queue("IN"), receiver(NAME))
        await u.host("X", "G", xmitq("R", "admin"), sender(NAME, "R", "R:1414", partner="R", disposition="private"))
        await u.host("Y", "G")
        best = choose(u["X"].manager.supervisor.office.loads(), NAME, {"admin"})
        assert best == "Y", "or the test shows nothing"
        await u["X"].put("IN", *numbered(0, 1), queue_manager="R")
        await u["R"].until("IN", numbered(0, 1))
