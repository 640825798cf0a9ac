"""Definitions: live in every member, shadowed by own ones, refused with what is wrong and where; queues made and deleted in steps."""

from __future__ import annotations

import asyncio

import pytest

from qsg.manager.catalog import parse_definition
from qsg.manager.queue_store import QueueStore
from qsg.pb import records_pb2 as pb
from qsg.rules import keys
from qsg.rules.definitions import Channel, Queue, Settings
from qsg.rules.reasons import Reason, Refusal
from qsg.rules.unit import NewMessage, Unit
from qsg.store.contract import Put, get_prefix
from support.members import Member, group, shared


async def settle() -> None:
    await asyncio.sleep(0.02)


def message(queue: str) -> NewMessage:
    return NewMessage(queue, 0, pb.Entry(message_id=bytes(24)), b"body")


async def keys_of(member: Member, queue: str) -> list[bytes]:
    _, (found,) = await member.structures["app1"].read(get_prefix(keys.queue(queue), keys_only=True))
    return [kv.key for kv in found.kvs]


async def test_group_definitions_reach_every_member() -> None:
    async with group() as g:
        x, y = await g.member("X"), await g.member("Y")
        changes: list[int] = []
        y.catalog.on_change.append(lambda: changes.append(1))

        await QueueStore(x.catalog, x.world).define(shared("A"))
        await QueueStore(x.catalog, x.world).define(shared("T", usage="transmission"))
        await x.catalog.define_channel(Channel(name="C", type="sender", transmission_queue="T", connection_names=("r:1",)))
        with pytest.raises(Refusal, match="XMIT_Q_USAGE_ERROR"):
            await x.catalog.define_channel(Channel(name="D", type="sender", transmission_queue="A", connection_names=("r:1",)))
        await x.catalog.define_settings(Settings(hop_limit=3))

        assert x.catalog.queue("A") == shared("A")
        await settle()
        assert y.catalog.queue("A") == shared("A")
        assert y.catalog.channel("C") is not None
        assert y.catalog.is_group_channel("C")
        assert y.catalog.settings.hop_limit == 3
        assert len(changes) >= 3
        await y.catalog.delete_channel("C")
        assert y.catalog.channel("C") is None


async def test_what_is_defined_already_is_not_written_again() -> None:
    """A member that starts gives its definitions again: nobody who has the queue open need look at it anew."""
    channel = Channel(name="C", type="sender", transmission_queue="T", connection_names=("r:1",))
    async with group() as g:
        x, y = await g.member("X"), await g.member("Y")
        for queue in (shared("A"), shared("T", usage="transmission")):
            await QueueStore(x.catalog, x.world).define(queue)
        await x.catalog.define_channel(channel)
        await settle()
        before = [(await structure.store.status()).revision for structure in x.structures.values()]

        for queue in (shared("A"), shared("T", usage="transmission")):
            await QueueStore(y.catalog, y.world).define(queue)
        await y.catalog.define_channel(channel)

        assert [(await structure.store.status()).revision for structure in x.structures.values()] == before
        await QueueStore(y.catalog, y.world).define(shared("A", put_enabled=False))
        await settle()
        assert x.catalog.queue("A") == shared("A", put_enabled=False)


async def test_own_queue_shadows_the_groups() -> None:
    async with group() as g:
        x, y = await g.member("X"), await g.member("Y")
        queues = QueueStore(x.catalog, x.world)
        await x.catalog.write_queue(shared("A"), replace=True)
        await queues.catalog.write_queue(Queue(name="A"), replace=True)
        await settle()

        assert x.catalog.queue("A") == Queue(name="A")
        assert y.catalog.queue("A") == shared("A")
        assert x.catalog.names().own == {"X", "G"}


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ({"name": "A", "max_depth": -1}, "queue A: max_depth: "),
        ({"name": "A B"}, "queue A B: name: "),
        ({"name": "A", "type": "alias"}, "an alias needs target"),
        ({"name": "A", "nonsense": 1}, "nonsense: "),
        ("text", "queue : queue: "),
    ],
)
def test_what_is_wrong_and_where(data: object, told: str) -> None:
    with pytest.raises(Refusal) as refused:
        parse_definition(data, Queue)
    assert refused.value.reason is Reason.DEFINITION_ERROR
    assert told in refused.value.detail


async def test_definition_not_understood_hides_only_itself() -> None:
    async with group() as g:
        x = await g.member("X")
        await x.structures["admin"].commit(
            Unit(ops=[Put(keys.queue_definition("BAD"), b"{"), Put(keys.queue_definition("OK"), b'{"name":"OK"}')])
        )
        await settle()

        assert x.catalog.queue("BAD") is None
        assert x.catalog.queue("OK") == Queue(name="OK")


