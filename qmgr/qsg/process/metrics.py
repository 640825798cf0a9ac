"""Prometheus metrics of a queue manager, made at each scrape from what its status inquiries answer.

`qsg_channel_*` come from the shared channel status table: the same from every member, so alerts aggregate with `max by (channel)`.
`qsg_structure_*` and `qsg_queue_manager_*` are this member's own.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from qsg.manager.manager import QueueManager

CHANNEL = ("channel", "type", "partner")


async def collect(manager: QueueManager) -> Iterable[Metric]:
    status = await manager.inquire("status")
    return [*channel_metrics(status["channels"]), *_own(manager, await manager.inquire("group"))]


def channel_metrics(lines: list[dict[str, Any]]) -> list[Metric]:
    """`lines`: what the `status` inquiry answers."""
    state = GaugeMetricFamily("qsg_channel_state", "1 for the state that the channel is in.", labels=(*CHANNEL, "state"))
    owner = GaugeMetricFamily("qsg_channel_owner_info", "1 for the owner of the channel.", labels=(*CHANNEL, "queue_manager"))
    in_doubt = GaugeMetricFamily("qsg_channel_in_doubt", "1 while a batch is sent and not confirmed.", labels=CHANNEL)
    backlog = GaugeMetricFamily("qsg_channel_backlog_messages", "Messages on the transmission queue.", labels=CHANNEL)
    sequence = GaugeMetricFamily("qsg_channel_sequence", "Sequence number of the last message confirmed.", labels=CHANNEL)
    last = GaugeMetricFamily("qsg_channel_last_message_timestamp_seconds", "When the last message went.", labels=CHANNEL)
    epoch = GaugeMetricFamily("qsg_channel_epoch", "Epoch of the channel's fence.", labels=CHANNEL)
    messages = CounterMetricFamily("qsg_channel_messages", "Messages since the channel started at its owner.", labels=CHANNEL)
    size = CounterMetricFamily("qsg_channel_bytes", "Bytes since the channel started at its owner.", labels=CHANNEL)
    takeovers = CounterMetricFamily("qsg_channel_takeovers", "Times another member took the channel over.", labels=CHANNEL)
    lasted = GaugeMetricFamily("qsg_channel_last_takeover_seconds", "The last takeover, by phase.", labels=(*CHANNEL, "cause", "phase"))
    for line in lines:
        names = [str(line[name]) for name in CHANNEL]
        state.add_metric([*names, line["status"]], 1)
        if line["owner"]:
            owner.add_metric([*names, line["owner"]], 1)
        in_doubt.add_metric(names, float(line["in_doubt"]))
        sequence.add_metric(names, line["last_sequence"])
        last.add_metric(names, line["last_message_at_ms"] / 1000)
        epoch.add_metric(names, line["epoch"])
        messages.add_metric(names, line["messages"])
        size.add_metric(names, line["bytes"])
        takeovers.add_metric(names, line["takeovers"])
        if "depth" in line:
            backlog.add_metric(names, line["depth"])
        for phase in ("detect", "claim", "resume"):
            if "takeover" in line:
                lasted.add_metric([*names, line["takeover"]["cause"], phase], line["takeover"][f"{phase}_ms"] / 1000)
    return [state, owner, in_doubt, backlog, sequence, last, epoch, messages, size, takeovers, lasted]


def _own(manager: QueueManager, group: dict[str, Any]) -> list[Metric]:
    linked = GaugeMetricFamily("qsg_queue_manager_members_linked", "Members of the group that this one is linked with, itself too.")
    linked.add_metric([], sum(bool(member["linked"]) for member in group["members"]))
    joined = GaugeMetricFamily("qsg_queue_manager_initiator_joined", "1 while the channel initiator is joined.")
    joined.add_metric([], float(manager.link.joined))
    reachable = GaugeMetricFamily("qsg_structure_reachable", "1 while the structure answers this member.", labels=["structure"])
    commits = CounterMetricFamily("qsg_structure_commits", "Transactions committed.", labels=["structure"])
    units = CounterMetricFamily("qsg_structure_units", "Units of work in them.", labels=["structure"])
    repeats = CounterMetricFamily("qsg_structure_repeats", "Transactions sent again because no answer came.", labels=["structure"])
    failed = CounterMetricFamily("qsg_structure_compare_failures", "Units whose compares did not hold.", labels=["structure"])
    in_use = GaugeMetricFamily("qsg_structure_bytes_in_use", "Bytes of the store that are in use.", labels=["structure"])
    quota = GaugeMetricFamily("qsg_structure_bytes_quota", "Its quota. Puts are refused from 70 % on.", labels=["structure"])
    for name, structure in manager.structures.items():
        if structure.filled is not None:
            in_use.add_metric([name], structure.filled.bytes_in_use)
            if structure.filled.bytes_quota:
                quota.add_metric([name], structure.filled.bytes_quota)
        counters = structure.counters
        reachable.add_metric([name], float(structure.reachable))
        commits.add_metric([name], counters.commits)
        units.add_metric([name], counters.units)
        repeats.add_metric([name], counters.repeats)
        failed.add_metric([name], counters.failed)
    return [linked, joined, reachable, commits, units, repeats, failed, in_use, quota]
