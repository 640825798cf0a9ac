"""The network of a group on one machine, as roads that can be hurt: who reaches whom, each way through a proxy of its own.

Owns the proxies. A road leads from one party to another ("X", "R", "store", `APPLICATIONS`). Invariant: what is cut passes nothing, in the
direction that is cut, until it is healed; connections stay open. Does not guarantee that there is no other road: who must be isolated is
given addresses of roads only.
"""

from __future__ import annotations

from collections.abc import Sequence

from qsg.process.proxy import Direction, Proxy

APPLICATIONS = "applications"
STORE = "store"


class Roads:
    def __init__(self) -> None:
        self._roads: dict[tuple[str, str], list[tuple[Proxy, str]]] = {}
        self._proxies: list[Proxy] = []

    async def open(self, source: str, target: str, to: str, *, listen: str = "127.0.0.1:0") -> str:
        """A road to host:port `to`; the address at which it begins."""
        return await self.open_portal(source, {target: to}, listen=listen)

    async def open_portal(self, source: str, targets: dict[str, str], *, listen: str = "127.0.0.1:0") -> str:
        """Roads that begin at one address: each connection goes to the next of the targets (party -> host:port)."""
        proxy = await Proxy.start(listen, list(targets.values()))
        self._proxies.append(proxy)
        for target, to in targets.items():
            self._roads.setdefault((source, target), []).append((proxy, to))
        return proxy.address

    def between(self, party: str, others: Sequence[str] = ()) -> list[tuple[str, str]]:
        """Roads from and to a party; only those from and to `others`, if any are named."""
        return [road for road in self._roads if party in road and (not others or set(others) & (set(road) - {party}))]

    def cut(self, *roads: tuple[str, str], direction: Direction = "both") -> None:
        for road in roads:
            for proxy, to in self._roads[road]:
                proxy.cut(to, direction)

    def break_off(self, *roads: tuple[str, str]) -> None:
        """Half-open: the far end sees its connections break and goes on without; the near end is told nothing until it is healed."""
        for road in roads:
            for proxy, to in self._roads[road]:
                proxy.break_off(to)

    def heal(self, *roads: tuple[str, str]) -> None:
        """All, when none is named."""
        for road in roads or list(self._roads):
            for proxy, to in self._roads[road]:
                proxy.heal(to)

    async def close(self) -> None:
        for proxy in self._proxies:
            await proxy.close()
