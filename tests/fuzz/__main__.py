"""`python -m fuzz [--seconds N] [--target NAME] [--seed N] [--guided]`: one line of counts; exit status 0 when the property held."""

from __future__ import annotations

import argparse

from fuzz.run import guided, instrumented, run


def main() -> int:
    parser = argparse.ArgumentParser(prog="fuzz", description="Fuzz every parser of outside bytes.")
    parser.add_argument("--seconds", type=float, default=120.0, help="for all targets together")
    parser.add_argument("--target", help="only this one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--guided", action="store_true", help="guided by coverage; needs atheris, and one target")
    given = parser.parse_args()
    if given.guided and given.target is None:
        parser.error("--guided needs --target")
    with instrumented(given.guided):
        from fuzz.targets import TARGETS
    names = [given.target] if given.target else list(TARGETS)
    if unknown := set(names) - set(TARGETS):
        parser.error(f"no target {unknown.pop()}: one of {', '.join(TARGETS)}")
    if given.guided:
        guided(TARGETS[given.target](), given.seconds, given.seed)
        return 0
    results = []
    for name in names:
        target = TARGETS[name]()
        try:
            results.append(run(target, given.seconds / len(names), given.seed))
        finally:
            target.close()
        result = results[-1]
        print(f"{name}: {result.inputs} inputs, {result.inputs / max(result.seconds, 0.001):.0f}/s", *result.found, sep="\n  ")  # noqa: T201
    found = sum(len(result.found) for result in results)
    print(f"fuzz: {len(results)} targets, {sum(result.inputs for result in results)} inputs, seed {given.seed}, {found} violations")  # noqa: T201
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
