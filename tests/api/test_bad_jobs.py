"""A body that cannot become a job is answered with 4xx, the field, and what to change."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from luthier.installation import Installation
from luthier.tables import Job

_URL = "/v1/fine_tuning/jobs"
_SECRET = "hf_SECRETSECRETSECRETSECRET"


@pytest.fixture(autouse=True)
def _nothing_is_left(installation: Installation, client: TestClient) -> Iterator[None]:
    """No test here may make a job or leave a file, nor take a second for an answer."""
    before = set(Path(installation.settings.data).rglob("*"))
    yield
    after = {path for path in Path(installation.settings.data).rglob("*") if "files" not in path.parts}
    assert {path.name for path in after - before} <= {".tmp", "storage"}
    with installation.database.reading() as session:
        assert session.query(Job).count() == 0


def _error(client: TestClient, body: Any) -> dict[str, Any]:
    """The error for a body; the whole answer has the one shape."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    started = time.perf_counter()
    response = client.post(_URL, content=data, headers={"Content-Type": "application/json"})
    answer = response.json()
    assert 400 <= response.status_code < 500, answer
    assert response.headers["x-request-id"]
    assert response.headers["x-should-retry"] == "false"
    assert set(answer) == {"error", "type", "title", "status", "detail"}
    assert set(answer["error"]) == {"message", "type", "param", "code", "details"}
    assert (answer["status"], answer["detail"]) == (response.status_code, answer["error"]["message"])
    assert len(response.content) < 64 * 1024
    assert _SECRET not in response.text
    assert time.perf_counter() - started < 5, "an answer takes well under a second on an idle machine"
    return dict(answer["error"])


# Data comes by upload alone: an address, or a name on a hub, is no file, and nothing is fetched.
_REMOTE = {
    "D81-address": "http://169.254.169.254/latest/meta-data",
    "D81-file": "file:///etc/passwd",
    "D81-userinfo": "https://user:word@127.0.0.1:22/rows.jsonl",
    "D82": "https://rows.invalid/endless.jsonl",
    "D83": "tatsu-lab/alpaca",
}


@pytest.mark.parametrize(
    ("change", "code", "param", "words"),
    [
        ({"qlora": {"r": 0}}, "invalid_value", "qlora.r", "0. Expected a value of at least 1"),
        ({"qlora": {"r": 100_000}}, "invalid_value", "qlora.r", "at most 1024"),
        ({"qlora": {"r": 1024}}, "invalid_value", "qlora.r", "tiny"),
        ({"qlora": {"r": 7.5}}, "invalid_type", "qlora.r", "expected an integer, but got a decimal number"),
        ({"qlora": {"max_seq_length": 1_000_000}}, "invalid_value", "qlora.max_seq_length", "context"),
        ({"qlora": {"learning_rate": -1e-4}}, "invalid_value", "qlora.learning_rate", "greater than 0"),
        ({"qlora": {"learning_rate": 10}}, "invalid_value", "qlora.learning_rate", "at most 1"),
        ({"qlora": {"learning_rate": "1e-4"}}, "invalid_type", "qlora.learning_rate", "got a string"),
        ({"qlora": {"learning_rate": True}}, "invalid_type", "qlora.learning_rate", "got a boolean"),
        ({"qlora": {"dropout": 1.0}}, "invalid_value", "qlora.dropout", "less than 1"),
        ({"qlora": {"learing_rate": 1}}, "unknown_parameter", "qlora.learing_rate", "'qlora.learning_rate'"),
        ({"learning_rate": 1e-4}, "unknown_parameter", "learning_rate", "'qlora.learning_rate'"),
        ({"hf_token": _SECRET}, "unknown_parameter", "hf_token", "Unknown parameter"),
        ({"output_dir": "/etc"}, "unknown_parameter", "output_dir", "Unknown parameter"),
        ({"seed": _SECRET}, "invalid_type", "seed", "expected an integer"),
        ({"seed": -1}, "invalid_value", "seed", "at least 0"),
        ({"seed": 2**62}, "invalid_value", "seed", "at most"),
        ({"suffix": f"../{_SECRET}"}, "invalid_value", "suffix", "matches"),
        ({"metadata": {"k": 1}}, "invalid_type", "metadata.k", "expected a string"),
        ({"metadata": {str(n): "" for n in range(17)}}, "invalid_value", "metadata", "length of at most 16"),
        ({"method": {"type": "dpo"}}, "invalid_value", "method.type", "'supervised'"),
        ({"hyperparameters": {"n_epochs": 0}}, "invalid_value", "hyperparameters.n_epochs", "'auto' or a"),
        ({"hyperparameters": {"n_epochs": "3"}}, "invalid_type", "hyperparameters.n_epochs", "'auto' or an"),
        ({"hyperparameters": {"n_epochs": 3.0}}, "invalid_type", "hyperparameters.n_epochs", "an integer"),
        ({"qlora": {"target_modules": "q_proj"}}, "invalid_value", "qlora.target_modules", "or a list"),
        ({"qlora": {"lr_scheduler": "Cosine"}}, "invalid_value", "qlora.lr_scheduler", "'cosine'"),
        ({"qlora": {"warmup_ratio": 0.1, "warmup_steps": 3}}, "invalid_value", "qlora", "exclude each other"),
        ({"qlora": []}, "invalid_type", "qlora", "expected an object, but got a list"),
        ({"dataset": None}, "invalid_type", "dataset", "got null"),
        ({"training_file": None}, "invalid_type", "training_file", "expected a string"),
        *(
            pytest.param({"training_file": place}, "invalid_training_file", "training_file", place, id=case)
            for case, place in _REMOTE.items()
        ),
        ({"training_file": "file-unknown"}, "invalid_training_file", "training_file", "file-unknown"),
        ({"model": "gpt-9"}, "invalid_model", "model", "tiny"),
    ],
)  # fmt: skip
def test_a_bad_field_is_named(
    *, client: TestClient, file_id: str, change: dict[str, Any], code: str, param: str, words: str
) -> None:
    error = _error(client, {"model": "tiny", "training_file": file_id} | change)
    assert (error["code"], error["param"]) == (code, param)
    assert words in error["message"]


