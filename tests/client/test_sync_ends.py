"""The client without asyncio, closed by one thread while another one calls."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import CancelledError
from typing import Any

import pytest

import qsg
from qsg.client.sync import _Loop


def test_a_call_that_comes_while_the_loop_ends_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, handed_in, ends = _Loop(), threading.Event(), list[type[BaseException]]()
    hand_in = asyncio.run_coroutine_threadsafe

    def call() -> None:
        try:
            loop.run(asyncio.sleep(3600))
        except Exception as error:
            ends.append(type(error))

    late = threading.Thread(target=call, daemon=True)

    async def last_to_end() -> None:
        try:
            await asyncio.sleep(3600)
        finally:  # cancelled by who closes, which has looked who there is
            with monkeypatch.context() as patch:
                patch.setattr(asyncio, "run_coroutine_threadsafe", noted)
                late.start()
                handed_in.wait(5)

    def noted(*arguments: Any) -> Any:
        future = hand_in(*arguments)
        handed_in.set()
        return future

    hand_in(last_to_end(), loop._loop)
    loop.run(asyncio.sleep(0))
    loop.close()
    late.join(5)

    assert ends == [CancelledError]
    with pytest.raises(qsg.ConnectionBroken):
        loop.run(asyncio.sleep(0))
