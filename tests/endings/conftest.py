"""In virtual time, but for what is marked `real_time`."""

from support.virtual_time import pytest_asyncio_loop_factories as pytest_asyncio_loop_factories
