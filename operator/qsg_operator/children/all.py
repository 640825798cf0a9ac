"""All children of an owner but its certificates, in the order in which they are applied: what others need first."""

from __future__ import annotations

from dataclasses import dataclass, field

from qsg_operator.children import budget, config, etcd, members, services
from qsg_operator.children.objects import Object, Owner
from qsg_operator.children.services import COMPONENT
from qsg_operator.children.structures import component, structures


@dataclass(frozen=True)
class Spare:
    """What can be lost now: a member; and by structure, an etcd member."""

    member: bool = False
    stores: dict[str, bool] = field(default_factory=dict)


def children(owner: Owner, spare: Spare, store_trust: str = "") -> list[Object]:
    """`store_trust`: changes when etcd must learn anew whom to trust."""
    found: list[Object] = []
    for one in structures(owner):
        if one.managed is not None:
            store = etcd.stateful_set(owner, one, store_trust)
            name = store["metadata"]["name"]
            found += [
                *etcd.services(owner, one),
                budget.budget(owner, name, component(one.name), replicas=one.managed.members, redundant=spare.stores.get(one.name, False)),
                store,
            ]
    return [
        *found,
        services.pods_service(owner),
        services.client_service(owner),
        services.partner_service(owner),
        config.config_map(owner),
        budget.budget(owner, owner.base, COMPONENT, replicas=owner.replicas, redundant=spare.member),
        members.stateful_set(owner),
    ]
