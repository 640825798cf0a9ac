"""Who may use which channel by the name in its certificate: from the transport to the bind, and live."""

from __future__ import annotations

from qsg.manager.catalog import Catalog
from qsg.pb import records_pb2 as pb
from qsg.rules.definitions import Channel
from qsg.rules.reasons import Reason
from qsg.transport.memory import MemoryNetwork, MemoryTransport
from support.channel_group import CHANNEL, GROUP, Town, texts, town
from support.simulated import simulated


class Named(MemoryNetwork):
    """Whoever connects has the certificate name `certificates` gives its host."""

    def __init__(self) -> None:
        super().__init__()
        self.certificates: dict[str, str] = {}

    def transport(self, host: str, identity: str = "") -> MemoryTransport:
        return super().transport(host, identity or self.certificates.get(host, ""))


async def allow(catalog: Catalog, *names: str) -> None:
    receiver = Channel(name=CHANNEL, type="receiver", partner=GROUP, allowed_identities=names)
    await catalog.define_channel(receiver, replace=True)


async def refused(t: Town) -> pb.ChannelStatus:
    entry = await t.until(pb.RETRYING)
    assert entry.reason == Reason.NOT_AUTHORIZED
    return entry


@simulated
async def test_a_receiver_takes_messages_from_the_names_that_it_lists_only() -> None:
    network = Named()
    network.certificates = {"X": "ORDERS", "Y": "ORDERS"}
    async with town("X", "Y", network=network) as t:
        r = t.stations["R"].catalog
        await allow(r, "RETURNS", "SHIPPING")
        await t.put(texts(0, 2), t.stations["X"])
        assert "certificate name 'ORDERS' is not allowed on QSG.TO.R" in (await refused(t)).detail
        assert await t.arrived() == []
        await allow(r, "RETURNS", "ORDERS")
        await t.until_arrived(texts(0, 2))
        assert (await t.until(pb.RUNNING)).reason == 0


@simulated
async def test_who_shows_no_certificate_has_no_name_and_is_not_on_a_list() -> None:
    async with town("X", "Y", network=Named()) as t:
        await allow(t.stations["R"].catalog, "ORDERS")
        await t.put(texts(0, 1), t.stations["X"])
        assert "certificate name '' is not allowed" in (await refused(t)).detail
        await allow(t.stations["R"].catalog)
        await t.until_arrived(texts(0, 1))
