"""Every code of the catalogue is one that a test has met."""

import json
import shutil
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from starlette.testclient import TestClient

from luthier.errors import CATALOGUE
from luthier.installation import Installation
from luthier.settings import Settings
from tests.factories import claim, create_prepared_job

_JOBS = "/v1/fine_tuning/jobs"
_TESTS = Path(__file__).parent
# Said by no route yet: scopes of keys are to come.
_NOT_YET = {"insufficient_permissions"}


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    """Settings with little patience, and with a model that brings code."""
    models = tmp_path / "models"
    shutil.copytree(settings.models, models)
    shutil.copytree(models / "tiny", models / "odd")
    config = json.loads((models / "odd" / "config.json").read_text(encoding="utf-8"))
    (models / "odd" / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "odd.Odd"}}))
    return settings.model_copy(update={"model_dir": models, "upload_idle_seconds": 0.2})


def test_every_code_is_met_by_a_test_of_the_api() -> None:
    # Not what this module says itself above its tests.
    own = Path(__file__).read_text(encoding="utf-8").partition("def test_a_validation_file")[2]
    apart = {Path(__file__).name, "test_document.py"}
    others = [path.read_text(encoding="utf-8") for path in _TESTS.glob("test_*.py") if path.name not in apart]
    tests = "\n".join([own, *others])
    assert {code for code in CATALOGUE if f'"{code}"' not in tests} <= _NOT_YET


def _code(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def test_a_validation_file_that_is_not_there_is_named(client: TestClient, file_id: str) -> None:
    body = {"model": "tiny", "training_file": file_id, "validation_file": "file-unknown"}
    assert _code(client.post(_JOBS, json=body)) == (400, "invalid_validation_file")


def test_a_job_that_is_worked_on_has_no_place_to_change(
    client: TestClient, installation: Installation
) -> None:
    with installation.database.transaction() as session:
        create_prepared_job(session)
        claim(session)
    assert _code(client.patch(f"{_JOBS}/ftjob-1", json={"priority": 1})) == (400, "job_not_waiting")


def test_a_model_that_brings_code_is_not_supported(client: TestClient, file_id: str) -> None:
    body = {"model": "odd", "training_file": file_id}
    assert _code(client.post(_JOBS, json=body)) == (400, "model_not_supported")


@pytest.mark.parametrize(
    ("path", "kind", "begin"),
    [("/v1/files", "multipart/form-data; boundary=xyz", "--xyz\r\n"), (_JOBS, "application/json", "{")],
)
def test_a_body_that_stands_still_is_ended(server: str, key: str, path: str, kind: str, begin: str) -> None:
    address = urlsplit(server)
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Length: 1000\r\nContent-Type: {kind}\r\n\r\n{begin}"
    )
    with socket.create_connection((address.hostname or "", address.port or 0), timeout=60) as connection:
        connection.sendall(head.encode())
        answer = b""
        while b'"upload_too_slow"' not in answer:
            chunk = connection.recv(65536)
            assert chunk, answer
            answer += chunk
    assert answer.startswith(b"HTTP/1.1 408 ")
