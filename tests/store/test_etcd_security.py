"""The etcd store with TLS, and with users and tokens."""

from __future__ import annotations

import asyncio
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from structlog.testing import capture_logs

from qsg.process.config import StructureConfig
from qsg.process.etcd import EtcdOptions, ServerTls, tool
from qsg.process.security import store_of
from qsg.store.contract import Get, NotApplied, Put, StoreError
from qsg.store.etcd import user
from qsg_operator.authority import new_authority
from qsg_operator.certificates import CA, CERTIFICATE, KEY, Leaf, issued
from support.etcd import opened, running
from support.stores import PATIENT_S

pytestmark = pytest.mark.etcd

CERTIFICATES = Path(__file__).parent.parent / "transport" / "certificates"


def etcdctl(endpoint: str, *arguments: str, said: bytes | None = None) -> None:
    patient = [f"--dial-timeout={PATIENT_S:g}s", f"--command-timeout={PATIENT_S:g}s"]
    subprocess.run([tool("etcdctl"), f"--endpoints={endpoint}", *patient, *arguments], check=True, capture_output=True, input=said)


async def test_tls_both_ways(tmp_path: Path) -> None:
    tls = ServerTls(CERTIFICATES / "server.pem", CERTIFICATES / "server.key", CERTIFICATES / "ca.pem")
    ours = {"ca": CERTIFICATES / "ca.pem", "cert": CERTIFICATES / "client.pem", "key": CERTIFICATES / "client.key"}
    async with running(tmp_path / "etcd", options=EtcdOptions(fsync=False, tls=tls)) as cluster:
        async with opened([f"https://{cluster.endpoints[0]}"], **ours) as store:
            await store.txn([], [Put(b"k", b"v")], timeout_s=PATIENT_S)
            kv = (await store.get(Get(b"k"))).first
            assert kv is not None and kv.value == b"v"
        async with opened(cluster.endpoints, server_name="other.test", **ours) as elsewhere:
            with pytest.raises(NotApplied):  # the name on the certificate is another
                await elsewhere.txn([], [Put(b"k", b"v")])
        strangers: list[dict[str, Path]] = [
            {},
            {"ca": ours["ca"]},
            {"ca": ours["ca"], "cert": CERTIFICATES / "stranger.pem", "key": CERTIFICATES / "stranger.key"},
            {**ours, "ca": CERTIFICATES / "stranger.pem"},
        ]
        for files in strangers:
            async with opened(cluster.endpoints, **files) as stranger:
                with pytest.raises(StoreError):
                    await stranger.txn([], [Put(b"k", b"no")])
        async with opened(cluster.endpoints, **ours) as store:
            kv = (await store.get(Get(b"k"))).first
            assert kv is not None and kv.version == 1


async def test_certificates_that_were_replaced_are_taken_up_by_the_next_connection(tmp_path: Path) -> None:
    """A member that has run for months meets an etcd that was started again: the certificate of the first connection has ended long ago."""
    names = Leaf("etcd", ("127.0.0.1", "localhost")), Leaf("member")
    files = {leaf.common_name: {name: tmp_path / f"{leaf.common_name}-{name}" for name in (CERTIFICATE, KEY, CA)} for leaf in names}

    def write() -> None:
        now = datetime.now(UTC)
        authority = new_authority("authority", now)
        for leaf in names:
            for name, data in issued(leaf, None, authority, now).items():
                files[leaf.common_name][name].write_bytes(data)

    write()
    server, member = files["etcd"], files["member"]
    tls = ServerTls(server[CERTIFICATE], server[KEY], server[CA])
    async with running(tmp_path / "etcd", options=EtcdOptions(fsync=False, tls=tls)) as cluster:
        async with opened(cluster.endpoints, ca=member[CA], cert=member[CERTIFICATE], key=member[KEY]) as store:
            await store.txn([], [Put(b"k", b"1")], timeout_s=PATIENT_S)
            cluster.kill(0)
            write()
            await cluster.restart(0)
            await store.txn([], [Put(b"k", b"2")], timeout_s=PATIENT_S)
            kv = (await store.get(Get(b"k"))).first
            assert kv is not None and kv.value == b"2"


def enable_users(endpoint: str) -> None:
    etcdctl(endpoint, "user", "add", "root:secret")
    etcdctl(endpoint, "user", "grant-role", "root", "root")
    etcdctl(endpoint, "auth", "enable")


