"""Defects that IBM MQ had and mended (or users met), each played against this system. The docstring says whose defect it was."""

from __future__ import annotations

import asyncio
from typing import Any

from qsg.manager.placing import Placer
from qsg.manager.queue_store import QueueStore
from qsg.manager.receiving import Receivers, ReceiverServices
from qsg.pb import initiator_pb2
from qsg.pb import records_pb2 as pb
from qsg.rules import keys
from qsg.rules.definitions import Channel, Queue
from qsg.rules.ownership import Occasion, take
from qsg.rules.reasons import Reason, Refusal
from qsg.rules.steps import Steps
from qsg.rules.stopping import Resolution, carry_stop, command_start, resolve
from qsg.store.contract import Get, get_prefix
from support.channel_group import XMITQ, others, sending, texts, town
from support.channel_pair import STREAM, rig
from support.channel_script import request
from support.group_lists import in_doubt, recover_all, refused
from support.group_model import Model, Walk
from support.members import group, shared
from support.simulated import simulated
from support.whole import DLQ, Universe, numbered, queue, receiver, sender, universe, xmitq


@simulated
async def test_ibm_ph67368_an_owner_that_lost_its_storage_but_answers_its_peers_loses_the_channel() -> None:
    """IBM MQ for z/OS, APAR PH67368. The owner of a shared channel lost its coupling facility but kept partial links to the group; the
    transmission queue stayed "in use on ????" until the owner was restarted. Here its lease in the store decides, not its links."""
    async with town("X", "Y", "Z") as t:
        first, _ = await sending(t)
        t.stations[first].stores["admin"].cut()
        other = others(t, first)[0]
        await t.put(texts(2, 4), other)

        await t.until_arrived(texts(0, 4), timeout_s=8.0)
        entry = await t.until(pb.RUNNING)
        assert entry.owner != first
        lock = t.servers["admin"].get(Get(keys.lock(XMITQ))).first
        assert lock is not None and pb.Lock.FromString(lock.value).member == entry.owner


async def inbound_group(u: Universe, *members: str) -> None:
    """R sends to group G over the group ports of `members`."""
    road = sender("R.TO.G", "G", *(f"{m}:1415" for m in members), partner="G", disconnect_interval_s=0)
    await u.host("R", "", queue(DLQ), xmitq("G"), road)
    for name in members:
        objects: list[Queue | Channel] = [queue("SHARED", structure="admin"), queue(DLQ, structure="admin"), receiver("R.TO.G")]
        await u.host(name, "G", *objects)


@simulated
async def test_ibm_ph62197_a_partner_that_comes_back_while_its_member_shuts_down_waits_for_nothing() -> None:
    """IBM MQ for z/OS, APAR PH62197. A receiver was to be adopted while its channel initiator was shutting down; the request to end the old
    one was not processed, and the partner waited 70 seconds. Here a bind at another member is an adoption at once, bounded."""
    async with universe() as u:
        await inbound_group(u, "X", "Y")
        await u["R"].put("SHARED", *numbered(0, 3), queue_manager="G")
        await u["X"].until("SHARED", numbered(0, 3))
        stopping = asyncio.create_task(u["X"].stop())
        await asyncio.sleep(0.001)
        u.network.reset("R", "X")
        began = asyncio.get_running_loop().time()
        await u["R"].put("SHARED", *numbered(3, 6), queue_manager="G")

        await u["Y"].until("SHARED", numbered(0, 6), 3.0)
        assert asyncio.get_running_loop().time() - began < 1.0
        await stopping


@simulated
async def test_ibm_ph45363_two_first_binds_at_once_make_one_record() -> None:
    """IBM MQ for z/OS, APAR PH45363. An inbound channel that was started for the first time on two queue managers at once got two
    synchronisation records, and failed ever after (CSQX517E, CSQX526E). Here the record's key is the stream, made by compare-and-swap."""
    async with rig() as two:
        await two.x.catalog.define_channel(Channel(name="R.TO.X", type="receiver", structure="app1"))
        await asyncio.sleep(0.05)
        for member, linked in ((two.x, two.xp), (two.y, two.yp)):
            placer = Placer(member.catalog, QueueStore(member.catalog, member.world))
            services = ReceiverServices(member.world, member.structures, placer, member.catalog.channel, member.name, "QSG")
            linked.link.on_accept = Receivers(services).accept

        async def first_bind(address: str, instance: int) -> Any:
            bind = request(1, instance, receiver="QSG")
            bind.channel, bind.sender = "R.TO.X", "R"
            return await two.rp.link.open(initiator_pb2.Open(channel="R.TO.X", addresses=[address], bind=bind, silence_ms=1500))

        outcomes = await asyncio.gather(first_bind("X:1415", 1), first_bind("Y:1415", 2), return_exceptions=True)

        assert not isinstance(outcomes[1], BaseException), outcomes
        server = two.members.server("app1")
        (fence,) = server.get(get_prefix(keys.RECEIVER_FENCES)).kvs
        record = pb.ReceiverFence.FromString(fence.value)
        assert fence.key == keys.receiver_fence(STREAM) and (record.member, record.instance) == ("Y", 2)


