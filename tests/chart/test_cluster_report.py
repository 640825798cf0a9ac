"""What is told when a test on a cluster fails: `support.cluster_report`, of objects and logs as they are."""

from __future__ import annotations

import json
from typing import Any

from support.cluster_report import LINES_OF_ONE, pod_line, shared_out, untrue, worse


def line(level: str, event: str, **more: Any) -> str:
    return json.dumps({"event": event, "level": level, "timestamp": "2026-11-26T14:57:34.122973Z", **more})


def test_of_a_log_the_bad_news_is_told_in_order_and_what_is_alike_three_times_only() -> None:
    log = [
        line("info", "leading"),
        line("warning", "member is dead", member="ORDERS.1"),
        '{"level":"warn","ts":"2026-11-26T14:57:38.500947Z","caller":"rafthttp/stream.go:421","msg":"lost"}',
        *(line("error", "request failed", number=n, exception="Traceback\n  File\nValueError: no\n") for n in range(5)),
        "INFO kopf and something",
        "I1126 14:57:34.126267      14 chttp2_transport.cc:1403] Got goaway",
        "ValueError: of no log line",
        "",
    ]
    assert worse(log) == [
        '14:57:34.122 warning member is dead {"member": "ORDERS.1"}',
        '14:57:38.500 warn lost {"caller": "rafthttp/stream.go:421"}',
        *(f'14:57:34.122 error request failed {{"number": {n}, "exception": ["ValueError: no"]}}' for n in (2, 3, 4)),
        "ValueError: of no log line",
    ]


def test_each_log_has_its_share_of_the_room() -> None:
    logs = [(f"container {n}:", [f"line {i}" for i in range(LINES_OF_ONE)]) for n in range(10)]
    assert len(shared_out(logs, 1_000)) == 10 * (LINES_OF_ONE + 1)
    assert shared_out(logs, 40)[:5] == ["container 0:", "  line 9", "  line 10", "  line 11", "container 1:"]
    assert len(shared_out(logs, 0)) == 20, "the last line of each in any case"


def test_conditions_that_are_not_as_they_should_be_are_told() -> None:
    def condition(kind: str, status: str) -> dict[str, str]:
        return {"type": kind, "status": status, "reason": "Why", "message": "in\n  words"}

    conditions = [condition("Ready", "True"), condition("Stalled", "False"), condition("Redundant", "Unknown")]
    group = {
        "kind": "QueueSharingGroup",
        "metadata": {"namespace": "qsg-e2e", "name": "orders", "generation": 2},
        "status": {"observedGeneration": 2, "conditions": conditions},
    }
    assert untrue([group]) == ["QueueSharingGroup qsg-e2e/orders: Redundant is Unknown Why: in words"]
    group["status"] = {"observedGeneration": -1}
    assert untrue([group]) == ["QueueSharingGroup qsg-e2e/orders: of generation 2 its status knows -1"]


def test_a_pod_that_has_no_node_yet_is_told_too() -> None:
    pod = {"metadata": {"namespace": "qsg-e2e", "name": "orders-0"}, "spec": {"containers": [{}, {}]}, "status": {"phase": "Pending"}}
    assert pod_line(pod) == "pod qsg-e2e/orders-0 on no node, Pending, 0/2 ready, 0 restarts"
