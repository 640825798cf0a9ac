"""A group with an application structure beside its admin structure: queues there, and internal channels between structures."""

from __future__ import annotations

import asyncio

import pytest

from qsg.pb import records_pb2 as pb
from qsg.rules import keys
from qsg.rules.internal import ADDRESS, internal_queue
from qsg.rules.reasons import Reason, Refusal
from qsg.store.contract import Put
from support.simulated import simulated
from support.structures import MOVED, group, moving, nothing_on_the_way
from support.whole import DLQ, numbered, queue, receiver, sender, universe, xmitq


@simulated
async def test_queues_and_a_transmission_queue_in_an_application_structure() -> None:
    async with universe("admin", "app1") as u:
        await group(u, "X", "Y")
        await u["X"].put("FAR", "one")
        await u["Y"].put("FAR", "two")
        assert await u["Y"].texts("FAR") == ["one", "two"]
        assert u.found("G app1", keys.headers("FAR")) and not u.found("G admin", keys.headers("FAR"))
        await u["Y"].put("IN", *numbered(0, 5), queue_manager="R")
        await u["R"].until("IN", numbered(0, 5))
        entry = await u.state("G.TO.R", pb.RUNNING)
        assert u.key("G app1", keys.lock("R")) and u.key("G app1", keys.sender_fence("R")) and not u.key("G admin", keys.sender_fence("R"))
        assert u.key("G admin", keys.status_out("G.TO.R")) and entry.owner in "XY"


@pytest.mark.parametrize(("home", "target"), [("", "FAR"), ("app1", "NEAR"), ("app1", "FAR")])
@simulated
async def test_a_receivers_messages_for_a_queue_in_another_structure_go_on(home: str, target: str) -> None:
    async with universe("admin", "app1") as u:
        await group(u, "X", "Y", home=home)
        await u["R"].put(target, *numbered(0, 20), queue_manager="G")
        await u["X"].until(target, numbered(0, 20))
        assert await u["X"].texts(DLQ) == []
        assert len(u.found(f"G {home or 'admin'}", keys.RECEIVER_FENCES)) >= 1
        if (home, target) == ("", "FAR"):
            entry = await u.state(MOVED, pb.RUNNING)
            (record,) = u.found("G app1", keys.RECEIVER_FENCES)
            assert record.key == keys.receiver_fence(entry.stream), "in the target structure, keyed by the stream"
            assert pb.Progress.FromString(u.key("G app1", keys.receiver_progress(entry.stream)).value).messages == 20  # type: ignore[union-attr]


@simulated
async def test_mixed_batches_keep_each_queues_order() -> None:
    async with universe("admin", "app1") as u:
        await group(u, "X", "Y")
        for i in range(30):
            await u["R"].put(("NEAR", "FAR")[i % 2], f"m{i:04d}", queue_manager="G", priority=0)
        await u["Y"].until("NEAR", numbered(0, 30)[::2])
        found = await u["Y"].until("FAR", numbered(0, 30)[1::2])
        assert {m.hops for m in found} == {1}, "the internal channel counts"
        nothing_on_the_way(u, MOVED)


@pytest.mark.parametrize("home", ["", "app1"])
@simulated
async def test_another_members_private_queue(home: str) -> None:
    """Through the group portal, addressed by LOCAL NAME: whoever receives it, it reaches that member."""
    async with universe("admin", "app1") as u:
        await group(u, "X", "Y", home=home)
        for member in "XY":
            await u["R"].manager.queues.define(queue(member, type="remote", remote_queue_manager=member, transmission_queue="G"))
        for member in "XY":
            await u["R"].put("OWN", f"for {member}", queue_manager=member)
        for member in "XY":
            await u[member].until("OWN", [f"for {member}"])
        assert await u["X"].texts(DLQ) == []
        assert len(u.found("private Y", keys.headers("OWN"))) == 1


@simulated
async def test_a_put_at_one_member_to_anothers_private_queue() -> None:
    async with universe("admin", "app1") as u:
        await group(u, "X", "Y")
        await u["X"].put("OWN", *numbered(0, 5), queue_manager="Y")
        await u["Y"].until("OWN", numbered(0, 5))
        assert await u["X"].texts("OWN") == []
        await u["X"].put("NO.SUCH", "lost", queue_manager="Y")
        (letter,) = await u["X"].until(DLQ, ["lost"])
        assert (letter.dead_letter.reason, letter.dead_letter.queue_manager) == (Reason.UNKNOWN_OBJECT_NAME, "Y")