@pytest.mark.parametrize(
    "model",
    [
        "../../etc/passwd", "/etc/passwd", "~/m", ".", "C:\\m", "\\\\srv\\s", "file:///etc/passwd", "a/b/c",
        "http://169.254.169.254/latest", "s3://bucket/m", "org/n?x", "org/n#f", "org/n@main;id",
        "--upload-pack", "tiny\n", "tiny\u0430", "x" * 200,
    ],
)  # fmt: skip
def test_a_model_name_is_no_path_and_no_address(client: TestClient, file_id: str, model: str) -> None:
    error = _error(client, {"model": model, "training_file": file_id})
    assert (error["code"], error["param"]) == ("invalid_model", "model")


@pytest.mark.parametrize(
    ("body", "code", "param", "words"),
    [
        (b"", "invalid_json", None, "empty"),
        (b"{", "invalid_json", None, "line 1, column 2"),
        (b"[]", "invalid_json", None, "must be a JSON object"),
        (b"null", "invalid_json", None, "must be a JSON object"),
        (b'{"model": "a",}', "invalid_json", None, "line 1, column"),
        (b"\xef\xbb\xbf{}", "invalid_json", None, "byte order mark"),
        ('{"a": 1}'.encode("utf-16"), "invalid_json", None, "UTF-16"),
        ('{"a": 1}'.encode("utf-16-le"), "invalid_json", None, "UTF-16"),
        ('{"a": "é"}'.encode("latin-1"), "invalid_json", None, "byte 8 is 0xE9"),
        (b'{"qlora": {"learning_rate": NaN}}', "invalid_value", "qlora.learning_rate", "NaN"),
        (b'{"qlora": {"learning_rate": -Infinity}}', "invalid_value", "qlora.learning_rate", "finite"),
        (b'{"qlora": {"learning_rate": 1e999}}', "invalid_value", "qlora.learning_rate", "too large"),
        (b'{"x": [1, NaN]}', "invalid_value", "x.1", "NaN"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "invalid_value", "seed", "more than 19 digits"),
        (b'{"model": "a", "qlora": {"r": 1, "r": 2}}', "invalid_value", "qlora.r", "twice"),
        (b'{"model": "a\\u0000b"}', "invalid_value", "model", "NUL"),
        (b'{"model": "\\ud800"}', "invalid_value", "model", "surrogate"),
        (b'{"metadata": {"\\ud800": ""}}', "invalid_value", "metadata", "surrogate"),
        (b'{"a": ' + b"[" * 65 + b"]" * 65 + b"}", "invalid_json", None, "deeper than 64"),
        (b'{"a": ' + b"[" * 100_000, "invalid_json", None, "deeper than 64"),
        (b'{"a": "' + b'\\"' * 500_000, "invalid_json", None, "line 1"),
        (b"{}", "missing_required_parameter", "model", "(1 more in 'details'.)"),
        (b'{"model": "' + b"x" * 900_000 + b'"}', "invalid_value", "model", "at most 256"),
        (b'{"' + b"x" * 900_000 + b'": 1}', "missing_required_parameter", "model", "2 more"),
        (
            json.dumps({f"key{n}": n for n in range(50_000)}).encode(),
            "missing_required_parameter",
            "model",
            "",
        ),
        (b'{"a": "' + b"x" * (1 << 20) + b'"}', "body_too_large", None, "larger than 1048576 bytes"),
    ],
    ids=range(26),
)
def test_a_bad_body_is_told_apart(
    client: TestClient, body: bytes, code: str, param: str | None, words: str
) -> None:
    error = _error(client, body)
    assert (error["code"], error["param"]) == (code, param)
    assert words in error["message"]


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "application/json; charset=utf-16"},
        {"Content-Type": "application/json", "Content-Encoding": "gzip"},
        {},
    ],
)
def test_another_content_type_is_refused(client: TestClient, headers: dict[str, str]) -> None:
    response = client.post(_URL, content=b'{"model": "tiny"}', headers=headers)
    assert (response.status_code, response.json()["error"]["code"]) == (415, "unsupported_media_type")


