"""kopf as it is configured: what it watches, with which selectors, and what it hands on."""

from __future__ import annotations

from typing import Any

import kopf
import pytest
from kopf._cogs.structs.references import Resource

from qsg_operator.handlers import _where, configure, register
from qsg_operator.runtime import CHILDREN, OURS, RESOURCES

WATCHED = (*RESOURCES, *CHILDREN, "Lease")


def resource(kind: str) -> Resource:
    group, version, plural = _where(kind)
    return Resource(group, version, plural, kind=kind, namespaced=True, verbs=frozenset({"list", "watch", "patch"}))


def settings() -> kopf.OperatorSettings:
    made = kopf.OperatorSettings()
    configure(made)
    return made


def test_children_are_watched_by_label_and_resources_all() -> None:
    selectors = settings().watching.label_selectors
    assert {kind: list(selectors.collect(resource(kind))) for kind in WATCHED} == {
        kind: [] if kind in RESOURCES else [OURS] for kind in WATCHED
    }


def test_nothing_is_posted_scanned_or_shared_with_peers() -> None:
    made = settings()
    assert not made.posting.enabled and made.scanning.disabled and made.peering.standalone
    assert made.watching.server_timeout and made.watching.client_timeout and made.watching.inactivity_timeout
    assert made.networking.request_timeout


class FakeRuntime:
    def __init__(self) -> None:
        self.told: list[tuple[dict[str, Any], bool]] = []
        self.wrong = ""

    def observed(self, found: dict[str, Any], *, deleted: bool) -> None:
        self.told.append((found, deleted))

    def problem(self) -> str:
        return self.wrong


def registered() -> tuple[kopf.OperatorRegistry, FakeRuntime]:
    registry, runtime = kopf.OperatorRegistry(), FakeRuntime()
    register(registry, runtime)  # type: ignore[arg-type]
    return registry, runtime


@pytest.mark.parametrize("kind", WATCHED)
async def test_what_is_watched_is_handed_on_and_nothing_is_put_into_it(kind: str) -> None:
    registry, runtime = registered()
    (handler,) = [one for one in registry._watching.get_all_handlers() if one.selector and one.selector.check(resource(kind))]
    found = {"metadata": {"name": "a", "namespace": "n"}}
    tell: Any = handler.fn
    await tell(event={"type": "DELETED", "object": found})
    await tell(event={"type": None, "object": found})
    assert runtime.told == [({**found, "kind": kind}, True), ({**found, "kind": kind}, False)]
    assert runtime.told[0][0] is not found, "kopf keeps its own"
    # Handlers of other kinds than events would need finalizers or annotations.
    assert not registry._changing.get_all_handlers() and not registry._spawning.get_all_handlers()


async def test_the_probe_fails_at_once_when_the_runtime_has_a_problem() -> None:
    registry, runtime = registered()
    (probe,) = registry._activities.get_all_handlers()
    assert probe.errors == kopf.ErrorsMode.PERMANENT
    ask: Any = probe.fn
    assert await ask() == "told"
    runtime.wrong = "a watch is dead"
    with pytest.raises(kopf.PermanentError, match="a watch is dead"):
        await ask()
