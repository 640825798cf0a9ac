"""Lists of steps as states: where a walk stands is a node of a tree, told by what it was started with and the answers that it got.

Generators cannot be copied, so a node keeps what leads to it, and makes its generator anew by giving it the same answers (the first child
takes over the one that the node has). Every node is made once. Invariant: a recipe and a list of answers determine what is asked next;
so recipes draw ids from their tag, and look at nothing but their arguments and answers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Generator, Hashable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from model.canonical import QUEUE, Part, joined, kv_part, part, record_part, seen
from qsg.pb import channel_pb2
from qsg.rules.reasons import Reason, Refusal
from qsg.rules.steps import Commit, Me, PartnerNotReached, Read
from qsg.rules.unit import Cell, Committed, CompareFailed, Fenced, OutcomeUnknown, Unit
from qsg.store.contract import Get, GetResult, KeyValue, TxnResult

EXPECTED = (Refusal, CompareFailed, Fenced, PartnerNotReached, OutcomeUnknown)
LIVE_MAX = 20_000
"""Generators kept for the next answer."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a walk is started with. `tag`: told apart from all others of its history; ids are drawn from it."""

    name: str
    me: Me
    tag: int
    args: tuple[Any, ...] = ()
    generation: int = 0
    origin: str = ""
    """The list that has become this one."""

    def __hash__(self) -> int:
        return hash((self.name, self.me.member, self.tag, self.generation, self.args))

    def becomes(self, other: Become) -> Recipe:
        return Recipe(other.name, self.me, self.tag, other.args, self.generation + 1, self.origin or self.name)


@dataclass(frozen=True, slots=True)
class Become:
    """Returned by a list: it goes on as another one that knows nothing but `args`, so that states forget what no longer matters."""

    name: str
    args: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class Image:
    """A cell as an argument."""

    key: bytes
    kv: KeyValue | None
    store: int

    @classmethod
    def of(cls, cell: Cell, store: int) -> Image:
        if cell.value is None:
            return cls(cell.key, None, store)
        return cls(cell.key, KeyValue(cell.key, cell.value, cell.create_revision, cell.mod_revision), store)

    def cell(self) -> Cell:
        cell = Cell(self.key)
        cell.saw(0 if self.kv is None else self.kv.mod_revision, self.kv)
        return cell

    def part(self) -> Part:
        return part(("absent", self.key)) if self.kv is None else kv_part(self.kv, self.store)


@dataclass(slots=True)
class Note:
    """Told to the model, not a step: what it is to know of the walk from here on."""

    what: Callable[[], Hashable]


@dataclass(slots=True)
class Context:
    recipe: Recipe
    drawn: int = 0
    note: Callable[[], Hashable] | None = None

    @property
    def me(self) -> Me:
        return self.recipe.me

    def draw(self) -> bytes:
        self.drawn += 1
        return b"%d.%d.%d" % (self.recipe.tag, self.recipe.generation, self.drawn)


# --- answers


@dataclass(frozen=True, slots=True)
class Got:
    """Of a `Read`."""

    revision: int
    results: tuple[GetResult, ...]

    def part(self, store: int) -> Part:
        shape = tuple((len(r.kvs), r.more, r.count) for r in self.results)
        kvs = [kv_part(kv, store) for r in self.results for kv in r.kvs]
        return joined(("got", shape), [part("at", (seen(store),), (self.revision,)), *kvs])

    def give(self, generator: Generator[Any, Any, Any], request: Any) -> Any:
        return generator.send((self.revision, list(self.results)))


@dataclass(frozen=True, slots=True)
class Done:
    """Of a `Commit`: applied or not, and what its cells show now."""

    applied: bool
    revision: int
    cells: tuple[KeyValue | None, ...]
    keys: tuple[bytes, ...] = ()

    def part(self, store: int) -> Part:
        cells = [part("absent") if kv is None else kv_part(kv, store) for kv in self.cells]
        return joined(("done", self.applied, self.keys), [part("at", (seen(store),), (self.revision,)), *cells])

    def give(self, generator: Generator[Any, Any, Any], request: Any) -> Any:
        for change, kv in zip(request.unit.changes, self.cells, strict=True):
            change.cell.saw(self.revision, kv)
        if self.applied:
            return generator.send(Committed(self.revision))
        return generator.throw(CompareFailed(self.keys))


@dataclass(frozen=True, slots=True)
class Transacted:
    """Of a raw transaction."""

    result: TxnResult

    def part(self, store: int) -> Part:
        results = [r for r in self.result.results if r is not None]
        kvs = [kv_part(kv, store) for r in results for kv in r.kvs]
        shape = "txn", self.result.succeeded, tuple(len(r.kvs) for r in results)
        # Where it was applied is a revision of keys; where it read, only as good as the newest key that it could show.
        wrote = any(r is None for r in self.result.results)
        return joined(shape, [part("at", (store if wrote else seen(store),), (self.result.revision,)), *kvs])

    def give(self, generator: Generator[Any, Any, Any], request: Any) -> Any:
        return generator.send(self.result)


@dataclass(frozen=True, slots=True)
class BoundTo:
    """Of a bind: the partner's record, serialised."""

    bound: bytes

    def part(self, store: int) -> Part:
        return record_part(channel_pb2.Bound, self.bound)

    def give(self, generator: Generator[Any, Any, Any], request: Any) -> Any:
        return generator.send(channel_pb2.Bound.FromString(self.bound))


@dataclass(frozen=True, slots=True)
class Told:
    """A plain value."""

    value: Hashable = None

    def part(self, store: int) -> Part:
        return part(("told", self.value))

    def give(self, generator: Generator[Any, Any, Any], request: Any) -> Any:
        return generator.send(self.value)


