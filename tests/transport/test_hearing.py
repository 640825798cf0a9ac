"""Silence on a stream is noticed, and only silence."""

from __future__ import annotations

import asyncio

import pytest

from qsg.transport.frames import FrameQueue
from qsg.transport.hearing import GRACE_S, Hearing
from support.virtual_time import VirtualTimeLoop, run


class Quiet:
    """A stream on which nothing comes but what is put into its inbox."""

    peer = identity = ""

    def __init__(self) -> None:
        self.inbox = FrameQueue()

    async def send(self, frame: bytes) -> None:
        raise AssertionError("nobody sends here")

    async def receive(self) -> bytes:
        return await self.inbox.get()

    async def close(self) -> None:
        self.inbox.end("closed")


def now() -> float:
    return asyncio.get_running_loop().time()


def test_silence_is_noticed_in_time_whenever_the_last_frame_came() -> None:
    async def main() -> None:
        stream = Quiet()
        hearing = Hearing(stream, 1.0)
        for _ in range(5):
            asyncio.get_running_loop().call_later(0.7, stream.inbox.put_nowait, b"beat")
            assert await hearing.receive() == b"beat"
        assert now() == pytest.approx(3.5)
        with pytest.raises(TimeoutError):
            await hearing.receive()
        assert now() == pytest.approx(4.5)
        stream.inbox.put_nowait(b"late")
        assert await hearing.receive() == b"late", "it can go on"

    run(main())


def test_what_a_caller_does_between_two_frames_is_no_silence() -> None:
    async def main() -> None:
        stream = Quiet()
        hearing = Hearing(stream, 1.0)
        stream.inbox.put_nowait(b"first")
        assert await hearing.receive() == b"first"
        await asyncio.sleep(5)
        asyncio.get_running_loop().call_later(0.9, stream.inbox.put_nowait, b"second")
        assert await hearing.receive() == b"second"
        assert now() == pytest.approx(5.9)

    run(main())


def test_a_shorter_silence_holds_at_once() -> None:
    async def main() -> None:
        stream = Quiet()
        hearing = Hearing(stream, 15.0)
        stream.inbox.put_nowait(b"bound")
        await hearing.receive()
        hearing.silence_s = 1.5
        with pytest.raises(TimeoutError):
            await hearing.receive()
        assert now() == pytest.approx(1.5)

    run(main())


def stand_still(seconds: float) -> None:
    """As a process without CPU, or on a machine that is stopped: the clock goes on, and nothing is done meanwhile."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualTimeLoop)
    loop.pass_by(seconds)


def test_who_stood_still_itself_listens_a_moment_longer() -> None:
    async def main() -> None:
        stream, loop = Quiet(), asyncio.get_running_loop()
        hearing = Hearing(stream, 1.0)
        loop.call_later(0.5, stand_still, 2.0)
        loop.call_at(2.5 + GRACE_S / 2, stream.inbox.put_nowait, b"stood still too")
        assert await hearing.receive() == b"stood still too"
        began = now()
        with pytest.raises(TimeoutError):
            await hearing.receive()
        assert now() - began == pytest.approx(1.0), "and then as always"

    run(main())


def test_who_stands_still_again_and_again_notices_silence_all_the_same() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        for at in (0.5, 2.2, 3.9):
            loop.call_later(at, stand_still, 1.6)
        with pytest.raises(TimeoutError):
            await Hearing(Quiet(), 1.0).receive()
        assert now() == pytest.approx(3.8)

    run(main())


def test_a_cancelled_receiver_is_cancelled() -> None:
    async def main() -> None:
        hearing = Hearing(Quiet(), 1.0)
        task = asyncio.ensure_future(hearing.receive())
        await asyncio.sleep(0.5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(2)
        both = asyncio.ensure_future(hearing.receive())
        asyncio.get_running_loop().call_later(1.0, both.cancel)
        with pytest.raises((asyncio.CancelledError, TimeoutError)):
            await both

    run(main())
