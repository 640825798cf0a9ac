"""A group with an application structure beside its admin structure: queues there, internal channels between structures, loss of one."""

from __future__ import annotations

import asyncio
import random

import pytest

from qsg.manager.queues import PutRequest
from qsg.pb import records_pb2 as pb
from qsg.rules import keys
from qsg.rules.internal import internal_queue
from qsg.rules.reasons import Reason, Refusal
from qsg.rules.unit import Fenced, OutcomeUnknown
from support.simulated import simulated
from support.whole import DLQ, Universe, numbered, queue, receiver, sender, universe, xmitq

R_TO_G = sender("R.TO.G", "G", "X:1415", "Y:1415", "Z:1415", partner="G")
MOVED = internal_queue("admin", "app1")


async def group(made: Universe, *members: str, home: str = "") -> None:
    """R sends to the group over a receiver at home in `home`; the group sends to R over a transmission queue in app1."""
    await made.host("R", "", queue("IN"), queue(DLQ), receiver("G.TO.R"), R_TO_G, xmitq("G"))
    shared = (
        queue("NEAR", structure="admin"),
        queue("FAR", structure="app1"),
        queue(DLQ, structure="admin"),
        xmitq("R", "app1"),
        sender("G.TO.R", "R", "R:1414", partner="R"),
        receiver("R.TO.G", structure=home),
    )
    for number, member in enumerate(members):
        await made.host(member, "G", *(shared if number == 0 else ()), queue("OWN"))


def nothing_on_the_way(made: Universe, *names: str, server: str = "G admin") -> None:
    for name in names:
        assert made.found(server, keys.headers(name)) == [], name


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
        await group(u, "X", "Y")
        await u["R"].put("FAR", "one", queue_manager="G")
        await u["X"].until("FAR", ["one"])
        first = (await u.state(MOVED, pb.RUNNING)).owner
        u.network.kill(first)
        await u["R"].put("FAR", "two", queue_manager="G")
        await u["X"].until("FAR", ["one", "two"])
        await asyncio.sleep(1)
        entry = await u.state(MOVED, pb.RUNNING)
        assert entry.takeovers == 1 and "initiator" in entry.takeover.cause


@simulated
async def test_internal_channels_are_ordinary_to_commands() -> None:
    async with universe("admin", "app1") as u:
        await group(u, "X", "Y")
        await u["R"].put("FAR", "one", queue_manager="G")
        await u["X"].until("FAR", ["one"])
        await u.state(MOVED, pb.RUNNING)
        commands = u["Y"].manager.clients.backend
        await commands.command("stop", {"channel": MOVED, "wait_s": 5})
        await u.state(MOVED, pb.STOPPED)
        await u["R"].put("FAR", "two", queue_manager="G")
        await asyncio.sleep(3)
        assert await u["X"].texts("FAR") == ["one"]
        await commands.command("start", {"channel": MOVED})
        await u["X"].until("FAR", ["one", "two"])


@simulated
async def test_applications_cannot_put_to_an_internal_transmission_queue() -> None:
    async with universe("admin", "app1") as u:
        await group(u, "X", "Y")
        with pytest.raises(Refusal) as refused:
            await u["X"].put(internal_queue("admin", "private.Y"), "x")
        assert refused.value.reason is Reason.XMIT_Q_USAGE_ERROR


# Loss of a structure at one member (scenario 1b)


@simulated
async def test_a_member_that_loses_an_application_structure_is_safe_and_comes_back() -> None:
    async with universe("admin", "app1") as u:
        await group(u, "X", "Y")
        await u["X"].put("IN", *numbered(0, 5), queue_manager="R")
        await u["R"].until("IN", numbered(0, 5))
        first = (await u.state("G.TO.R", pb.RUNNING)).owner
        other = "Y" if first == "X" else "X"
        u[first].stores["app1"].cut()
        await u[other].put("IN", *numbered(5, 10), queue_manager="R")
        await u["R"].until("IN", numbered(0, 10), 5.0)
        assert (await u.state("G.TO.R", pb.RUNNING)).owner == other
        # What lies elsewhere goes on at the member meanwhile.
        await u[first].put("NEAR", "still here")
        assert not u[first].manager.fenced.is_set()
        await asyncio.sleep(10)
        incarnations = u[first].incarnations
        u[first].stores["app1"].heal()
        await asyncio.sleep(3)
        assert u[first].incarnations == incarnations + 1, "its key in app1 was deleted at its own request: it joins anew"
        assert {"X", "Y"} == {keys.unname(kv.key[len(keys.MEMBERS) :]) for kv in u.found("G app1", keys.MEMBERS)}
        await u[first].put("IN", *numbered(10, 15), queue_manager="R")
        await u["R"].until("IN", numbered(0, 15))


