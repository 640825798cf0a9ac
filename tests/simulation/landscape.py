"""What is simulated: a group X, Y, Z with its structures, the queue managers R and S outside it, and what they define.

Channels G.R, G.S, R.G and S.G. TO.R, TO.S and TO.G are remote definitions at each queue manager; R and S reach each other over the group
(two hops). BRIDGE is a queue of the group whose messages an application takes on to S in units of work; WORK has competing consumers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, NamedTuple

from qsg.rules.definitions import Channel, Definitions, Queue
from qsg.store.memory import MemoryServer
from qsg.transport.memory import MemoryNetwork
from simulation.aimed import AimedFaults
from simulation.loop import KERNEL, SimLoop
from simulation.observe import Observer
from simulation.pods import Pod
from simulation.tally import Tally
from support.whole import DLQ, definitions, queue, receiver, xmitq

if TYPE_CHECKING:
    from simulation.apps import App

MEMBERS = ("X", "Y", "Z")
REMOTES = ("R", "S")
SENDERS = {"G.R": "G", "G.S": "G", "R.G": "R", "S.G": "S"}
"""Channel -> whose sender it is."""
STORE_DELAY_S = 0.0006
RETRY = {"first_ms": 100, "short_count": 1_000_000, "short_ms": 1_000}


class Channels(NamedTuple):
    """How all are defined."""

    heartbeat_ms: int = 500
    batch: int = 0
    """Messages a batch, 0 = as many as there are."""
    idle_s: float = 0.0
    """A sender with nothing to send ends after this, 0 = never."""


class Landscape:
    """`trace(where, what)` is called for what a reader wants to see."""

    def __init__(
        self, loop: SimLoop, seed: str, structures: tuple[str, ...], trace: Callable[[str, str], None], channels: Channels
    ) -> None:
        self.loop, self.seed, self.trace = loop, seed, trace
        self.chance = Random(f"{seed} network")
        self.network = MemoryNetwork(self._delay, KERNEL)
        self._inside: dict[tuple[str, str], bool] = {}
        """Paths that lead from one process of a host to another."""
        self.slow_s = 0.0
        """The network is slower by up to this."""
        self.structures = {name: MemoryServer(random=Random(f"{seed} {name}"), context=KERNEL) for name in structures}
        self.paths: dict[tuple[str, str], AimedFaults] = {}
        """(member, structure) -> what happens on the way there."""
        self.tally = Tally()
        self.counted: Counter[str] = Counter()
        """Kind of event -> how often; of commands: tried."""
        self.done: Counter[str] = Counter()
        """Commands that were told as done."""
        self.releasing: Counter[str] = Counter()
        """Channel -> commands under way that let it leave STOPPED."""
        self.released: dict[str, float] = {}
        """Channel -> until when one that has ended may still do so."""
        self.violations: list[str] = []
        self.on_violation: Callable[[], None] = lambda: None
        self.pods: dict[str, Pod] = {}
        self.apps: list[App] = []
        self.tracing = False
        far = structures[-1]
        for name in MEMBERS:
            self.pods[name] = Pod(self, name, "G", group_definitions(far, channels) if name == "X" else definitions())
        for name in REMOTES:
            self.pods[name] = Pod(self, name, "", remote_definitions(name, channels))
        tables = {name: "admin" if place == "G" else f"private {place}" for name, place in SENDERS.items()}
        self.observer = Observer(self, tables)

    def _delay(self, source: str, target: str) -> float:
        path = (source, target)
        inside = self._inside.get(path)
        if inside is None:
            inside = self._inside[path] = source[0] == target[0] and source != target and "app" not in source + target
        if inside:
            return 0.00005 + self.chance.random() * 0.0002
        return 0.0002 + self.chance.random() * (0.0008 + self.slow_s)

    def faults(self, member: str, structure: str) -> AimedFaults:
        key = (member, structure)
        if key not in self.paths:
            self.paths[key] = AimedFaults(Random(f"{self.seed} path {member} {structure}"), delay_s=STORE_DELAY_S)
        return self.paths[key]

    def count(self, what: str, by: int = 1) -> None:
        self.counted[what] += by

    def violation(self, what: str) -> None:
        self.violations.append(f"{self.loop.time():.3f} {what}")
        self.on_violation()
        self.trace("VIOLATION", what)

    def stores(self) -> dict[str, MemoryServer]:
        """Every store: of the group's structures by name, private ones by host."""
        return {**self.structures, **{f"private {name}": pod.disk for name, pod in self.pods.items()}}

    def close(self) -> None:
        for server in self.stores().values():
            server.close()


def _sender(name: str, transmission_queue: str, channels: Channels, *addresses: str) -> Channel:
    return Channel.model_validate(
        {
            "name": name,
            "type": "sender",
            "transmission_queue": transmission_queue,
            "connection_names": addresses,
            "retry": RETRY,
            "heartbeat_ms": channels.heartbeat_ms,
            "disconnect_interval_s": channels.idle_s,
            **({"batch_messages": channels.batch} if channels.batch else {}),
        }
    )


def _remote(name: str, target: str, at: str, over: str = "") -> Queue:
    return queue(name, type="remote", remote_queue=target, remote_queue_manager=at, transmission_queue=over)


def group_definitions(far: str, channels: Channels) -> Definitions:
    """`far`: the structure beside "admin", or "admin" again."""
    return definitions(
        xmitq("R", far),
        xmitq("S", "admin"),
        queue("IN.G", structure=far),
        queue("WORK", structure=far),
        queue("BRIDGE", structure="admin"),
        queue(DLQ, structure="admin"),
        _remote("TO.R", "IN.R", "R"),
        _remote("TO.S", "IN.S", "S"),
        _sender("G.R", "R", channels, "R:1414"),
        _sender("G.S", "S", channels, "S:1414"),
        receiver("R.G", heartbeat_ms=channels.heartbeat_ms),
        receiver("S.G", structure=far, heartbeat_ms=channels.heartbeat_ms),
    )


def remote_definitions(name: str, channels: Channels) -> Definitions:
    other = "S" if name == "R" else "R"
    return definitions(
        xmitq("G"),
        queue(f"IN.{name}"),
        queue(DLQ),
        _remote("TO.G", "IN.G", "G"),
        _remote("TO.BRIDGE", "BRIDGE", "G"),
        _remote(f"TO.{other}", f"IN.{other}", other, "G"),
        _sender(f"{name}.G", "G", channels, *(f"{member}:1415" for member in MEMBERS)),
        receiver(f"G.{name}", heartbeat_ms=channels.heartbeat_ms),
    )
