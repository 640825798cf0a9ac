"""Model 2: puts with slots, guards and a producer's numbers, when outcomes are unknown.

A member's process is one list: it joins as `qsg.manager.membership` does, and commits what it is asked through one slot, by the real
`SlotDriver`, `pack`, `Slot` and `Producers`. Answers of the store are lost, and the copy that was sent is applied then, later or never;
verdicts, restarts (the old process lies paused), a producer that connects elsewhere, a compare that fails and comes true again. A told
outcome must be true for ever: *committed* is there, *refused* never comes; no number is put twice; numbers stand in order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

from model import canonical
from model.canonical import ADMIN, Part, joined, kv_part, part
from model.search import Move
from model.serving import QUEUE, TOGGLE, Opening, Process, Putting, Reply, Txn, Wait
from model.snapshot import Snapshot
from model.walks import Node, Raised, Recipe, Told, Transacted, Walks
from qsg.pb import records_pb2 as pb
from qsg.rules import keys
from qsg.rules.lanes import Position
from qsg.rules.reasons import Reason
from qsg.rules.steps import Me
from qsg.store.contract import Delete, Get, Put, TxnResult, Unavailable


@dataclass(frozen=True)
class Bounds:
    name: str
    members: int = 2
    messages: int = 2
    together: bool = True
    """Puts may be asked for two at a time, and share a transaction."""
    connects: int = 2
    losses: int = 2
    verdicts: int = 0
    joins: int = 0
    toggles: int = 0
    retries: int = 1

    def __str__(self) -> str:
        return (
            f"members of one slot {self.members}, 1 producer, {self.messages} numbers{', two in a transaction' if self.together else ''}; "
            f"connects ≤{self.connects}, answers of the store lost ≤{self.losses}, verdicts ≤{self.verdicts}, restarts ≤{self.joins}, "
            f"failing compares ≤{self.toggles}, retries of a refused number ≤{self.retries}"
        )


class Budget(NamedTuple):
    connects: int
    losses: int
    verdicts: int
    joins: int
    toggles: int
    retries: int


@dataclass(frozen=True, slots=True)
class Client:
    """The producer. `connection`: numbered; answers on an earlier one are not heard."""

    connection: int = 0
    at: int = -1
    """Tag of the process."""
    epoch: int = 0
    waiting: tuple[Any, ...] = ()
    committed: int = 0
    attempts: tuple[int, ...] = ()
    """By number: how often it was refused and tried again."""
    refused: tuple[str, ...] = ()
    """Messages told as refused."""
    again: tuple[int, ...] = ()
    """Numbers told as refused and not tried again."""


@dataclass(frozen=True, slots=True)
class State:
    store: Snapshot
    processes: tuple[Node, ...]
    budget: Budget
    client: Client
    copies: tuple[Txn, ...] = ()
    """Sent, without an answer, and perhaps still to be applied."""
    born: int = 0


class Puts:
    def __init__(self, bounds: Bounds) -> None:
        self.limits, self.name, self.bounds = bounds, bounds.name, str(bounds)
        self.walks = Walks(Process().make)
        self._settled: set[bytes] = set()

    def initial(self) -> State:
        b = self.limits
        budget = Budget(b.connects, b.losses, b.verdicts, b.joins, b.toggles, b.retries)
        state = State(Snapshot(), (), budget, Client(attempts=(0,) * b.messages))
        for member in "XY"[: b.members]:
            state = self._undisturbed(self._born(state, member), len(state.processes))
        return state

    def _born(self, state: State, member: str) -> State:
        node = self.walks.start(Recipe("join", Me(member, {}), state.born))
        return replace(state, processes=(*state.processes, node), born=state.born + 1)

    def _undisturbed(self, state: State, i: int) -> State:
        """Process `i` goes on until it waits."""
        for _ in range(100):
            if i >= len(state.processes) or isinstance(state.processes[i].request, Wait):
                return state
            state = self._reply(state, i) if isinstance(state.processes[i].request, Reply) else self._txn(state, i)
        raise AssertionError("a process does not come to rest")

    # Moves

    def moves(self, state: State) -> Iterator[Move]:
        for i, node in enumerate(state.processes):
            yield from self._process_moves(state, i, node)
        for i, copy in enumerate(state.copies):
            yield f"{copy.what} is applied late (#{i})", partial(self._late, state, i)
        yield from self._client_moves(state)
        budget = state.budget
        for member in "XY"[: self.limits.members] if state.client.connection else "":
            there = state.store.get(keys.member(member)) is not None
            if budget.verdicts and there:
                yield f"verdict: {member} is dead", partial(self._kill, state, member)
            if budget.joins:
                yield f"{member} restarts", partial(self._restart, state, member)
        if budget.toggles:
            yield f"the compared key {'goes' if state.store.get(TOGGLE) else 'comes'}", partial(self._toggle, state)

    def _process_moves(self, state: State, i: int, node: Node) -> Iterator[Move]:
        who = f"{node.recipe.me.member}.{node.recipe.tag}"
        if isinstance(node.request, Txn):
            reads = all(isinstance(op, Get) for op in node.request.ops)
            yield f"{who} {'reads' if reads else 'sends ' + node.request.what}: answered", partial(self._txn, state, i)
            if state.budget.losses and not reads:
                yield f"{who} sends {node.request.what}: no answer", partial(self._lost, state, i)
        elif isinstance(node.request, Reply):
            told = ", ".join(f"{_name(request)} {outcome}" for request, outcome, *_ in node.request.outcomes)
            yield f"{who} answers: {told}", partial(self._reply, state, i)

    def _client_moves(self, state: State) -> Iterator[Move]:
        client = state.client
        waiting = [(i, n) for i, n in enumerate(state.processes) if isinstance(n.request, Wait)]
        if state.budget.connects and client.committed < self.limits.messages:
            for i, node in waiting if client.connection else waiting[:1]:  # before that, members are alike
                yield f"the producer connects to {node.recipe.me.member}.{node.recipe.tag}", partial(self._connect, state, i)
        if not client.epoch or client.waiting:
            return
        at = next((i for i, n in waiting if n.recipe.tag == client.at), None)
        if at is None:
            return
        ready = [n for n in range(client.committed + 1, self.limits.messages + 1)]
        retried = [n for n in ready[:1] if n in client.again]
        if ready and (not retried or state.budget.retries):
            yield f"the producer puts {ready[0]}", partial(self._ask, state, at, tuple(ready[:1]))
            if self.limits.together and len(ready) > 1:
                yield f"the producer puts {ready[0]} and {ready[1]}", partial(self._ask, state, at, tuple(ready[:2]))

    def _connect(self, state: State, i: int) -> State:
        client = replace(state.client, connection=state.client.connection + 1, at=state.processes[i].recipe.tag, epoch=0)
        client = replace(client, waiting=(Opening(client.connection),))
        state = replace(state, client=client, budget=state.budget._replace(connects=state.budget.connects - 1))
        return self._on(state, i, Told(client.waiting))

    def _ask(self, state: State, i: int, numbers: tuple[int, ...]) -> State:
        client, budget = state.client, state.budget
        attempts = list(client.attempts)
        for n in numbers:
            if n in client.again:
                attempts[n - 1] += 1
        if any(n in client.again for n in numbers):
            budget = budget._replace(retries=budget.retries - 1)
        puts = tuple(Putting(client.connection, n, attempts[n - 1], client.epoch) for n in numbers)
        again = tuple(n for n in client.again if n not in numbers)
        client = replace(client, attempts=tuple(attempts), again=again, waiting=puts)
        return self._on(replace(state, client=client, budget=budget), i, Told(puts))

    def _on(self, state: State, i: int, answer: Any) -> State:
        node = self.walks.step(state.processes[i], answer, ADMIN)
        kept = () if node.done else (node,)
        processes = (*state.processes[:i], *kept, *state.processes[i + 1 :])
        return replace(state, processes=processes, copies=tuple(c for c in state.copies if not c.hopeless(state.store)))

    def _txn(self, state: State, i: int) -> State:
        store, result = self._applied(state, state.processes[i].request)
        return self._on(replace(state, store=store), i, Transacted(result))

    def _applied(self, state: State, txn: Txn) -> tuple[Snapshot, TxnResult]:
        """Whoever writes is a member: the guard that a transaction advances tells whose it is."""
        store, result = state.store.txn(txn.compares, txn.ops, txn.else_ops)
        for op in txn.ops if store is not state.store else ():
            if op.key.startswith(keys.GUARDS):
                member = keys.unname(op.key[len(keys.GUARDS) :].partition(b"/")[0])
                assert store.get(keys.member(member)) is not None, f"{member} has written, and was declared dead (invariant 3)"
        return store, result

    def _lost(self, state: State, i: int) -> State:
        txn: Txn = state.processes[i].request
        state = replace(state, copies=(*state.copies, txn), budget=state.budget._replace(losses=state.budget.losses - 1))
        return self._on(state, i, Raised(Unavailable))

    def _late(self, state: State, i: int) -> State:
        txn, rest = state.copies[i], (*state.copies[:i], *state.copies[i + 1 :])
        store, _ = self._applied(state, txn)
        return replace(state, store=store, copies=tuple(c for c in rest if not c.hopeless(store)))

    def _reply(self, state: State, i: int) -> State:
        reply: Reply = state.processes[i].request
        client = state.client
        for request, outcome, epoch, last in reply.outcomes:
            if request.connection == client.connection:
                client = self._told(client, request, outcome, epoch, last)
        return self._on(replace(state, client=client), i, Told())

    def _told(self, client: Client, request: Any, outcome: str, epoch: int, last: int) -> Client:
        client = replace(client, waiting=tuple(w for w in client.waiting if w != request))
        if outcome == "opened":
            return replace(client, epoch=epoch, committed=max(client.committed, last))
        if outcome == "committed":
            return replace(client, committed=max(client.committed, request.number))
        if outcome.startswith("refused") and isinstance(request, Putting) and Reason.PRODUCER_FENCED.name not in outcome:
            return replace(client, refused=(*client.refused, request.message), again=tuple(sorted({*client.again, request.number})))
        if outcome == "fenced" and isinstance(request, Putting):
            # "Nothing of it was applied": true for ever, as who puts without a number puts it again at once.
            attempts = tuple(tried + (n == request.number) for n, tried in enumerate(client.attempts, start=1))
            client = replace(client, refused=(*client.refused, request.message), attempts=attempts)
        return replace(client, epoch=0)  # the connection is of no use any more

    def _kill(self, state: State, member: str) -> State:
        store, _ = state.store.txn((), [Delete(keys.member(member))])
        copies = tuple(c for c in state.copies if not c.hopeless(store))
        return replace(state, store=store, copies=copies, budget=state.budget._replace(verdicts=state.budget.verdicts - 1))

    def _restart(self, state: State, member: str) -> State:
        return self._born(replace(state, budget=state.budget._replace(joins=state.budget.joins - 1)), member)

    def _toggle(self, state: State) -> State:
        store, _ = state.store.txn((), [Delete(TOGGLE) if state.store.get(TOGGLE) else Put(TOGGLE, b"")])
        return replace(state, store=store, budget=state.budget._replace(toggles=state.budget.toggles - 1))

    # Invariants

    def _messages(self, state: State) -> list[str]:
        """In queue order."""
        found: list[tuple[Position, str]] = []
        for kv in state.store.under(keys.headers(QUEUE)):
            _, suffix = keys.split_segment_key(QUEUE, kv.key)
            for index, entry in enumerate(pb.SegmentHeader.FromString(kv.value).entries):
                found.append((Position(kv.create_revision, suffix, index), entry.message_id.decode()))
        return [message for _, message in sorted(found)]

    def check(self, state: State) -> None:
        self._check_told(state)
        digest = canonical.digest([*self._world(state), part(state.client)], one_store=True)
        if digest not in self._settled:
            self._settled.add(digest)
            self._check_ends(state)

    def _check_told(self, state: State) -> None:
        there, client = self._messages(state), state.client
        numbers = [int(message.split(".")[0]) for message in there]
        assert len(set(numbers)) == len(numbers), f"a number was put twice: {there} (invariant 1)"
        assert numbers == sorted(numbers), f"out of order: {there} (invariant 2)"
        missing = set(range(1, client.committed + 1)) - set(numbers)
        assert not missing, f"told as committed, and not there: {sorted(missing)} (invariant 11)"
        wrong = [message for message in client.refused if message in there]
        assert not wrong, f"told as refused, and committed: {wrong} (invariant 11)"
        totals = sum(pb.Totals.FromString(kv.value).put for kv in state.store.under(keys.totals(QUEUE)))
        assert totals == len(there), f"the totals say {totals} messages, {len(there)} are there (exact depth)"

    def _check_ends(self, state: State) -> None:
        """A fresh process serves the producer to the end."""
        store, _ = state.store.txn((), [Delete(TOGGLE)])
        fresh = Budget(1, 0, 0, 0, 0, self.limits.messages)
        state = replace(state, store=store, processes=(), copies=(), budget=fresh, born=1_000)
        state = self._undisturbed(self._born(state, "X"), 0)
        if state.client.committed < self.limits.messages:
            state = self._undisturbed(self._connect(state, 0), 0)
        for _ in range(self.limits.messages):
            if state.client.committed < self.limits.messages:
                state = self._undisturbed(self._ask(state, 0, (state.client.committed + 1,)), 0)
        assert state.client.committed == self.limits.messages, "a new member cannot serve the producer (invariant 6)"
        self._check_told(state)

    # Identity

    def _world(self, state: State) -> list[Part]:
        return [kv_part(state.store.kvs[key], ADMIN) for key in state.store.order]

    def digest(self, state: State) -> bytes:
        client = replace(state.client, connection=0, waiting=())
        parts = [*self._world(state), part((client, _waits(state.client), state.budget, state.client.connection))]
        parts += [copy.part() for copy in state.copies]
        parts += [joined(node.recipe.tag, [node.canon]) for node in state.processes]
        return canonical.digest(parts, one_store=True)


def _waits(client: Client) -> tuple[Any, ...]:
    return tuple(tuple(w) for w in client.waiting)


def _name(request: Any) -> str:
    return "open" if isinstance(request, Opening) else f"put {request.message}"
