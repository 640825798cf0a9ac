"""Many seeds, in as many processes as there are cores."""

from __future__ import annotations

import gc
import logging
import multiprocessing
from collections.abc import Iterator, Sequence
from functools import partial

import structlog

from simulation import knots, tangles
from simulation.plan import Plan
from simulation.run import Result, run


def prepare(planted: str | None, *, logs: bool = False) -> None:
    """Of one process: logging as wanted, a planted bug applied, what is loaded out of the collector's way."""
    logging.disable(logging.CRITICAL)
    if not logs:
        structlog.configure(
            wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL), logger_factory=structlog.ReturnLoggerFactory()
        )
    if planted:
        from planted.bugs import apply  # type: ignore[import-not-found,unused-ignore]

        apply(planted)
    gc.collect()
    gc.freeze()


def draw(seed: int, only: Sequence[str] = (), *, tangled: bool = False) -> Plan:
    """`only`: faults of these kinds alone. `tangled`: another history, of `simulation.tangles`."""
    return tangles.draw(seed) if tangled else knots.draw(seed, only)


def results(seeds: Sequence[int], jobs: int, planted: str | None, only: Sequence[str] = (), *, tangled: bool = False) -> Iterator[Result]:
    """In the order in which they end. `only`, `tangled`: as `draw` has them."""
    run_one = partial(run_seed, only=tuple(only), tangled=tangled)
    if jobs == 1:
        prepare(planted)
        yield from map(run_one, seeds)
        return
    with multiprocessing.get_context("spawn").Pool(jobs, prepare, (planted,)) as pool:
        yield from pool.imap_unordered(run_one, seeds, chunksize=5)


def run_seed(seed: int, only: Sequence[str] = (), *, tangled: bool = False) -> Result:
    result = run(draw(seed, only, tangled=tangled))
    gc.collect()
    return result
