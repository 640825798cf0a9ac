"""RabbitMQ's pull request 16662 (`mirrored_supervisor`, 4.3.3) lists what went wrong when its shovels were taken over: each played here."""

from __future__ import annotations

import asyncio
from typing import Any

from qsg.manager.commands import SAVED_S
from qsg.manager.queue_store import QueueStore
from qsg.pb import records_pb2 as pb
from qsg.rules import keys, status
from qsg.rules.definitions import Channel, Queue
from qsg.rules.ownership import Leftover, leftovers, recover
from qsg.rules.steps import look
from qsg.store.contract import Get, Put, get_prefix
from support.channel_group import CHANNEL, XMITQ, Station, Town, others, sending, texts, town
from support.group_lists import running
from support.group_model import Model
from support.simulated import simulated


def cut_off(t: Town, name: str) -> None:
    """A member loses the store and its peers, and keeps its path to R."""
    for structure, store in t.stations[name].stores.items():
        if structure != "private":
            store.cut()
    for peer in [s.name for s in t.stations.values() if s.name not in (name, "R")]:
        t.network.cut(f"{name}-qm", f"{peer}-qm")


@simulated
async def test_rabbitmq_16662a_a_takeover_while_the_store_elects_a_leader_is_done_when_it_has_one() -> None:
    """RabbitMQ PR 16662: a takeover failed because the metadata store was electing a leader, was not tried again, and the children were
    orphaned for ever. Here recovery goes by level: what could not be written is seen again, until it is recovered."""
    async with town("X", "Y", "Z") as t:
        first, survivors = await sending(t)
        for station in survivors:
            station.stores["admin"].cut()
        await t.kill(first)
        await asyncio.sleep(2.5)
        for station in survivors:
            station.stores["admin"].heal()
        t.servers["admin"].leader_change()
        await t.put(texts(2, 4), survivors[0])

        await t.until_arrived(texts(0, 4), timeout_s=8.0)
        assert (await t.until(pb.RUNNING)).owner != first


@simulated
async def test_rabbitmq_16662b_in_a_split_only_one_side_moves_messages() -> None:
    """RabbitMQ PR 16662: in a partition both sides ran the children. Here the side without the store can change nothing: its writes fail,
    and the partner refuses it as soon as the other side has bound."""
    async with town("X", "Y", "Z") as t:
        first, _ = await sending(t)
        cut_off(t, first)
        other = others(t, first)[0]
        await t.put(texts(2, 6), other)

        await t.until_arrived(texts(0, 6), timeout_s=9.0)
        lock = t.servers["admin"].get(Get(keys.lock(XMITQ))).first
        assert lock is not None and pb.Lock.FromString(lock.value).member == (await t.until(pb.RUNNING)).owner != first
        assert len(t.prefix("private R", keys.STATUS_IN)) == 1, "R has one session of the channel"


@simulated
async def test_rabbitmq_16662c_a_member_without_the_store_steps_down_though_no_write_of_it_returns() -> None:
    """RabbitMQ PR 16662: a write in the minority blocked for 30 s, so that stepping down never happened. Here stepping down needs no
    write: the partner has closed the old session, and the cut off member's channel ends, while its store still does not answer."""
    async with town("X", "Y", "Z") as t:
        first, _ = await sending(t)
        assert _sends(t.stations[first])
        cut_off(t, first)
        await t.put(texts(2, 4), others(t, first)[0])
        await t.until_arrived(texts(0, 4), timeout_s=9.0)

        async with asyncio.timeout(3):
            while _sends(t.stations[first]):  # noqa: ASYNC110
                await asyncio.sleep(0.01)


def _sends(station: Station) -> bool:
    """A sender of the channel has a session with R."""
    caretaker = station.supervisor.channels.get(CHANNEL)
    return caretaker is not None and caretaker.sender is not None and caretaker.sender.bound.is_set()


@simulated
async def test_rabbitmq_16662d_a_restart_touches_nobody_elses_channels() -> None:
    """RabbitMQ PR 16662: a supervisor that was restarted wiped the records of all nodes. Here a starting member recovers what is its own,
    or a dead one's, comparing that; the entries of the living stay."""
    async with town("X", "Y") as t:
        x, r = t.stations["X"], t.stations["R"]
        definition = x.catalog.channel(CHANNEL)
        assert definition is not None
        store = QueueStore(x.catalog, x.supervisor.world)
        for i in range(4):
            await store.define(Queue(name=f"R{i}", structure="admin", usage="transmission"))
            await r.catalog.define_channel(Channel(name=f"C{i}", type="receiver", partner="QSG"))
            await x.catalog.define_channel(definition.model_copy(update={"name": f"C{i}", "transmission_queue": f"R{i}"}))
        for i in range(4):
            await x.command("start", channel=f"C{i}")
        before = {i: await t.until(pb.RUNNING, channel=f"C{i}") for i in range(4)}
        victim = before[0].owner
        await t.kill(victim)
        for i in range(4):
            await _running_on_another(t, f"C{i}", victim)
        await t.station(victim)
        await asyncio.sleep(2.0)

        elsewhere = {i: entry for i, entry in before.items() if entry.owner != victim}
        assert elsewhere, "both members run some of them"
        for i, entry in elsewhere.items():
            after = await t.until(pb.RUNNING, channel=f"C{i}")
            assert (after.owner, after.epoch, after.takeovers) == (entry.owner, entry.epoch, entry.takeovers)


