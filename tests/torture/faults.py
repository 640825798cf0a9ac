"""The kinds of fault: each does its harm, holds it for a while, and mends it again before it returns, also when it is cancelled.

Invariant: one that returns has been seen to do harm; one that could not raises `NotReached`, and is tried again.
`KINDS` holds those that stand alone; `points` those at the marked places of the code. What a fault needs of the run is its `Scene`.
"""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Protocol

import qsg
from qsg.failpoint import POINTS
from qsg.process.local import OUT_CHANNEL, REMOTE
from qsg.process.proxy import Direction
from qsg.process.roads import STORE
from qsg.store.contract import Delete, NoSpace, Put, StoreError, prefix_end
from qsg.store.etcd import EtcdStore
from torture.group import TortureGroup
from torture.history import History

OWNER_SHARE = 0.75
"""How often it hits who has the channel."""
REPLACED_S = (1.9, 3.0)
"""For how long something is gone that must be replaced meanwhile."""
SHORT_S = (0.3, 1.2)
LOOK_S = 0.05
MOVE_S = 10.0
HIT_S = 6.0
"""A place of the code that is not reached for so long is left; for twice as long the next time, as a slow machine may need it."""
HIT_MAX_S = 24.0
ROOM_S = 120.0
HOUR_S = 3600.0
JUNK = b"junk/"


class Scene(Protocol):
    group: TortureGroup
    random: random.Random
    history: History
    missed: Counter[str]
    """Place -> how often nobody came to it."""
    effects: dict[str, str]
    """Kind -> what it did, where that depends on what the machine allows."""

    def say(self, text: str) -> None: ...


Act = Callable[[Scene], Awaitable[None]]


class NotReached(Exception):
    """A place of the code that was armed and that nobody came to, or a fault that did no harm."""


def owner(scene: Scene) -> str:
    entry = scene.history.entry(OUT_CHANNEL)
    return entry.owner if entry is not None and entry.owner in scene.group.members else scene.random.choice(scene.group.members)


def a_member(scene: Scene) -> str:
    return owner(scene) if scene.random.random() < OWNER_SHARE else scene.random.choice(scene.group.members)


def remote(scene: Scene) -> str:
    return REMOTE


Whom = Callable[[Scene], str]


async def hold(scene: Scene, bounds: tuple[float, float]) -> None:
    await asyncio.sleep(scene.random.uniform(*bounds))


# Processes


def alive(scene: Scene, who: str, what: str) -> None:
    """Raises `NotReached` when none of these processes runs: it would be hit for nothing."""
    names = {"initiator": [f"{who}.initiator"], "queue-manager": [who]}.get(what, [who, f"{who}.initiator"])
    if not scene.group.named_pids().keys() & set(names):
        raise NotReached(f"{who}: no {what} runs")


def killing(whom: Whom, what: str) -> Act:
    async def act(scene: Scene) -> None:
        who = whom(scene)
        alive(scene, who, what)
        scene.say(f"{who}: {what} killed")
        scene.group.kill(who, what)

    return act


def freezing(whom: Whom, what: str) -> Act:
    async def act(scene: Scene) -> None:
        who = whom(scene)
        alive(scene, who, what)
        scene.say(f"{who}: {what} frozen")
        scene.group.signal(who, what, signal.SIGSTOP)
        try:
            await hold(scene, REPLACED_S)
        finally:
            scene.group.signal(who, what, signal.SIGCONT)

    return act


async def drain(scene: Scene) -> None:
    who = a_member(scene)
    alive(scene, who, "queue-manager")
    scene.say(f"{who}: told to end")
    scene.group.kill(who, "drain")


async def move(scene: Scene) -> None:
    """A channel that does not run just then cannot be moved: asked again, for as long as it may take."""
    end = time.monotonic() + MOVE_S
    while not await moved(scene):
        if time.monotonic() > end:
            raise NotReached("not moved")
        await hold(scene, SHORT_S)


async def moved(scene: Scene) -> bool:
    who = scene.random.choice(scene.group.members)
    scene.say(f"{who}: asked to move the channel")
    try:
        async with (
            asyncio.timeout(MOVE_S),
            qsg.connect(scene.group.addresses[who], application="move", connect_s=2.0, reconnect_s=1.0) as at,
        ):
            answer = await at.command("move", channel=OUT_CHANNEL)
    except (qsg.QsgError, TimeoutError) as error:
        scene.say(f"not moved: {error!r}")
        return False
    scene.say(f"moved to {answer['owner']}" if answer["moved"] else "begun, not seen elsewhere")
    return bool(answer["moved"])