@dataclass(frozen=True, slots=True)
class Raised:
    """An exception: its type and arguments."""

    kind: type[Exception]
    args: tuple[Any, ...] = ()

    def part(self, store: int) -> Part:
        return part(("raised", self.kind.__name__, self.args))

    def give(self, generator: Generator[Any, Any, Any], request: Any) -> Any:
        return generator.throw(self.kind(*self.args))


def not_reached(reason: Reason, detail: str = "", epoch_seen: int = 0) -> Raised:
    return Raised(PartnerNotReached, (reason, detail, epoch_seen))


Answer = Got | Done | Transacted | BoundTo | Told | Raised


# --- the tree


@dataclass(slots=True, eq=False)
class Node:
    recipe: Recipe
    request: Any = None
    """What the walk asks next."""
    done: bool = False
    value: Any = None
    error: Exception | None = None
    note: Any = None
    """As last told by the walk."""
    canon: Part = field(default_factory=lambda: part(()))
    parent: Node | None = None
    answer: Answer | None = None
    children: dict[Answer, Node] = field(default_factory=dict)
    prepared: Any = None
    """The model's own: what it made of `request`."""
    live: tuple[Generator[Any, Any, Any], Context, Any] | None = None
    """Its generator, and the request in that one's own objects."""
    taken: int = 0


Maker = Callable[[Recipe, Context], Generator[Any, Any, Any]]


class Walks:
    """All walks of one search."""

    def __init__(self, make: Maker) -> None:
        self._make = make
        self._roots: dict[Recipe, Node] = {}
        self._recent: deque[Node] = deque()

    def start(self, recipe: Recipe) -> Node:
        node = self._roots.get(recipe)
        if node is None:
            node = self._roots[recipe] = Node(recipe, canon=_recipe_part(recipe))
            context = Context(recipe)
            generator = self._make(recipe, context)
            self._arrive(node, generator, context, lambda: next(generator))
        return node

    def step(self, node: Node, answer: Answer, store: int = QUEUE) -> Node:
        """Where the walk stands after this answer."""
        assert not node.done, "it has ended"
        child = node.children.get(answer)
        if child is None:
            generator, context, request = self._generator(node)
            child = Node(node.recipe, parent=node, answer=answer, taken=node.taken + 1)
            child.canon = joined("walk", (node.canon, answer.part(store)))
            self._arrive(child, generator, context, lambda: answer.give(generator, request))
            if isinstance(child.value, Become):
                child = self.start(node.recipe.becomes(child.value))
            node.children[answer] = child
        return child

    def _generator(self, node: Node) -> tuple[Generator[Any, Any, Any], Context, Any]:
        if node.live is not None:
            live, node.live = node.live, None
            return live
        answers: list[Answer] = []
        at = node
        while at.parent is not None:
            assert at.answer is not None
            answers.append(at.answer)
            at = at.parent
        context = Context(node.recipe)
        generator = self._make(node.recipe, context)
        request = _past_notes(generator, context, next(generator))
        for answer in reversed(answers):
            request = _past_notes(generator, context, answer.give(generator, request))
        return generator, context, request

    def _arrive(self, node: Node, generator: Generator[Any, Any, Any], context: Context, go: Callable[[], Any]) -> None:
        try:
            node.request = _past_notes(generator, context, go())
        except StopIteration as stop:
            node.done, node.value = True, stop.value
        except EXPECTED as error:
            node.done, node.error = True, error.with_traceback(None)
        except AssertionError:
            raise
        except Exception as error:
            raise AssertionError(f"{node.recipe.name} on {node.recipe.me.member} fails with {error!r}") from error
        if node.done:
            return
        node.note = None if context.note is None else context.note()
        node.live = generator, context, node.request
        self._recent.append(node)
        if len(self._recent) > LIVE_MAX:
            self._recent.popleft().live = None


def _past_notes(generator: Generator[Any, Any, Any], context: Context, request: Any) -> Any:
    while isinstance(request, Note):
        context.note = request.what
        request = generator.send(None)
    return request


def _recipe_part(recipe: Recipe) -> Part:
    incarnations = sorted(recipe.me.incarnations.items())
    kinds = [0 if i == 0 else QUEUE for i in range(len(incarnations))]
    values = [revision for _, revision in incarnations]
    plain = tuple(arg for arg in recipe.args if not hasattr(arg, "part"))
    mine = part("me", (*kinds, 0), (*values, recipe.me.initiator))
    return joined(
        ("recipe", recipe.name, recipe.origin, recipe.me.member, plain),
        [mine, *(arg.part() for arg in recipe.args if hasattr(arg, "part"))],
    )


# --- real services of the queue manager as walks


class Ask(Awaitable[Any]):
    """Awaited in a coroutine, this is a step of the walk that drives it (`drive`)."""

    def __init__(self, step: Any) -> None:
        self.step = step

    def __await__(self) -> Generator[Any, Any, Any]:
        return (yield self.step)


def drive(work: Awaitable[T]) -> Generator[Any, Any, T]:
    """A coroutine that waits for nothing but `Ask`s, as a list of steps."""
    return (yield from work.__await__())


class Structure:
    """What services want of a `qsg.manager.structure.Structure`: its commits and reads are steps."""

    def __init__(self, name: str, me: Me) -> None:
        self.name, self.member, self.incarnation = name, me.member, me.incarnations[name]

    async def commit(self, unit: Unit, *, affinity: str = "", slot: int | None = None) -> Any:
        return await Ask(Commit(self.name, unit))

    async def read(self, *gets: Get) -> Any:
        return await Ask(Read(self.name, gets))

    async def refresh(self, *cells: Cell) -> None:
        revision, results = await self.read(*(Get(cell.key) for cell in cells))
        for cell, result in zip(cells, results, strict=True):
            cell.saw(revision, result.first)