@simulated
async def test_messages_for_a_dead_member_wait_for_it() -> None:
    async with universe("admin", "app1") as u:
        await group(u, "X", "Y", "Z")
        await u["X"].put("OWN", "before", queue_manager="Y")
        await u["Y"].until("OWN", ["before"])
        await u["Y"].kill()
        await u["X"].put("OWN", "while dead", queue_manager="Y")
        await asyncio.sleep(8)
        channel = internal_queue("admin", "private.Y")
        entry = u.entry(channel)
        assert entry is None or entry.owner == "Y", "nobody else can run it"
        await u.again("Y")
        await u["X"].put("OWN", "after", queue_manager="Y")
        await u["Y"].until("OWN", ["before", "while dead", "after"])


@simulated
async def test_through_the_local_portal_to_shared_queues() -> None:
    """A private channel commits in the member's own store; its messages for shared queues go on from there."""
    async with universe("admin", "app1") as u:
        await group(u, "X", "Y")
        await u["R"].manager.queues.define(xmitq("X"))
        await u["X"].manager.catalog.define_channel(receiver("R.TO.X"), own=True)
        await u["R"].manager.catalog.define_channel(sender("R.TO.X", "X", "X:1414", partner="X"))
        await u["R"].put("FAR", *numbered(0, 5), queue_manager="X")
        await u["R"].put("NEAR", *numbered(5, 8), queue_manager="X")
        await u["R"].put("OWN", "own", queue_manager="X")
        await u["Y"].until("FAR", numbered(0, 5))
        await u["Y"].until("NEAR", numbered(5, 8))
        await u["X"].until("OWN", ["own"])
        fences = [pb.ReceiverFence.FromString(kv.value) for kv in u.found("private X", keys.RECEIVER_FENCES)]
        assert [(fence.channel, fence.partner) for fence in fences] == [("R.TO.X", "R")]


@simulated
async def test_onwards_over_a_transmission_queue_in_another_structure() -> None:
    """R -> group (home admin) -> S, over a transmission queue in app1 that only a definition names."""
    async with universe("admin", "app1") as u:
        await u.host("S", "", queue("END"), queue(DLQ), receiver("G.TO.S"))
        await group(u, "X", "Y")
        await u["X"].manager.queues.define(xmitq("S.ROAD", "app1"))
        await u["X"].manager.queues.define(queue("S", type="remote", remote_queue_manager="S", transmission_queue="S.ROAD"))
        await u["X"].manager.catalog.define_channel(sender("G.TO.S", "S.ROAD", "S:1414"))
        await u["R"].manager.queues.define(queue("S", type="remote", remote_queue_manager="S", transmission_queue="G"))
        await u["R"].put("END", *numbered(0, 10), queue_manager="S")
        await u["S"].until("END", numbered(0, 10))
        assert u.key("G app1", keys.sender_fence("S.ROAD")) and not u.key("G admin", keys.sender_fence("S.ROAD"))


@simulated
async def test_dead_letters_of_another_home_reach_the_dead_letter_queue() -> None:
    """The group's dead-letter queue lies in admin, the receiver's home is app1."""
    async with universe("admin", "app1") as u:
        await group(u, "X", "Y", home="app1")
        await u["R"].put("NO.SUCH", "lost", queue_manager="G")
        (letter,) = await u["X"].until(DLQ, ["lost"])
        assert letter.dead_letter.reason == Reason.UNKNOWN_OBJECT_NAME
        assert (letter.dead_letter.queue, letter.dead_letter.queue_manager, letter.dead_letter.channel) == ("NO.SUCH", "G", "R.TO.G")


@simulated
async def test_large_messages_between_structures() -> None:
    async with universe("admin", "app1") as u:
        await group(u, "X", "Y")
        texts = ["a" * 700_000, "small", "b" * 1_500_000]
        for text in texts:
            await u["R"].put("FAR", text, queue_manager="G")
        await u["X"].until("FAR", texts)
        await asyncio.sleep(1)
        assert u.found("G admin", keys.stages(MOVED)) == [] and u.found("G app1", keys.stages("FAR")) == []


