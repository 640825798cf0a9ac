"""A group whose receivers, queues and transmission queues lie in two structures, and R outside it."""

from __future__ import annotations

from qsg.pb import records_pb2 as pb
from qsg.rules import keys
from qsg.rules.internal import internal_queue
from support.whole import DLQ, Universe, numbered, queue, receiver, sender, xmitq

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


async def sending(made: Universe) -> tuple[str, str]:
    """X and Y, and five messages of theirs that R has: who of the two runs the channel, and who does not."""
    await group(made, "X", "Y")
    await made["X"].put("IN", *numbered(0, 5), queue_manager="R")
    await made["R"].until("IN", numbered(0, 5))
    return await _owner_and_other(made, "G.TO.R")


async def moving(made: Universe) -> tuple[str, str]:
    """X and Y, and a message of R that was moved into app1: who of the two runs the internal channel, and who does not."""
    await group(made, "X", "Y")
    await made["R"].put("FAR", "one", queue_manager="G")
    await made["X"].until("FAR", ["one"])
    return await _owner_and_other(made, MOVED)


async def _owner_and_other(made: Universe, channel: str) -> tuple[str, str]:
    owner = (await made.state(channel, pb.RUNNING)).owner
    return owner, "Y" if owner == "X" else "X"


def nothing_on_the_way(made: Universe, *names: str, server: str = "G admin") -> None:
    for name in names:
        assert made.found(server, keys.headers(name)) == [], name