@simulated
async def test_ibm_pm81116_no_row_of_the_status_table_outlives_its_session() -> None:
    """IBM MQ for z/OS, APAR PM81116 (technote 1625877). 149,862 orphaned rows of the shared channel status table; STOP and DISPLAY became
    slow. Here an entry goes with its session, and what a dead member leaves is removed by whoever recovers."""
    async with universe() as u:
        await inbound_group(u, "X", "Y")
        await u["R"].put("SHARED", "m0000", queue_manager="G")
        await u["X"].until("SHARED", numbered(0, 1))
        for round_ in range(60):
            u.network.reset("R", "X")
            u.network.reset("R", "Y")
            if round_ % 20 == 10:
                await u["Y"].kill()
                await u.again("Y")
            await asyncio.sleep(0.2)
        await u["R"].put("SHARED", "m0001", queue_manager="G")
        await u["X"].until("SHARED", numbered(0, 2))
        await asyncio.sleep(3.0)

        counts = [len(u.found("G admin", prefix)) for prefix in (keys.STATUS_IN, keys.RECEIVER_FENCES, keys.RECEIVER_PROGRESS)]
        assert counts == [1, 1, 1]
        assert u.found("G admin", keys.STATUS_OUT) == []


def backout(model: Model, member: str) -> Steps[Any]:
    return resolve(model.me[member], model.place, Resolution("backout", True), model.draw, "QSG")


def test_ibm_pi89568_resolve_twice_cut_off_and_during_recovery_ends() -> None:
    """IBM MQ for z/OS, APARs PI89568 and PH07185. After RESOLVE the channel initiator looped reading its synchronisation queue, which held
    two in-doubt records. Here there is one record a queue; resolve is a list that may be cut off anywhere and done again."""
    for cut in range(1, 20):
        model = Model("X", "Y")
        in_doubt(model)
        model.risked = True
        walk = Walk(model, model.me["X"], backout(model, "X"))
        while not walk.done and walk.taken < cut:
            walk.step()
        finished = walk.done
        model.kill("X")
        model.run(model.me["Y"], recover_all(model, model.me["Y"]))
        if model.fence().open:
            model.run(model.me["Y"], backout(model, "Y"))
        refused(Reason.NOT_IN_DOUBT, model, "Y", backout(model, "Y"))
        fences = model.stores["app"].read(get_prefix(keys.FENCES)).kvs
        assert len(fences) == 1 and not model.fence().open and model.left() == 2
        if finished:
            return
    raise AssertionError("resolve never ended")


def test_ibm_ph07185_a_channel_starts_again_behind_a_resolve() -> None:
    """IBM MQ for z/OS, APAR PH07185: the same loop at the restart behind RESOLVE. Here START goes on from the one record: what the partner
    had is deleted at the bind, the rest is sent."""
    model = Model("X", "Y")
    in_doubt(model)
    model.risked = True
    model.run(model.me["X"], backout(model, "X"))
    model.partner.reachable = True
    model.helds.clear()  # the instance that was in doubt has ended, which is what *force* has taken on trust
    stopping = model.entry()
    assert stopping is not None and stopping.state == pb.STOPPING
    assert model.run(model.me["X"], carry_stop(model.me["X"], model.place, model.now, model.draw, "QSG")) is True
    model.run(model.me["Y"], command_start(model.me["Y"], model.place, model.now, model.draw))
    held = model.run(model.me["Y"], take(model.me["Y"], model.place, Occasion("own", model.now), model.draw))
    model.run(model.me["Y"], model.sender(held))

    assert model.left() == 0 and len(model.partner.committed) == len(set(model.partner.committed)) == 2


@simulated
async def test_ibm_pi08889_what_a_queue_was_before_its_structure_failed_is_not_believed_after_it() -> None:
    """IBM MQ for z/OS, APAR PI08889. After a structure failure a channel went by a wrong, cached disposition of its queue (CSQX470E). Here
    every put and get compares the queue's state in its structure, so a stale copy fails and is read again."""
    async with group() as g:
        x, y = await g.member("X"), await g.member("Y")
        await x.queues.define(shared("A"))
        await asyncio.sleep(0.01)
        await x.put("A", b"1")
        assert await y.get("A") == [b"1"]
        for store in x.stores.values():
            store.cut()
        await y.queues.delete("A")
        await y.queues.define(shared("A", structure="private"), own=False)
        for store in x.stores.values():
            store.heal()
        try:
            await x.put("A", b"2")
        except Refusal as refusal:
            assert refusal.reason is Reason.Q_DELETED
        await asyncio.sleep(0.5)

        definition = x.catalog.queue("A")
        assert definition is not None and definition.structure == "private"
        await x.put("A", b"3")
        assert b"3" in await x.get("A", 9)
        assert g.server("app1").get(get_prefix(keys.headers("A"))).count == 0
