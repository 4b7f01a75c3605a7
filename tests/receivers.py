"""Receivers of webhooks, as users have them: a real HTTP server on loopback that remembers what came."""

import datetime as dt
import ipaddress
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from openai import OpenAI
from openai.types.webhooks import UnwrapWebhookEvent


@dataclass(frozen=True)
class Message:
    """One request as it came."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    def unwrap(self, secret: str) -> UnwrapWebhookEvent:
        """Verified and read, as OpenAI's users do it."""
        with OpenAI(api_key="none", webhook_secret=secret) as client:
            return client.webhooks.unwrap(self.body, self.headers)


class Receiver:
    """Answers every request with `status` and `headers`, after `before_answer`; keeps them in `messages`.

    One that `trickles` sends headers without end, one after the other, until nobody listens any more.
    """

    def __init__(self, tls: ssl.SSLContext | None = None, address: str = "127.0.0.1") -> None:
        self.status, self.headers = 204, dict[str, str]()
        self.before_answer: Callable[[], object] = lambda: None
        self.trickles = False
        self.messages: list[Message] = []
        self._server = ThreadingHTTPServer((address, 0), self._handler())
        self.is_closed = threading.Event()
        self._scheme = "https" if tls else "http"
        if tls:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self.port}/hook?from=luthier"

    @property
    def ids(self) -> list[str]:
        return [message.id for message in self.messages]

    def close(self) -> None:
        self.is_closed.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                headers = {name.lower(): value for name, value in self.headers.items()}
                outer.messages.append(Message(self.path, headers, body))
                outer.before_answer()
                if outer.trickles:
                    self._trickle()
                    return
                self.send_response(outer.status)
                for name, value in {"Content-Length": "0", **outer.headers}.items():
                    self.send_header(name, value)
                self.end_headers()

            def _trickle(self) -> None:
                self.wfile.write(b"HTTP/1.1 200 OK\r\n")
                with suppress(OSError):
                    while not outer.is_closed.wait(0.05):
                        self.wfile.write(b"x-more: 1\r\n")
                self.close_connection = True

            do_GET = do_POST  # noqa: N815, a name of the base class

            def log_message(self, *_: object) -> None:
                """Tests are silent."""

        return Handler


def make_certificate(folder: Path, host: str) -> tuple[ssl.SSLContext, Path]:
    """TLS for a server that is `host`, and the file of certificates that a client of it trusts."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = dt.datetime.now(dt.UTC)
    try:
        alternative: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        alternative = x509.DNSName(host)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([alternative]), critical=False)
        .sign(key, SHA256())
    )
    trusted, private = folder / "certificate.pem", folder / "key.pem"
    trusted.write_bytes(certificate.public_bytes(Encoding.PEM))
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(trusted, private)
    return context, trusted