async def test_altering_keeps_the_queue_and_changes_its_state() -> None:
    async with group() as g:
        x = await g.member("X")
        queues = QueueStore(x.catalog, x.world)
        await queues.define(shared("A"))
        before = await queues.open(shared("A"))

        await queues.define(shared("A", put_enabled=False))

        after = await queues.open(shared("A"))
        assert after.id == before.id
        assert after.state.mod_revision > before.state.mod_revision
        assert not after.definition.put_enabled
        for changed in (Queue(name="A"), shared("A", usage="transmission"), Queue(name="A", type="alias", target="B")):
            with pytest.raises(Refusal, match="cannot be altered"):
                await queues.define(changed)
        with pytest.raises(Refusal) as refused:
            await queues.define(shared("A"), replace=False)
        assert refused.value.reason is Reason.OBJECT_ALREADY_EXISTS
        with pytest.raises(Refusal, match="no structure app9"):
            await queues.define(shared("B", structure="app9"))


async def test_delete_only_when_empty_or_purged() -> None:
    async with group() as g:
        x = await g.member("X")
        queues = QueueStore(x.catalog, x.world)
        await queues.define(shared("A"))
        opened = await queues.open(shared("A"))
        await x.structures["app1"].commit(Unit(compares=[opened.same()], puts=[message("A")]))

        with pytest.raises(Refusal) as refused:
            await queues.delete("A")
        assert refused.value.reason is Reason.Q_NOT_EMPTY
        await queues.purge("A")
        again = await queues.open(shared("A"))
        assert again.id != opened.id
        assert await keys_of(x, "A") == [keys.queue_state("A")]
        await queues.delete("A")

        assert x.catalog.queue("A") is None
        assert await keys_of(x, "A") == []
        with pytest.raises(Refusal) as refused:
            await queues.delete("A")
        assert refused.value.reason is Reason.UNKNOWN_OBJECT_NAME


async def test_late_put_to_a_queue_made_again_fails() -> None:
    """Interleaving P8."""
    async with group() as g:
        x, y = await g.member("X"), await g.member("Y")
        queues, late = QueueStore(x.catalog, x.world), QueueStore(y.catalog, y.world)
        await queues.define(shared("A"))
        opened = await late.open(shared("A"))
        await queues.delete("A")
        await queues.define(shared("A"))

        with pytest.raises(Exception, match="changed meanwhile"):
            await y.structures["app1"].commit(Unit(compares=[opened.same()], puts=[message("A")]))
        assert await keys_of(x, "A") == [keys.queue_state("A")]


@pytest.mark.parametrize("kind", ["lock", "fence"])
async def test_queue_used_by_a_channel_is_not_deleted(kind: str) -> None:
    async with group() as g:
        x = await g.member("X")
        structure = x.structures["app1"]
        queues = QueueStore(x.catalog, x.world)
        await queues.define(shared("T", usage="transmission"))
        lock = pb.Lock(member="X", incarnation=structure.incarnation, channel="C")
        fence = pb.SenderFence(epoch=1, open=True)
        put = Put(keys.lock("T"), lock.SerializeToString()) if kind == "lock" else Put(keys.sender_fence("T"), fence.SerializeToString())
        await structure.commit(Unit(ops=[put]))

        for remove in (queues.delete("T"), queues.delete("T", purge=True), queues.purge("T")):
            with pytest.raises(Refusal) as refused:
                await remove
            assert refused.value.reason is Reason.OBJECT_IN_USE

        lock.incarnation += 1000  # void: that incarnation is not there
        fence.open = False
        value = lock.SerializeToString() if kind == "lock" else fence.SerializeToString()
        await structure.commit(Unit(ops=[Put(put.key, value)]))
        await queues.delete("T")
        assert await keys_of(x, "T") == []


@pytest.mark.parametrize("steps", [1, 2])
async def test_delete_cut_off_after_a_step_is_carried_on(steps: int) -> None:
    async with group() as g:
        x, y = await g.member("X"), await g.member("Y")
        queues, others = QueueStore(x.catalog, x.world), QueueStore(y.catalog, y.world)
        await queues.define(shared("A"))
        opened = await queues.open(shared("A"))
        for _ in range(3):
            await x.structures["app1"].commit(Unit(compares=[opened.same()], puts=[message("A")]))
        await queues._remove_state(x.structures["app1"], "A", True)
        if steps == 2:
            await queues._sweep(x.structures["app1"], "A")
        await settle()
        with pytest.raises(Refusal) as refused:
            await others.open(shared("A"))
        assert refused.value.reason is Reason.Q_DELETED

        await others.delete("A")
        assert await keys_of(y, "A") == []
        await others.define(shared("A"))
        assert await keys_of(y, "A") == [keys.queue_state("A")]


async def test_queue_manager_outside_a_group() -> None:
    async with group() as g:
        r = await g.member("R", group="")
        queues = QueueStore(r.catalog, r.world)
        await queues.define(Queue(name="A"))
        await r.catalog.define_settings(Settings(hop_limit=2))

        assert (await queues.open(Queue(name="A"))).structure.name == "private"
        assert r.catalog.settings.hop_limit == 2
        assert r.catalog.names().own == {"R"}


async def test_private_queue_defined_for_the_group_is_made_by_each_member() -> None:
    async with group() as g:
        x, y = await g.member("X"), await g.member("Y")
        await x.catalog.write_queue(Queue(name="A"), replace=True, own=False)
        await settle()

        opened = [await QueueStore(m.catalog, m.world).open(Queue(name="A")) for m in (x, y)]

        assert [o.structure for o in opened] == [x.structures["private"], y.structures["private"]]
