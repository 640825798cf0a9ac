"""`helm test` passes only when another member took the channel over."""

from __future__ import annotations

from typing import Any

import pytest

from qsg_operator import names, selftest
from qsg_operator.api import ApiError
from qsg_operator.cache import Cache
from qsg_operator.selftest import NAME, Failed, Owned, taken_over
from support.fake_cluster import NAMESPACE, FakeApi

BEFORE = Owned("qsg-selftest-0", 3, 1)


def status(pod: str, epoch: int, takeovers: int) -> dict[str, Any]:
    return {"owner": {"pod": pod, "epoch": epoch}, "takeovers": {"count": takeovers}}


class Told(FakeApi):
    """The channel's status as each look finds it; the last one stays."""

    def __init__(self, *statuses: dict[str, Any]) -> None:
        super().__init__(Cache())
        self.statuses = list(statuses)

    async def get(self, kind: str, namespace: str, name: str) -> Any:
        assert (kind, namespace, name) == (names.SHARED_CHANNEL, NAMESPACE, NAME)
        return {"status": self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]}


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "TOLD_S", 0.2)
    monkeypatch.setattr(selftest, "POLL_S", 0.001)


@pytest.mark.parametrize(
    "after",
    [
        status("qsg-selftest-1", 4, 2),
        status("qsg-selftest-1", 4, 1),  # it was retried elsewhere, which is not counted as a takeover
        status("qsg-selftest-0", 5, 3),  # there and back
    ],
)
async def test_a_takeover_is_seen_as_soon_as_the_status_tells_it(after: dict[str, Any]) -> None:
    api = Told(status("qsg-selftest-0", 3, 1), {}, after)
    found = await taken_over(api, NAMESPACE, BEFORE)
    assert status(found.pod, found.epoch, found.takeovers) == after


@pytest.mark.parametrize(
    "after",
    [
        status("qsg-selftest-0", 3, 1),
        status("qsg-selftest-0", 4, 1),  # its pod is back, and went on with what nobody had taken
        {},
    ],
)
async def test_without_a_takeover_it_fails(after: dict[str, Any]) -> None:
    with pytest.raises(Failed, match="nobody took the channel over: it was with qsg-selftest-0"):
        await taken_over(Told(after), NAMESPACE, BEFORE)


@pytest.mark.parametrize(("takeovers", "told"), [(1, "handed over before its pod had ended"), (3, "taken over (2)")])
def test_what_was_no_takeover_is_not_called_one(takeovers: int, told: str) -> None:
    assert selftest.how(BEFORE, Owned("qsg-selftest-1", 5, takeovers)) == told


class Deleting(FakeApi):
    async def delete(self, kind: str, namespace: str, name: str, *, grace_s: int | None = None) -> None:
        self._call("delete", kind, name)


async def test_what_can_be_deleted_behind_it_is_and_what_failed_first_is_told() -> None:
    api = Deleting(Cache())
    errors = {("apply", names.SHARED_CHANNEL): ApiError(403, "forbidden"), ("delete", names.SHARED_QUEUE): ApiError(500, "overloaded")}
    api.failing = lambda verb, kind, name: errors.get((verb, kind))
    with pytest.raises(ApiError, match="forbidden"):
        await selftest.main(api, NAMESPACE, 1)
    assert {("delete", names.QUEUE_SHARING_GROUP, NAME), ("delete", names.QUEUE_MANAGER, selftest.PARTNER)} <= set(api.calls)