@simulated
async def test_members_that_die_while_messages_move_between_structures() -> None:
    """Each death hits the owner of the internal channel, in the middle of it: exactly once, in order."""
    async with universe("admin", "app1") as u:
        await group(u, "X", "Y", "Z")
        sent: list[str] = []
        for round_ in range(8):
            more = numbered(len(sent), len(sent) + 40)
            sent += more
            await u["R"].put("FAR", *more, queue_manager="G")
            await asyncio.sleep(0.003 * round_)
            entry = u.entry(MOVED)
            if entry is not None and entry.owner in u.hosts and u[entry.owner].alive:
                await u[entry.owner].kill()
                await asyncio.sleep(0.01 * round_)
                await u.again(entry.owner)
        await u["X"].until("FAR", sent, 30.0)
        assert await u["X"].texts(DLQ) == []
        await asyncio.sleep(2)
        nothing_on_the_way(u, MOVED)
        entry = await u.state(MOVED, pb.RUNNING)
        assert entry.takeovers >= 3


@simulated
async def test_an_initiator_that_dies_moves_the_internal_channel() -> None:
    async with universe("admin", "app1") as u:
        first, _ = await moving(u)
        u.network.kill(first)
        await u["R"].put("FAR", "two", queue_manager="G")
        await u["X"].until("FAR", ["one", "two"])
        await asyncio.sleep(1)
        entry = await u.state(MOVED, pb.RUNNING)
        assert entry.takeovers == 1 and "initiator" in entry.takeover.cause


@simulated
async def test_internal_channels_are_ordinary_to_commands() -> None:
    async with universe("admin", "app1") as u:
        await moving(u)
        commands = u["Y"].manager.clients.backend
        await commands.command("stop", {"channel": MOVED, "wait_s": 5})
        await u.state(MOVED, pb.STOPPED)
        answer = await commands.command("ping", {"channel": MOVED, "bytes": 1000})
        assert isinstance(answer, dict) and (answer["address"], answer["bytes"]) == (ADDRESS, 1000)
        await u["R"].put("FAR", "two", queue_manager="G")
        await asyncio.sleep(3)
        assert await u["X"].texts("FAR") == ["one"]
        await commands.command("start", {"channel": MOVED})
        await u["X"].until("FAR", ["one", "two"])


@simulated
async def test_commands_for_what_only_one_member_can_run_work_at_every_other() -> None:
    async with universe("admin", "app1") as u:
        await group(u, "X", "Y")
        channel, at_y = internal_queue("admin", "private.X"), u["Y"].manager.clients.backend
        for sent, (mode, begins) in enumerate([("quiesce", pb.INACTIVE), ("quiesce", pb.RUNNING), ("force", pb.RUNNING)]):
            await u.state(channel, begins)
            stopped = await at_y.command("stop", {"channel": channel, "mode": mode})
            assert (stopped["status"], stopped["owner"]) == ("STOPPED", "X")  # type: ignore[index]
            await u["Y"].put("OWN", *numbered(sent, sent + 1), queue_manager="X")
            await at_y.command("start", {"channel": channel})
            await u["X"].until("OWN", numbered(0, sent + 1))
            assert (await u.state(channel, pb.RUNNING)).owner == "X"


@pytest.mark.parametrize("command", ["stop", "start"])
@simulated
async def test_commands_for_what_only_a_dead_member_can_run_are_carried_out_by_its_successor(command: str) -> None:
    """Whoever was told may have died meanwhile, too."""
    async with universe("admin", "app1") as u:
        await group(u, "X", "Y")
        await u.host("Z", "G")
        channel, at_y = internal_queue("admin", "private.X"), u["Y"].manager.clients.backend
        await at_y.command("stop", {"channel": channel})
        if command == "stop":
            await at_y.command("start", {"channel": channel})
            await u["X"].kill()
            await asyncio.sleep(1)
        else:
            await u["X"].kill()
        await u["Y"].put("OWN", "one", queue_manager="X")
        await at_y.command(command, {"channel": channel, "wait_s": 1})
        await u["Y"].kill()
        await u.again("X")
        entry = await u.state(channel, pb.STOPPED if command == "stop" else pb.RUNNING)
        assert entry.owner == "X"
        await u["X"].until("OWN", [] if command == "stop" else ["one"])


