"""Runs a target for a time: corpus and seeds, then mutations of them. By plain chance, or guided by coverage (atheris)."""

from __future__ import annotations

import hashlib
import resource
import sys
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from fuzz.target import Target, Violation

CORPUS = Path(__file__).parent / "corpus"
GROWTH_MB = 400
POOL_MAX = 400


@dataclass
class Result:
    target: str
    inputs: int = 0
    seconds: float = 0.0
    found: list[str] = field(default_factory=list)


def corpus(name: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted((CORPUS / name).glob("*")) if path.is_file()]


def keep(name: str, data: bytes) -> Path:
    """Puts an input into the corpus."""
    path = CORPUS / name / hashlib.sha256(data).hexdigest()[:12]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def inputs(target: Target, random: Random) -> Iterable[bytes]:
    seeds = target.seeds
    pool = [*corpus(target.name), *seeds]
    yield from list(pool)
    while True:
        data = random.choice(pool)
        for _ in range(random.choice((1, 1, 2, 3))):
            data = target.mutate(data, seeds, random)
        if random.random() < 0.02 and len(pool) < POOL_MAX:
            pool.append(data)
        yield data


def run(target: Target, seconds: float, seed: int, *, most: int = sys.maxsize) -> Result:
    """Until the time is over, `most` inputs were held, or one violates the property, which is kept in the corpus."""
    result, began = Result(target.name), time.monotonic()
    before_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    for data in inputs(target, Random(seed)):
        if time.monotonic() - began > seconds or result.inputs >= most:
            break
        result.inputs += 1
        try:
            target.hold(data)
            grown_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024 - before_mb
            if grown_mb > GROWTH_MB:
                raise Violation(f"{target.name}: memory grew by {grown_mb} MB")
        except Violation as violation:
            result.found.append(f"{violation} (kept as {keep(target.name, data).relative_to(CORPUS)})")
            raise_again = violation.__cause__
            if raise_again is not None:
                sys.excepthook(type(raise_again), raise_again, raise_again.__traceback__)
            break
    result.seconds = time.monotonic() - began
    return result


def instrumented(wanted: bool) -> AbstractContextManager[Any]:
    """What is imported inside reports its coverage to atheris (not in the locked dependencies: `pip install atheris`)."""
    if not wanted:
        return nullcontext()
    import atheris  # type: ignore[import-not-found, import-untyped, unused-ignore]

    context: AbstractContextManager[Any] = atheris.instrument_imports(include=["qsg"])
    return context


def guided(target: Target, seconds: float, seed: int) -> None:
    """Coverage-guided, by atheris, in this process, which it ends."""
    import atheris  # type: ignore[import-not-found, import-untyped, unused-ignore]

    random = Random(seed)

    def one(data: bytes) -> None:
        target.hold(data)

    def mutator(data: bytes, size: int, chance: int) -> bytes:
        return target.mutate(data, target.seeds, Random(chance ^ random.getrandbits(32)))[:size]

    folder = CORPUS / target.name
    folder.mkdir(parents=True, exist_ok=True)
    for data in target.seeds:
        keep(target.name, data)
    arguments = [sys.argv[0], str(folder), f"-max_total_time={int(seconds)}", f"-seed={seed or 1}", "-max_len=65536", "-len_control=0"]
    atheris.Setup(arguments, one, custom_mutator=mutator)
    atheris.Fuzz()
