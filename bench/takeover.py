"""How long a takeover takes with and without a backlog on the transmission queue: the owner of the channel is killed while it sends.

    python bench/takeover.py --store etcd --backlog 200000 --kills 5

Prints one JSON line: the backlog, and for each kill what the channel's status says (detect, claim, resume) and the pause in arrivals at R.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import qsg
from qsg.process.bench import fill, stop_channel, whole
from qsg.process.local import OUT_CHANNEL, LocalGroup, wait_until

TRICKLE = 2_000


async def status(queue_manager: qsg.QueueManager) -> dict[str, Any]:
    try:
        rows = (await queue_manager.inquire("status", OUT_CHANNEL))["channels"]
    except qsg.QsgError:
        return {}
    found: dict[str, Any] = rows[0]
    return found


async def arrived(queue_manager: qsg.QueueManager) -> int:
    return int((await queue_manager.inquire_queue("FROM.QSG"))["depth"])


async def one_kill(group: LocalGroup, inside: qsg.QueueManager, outside: qsg.QueueManager, backlog: int) -> dict[str, float]:
    await wait_until(lambda: whole(group, inside), 60, "the group to be whole")
    await stop_channel(inside)
    await fill(group.group_addresses, "TO.R", backlog or TRICKLE, 1024)
    base = await arrived(outside)
    await inside.command("start", channel=OUT_CHANNEL)
    await wait_until(lambda: drained(outside, base + 1), 30, "the first message")
    before = await status(inside)
    group.kill(str(before["owner"]), "queue-manager")
    killed = time.monotonic()
    last, longest, count = killed, 0.0, await arrived(outside)
    while True:
        now, seen = time.monotonic(), await arrived(outside)
        if seen != count:
            longest, last, count = max(longest, now - last), now, seen
        after = await status(inside) if now - killed > 0.2 else {}
        told = after.get("takeover") or {}
        if told.get("from") == before["owner"] and told.get("resume_ms") and after.get("epoch") != before["epoch"]:
            break
        if now - killed > 30:
            raise TimeoutError("no takeover within 30 s")
    await wait_until(lambda: drained(outside, base + (backlog or TRICKLE)), 120, "the backlog to arrive")
    return {name: told[name] for name in ("detect_ms", "claim_ms", "resume_ms")} | {"gap_ms": round(1000 * longest, 1)}


async def drained(outside: qsg.QueueManager, wanted: int) -> bool:
    return await arrived(outside) >= wanted


async def main(store: str, backlog: int, kills: int) -> int:
    with tempfile.TemporaryDirectory(prefix="qsg-bench-", ignore_cleanup_errors=True) as directory:
        group = LocalGroup(Path(directory), store=store)
        await group.start()
        try:
            async with (
                qsg.connect(group.group_addresses, application="bench", connect_s=60) as inside,
                qsg.connect(group.remote_address, application="bench", connect_s=60) as outside,
            ):
                rows = [await one_kill(group, inside, outside, backlog) for _ in range(kills)]
        finally:
            await group.stop()
    sys.stdout.write(json.dumps({"bench": "takeover", "store": store, "backlog": backlog, "kills": rows}) + "\n")
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", default="embedded")
    parser.add_argument("--backlog", type=int, default=0)
    parser.add_argument("--kills", type=int, default=5)
    given = parser.parse_args()
    sys.exit(asyncio.run(main(given.store, given.backlog, given.kills)))