@simulated
async def test_what_only_one_member_can_run_is_resolved_there_while_it_lives() -> None:
    """Nobody else can ask its partner, and force must not be taken for that."""
    async with universe("admin", "app1") as u:
        await group(u, "X", "Y")
        channel = internal_queue("admin", "private.X")
        await u["Y"].put("OWN", "one", queue_manager="X")
        await u["X"].until("OWN", ["one"])
        at_x, at_y = (u[name].manager.clients.backend for name in "XY")
        await at_y.command("stop", {"channel": channel})

        async def left_in_doubt() -> None:
            found = u.key("G admin", keys.sender_fence(channel))
            assert found is not None
            fence = pb.SenderFence.FromString(found.value)
            fence.open = True
            await u.server("G admin").client().txn([], [Put(found.key, fence.SerializeToString())])

        await left_in_doubt()
        order = {"channel": channel, "action": "backout", "force": True}
        with pytest.raises(Refusal, match="X only: resolve it there") as refused:
            await at_y.command("resolve", order)
        assert refused.value.reason is Reason.CHANNEL_CONFIG_ERROR
        with pytest.raises(Refusal, match="the partner has answered"):
            await at_x.command("resolve", order)
        await left_in_doubt()
        await u["X"].kill()
        await asyncio.sleep(10)
        answer = await at_y.command("resolve", order)
        assert "is not fenced" in answer["risk"]  # type: ignore[index]


@simulated
async def test_applications_cannot_put_to_an_internal_transmission_queue() -> None:
    async with universe("admin", "app1") as u:
        await group(u, "X", "Y")
        with pytest.raises(Refusal) as refused:
            await u["X"].put(internal_queue("admin", "private.Y"), "x")
        assert refused.value.reason is Reason.XMIT_Q_USAGE_ERROR


@simulated
async def test_a_drain_does_not_wait_for_what_only_this_member_can_run() -> None:
    async with universe("admin", "app1") as u:
        await group(u, "X", "Y")
        await u["X"].put("OWN", "one", queue_manager="Y")
        await u["Y"].until("OWN", ["one"])
        await u.state(internal_queue("admin", "private.Y"), pb.RUNNING)
        loop = asyncio.get_running_loop()
        began = loop.time()
        await u["Y"].stop()
        assert loop.time() - began < 0.5
        await u["X"].put("OWN", "two", queue_manager="Y")
        await u.again("Y")
        await u["Y"].until("OWN", ["one", "two"])


@simulated
async def test_from_a_private_store_to_a_structure_while_the_member_dies() -> None:
    """Local portal, shared queue: the only member that can move them dies again and again, with messages in every place."""
    async with universe("admin", "app1") as u:
        await group(u, "X", "Y")
        await u["R"].manager.queues.define(xmitq("X"))
        await u["X"].manager.catalog.define_channel(receiver("R.TO.X"), own=True)
        await u["R"].manager.catalog.define_channel(sender("R.TO.X", "X", "X:1414", partner="X"))
        sent: list[str] = []
        for round_ in range(6):
            more = numbered(len(sent), len(sent) + 30)
            sent += more
            await u["R"].put("FAR", *more, queue_manager="X")
            # In most rounds the first of them have just arrived.
            async with asyncio.timeout(5):
                while round_ % 3 and len(await u["Y"].texts("FAR")) <= len(sent) - 30:  # noqa: ASYNC110  (a store has no event)
                    await asyncio.sleep(0.0005)
            await u["X"].kill()
            await u.again("X")
        await u["Y"].until("FAR", sent, 20.0)
        nothing_on_the_way(u, internal_queue("private", "app1"), server="private X")


@simulated
async def test_a_partner_cannot_bind_to_an_internal_channel() -> None:
    async with universe("admin", "app1") as u:
        await moving(u)
        await u["R"].manager.queues.define(xmitq("EVIL"))
        await u["R"].manager.catalog.define_channel(sender(MOVED, "EVIL", "X:1415"))
        await u["R"].put("FAR", "intruder", queue_manager="EVIL")
        entry = await u.state(MOVED, pb.RETRYING, "R")
        assert entry.reason == Reason.CHANNEL_TYPE_ERROR


@simulated
async def test_a_full_queue_in_another_structure() -> None:
    """Message retry, then the dead-letter queue, as of any channel; what follows is not held up for ever."""
    async with universe("admin", "app1") as u:
        await group(u, "X", "Y")
        await u["X"].manager.queues.define(queue("TIGHT", structure="app1", max_depth=2))
        await u["R"].put("TIGHT", *numbered(0, 3), queue_manager="G")
        await u["R"].put("FAR", "behind", queue_manager="G")
        await u["X"].until("FAR", ["behind"], 40.0)
        assert await u["X"].texts("TIGHT") == numbered(0, 2)
        (letter,) = await u["X"].until(DLQ, ["m0002"])
        assert (letter.dead_letter.reason, letter.dead_letter.queue) == (Reason.Q_FULL, "TIGHT")
