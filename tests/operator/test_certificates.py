"""Certificates fit what is asked, are kept while they do, and are made anew when they do not."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509

from qsg_operator import certificates, names
from qsg_operator.authority import new_authority
from qsg_operator.certificates import BadSecret, Leaf, expiry, issued
from qsg_operator.children.certificates import authorities, server_name, wanted
from support.owners import group, manager

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)
AUTHORITY = new_authority("authority", NOW)
LEAF = Leaf("ORDERS", ("orders-portal.shop.svc", "*.orders-pods.shop.svc", "127.0.0.1"))


def test_a_leaf_is_signed_by_the_authority_and_says_what_was_asked() -> None:
    data = issued(LEAF, None, AUTHORITY, NOW)
    certificate = x509.load_pem_x509_certificate(data["tls.crt"])
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(AUTHORITY["tls.crt"]))
    assert certificate.subject.rfc4514_string() == "CN=ORDERS"
    names_there = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names_there.get_values_for_type(x509.DNSName) == ["orders-portal.shop.svc", "*.orders-pods.shop.svc"]
    assert [str(ip) for ip in names_there.get_values_for_type(x509.IPAddress)] == ["127.0.0.1"]
    assert data["ca.crt"] == AUTHORITY["tls.crt"]
    certificates.check(data)


def test_a_certificate_that_is_right_is_kept_until_a_third_of_its_life_is_left() -> None:
    data = issued(LEAF, None, AUTHORITY, NOW)
    assert issued(LEAF, data, AUTHORITY, NOW + timedelta(days=59)) == data
    renewed = issued(LEAF, data, AUTHORITY, NOW + timedelta(days=61))
    assert renewed != data
    assert expiry(renewed) > expiry(data)


@pytest.mark.parametrize(
    "leaf", [Leaf("OTHER", LEAF.names), Leaf("ORDERS", (*LEAF.names, "mq.example.com")), Leaf("ORDERS", LEAF.names[1:]), Leaf("ORDERS")]
)
def test_other_names_mean_another_certificate(leaf: Leaf) -> None:
    data = issued(LEAF, None, AUTHORITY, NOW)
    assert issued(leaf, data, AUTHORITY, NOW) != data


def test_another_authority_means_another_certificate() -> None:
    data = issued(LEAF, None, AUTHORITY, NOW)
    other = new_authority("authority", NOW)
    again = issued(LEAF, data, other, NOW)
    assert again["ca.crt"] == other["tls.crt"]


@pytest.mark.parametrize("broken", [{}, {"tls.crt": b"x"}, {"tls.crt": b"x", "tls.key": b"y", "ca.crt": b"z"}])
def test_what_is_not_a_certificate_is_replaced(broken: dict[str, bytes]) -> None:
    certificates.check(issued(LEAF, broken, AUTHORITY, NOW))


def test_a_key_of_another_certificate_is_found() -> None:
    one, two = (issued(LEAF, None, AUTHORITY, NOW) for _ in range(2))
    mixed = one | {"tls.key": two["tls.key"]}
    assert issued(LEAF, mixed, AUTHORITY, NOW) not in (mixed, one)
    with pytest.raises(BadSecret, match=r"tls\.key"):
        certificates.check(mixed)


def test_who_cannot_sign_is_no_authority() -> None:
    leaf = issued(LEAF, None, AUTHORITY, NOW)
    with pytest.raises(BadSecret, match="authority"):
        issued(LEAF, None, leaf, NOW)
    with pytest.raises(BadSecret, match=r"tls\.key"):
        issued(LEAF, None, {"tls.crt": AUTHORITY["tls.crt"]}, NOW)
    with pytest.raises(BadSecret):
        issued(LEAF, None, {"tls.crt": b"x", "tls.key": b"y"}, NOW)


def test_a_leaf_never_outlives_its_authority() -> None:
    late = NOW + timedelta(days=3640)
    data = issued(LEAF, None, AUTHORITY, late)
    assert expiry(data) == expiry(AUTHORITY)


def test_a_group_needs_one_authority_for_partners_and_one_for_its_store() -> None:
    owner = group()
    assert authorities(owner) == {"qsg-ca": False, "orders-store-ca": True}
    found = {one.secret: one for one in wanted(owner)}
    assert set(found) == {"orders-tls", "orders-client-tls", "orders-store-tls", "orders-store-client-tls"}
    assert found["orders-tls"].leaf.common_name == "ORDERS"
    assert server_name(owner) in found["orders-tls"].leaf.names
    assert "orders-store-2.shop.svc" in found["orders-store-tls"].leaf.names
    # etcd would compare the addresses behind these with where a client connects from.
    assert found["orders-store-client-tls"].leaf.names == ()


def test_a_queue_manager_shares_the_authority_and_has_no_store() -> None:
    owner = manager()
    assert authorities(owner) == {"qsg-ca": False}
    assert [one.secret for one in wanted(owner)] == ["bank-qm-tls", "bank-qm-client-tls"]
    assert names.listener("bank-qm") in wanted(owner)[0].leaf.names


def test_nothing_is_made_where_certificates_are_the_users_own() -> None:
    owner = group(tls={"mode": "Secret", "secretName": "mine"}, store={"external": {"endpoints": ["e:2379"]}})
    assert authorities(owner) == {}
    assert wanted(owner) == []


def test_names_outside_the_cluster_are_in_the_certificate() -> None:
    owner = group(tls={"additionalNames": ["mq.example.com", "192.0.2.7"]})
    assert {"mq.example.com", "192.0.2.7"} <= set(wanted(owner)[0].leaf.names)