def stepping(whom: Whom, sign: int) -> Act:
    async def act(scene: Scene) -> None:
        who, seconds = whom(scene), sign * scene.random.uniform(2.0, HOUR_S)
        scene.say(f"{who}: clock {seconds:+.0f} s")
        scene.group.step_clock(who, seconds)
        try:
            await hold(scene, REPLACED_S)
        finally:
            scene.group.step_clock(who, 0.0)

    return act


# Network


@asynccontextmanager
async def cut(scene: Scene, roads: list[tuple[str, str]], direction: Direction = "both") -> AsyncIterator[None]:
    scene.group.roads.cut(*roads, direction=direction)
    try:
        yield
    finally:
        scene.group.roads.heal(*roads)


def cutting(name: str, others: Callable[[Scene, str], list[str]], direction: Direction = "both") -> Act:
    """Paths from and to a member. One-way: what the member sends is lost, or what it is sent."""

    async def act(scene: Scene) -> None:
        who = a_member(scene)
        roads = scene.group.roads.between(who, others(scene, who))
        if direction != "both":
            roads = [road for road in roads if road[0] == who]
        assert roads, "nothing would be cut"
        scene.say(f"{who}: {name}")
        async with cut(scene, roads, direction):
            await hold(scene, REPLACED_S)

    return act


def a_peer(scene: Scene, who: str) -> list[str]:
    return [scene.random.choice([m for m in scene.group.members if m != who])]


async def half_open(scene: Scene) -> None:
    who = a_member(scene)
    scene.say(f"{who}: connections with R half-open")
    roads = scene.group.roads.between(who, [REMOTE])
    scene.group.roads.break_off(*roads)
    try:
        await hold(scene, REPLACED_S)
    finally:
        scene.group.roads.heal(*roads)


# etcd


async def kill_leader(scene: Scene) -> None:
    assert scene.group.etcd is not None
    index = await scene.group.etcd.leader()
    scene.say(f"etcd{index}: leader killed")
    await asyncio.to_thread(scene.group.etcd.kill, index)
    try:
        await hold(scene, SHORT_S)
    finally:
        await scene.group.etcd.restart_dead()


async def freeze_leader(scene: Scene) -> None:
    assert scene.group.etcd is not None
    index = await scene.group.etcd.leader()
    scene.say(f"etcd{index}: leader frozen")
    scene.group.etcd.freeze(index)
    try:
        await hold(scene, REPLACED_S)
    finally:
        scene.group.etcd.wake(index)


async def compact(scene: Scene) -> None:
    assert scene.group.etcd is not None
    scene.say("etcd: compacted again and again, all of its history")
    done = 0
    for _ in range(5):
        done += await scene.group.etcd.compact()
        await asyncio.sleep(scene.random.uniform(0.05, 0.3))
    if not done:
        raise NotReached("not compacted")


async def defragment(scene: Scene) -> None:
    assert scene.group.etcd is not None
    scene.say("etcd: every member defragmented")
    missed = [index for index in range(len(scene.group.etcd.members)) if not await scene.group.etcd.defragment(index)]
    if missed:
        raise NotReached(f"not defragmented: {missed}")


async def fill_etcd(scene: Scene) -> None:
    """Beyond its quota: the alarm is raised and everything that writes is refused; then it is made room, as an operator does."""
    etcd = scene.group.etcd
    assert etcd is not None
    scene.say("etcd: its quota filled")
    store = EtcdStore(etcd.endpoints)
    try:
        await _fill(store, etcd.options.quota_bytes)
        await hold(scene, SHORT_S)
    finally:
        await _make_room(scene, store)
        await store.close()


