"""Frames keep their order, whether they are sent at once or by the task that sends what had to wait."""

from __future__ import annotations

import asyncio

from qsg.transport.mux import Mux
from support.virtual_time import run


class Slow:
    """A stream that takes nothing at once while `busy`."""

    peer, identity = "slow", ""

    def __init__(self) -> None:
        self.busy = False
        self.room = asyncio.Event()
        self.sent: list[tuple[str, bytes]] = []

    def send_nowait(self, frame: bytes) -> bool:
        if not self.busy:
            self.sent.append(("at once", frame))
        return not self.busy

    async def send(self, frame: bytes) -> None:
        if self.busy:
            await self.room.wait()
        self.sent.append(("waited", frame))

    async def receive(self) -> bytes:
        return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return]

    async def close(self) -> None:
        return


def test_frames_keep_their_order() -> None:
    async def main() -> None:
        stream = Slow()
        mux = Mux(stream, lambda kind, number, payload: None)
        mux.put(99, 1)  # nobody sends yet
        running = asyncio.create_task(mux.run())
        await asyncio.sleep(0.01)
        mux.put(99, 2)
        stream.busy = True
        mux.put(99, 3)
        mux.put(99, 4)
        await asyncio.sleep(0.01)
        stream.busy = False
        mux.put(99, 5)  # behind those that wait, although there is room now
        stream.room.set()
        await asyncio.sleep(0.01)
        mux.put(99, 6)
        running.cancel()
        await asyncio.wait([running])
        numbers = [(how, int.from_bytes(frame[-4:], "big")) for how, frame in stream.sent if frame[-4:] != bytes(4)]
        waited = [number for how, number in numbers if how == "waited"]
        assert [number for _, number in numbers] == [1, 2, 3, 4, 5, 6]
        assert waited == [1, 3, 4, 5]

    run(main())
