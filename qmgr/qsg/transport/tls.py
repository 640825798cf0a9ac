"""TLS from PEM files that may be replaced at any time: whoever connects, or is connected to, next uses what the files hold then.

Invariant: a certificate and a key are only used as a pair that fits; while the files are being replaced, or hold nonsense, the last good
ones stay in use. Connections that exist are left alone. Not guaranteed: that a certificate is valid in time or trusted; handshakes tell.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc
import structlog

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Pems:
    """What the files held at one moment."""

    ca: bytes | None
    certificate: bytes | None
    key: bytes | None


class TlsFiles:
    """`ca`: whom to trust (None: the machine's authorities, for clients). `certificate` and `key`: who we are (None: nobody).

    Mutual: a server asks every client for a certificate of `ca`. Raises `OSError` or `ssl.SSLError` when the files are no good at first.
    """

    def __init__(self, ca: Path | None, certificate: Path | None = None, key: Path | None = None) -> None:
        self._paths = ca, certificate, key
        self._marks: tuple[object, ...] = self._stamp()
        self._pems = self._read()

    def client(self) -> grpc.ChannelCredentials:
        pems = self._latest()
        return grpc.ssl_channel_credentials(pems.ca, pems.key, pems.certificate)

    def server(self) -> grpc.ServerCredentials:
        """Asked by gRPC before each handshake (in a thread of its own) for what is new."""
        used = self._latest()

        def fetch() -> grpc.ServerCertificateConfiguration | None:
            nonlocal used
            latest = self._latest()
            if latest == used:
                return None
            used = latest
            return _configuration(latest)

        return grpc.dynamic_ssl_server_credentials(_configuration(used), fetch, require_client_authentication=True)

    def _latest(self) -> Pems:
        try:
            stamp = self._stamp()
            if stamp != self._marks:
                self._pems, self._marks = self._read(), stamp
                log.info("certificates read anew", certificate=str(self._paths[1]))
        except (OSError, ssl.SSLError) as e:
            log.warning("certificates cannot be read, the last ones stay in use", error=str(e))
        return self._pems

    def _stamp(self) -> tuple[object, ...]:
        stats = [path.stat() for path in self._paths if path is not None]
        return tuple((s.st_ino, s.st_mtime_ns, s.st_size) for s in stats)

    def _read(self) -> Pems:
        ca, certificate, key = self._paths
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if ca is not None:
            context.load_verify_locations(ca)
        if certificate is not None and key is not None:
            context.load_cert_chain(certificate, key)
        return Pems(*(None if path is None else path.read_bytes() for path in self._paths))


class TlsInMemory(TlsFiles):
    """Certificates that never were in files."""

    def __init__(self, pems: Pems) -> None:
        self._pems = pems

    def _latest(self) -> Pems:
        return self._pems


def _configuration(pems: Pems) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(pems.key, pems.certificate)], root_certificates=pems.ca)