@pytest.mark.parametrize("structure", ["admin", "app1"])
@simulated
async def test_streams_both_ways_while_one_member_after_the_other_loses_a_structure(structure: str) -> None:
    """Exactly once and in order, whoever of the two runs what at that moment."""
    async with universe("admin", "app1") as u:
        await group(u, "X", "Y", "Z")
        sent: dict[str, list[str]] = {"IN": [], "NEAR": [], "FAR": []}
        owners: set[str] = set()
        for round_ in range(9):
            cut = "XYZ"[round_ % 3]
            at = "XYZ"[(round_ + 1) % 3]
            async with asyncio.timeout(20):
                while not u[at].serving:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            for name, more in sent.items():
                texts = numbered(len(more), len(more) + 20)
                more += texts
                where, manager = (u[at], "R") if name == "IN" else (u["R"], "G")
                await where.put(name, *texts, queue_manager=manager)
                if name == "NEAR":
                    await asyncio.sleep(0.002 * round_)
                    u[cut].stores[structure].cut()
            await asyncio.sleep((1.0, 3.0, 8.0)[round_ // 3])
            owners |= {entry.owner for entry in u.entries() if entry.channel == "G.TO.R"}
            u[cut].stores[structure].heal()
            await asyncio.sleep(1.0)
        await asyncio.sleep(8)
        await u["R"].until("IN", sent["IN"], 20.0)
        await u["Z"].until("NEAR", sent["NEAR"], 20.0)
        await u["Z"].until("FAR", sent["FAR"], 20.0)
        assert len(owners) > 1 and await u["X"].texts(DLQ) == []
        assert all(u[member].serving for member in "XYZ")


@simulated
async def test_what_a_cut_off_member_was_putting_is_settled() -> None:
    """A put into the lost structure is not answered wrongly: it arrives if it was told to be committed, and once at most."""
    async with universe("admin", "app1") as u:
        await group(u, "X", "Y")
        await u["X"].put("FAR", "before")
        u["X"].stores["app1"].cut()
        putting = asyncio.create_task(u["X"].manager.queues.put([PutRequest("FAR", pb.Message(payload=b"meanwhile"))]))
        await asyncio.sleep(10)
        assert not putting.done() or putting.exception() is not None
        u["X"].stores["app1"].heal()
        await asyncio.wait([putting], timeout=10)
        await asyncio.sleep(3)
        texts = await u["Y"].texts("FAR")
        assert putting.done()
        assert texts == (["before"] if putting.exception() is not None else ["before", "meanwhile"]), putting


@simulated
async def test_a_target_structure_out_of_the_movers_reach_is_moved_by_another() -> None:
    async with universe("admin", "app1") as u:
        await group(u, "X", "Y")
        await u["R"].put("FAR", "one", queue_manager="G")
        await u["X"].until("FAR", ["one"])
        first = (await u.state(MOVED, pb.RUNNING)).owner
        other = "Y" if first == "X" else "X"
        u[first].stores["app1"].cut()
        await u["R"].put("FAR", "two", queue_manager="G")
        await u[other].until("FAR", ["one", "two"], 8.0)
        assert (await u.state(MOVED, pb.RUNNING)).owner == other


@simulated
async def test_a_member_starts_without_an_application_structure_that_is_out_of_its_reach() -> None:
    """What lies elsewhere works at once; its channels of the lost structure run at the others; it joins when the structure answers."""
    async with universe("admin", "app1") as u:
        await group(u, "X", "Y")
        await u["X"].put("IN", *numbered(0, 5), queue_manager="R")
        await u["R"].until("IN", numbered(0, 5))
        owner = (await u.state("G.TO.R", pb.RUNNING)).owner
        other = "Y" if owner == "X" else "X"
        await u[owner].kill()
        u.out_of_reach.add((owner, "app1"))
        host = await u.again(owner)
        assert host.manager.absent == ["app1"]
        await host.put("NEAR", "works")
        with pytest.raises(Refusal) as refused:
            await host.put("FAR", "refused")
        assert refused.value.reason is Reason.STRUCTURE_NOT_AVAILABLE
        await u["R"].put("FAR", "by way of the home", queue_manager="G")
        await u[other].until("FAR", ["by way of the home"])
        await u[other].put("IN", *numbered(5, 10), queue_manager="R")
        await u["R"].until("IN", numbered(0, 10))
        assert (await u.state("G.TO.R", pb.RUNNING)).owner == other
        assert (await u[other].manager.queues.depth("NEAR")).messages == 1
        host.stores["app1"].heal()
        await asyncio.sleep(12)
        assert host.incarnations == 3 and host.manager.absent == []
        assert await host.texts("FAR") == ["by way of the home"]


@simulated
async def test_a_left_over_channel_of_a_structure_that_its_owner_cannot_join_is_given_to_others() -> None:
    """The whole group was down; the first to come back finds its own entry, and cannot reach the queue."""
    async with universe("admin", "app1") as u:
        await group(u, "X", "Y")
        await u["X"].put("IN", *numbered(0, 5), queue_manager="R")
        await u["R"].until("IN", numbered(0, 5))
        owner = (await u.state("G.TO.R", pb.RUNNING)).owner
        other = "Y" if owner == "X" else "X"
        await u["R"].kill()
        await u[other].put("IN", *numbered(5, 10), queue_manager="R")
        await u[other].kill()
        await u[owner].kill()
        u.out_of_reach.add((owner, "app1"))
        await u.again("R")
        await u.again(owner)
        await asyncio.sleep(8)
        await u.again(other)
        await u["R"].until("IN", numbered(0, 10))
        assert (await u.state("G.TO.R", pb.RUNNING)).owner == other


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


@pytest.mark.parametrize("seconds", [1.0, 4.0, 15.0])
@simulated
async def test_an_application_structure_out_of_everybodys_reach(seconds: float) -> None:
    """Nobody can be asked to take over. What lies elsewhere moves meanwhile; when it answers again everything goes on, once."""
    async with universe("admin", "app1") as u:
        await group(u, "X", "Y")
        for source, name, manager in (("R", "NEAR", "G"), ("R", "FAR", "G"), ("X", "IN", "R")):
            await u[source].put(name, *numbered(0, 5), queue_manager=manager)
        await u["R"].until("IN", numbered(0, 5))
        await u["X"].until("FAR", numbered(0, 5))
        for member in "XY":
            u[member].stores["app1"].cut()
        await u["R"].put("FAR", *numbered(5, 10), queue_manager="G")
        await u["R"].put("NEAR", *numbered(5, 10), queue_manager="G")
        await u["Y"].until("NEAR", numbered(0, 10), 3.0)
        await asyncio.sleep(seconds)
        for member in "XY":
            u[member].stores["app1"].heal()
        await asyncio.sleep(5)
        await u["X"].until("FAR", numbered(0, 10))
        await u["Y"].put("IN", *numbered(5, 10), queue_manager="R")
        await u["R"].until("IN", numbered(0, 10))
        assert all(u[member].serving for member in "XY")


@simulated
async def test_a_partner_cannot_bind_to_an_internal_channel() -> None:
    async with universe("admin", "app1") as u:
        await group(u, "X", "Y")
        await u["R"].put("FAR", "one", queue_manager="G")
        await u["X"].until("FAR", ["one"])
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


class Chaos:
    """R and X's applications send to queues of both structures and to a private queue of Y, while things fail at random."""

    ROADS = (("R", "NEAR", "G", "NEAR"), ("R", "FAR", "G", "FAR"), ("R", "OWN", "Y", "OWN"), ("APP", "OWN", "Y", "OWN"))

    def __init__(self, made: Universe, seed: int) -> None:
        self.made, self.chance = made, random.Random(seed)
        self.sent: dict[tuple[str, str], list[str]] = {(road[0], road[3]): [] for road in self.ROADS}
        self.story: list[str] = []

    def living(self) -> list[str]:
        return [m for m in "XYZ" if self.made[m].serving and not self.made[m].manager.fenced.is_set()]

    async def put(self) -> None:
        source, name, queue_manager, target = self.chance.choice(self.ROADS)
        at = source if source == "R" else self.chance.choice(self.living() or ["R"])
        if source != "R" and at in ("R", "Y"):
            return
        sent = self.sent[source, target]
        text = f"{source}{len(sent):04d}"
        try:
            async with asyncio.timeout(3):
                await self.made[at].put(name, text, queue_manager=queue_manager)
            sent.append(text)
        except (Refusal, Fenced, OutcomeUnknown, TimeoutError) as error:
            self.story.append(f"{text} at {at}: {error!r}")
            sent.append(f"?{text}")

    async def act(self) -> None:
        name = self.chance.choices(["kill", "again", "initiator", "reset", "cut", "nothing"], [3, 5, 2, 2, 2, 2])[0]
        member = self.chance.choice("XYZ")
        self.story.append(f"{asyncio.get_running_loop().time():.2f} {name} {member}")
        host = self.made[member]
        if name == "kill" and host.alive and len(self.living()) > 1:
            await host.kill()
        elif name == "again" and not host.alive:
            await self.made.again(member)
        elif name == "initiator" and host.alive:
            self.made.network.reset(member, f"{member}-qm")
        elif name == "reset":
            self.made.network.reset("R", member)
        elif name == "cut" and host.alive:
            store = host.stores[self.chance.choice(["admin", "app1"])]
            store.cut()
            await asyncio.sleep(self.chance.choice([0.1, 0.6, 2.5, 7.0]))
            store.heal()

    async def settle(self) -> None:
        for member in "XYZ":
            if not self.made[member].alive:
                await self.made.again(member)
        for _ in range(60):
            await asyncio.sleep(0.5)
            if not self.waiting() and len(self.living()) == 3:
                return

    def waiting(self) -> list[str]:
        shared = [internal_queue("admin", t) for t in ("app1", "private.X", "private.Y", "private.Z")]
        left = [name for name in shared if self.made.found("G admin", keys.headers(name))]
        return left + (["G at R"] if self.made.found("private R", keys.headers("G")) else [])

    async def check(self) -> None:
        told = "\n".join(self.story[-30:])
        assert not self.waiting(), (self.waiting(), [str(e) for e in self.made.entries()], told)
        assert await self.made["X"].texts(DLQ) == [], told
        found = {
            "NEAR": await self.made["X"].texts("NEAR"),
            "FAR": await self.made["X"].texts("FAR"),
            "OWN": await self.made["Y"].texts("OWN"),
        }
        for (source, target), sent in self.sent.items():
            arrived = [text for text in found[target] if text.startswith(source)]
            sure = [text for text in sent if not text.startswith("?")]
            assert [text for text in arrived if text in set(sure)] == sure, (source, target, told)
            assert len(set(arrived)) == len(arrived), (source, target, told)
            assert {f"?{text}" for text in arrived if text not in set(sure)} <= set(sent), (source, target, told)


@pytest.mark.parametrize("seed", range(6))
@simulated
async def test_chaos_between_structures(seed: int) -> None:
    async with universe("admin", "app1") as u:
        await group(u, "X", "Y", "Z")
        await u["R"].manager.queues.define(queue("Y", type="remote", remote_queue_manager="Y", transmission_queue="G"))
        chaos = Chaos(u, seed)
        for _ in range(40):
            for _ in range(chaos.chance.randrange(6)):
                await chaos.put()
            await chaos.act()
            await asyncio.sleep(chaos.chance.choice([0.0, 0.003, 0.02, 0.1, 0.5, 2.0]))
        await chaos.settle()
        await chaos.check()
