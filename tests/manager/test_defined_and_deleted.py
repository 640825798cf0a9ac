"""Several define, alter, purge and delete a queue at once, each held up between any two of its steps: what they say is done is done, and
in the end the queue is there, definition and state, or neither is, and nothing of the old queue shows."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from typing import Any

import pytest

from qsg.manager import queue_store
from qsg.pb import records_pb2 as pb
from qsg.rules import keys
from qsg.rules.definitions import Queue
from qsg.rules.reasons import Reason, Refusal
from qsg.rules.unit import NewMessage, Unit
from qsg.store.contract import get_prefix
from support.members import Group, Member, group

STEPS = 12
"""More than most of these commands have."""
ALL = 1000


def queue(structure: str, depth: int = 100) -> Queue:
    return Queue(name="A", structure=structure, max_depth=depth)


COMMANDS: dict[str, Callable[[Member, str], Awaitable[None]]] = {
    "delete": lambda m, structure: m.queues.delete("A", purge=True),
    "purge": lambda m, structure: m.queues.purge("A"),
    "define": lambda m, structure: m.queues.define(queue(structure)),
    "alter": lambda m, structure: m.queues.define(queue(structure, 7)),
}
MINOR = Reason.CHANGED_MEANWHILE, Reason.UNKNOWN_OBJECT_NAME, Reason.OBJECT_IN_USE
"""Refusals that say to try again, or that somebody else has deleted the queue before."""


class Held:
    """A command at a member, which (with `monkeypatch`) makes as many reads and writes of the group's stores as it is allowed."""

    def __init__(self, member: Member, command: str, structure: str, monkeypatch: pytest.MonkeyPatch | None = None) -> None:
        self.member, self.command, self.structure = member, command, structure
        self._allowed, self._freed = 0, asyncio.Event()
        if monkeypatch is not None:
            for name, call in itertools.product(("admin", "app1"), ("read", "commit")):
                monkeypatch.setattr(member.structures[name], call, self._stepwise(getattr(member.structures[name], call)))
        self._task = asyncio.ensure_future(self._run())
        self.refused: Reason | None = None

    async def _run(self) -> None:
        try:
            await COMMANDS[self.command](self.member, self.structure)
        except Refusal as refusal:
            assert refusal.reason in MINOR, refusal
            self.refused = refusal.reason

    async def go(self, steps: int) -> bool:
        """Whether the command has ended within these many more steps."""
        self._allowed = steps
        self._freed.set()
        await asyncio.sleep(0.2)
        return self._task.done()

    async def end(self) -> None:
        self._allowed = ALL
        self._freed.set()
        await self._task

    async def die(self) -> None:
        """And somebody has it done again at the same place."""
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task
        self._task = asyncio.ensure_future(self._run())

    def _stepwise(self, call: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def stepwise(*arguments: Any, **options: Any) -> Any:
            while not self._allowed:
                self._freed.clear()
                await self._freed.wait()
            self._allowed -= 1
            return await call(*arguments, **options)

        return stepwise


async def filled(g: Group, members: int, structure: str, slots: int = 2) -> list[Member]:
    """With queue A and messages on it, which take several transactions to remove."""
    made = [await g.member(f"M{number}", slots=slots) for number in range(members)]
    await made[0].queues.define(queue(structure))
    opened = await made[0].queues.store.open(queue(structure))
    for _ in range(3):
        put = NewMessage("A", 0, pb.Entry(message_id=bytes(24)), b"old")
        await made[0].structures[structure].commit(Unit(compares=[opened.same()], puts=[put]))
    await asyncio.sleep(0.2)
    return made


async def check(g: Group, structure: str, held: list[Held]) -> None:
    """Seen by who comes then: state and definition are there and say the same, or neither is, and no message is left."""
    last = await g.member("Z")
    definition = last.catalog.queue("A")
    _, (found,) = await last.structures[structure].read(get_prefix(keys.queue("A")))
    left = {kv.key for kv in found.kvs}
    assert (keys.queue_state("A") in left) == (definition is not None)
    done = [h.command for h in held if h.refused is None]
    if "purge" in done or "delete" in done:
        assert left <= {keys.queue_state("A")}
    if "delete" not in done:
        assert definition is not None
    if definition is not None:
        state = await last.queues.store.open(definition)
        if len(held) == 2:  # of more, whose attributes hold may differ in the two, until it is altered again
            assert state.definition == definition


async def play(structure: str, commands: Iterable[str], moves: Iterable[tuple[int, int]], patch: pytest.MonkeyPatch) -> None:
    """`moves`: whose command goes on by how many steps; negative: it is cut off behind them and given anew. Then all go to their ends.

    A purge is not cut off: given anew, it does not find a queue deleted meanwhile, whose state it may have made.
    """
    names = list(commands)
    async with group() as g:
        members = await filled(g, len(names), structure)
        held = [Held(m, c, structure, patch) for m, c in zip(members, names, strict=True)]
        for who, steps in moves:
            if not await held[who].go(abs(steps)) and steps < 0 and names[who] != "purge":
                await held[who].die()
        for h in held:
            await h.end()
        await check(g, structure, held)


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue_store, "SWEEP_KEYS", 4)


PAIRS = [("delete", "define"), ("delete", "alter"), ("delete", "purge"), ("purge", "define"), ("purge", "alter")]


@pytest.mark.parametrize("structure", ["app1", "admin"])
@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
async def test_held_up_once_each(structure: str, pair: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for first, mine, theirs in itertools.product((0, 1), range(1, STEPS), (2, 5, ALL)):
        with monkeypatch.context() as patch:
            await play(structure, pair, [(first, mine), (1 - first, theirs), (first, ALL)], patch)


@pytest.mark.parametrize("seed", range(5))
async def test_three_held_up_and_cut_off_again_and_again(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(seed)
    for _ in range(30):
        commands = ["delete", chance.choice(list(COMMANDS)), chance.choice(list(COMMANDS))]
        moves = [(chance.randrange(3), chance.randint(1, 6) * chance.choice((1, 1, 1, -1))) for _ in range(chance.randint(3, 12))]
        with monkeypatch.context() as patch:
            await play(chance.choice(("app1", "admin")), commands, moves, patch)


@pytest.mark.parametrize("structure", ["app1", "admin"])
@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
async def test_at_one_member_in_the_same_transactions(structure: str, pair: tuple[str, str]) -> None:
    for first, behind in itertools.product((0, 1), range(0, 120, 6)):
        async with group() as g:
            (member,) = await filled(g, 1, structure, slots=1)
            held = [Held(member, pair[first], structure)]
            for _ in range(behind):
                await asyncio.sleep(0)
            held.append(Held(member, pair[1 - first], structure))
            for h in held:
                await h.end()
            await check(g, structure, held)
