"""The operator's authorities: renewed in time or when asked, so that nobody who takes up ca.crt within the overlap is ever refused."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature

from qsg.transport.contract import Stream, Unreachable
from qsg.transport.grpc_ import GrpcTransport
from qsg.transport.tls import Pems, TlsFiles, TlsInMemory
from qsg_operator import names
from qsg_operator.authority import LIFE, NEXT_CERTIFICATE, OVERLAP, asked_time, kept_up, name_for, new_authority
from qsg_operator.certificates import CA, CERTIFICATE, KEY, BadSecret, Data, Leaf, issued
from qsg_operator.children.certificates import decoded
from qsg_operator.reconcile.context import Context
from qsg_operator.reconcile.reconciler import Reconciler
from support.fake_cluster import NAMESPACE, FakeApi, FakeMembers
from support.owners import IMAGES

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)
NAME = "shop/qsg-ca"
LEAF = Leaf("ORDERS", ("localhost",))
DUE = LIFE * 2 / 3


def trusts(ca: bytes, data: Data, now: datetime) -> bool:
    """As a TLS library would: by any of the authorities that has not ended."""
    certificate = x509.load_pem_x509_certificate(data[CERTIFICATE])
    for one in x509.load_pem_x509_certificates(ca):
        try:
            certificate.verify_directly_issued_by(one)
        except (ValueError, InvalidSignature):
            continue
        return one.not_valid_before_utc <= now <= one.not_valid_after_utc and now <= certificate.not_valid_after_utc
    return False


@pytest.mark.parametrize("asked", [False, True], ids=["of age", "when asked"])
def test_at_every_moment_old_and_new_trust_each_other(asked: bool) -> None:
    """Whoever holds what was there at any time within the overlap (a pod with an old mount, a copy in another namespace)."""
    authority, leaf = new_authority(NAME, NOW), None
    begin = NOW + (timedelta(days=30) if asked else DUE - timedelta(days=8))
    made_before = begin + timedelta(days=8) if asked else None
    history: list[tuple[datetime, bytes, Data]] = []
    signers = set()
    step = timedelta(hours=12)
    for now in (begin + n * step for n in range(80)):
        authority = kept_up(authority, NAME, now, made_before=made_before)
        leaf = issued(LEAF, leaf, authority, now)
        signers.add(authority[CERTIFICATE])
        history = [one for one in history if now - one[0] <= OVERLAP - step]
        for _, ca, earlier in history:
            assert trusts(ca, leaf, now), f"who took up ca.crt earlier refuses what is there at {now}"
            assert trusts(leaf[CA], earlier, now), f"what was issued earlier is refused at {now}"
        history.append((now, leaf[CA], leaf))
    assert len(signers) == 2, "it was renewed, once"
    assert NEXT_CERTIFICATE not in authority and kept_up(authority, NAME, now, made_before=made_before) == authority


def test_what_has_ended_is_not_trusted_any_more() -> None:
    authority = new_authority(NAME, NOW)
    for days in (0, 8):
        authority = kept_up(authority, NAME, NOW + DUE + timedelta(days=days))
    assert authority[CA].count(b"BEGIN") == 2
    later = kept_up(authority, NAME, NOW + LIFE + timedelta(days=1))
    assert later[CA] == later[CERTIFICATE] != new_authority(NAME, NOW)[CERTIFICATE]


def test_a_second_renewal_follows_the_first() -> None:
    authority, now, names_seen = new_authority(NAME, NOW), NOW, []
    for _ in range(2):
        now += DUE + timedelta(days=1)
        for days in (0, 8):
            authority = kept_up(authority, NAME, now + timedelta(days=days))
        names_seen.append(x509.load_pem_x509_certificate(authority[CERTIFICATE]).subject.rfc4514_string())
    assert names_seen == ["CN=shop/qsg-ca/2", "CN=shop/qsg-ca/3"]


def test_a_copy_elsewhere_and_what_others_made_are_left_alone() -> None:
    late = NOW + DUE + timedelta(days=1)
    copied = new_authority(NAME, NOW)
    assert kept_up(copied, "returns/qsg-ca", late) == copied
    theirs = new_authority("our company", NOW) | {CA: b"theirs"}
    assert kept_up(theirs, NAME, late, made_before=late) == theirs
    with pytest.raises(BadSecret):
        kept_up({CERTIFICATE: copied[CERTIFICATE], KEY: b"x"}, NAME, late)


def test_names_are_short_enough_for_a_certificate_and_differ() -> None:
    long = [name_for("n" * 63, secret) for secret in ("qsg-ca", "orders-store-ca", "o" * 40 + "-store-ca")]
    assert len(set(long)) == 3
    for name in (NAME, *long):
        authority = new_authority(name, NOW)
        assert NEXT_CERTIFICATE in kept_up(authority, name, NOW + DUE), name


@pytest.mark.parametrize("text", ["soon", "2026-11-26T12:00:00"])
def test_a_wish_that_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(BadSecret, match="2026-11-26T12:00:00Z"):
        asked_time(text)
    assert asked_time("") is None and asked_time("2026-11-26T12:00:00Z") == datetime(2026, 11, 26, 12, tzinfo=UTC)


async def test_both_halves_of_an_overlap_connect(tmp_path: Path) -> None:
    """With the TLS library of the members: the signer is found among several authorities."""
    now = datetime.now(UTC)
    first = new_authority(NAME, now - timedelta(days=30))
    both = kept_up(first, NAME, now - timedelta(days=8), made_before=now - timedelta(days=9))
    second = kept_up(both, NAME, now)
    assert second[CERTIFICATE] not in (first[CERTIFICATE], both[CERTIFICATE])

    async def handler(stream: Stream) -> None:
        await stream.send(stream.identity.encode())
        await stream.receive()

    server = issued(LEAF, None, second, now)
    for name in (CA, CERTIFICATE, KEY):
        (tmp_path / name).write_bytes(server[name])
    files = TlsFiles(tmp_path / CA, tmp_path / CERTIFICATE, tmp_path / KEY)
    listener = await GrpcTransport(files).listen("127.0.0.1:0", {"qsg.v1.Channel": handler})

    async def told(data: Data) -> bytes:
        client = GrpcTransport(TlsInMemory(Pems(data[CA], data[CERTIFICATE], data[KEY])), server_name="localhost")
        stream = await client.connect(listener.address, "qsg.v1.Channel", timeout_s=10)
        try:
            async with asyncio.timeout(10):
                return await stream.receive()
        finally:
            await stream.close()

    old = issued(Leaf("BANK"), None, first, now)
    assert await told(issued(Leaf("BANK"), old, both, now)) == b"BANK"  # the old certificate, and both authorities
    assert await told(issued(Leaf("BANK"), old, second, now)) == b"BANK"
    with pytest.raises(Unreachable):
        await told(old)  # took up nothing within the overlap
    await listener.close()


async def test_the_secrets_of_a_group_go_through_the_overlap_together() -> None:
    from qsg_operator.cache import Cache

    cache = Cache()
    api = FakeApi(cache)
    api.user_applies(names.QUEUE_SHARING_GROUP, "orders", {})

    async def look(now: datetime) -> tuple[dict[str, Data], str]:
        """Of an operator that has just begun."""
        reconciler = Reconciler(Context(api, cache, IMAGES, "operator-0", lambda: now), lambda key: None, FakeMembers)
        await reconciler((names.QUEUE_SHARING_GROUP, NAMESPACE, "orders"))
        template = api.of("StatefulSet")["orders-store"]["spec"]["template"]["metadata"]
        return {name: decoded(one) for name, one in api.of("Secret").items()}, template.get("annotations", {}).get(names.TRUST_HASH, "")

    begun, no_hash = await look(NOW)
    assert no_hash == "", "etcd is not started again for nothing"
    store = api.objects["Secret", NAMESPACE, "orders-store-ca"]
    api._store({**store, "metadata": {**store["metadata"], "annotations": {names.RENEW: "2026-12-01T00:00:00Z"}}})
    assert (await look(NOW + timedelta(days=1)))[0] == begun, "not before it is time"

    both, both_hash = await look(NOW + timedelta(days=6))
    assert both["orders-store-tls"][CERTIFICATE] == begun["orders-store-tls"][CERTIFICATE]
    for name in ("orders-store-ca", "orders-store-tls", "orders-store-client-tls"):
        assert both[name][CA].count(b"BEGIN") == 2
    assert both_hash, "etcd reads whom to trust at its start only"
    assert {name: both[name] for name in ("qsg-ca", "orders-tls")} == {name: begun[name] for name in ("qsg-ca", "orders-tls")}

    after, after_hash = await look(NOW + timedelta(days=14))
    assert after["orders-store-tls"][CERTIFICATE] != begun["orders-store-tls"][CERTIFICATE]
    assert after["orders-store-tls"][CA] == both["orders-store-tls"][CA] and after_hash == both_hash
