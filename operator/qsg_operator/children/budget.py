"""PodDisruptionBudgets: one pod may go while another can be lost; none while the group is not redundant.

What can never be redundant (one member, one etcd) does not hold up a drain for ever: it may go. A pod that is not ready may always go.
"""

from __future__ import annotations

from qsg_operator.children.objects import Object, Owner, child


def budget(owner: Owner, name: str, component: str, *, replicas: int, redundant: bool) -> Object:
    made = child(owner, "policy/v1", "PodDisruptionBudget", name, component)
    made["spec"] = {
        "maxUnavailable": 1 if redundant or replicas < 2 else 0,
        "selector": {"matchLabels": owner.labels(component)},
        "unhealthyPodEvictionPolicy": "AlwaysAllow",
    }
    return made
