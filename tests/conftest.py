"""What all tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import structlog
from hypothesis import HealthCheck, settings

# A machine that stands still for a moment makes an example slow, and slow by chance is no failure.
settings.register_profile("qsg", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("qsg")


@pytest.fixture(autouse=True)
def logging_to_pytest() -> Iterator[None]:
    """Log lines go to pytest's own handler, whatever a test (or the command line that it ran) had configured before."""
    structlog.reset_defaults()
    structlog.configure(
        processors=[structlog.processors.add_log_level, structlog.processors.KeyValueRenderer(key_order=["event"])],
        logger_factory=structlog.stdlib.LoggerFactory(),
    )
    yield
    structlog.reset_defaults()
