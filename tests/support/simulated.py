"""`@simulated`: an asynchronous test that runs in virtual time, so that what it waits for depends on no machine."""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine
from typing import Any

from support import virtual_time


def simulated(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """For tests whose fixtures belong to no event loop."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        virtual_time.run(test(*args, **kwargs))

    return run