async def _fill(store: EtcdStore, quota_bytes: int) -> None:
    """Until a write is refused for want of room."""
    for number in range(2 * quota_bytes // (1 << 20)):
        try:
            await store.txn([], [Put(JUNK + b"%06d" % number, bytes(1 << 20))], timeout_s=5.0)
        except NoSpace:
            return
        except StoreError:
            await asyncio.sleep(0.1)
    raise NotReached("never full")


async def _make_room(scene: Scene, store: EtcdStore) -> None:
    etcd = scene.group.etcd
    assert etcd is not None

    async def deleted() -> bool:
        try:
            return (await store.txn([], [Delete(JUNK, prefix_end(JUNK))], timeout_s=5.0)).succeeded
        except StoreError:
            return False

    async def small(index: int) -> bool:
        """It may be defragmented before it has compacted."""
        return await etcd.defragment(index) and await etcd.has_room(index)

    each = [partial(small, index) for index in range(len(etcd.members))]
    steps: list[Callable[[], Awaitable[bool]]] = [deleted, etcd.compact, *each, etcd.disarm]
    async with asyncio.timeout(ROOM_S):
        for step in steps:
            while not await step():  # noqa: ASYNC110 - it asks a process
                await asyncio.sleep(0.1)


# R's disk


async def fill_disk(scene: Scene) -> None:
    scene.say("R: its disk filled")
    try:
        full = await scene.group.fill_disk()
        if not full:
            raise NotReached("R's disk was never full")
        scene.effects["fill R's disk"] = full
        await hold(scene, REPLACED_S)
    finally:
        await scene.group.free_disk()


KINDS: dict[str, Act] = {
    "kill initiator": killing(a_member, "initiator"),
    "kill queue manager": killing(a_member, "queue-manager"),
    "kill member": killing(a_member, "member"),
    "kill R's initiator": killing(remote, "initiator"),
    "kill R's queue manager": killing(remote, "queue-manager"),
    "kill R": killing(remote, "member"),
    "freeze initiator": freezing(a_member, "initiator"),
    "freeze queue manager": freezing(a_member, "queue-manager"),
    "freeze member": freezing(a_member, "member"),
    "freeze R's initiator": freezing(remote, "initiator"),
    "freeze R's queue manager": freezing(remote, "queue-manager"),
    "freeze R": freezing(remote, "member"),
    "planned stop": drain,
    "planned move": move,
    "cut from R": cutting("cut from R", lambda s, who: [REMOTE]),
    "cut from a peer": cutting("cut from a peer", a_peer),
    "cut from the store": cutting("cut from the store", lambda s, who: [STORE]),
    "cut from everything": cutting("cut from everything", lambda s, who: []),
    "one-way to R": cutting("what it sends to R is lost", lambda s, who: [REMOTE], "to_target"),
    "one-way from R": cutting("what R answers is lost", lambda s, who: [REMOTE], "from_target"),
    "one-way to the store": cutting("what it sends to the store is lost", lambda s, who: [STORE], "to_target"),
    "one-way from the store": cutting("what the store answers is lost", lambda s, who: [STORE], "from_target"),
    "half-open to R": half_open,
    "kill etcd's leader": kill_leader,
    "freeze etcd's leader": freeze_leader,
    "compact etcd": compact,
    "defragment etcd": defragment,
    "fill etcd": fill_etcd,
    "fill R's disk": fill_disk,
    "clock forward": stepping(a_member, +1),
    "clock back": stepping(a_member, -1),
    "R's clock steps": stepping(remote, -1),
}


# Places of the code

Provoke = Callable[[Scene], Awaitable[None]]


async def lost_answers(scene: Scene) -> None:
    scene.say("what the store answers is lost")
    async with cut(scene, [(member, STORE) for member in scene.group.members], "from_target"):
        await asyncio.sleep(0.7)


async def kill_a_queue_manager(scene: Scene) -> None:
    who = scene.random.choice([*scene.group.members, REMOTE])
    scene.say(f"{who}: queue manager killed")
    scene.group.kill(who, "queue-manager")


kill_the_owners_initiator = killing(owner, "initiator")

PROVOKED: dict[str, Provoke] = {
    "ownership.": kill_the_owners_initiator,
    "sender.after_bind": kill_the_owners_initiator,
    "receiver.after_bind": kill_the_owners_initiator,
    "recovery.": killing(owner, "queue-manager"),
    "membership.": kill_a_queue_manager,
    "committer.before_repeat": lost_answers,
    "handover.": drain,
}
"""What makes the code come to a place that it seldom comes to, by the beginning of the place's name."""


def provocation(point: str) -> Provoke | None:
    return next((provoke for start, provoke in PROVOKED.items() if point.startswith(start)), None)


def at_point(point: str, action: str) -> Act:
    """Arms a place in all processes, and waits until one of them has come there. Does not provoke it."""

    async def act(scene: Scene) -> None:
        folder = scene.group.failpoints
        told = f"pause {scene.random.choice([50, 200, 500, 1800])}" if action == "pause" else action
        folder.arm(point, told)
        try:
            end = time.monotonic() + min(HIT_S * 2 ** scene.missed[point], HIT_MAX_S)
            while time.monotonic() < end:
                if folder.hit(point):
                    scene.say(f"{point}: {told}")
                    return
                await asyncio.sleep(LOOK_S)
            scene.missed[point] += 1
            raise NotReached(point)
        finally:
            folder.disarm(point)

    return act


POINT_KINDS: dict[str, tuple[str, Act]] = {
    f"{action} at {point}": (point, at_point(point, action)) for point in POINTS for action in ("kill", "pause")
}

ALL_KINDS = KINDS.keys() | POINT_KINDS.keys()