def test_a_file_of_another_project_is_not_there(
    client: TestClient, stranger: TestClient, file_id: str
) -> None:
    error = _error(stranger, {"model": "tiny", "training_file": file_id})
    unknown = _error(stranger, {"model": "tiny", "training_file": "file-unknown"})
    assert error["code"] == unknown["code"] == "invalid_training_file"
    assert error["message"].replace(file_id, "X") == unknown["message"].replace("file-unknown", "X")


@pytest.mark.parametrize(
    ("path", "param"),
    [
        ("/v1/files?limit=0", "limit"),
        ("/v1/files?limit=x", "limit"),
        ("/v1/files?order=up", "order"),
        ("/v1/files?after=file-unknown", "after"),
        ("/v1/files?purpose=%00", None),
        (f"{_URL}?limit=-1", "limit"),
        (f"{_URL}?after=ftjob-unknown", "after"),
        (f"{_URL}?metadata[a%22b]=1", "metadata"),
    ],
)
def test_a_bad_query_is_400_and_names_its_parameter(client: TestClient, path: str, param: str | None) -> None:
    response = client.get(path)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/files/", 404, "not_found"),
        ("GET", f"{_URL}/", 404, "not_found"),
        ("GET", "/v1/nothing", 404, "not_found"),
        ("PUT", "/v1/files", 405, "method_not_allowed"),
        ("GET", f"{_URL}/ftjob-1' OR 1=1--", 404, "fine_tune_not_found"),
        ("GET", f"{_URL}/{'x' * 10_000}", 404, "fine_tune_not_found"),
        ("GET", f"{_URL}/%00", 400, "invalid_value"),
        ("GET", f"{_URL}/..%2f..%2fetc%2fpasswd", 404, "not_found"),
        ("GET", "/v1/files/file-unknown", 404, "file_not_found"),
        ("GET", "/v1/models/nothing", 404, "model_not_found"),
        ("GET", "/v1/models/..%2f..%2fetc", 404, "model_not_found"),
    ],
)
def test_what_is_not_there_has_the_same_body(
    client: TestClient, method: str, path: str, status: int, code: str
) -> None:
    response = client.request(method, path, follow_redirects=False)
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)


def test_a_wrong_method_hears_the_right_ones(client: TestClient) -> None:
    assert client.put("/v1/files").headers["allow"] == "GET, POST"
    assert client.patch("/v1/files/file-1").headers["allow"] == "DELETE, GET"