def signing(folder: Path) -> str:
    """The option that makes etcd's tokens name the revision of its users."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    private, public = folder / "private.pem", folder / "public.pem"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return f"--auth-token=jwt,pub-key={public},priv-key={private},sign-method=RS256,ttl=10m"


async def test_a_change_of_users_outdates_a_signed_token_which_is_fetched_anew(tmp_path: Path) -> None:
    async with running(tmp_path / "etcd", options=EtcdOptions(fsync=False, extra=(signing(tmp_path),))) as cluster:
        [endpoint] = cluster.endpoints
        enable_users(endpoint)
        async with opened([endpoint], user="root", password="secret") as store:
            revision = (await store.txn([], [Put(b"k", b"1")], timeout_s=PATIENT_S)).revision
            batches = store.watch(b"k", b"", revision)
            for number, wait in enumerate((anext(batches), store.get(Get(b"k")), store.txn([], [Put(b"k", b"2")], timeout_s=PATIENT_S))):
                etcdctl(endpoint, "--user=root:secret", "user", "add", f"guest{number}:guest")
                await asyncio.wait_for(wait, PATIENT_S)
            await batches.aclose()


async def test_users_log_in_and_again_when_their_token_is_no_longer_known(tmp_path: Path) -> None:
    options = EtcdOptions(fsync=False, extra=("--auth-token-ttl=1",))
    async with running(tmp_path / "etcd", options=options) as cluster:
        [endpoint] = cluster.endpoints
        enable_users(endpoint)
        async with opened([endpoint], user="root", password="secret") as store:
            await store.txn([], [Put(b"k", b"1")], timeout_s=PATIENT_S)
            cluster.kill(0)  # tokens are kept in memory
            await cluster.restart(0)
            await store.txn([], [Put(b"k", b"2")], timeout_s=PATIENT_S)
            kv = (await store.get(Get(b"k"))).first
            assert kv is not None and kv.value == b"2"
        async with opened([endpoint]) as nobody:
            with pytest.raises(StoreError) as refusal:
                await nobody.txn([], [Put(b"k", b"3")], timeout_s=PATIENT_S)
            assert not isinstance(refusal.value, NotApplied)
            with pytest.raises(StoreError, match="user name is empty"):
                await asyncio.wait_for(anext(nobody.watch(b"k", b"", 1)), PATIENT_S)
        etcdctl(endpoint, "--user=root:secret", "user", "add", "guest:guest")
        async with opened([endpoint], user="guest", password="guest") as guest:
            async with asyncio.timeout(PATIENT_S):
                with pytest.raises(StoreError, match="permission denied"):
                    await anext(guest.watch(b"k", b"", 1))
        async with opened([endpoint], user="root", password="wrong") as intruder:
            with pytest.raises(StoreError):
                await intruder.get(Get(b"k"))


async def test_a_password_that_was_changed_is_taken_up_while_we_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a mounted Secret is written anew. Until the new one is here nothing is refused for good: what was told so gave up."""
    monkeypatch.setattr(user, "AGAIN_S", 0.1)
    password = tmp_path / "password"
    password.write_text("secret")
    (tmp_path / "user").write_text("root")
    async with running(tmp_path / "etcd", options=EtcdOptions(fsync=False, extra=(signing(tmp_path),))) as cluster:
        [endpoint] = cluster.endpoints
        enable_users(endpoint)
        store = store_of(StructureConfig(endpoints=(endpoint,), credentials=tmp_path))
        try:
            await store.txn([], [Put(b"k", b"1")], timeout_s=PATIENT_S)
            etcdctl(endpoint, "--user=root:secret", "user", "passwd", "root", "--interactive=false", said=b"other")
            with capture_logs() as lines, pytest.raises(NotApplied):
                await store.txn([], [Put(b"k", b"2")], timeout_s=1.0)
            assert [line["log_level"] for line in lines if "password" in line["event"]] == ["error"]
            waiting = asyncio.ensure_future(store.txn([], [Put(b"k", b"3")], timeout_s=PATIENT_S))
            password.write_text("other")
            assert (await waiting).succeeded
        finally:
            await store.close()
        async with opened([endpoint], user="root", password="secret") as stranger:
            with pytest.raises(StoreError, match="authentication failed"):
                await stranger.txn([], [Put(b"k", b"4")], timeout_s=PATIENT_S)
