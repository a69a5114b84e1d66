"""TLS in front of the tests' services, with certificates of an authority that nobody else trusts."""

import datetime
import ipaddress
import socket
import ssl
import threading
import uuid
from contextlib import suppress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_DAY = datetime.timedelta(days=1)
# https://www.postgresql.org/docs/current/protocol-message-formats.html
_SSL_REQUEST = (8).to_bytes(4) + (80877103).to_bytes(4)


class Authority:
    """An authority, and a certificate that it has signed for 127.0.0.1.

    Attributes:
        path: the authority's certificate.
        server: the server's certificate and key.
    """

    def __init__(self, folder: Path) -> None:
        key, name = ec.generate_private_key(ec.SECP256R1()), _name(f"authority {uuid.uuid4()}")
        own = _certificate(name, key, name, key, is_authority=True)
        server_key = ec.generate_private_key(ec.SECP256R1())
        signed = _certificate(_name("server"), server_key, name, key, is_authority=False)
        self.path, self.server = folder / "authority.pem", folder / "server.pem"
        self.path.write_bytes(own.public_bytes(serialization.Encoding.PEM))
        self.server.write_bytes(
            signed.public_bytes(serialization.Encoding.PEM)
            + server_key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _certificate(subject, key, issuer, issuer_key, *, is_authority: bool) -> x509.Certificate:
    now = datetime.datetime.now(datetime.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _DAY)
        .not_valid_after(now + _DAY)
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .sign(issuer_key, hashes.SHA256())
    )


class TlsServer:
    """Ends TLS on a free port of 127.0.0.1 and forwards the bytes; use as a context manager.

    Args:
        port: where the service listens.
        authority: what has signed the certificate.
        postgres: whether clients ask for TLS as Postgres's protocol says.

    Attributes:
        port: where clients connect.
    """

    def __init__(self, port: int, authority: Authority, *, postgres: bool = False) -> None:
        self._upstream, self._postgres = port, postgres
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(authority.server)
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]

    def __enter__(self) -> "TlsServer":
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._socket.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        # A client that does not trust the certificate, or asks for no TLS, goes away.
        with suppress(OSError), client:
            if self._postgres:
                if client.recv(8, socket.MSG_WAITALL) != _SSL_REQUEST:
                    return
                client.sendall(b"S")
            with (
                self._context.wrap_socket(client, server_side=True) as secured,
                socket.create_connection(("127.0.0.1", self._upstream)) as upstream,
            ):
                back = threading.Thread(target=_forward, args=(upstream, secured), daemon=True)
                back.start()
                _forward(secured, upstream)
                back.join()


def _forward(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while block := source.recv(65536):
            target.sendall(block)
    for end in (source, target):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