async def _running_on_another(t: Town, channel: str, victim: str) -> None:
    async with asyncio.timeout(5):
        while (await t.until(pb.RUNNING, channel=channel)).owner == victim:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@simulated
async def test_rabbitmq_16662e_an_owner_that_does_not_run_what_it_owns_notices() -> None:
    """RabbitMQ PR 16662: a node owned the record of a child and was not running it. Here a member compares, every few seconds, what the
    table says that it runs with what it does run, and recovers the difference."""
    async with town("X", "Y") as t:
        x = t.stations["X"].structures["admin"]
        linked = t.stations["X"].pair.link
        entry = pb.ChannelStatus(
            channel=CHANNEL,
            transmission_queue=XMITQ,
            partner="R",
            owner="X",
            owner_incarnation=x.incarnation,
            owner_initiator=linked.initiator,
            type=pb.SENDER,
            state=pb.RUNNING,
            request=b"nobody's",
        )
        t.servers["admin"].txn([], [Put(keys.status_out(CHANNEL), status.image(entry))], [])
        await t.put(texts(0, 2), t.stations["Y"])

        await t.until_arrived(texts(0, 2), timeout_s=15.0)
        assert (await t.until(pb.RUNNING)).request != b"nobody's"


@simulated
async def test_rabbitmq_16662f_after_a_split_heals_there_are_not_two_runners() -> None:
    """RabbitMQ PR 16662: after a partition healed there were two runners for up to 30 s. Here the old one's instance has been refused by
    the partner since the takeover; healed, its member finds its key gone, and joins anew without the channel."""
    async with town("X", "Y", "Z") as t:
        first, _ = await sending(t)
        cut_off(t, first)
        await t.put(texts(2, 4), others(t, first)[0])
        await t.until_arrived(texts(0, 4), timeout_s=9.0)
        entry = await t.until(pb.RUNNING)
        t.stations[first].stores["admin"].heal()
        await asyncio.wait_for(t.stations[first].structures["admin"].fenced.wait(), 2.0)
        await t.put(texts(4, 6), others(t, first)[0])

        await t.until_arrived(texts(0, 6), timeout_s=2.0)
        after = await t.until(pb.RUNNING)
        assert (after.owner, after.epoch) == (entry.owner, entry.epoch) and not _sends(t.stations[first])


def test_rabbitmq_16662g_of_two_that_recover_the_same_one_does() -> None:
    """RabbitMQ PR 16662: several nodes took over the same child. Here they may all try; the entry's before-image is compared."""
    model = Model("X", "Y", "Z")
    running(model, "X")
    model.kill("X")
    prefixes = (keys.STATUS_OUT, keys.MEMBERS, keys.INITIATORS)
    found: dict[str, Leftover] = {}
    for name in "YZ":
        sight = model.run(model.me[name], look("admin", *(get_prefix(p) for p in prefixes)))
        (found[name],) = leftovers(model.me[name], sight)

    done = {name: model.run(model.me[name], recover(model.me[name], "admin", found[name], 1, 0.0, model.draw)) for name in "YZ"}

    entry = model.entry()
    assert done == {"Y": True, "Z": False} and entry is not None and (entry.owner, entry.takeovers) == ("Y", 1)


@simulated
async def test_rabbitmq_16662h_status_is_told_on_both_sides_of_a_split() -> None:
    """RabbitMQ PR 16662: in a partition the management UI answered with status 500. Here each side tells what it knows: the cut off member
    its last view of the table, without what only the store has, from the first moment on; the others who has taken over."""
    async with town("X", "Y", "Z") as t:
        first, (other, *_) = await sending(t)
        loop = asyncio.get_running_loop()
        cut_off(t, first)
        began = loop.time()
        await t.put(texts(2, 4), other)
        for moment in (0.0, 0.1, 2.0, 6.0, 9.0):
            await asyncio.sleep(max(0.0, began + moment - loop.time()))
            asked = loop.time()
            far = await _told(t.stations[first])
            assert loop.time() - asked < 2 * SAVED_S + 0.1, "twice, and it does not wait for the store to come back"
            assert (far["status"], far["owner"]) == ("RUNNING", first) and "saved" not in far
            near = await _told(other)
            assert "saved" in near
        assert near["status"] == "RUNNING" and near["owner"] not in (first, "") and near["epoch"] > far["epoch"]
        assert {m["member"] for m in (await t.stations[first].command("group"))["members"]} >= {first}


async def _told(station: Station) -> dict[str, Any]:
    """DISPLAY CHSTATUS of the channel, of one and in the list of all."""
    (one,) = (await station.command("status", channel=CHANNEL))["channels"]
    assert CHANNEL in [line["channel"] for line in (await station.command("status"))["channels"]]
    found: dict[str, Any] = one
    return found
