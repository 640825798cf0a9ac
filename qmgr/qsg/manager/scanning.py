"""Gets by id on a deep queue: what lies behind the window is scanned, headers only."""

from __future__ import annotations

from qsg.manager.assigning import Request
from qsg.manager.window import Window, all_matching
from qsg.rules.lanes import LaneReader


async def scan(window: Window, waiting: list[Request]) -> bool:
    """Looks behind the window for ids: each request scans the headers once, then only what is new. True: assign again."""
    progress = False
    for request in waiting:
        if not request.by_id or request.messages or window.complete:
            continue
        if request.scan is None:
            request.scan = LaneReader(window.queue, hold_max_bytes=1 << 20)
        reader = request.scan
        request.found = [(s, i) for s, i in request.found if not s.gone]
        doubtful = [s for s, _ in request.found if not s.checked]
        if doubtful:
            await window.check(doubtful)
            progress = True
            continue
        before = len(request.found)
        while len(request.found) == before and not (reader.caught_up and reader.revision >= window.revision):
            revision, results = await window.structure.read(*reader.plan())
            reader.feed(revision, results)
            for priority in reader.priorities():
                while reader.ready(priority):
                    segment = window.segments.at(reader.ready(priority).popleft())
                    spec = request.spec
                    request.found.extend((segment, i) for i in all_matching(segment, spec.message_id, spec.correlation_id))
        new = [s for s, _ in request.found[before:]]
        if new:
            progress = True
            await window.check(new)
    return progress
