"""`POST /v1/fine_tuning/jobs` with YAML: our own body, and a LLaMA-Factory job over registered files."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from starlette.testclient import TestClient

from luthier.installation import Installation
from luthier.tables import Job

_URL = "/v1/fine_tuning/jobs"
_SECRET = "hf_SECRETSECRETSECRETSECRET"
_TAGS = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
_FOREIGN = """\
model_name_or_path: tiny
stage: sft
finetuning_type: lora
dataset: chats,more
template: chatml
cutoff_len: 64
overwrite_cache: true
learning_rate: 1.0e-4
"""


def post(client: TestClient, body: str | bytes, kind: str = "application/yaml") -> Any:
    """Send a body as YAML."""
    data = body.encode() if isinstance(body, str) else body
    return client.post(_URL, content=data, headers={"Content-Type": kind})


def error_of(client: TestClient, body: str | bytes) -> dict[str, Any]:
    """The error that a body of YAML is answered with; nothing of the text is in it."""
    response = post(client, body)
    assert response.status_code == 400, response.text
    assert len(response.content) < 64 * 1024
    assert _SECRET not in response.text
    return dict(response.json()["error"])


@pytest.fixture
def datasets(client: TestClient, upload: Callable[..., Any]) -> dict[str, str]:
    """Ids of two files, by the names that they are registered under."""
    ids = {name: str(upload().json()["id"]) for name in ("chats", "more")}
    for name, file_id in ids.items():
        entry = {"formatting": "sharegpt", "columns": {"messages": "messages"}, "tags": _TAGS}
        answer = client.post(f"/v1/files/{file_id}/register", json={"name": name, "entry": entry})
        assert answer.status_code == 200, answer.text
    return ids


@pytest.mark.parametrize("kind", ["application/yaml", "application/x-yaml; charset=utf-8", "text/yaml"])
def test_our_own_body_may_be_yaml(client: TestClient, file_id: str, kind: str) -> None:
    text = f"model: tiny\ntraining_file: {file_id}\nqlora: {{r: 4, learning_rate: 1e-4}}  # small\n"
    answer = post(client, text, kind)
    assert answer.status_code == 200, answer.text
    assert (answer.json()["qlora"]["r"], answer.json()["qlora"]["learning_rate"]) == (4, 1e-4)


def test_a_llamafactory_yaml_is_a_job_over_registered_files(
    client: TestClient, datasets: dict[str, str]
) -> None:
    answer = post(client, _FOREIGN)
    assert answer.status_code == 200, answer.text
    job = answer.json()
    assert job["training_file"] == datasets["chats"]
    assert [file["id"] for file in job["dataset"]["files"]] == list(datasets.values())
    assert (job["dataset"]["style"], job["dataset"]["template"]) == ("llamafactory", "chatml")
    assert (job["qlora"]["method"], job["qlora"]["r"], job["seed"]) == ("lora", 8, 42)
    events = client.get(f"{_URL}/{job['id']}/events").json()["data"]
    assert any(event["message"].startswith("overwrite_cache is without effect") for event in events)


def test_a_llamafactory_job_may_be_json(client: TestClient, datasets: dict[str, str]) -> None:
    body = {"model_name_or_path": "tiny", "dataset": "chats", "cutoff_len": 64, "eval_dataset": "more"}
    job = client.post(_URL, json=body).json()
    assert (job["training_file"], job["validation_file"]) == (datasets["chats"], datasets["more"])


def test_a_name_that_no_file_has_is_told_with_the_nearest(
    client: TestClient, datasets: dict[str, str]
) -> None:
    error = error_of(client, _FOREIGN.replace("chats,more", "chat"))
    assert (error["code"], error["param"]) == ("invalid_training_file", "dataset")
    assert "'chat'" in error["message"]
    assert "Did you mean 'chats'?" in error["message"]


def test_names_of_another_project_are_unknown(stranger: TestClient, datasets: dict[str, str]) -> None:
    error = error_of(stranger, _FOREIGN)
    assert "No file is registered as the dataset 'chats'" in error["message"]
    assert "Did you mean" not in error["message"]


def test_all_that_stops_a_llamafactory_job_is_told_at_once(client: TestClient) -> None:
    text = f"{_FOREIGN}use_galore: true\nlora_rnk: 4\nreport_to: wandb\nhf_hub_token: {_SECRET}\n"
    error = error_of(client, text)
    assert error["code"] == "unknown_parameter"
    assert {detail["loc"] for detail in error["details"]} == {
        "use_galore",
        "lora_rnk",
        "report_to",
        "hf_hub_token",
    }


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("model: [\n", "invalid_json", "line 2, column 1"),
        ("model: a\nmodel: b\n", "invalid_json", "line 2, column 1: the name 'model' stands there twice"),
        ("model: &m [*m]\n", "invalid_json", "names nothing that stands before it"),
        ("qlora: {dropout: .nan}\n", "invalid_json", "line 1, column 18: the number is not finite"),
        ("model: !!python/name:os.system\n", "invalid_json", "is not taken"),
        ("- model\n", "invalid_json", "must be a JSON object"),
        ("", "invalid_json", "is empty"),
        ("model: tiny\0\n", "invalid_json", "not valid YAML"),
        (b"model: \xff\n", "invalid_json", "is not UTF-8"),
        ('model: "\\ud800"\n', "invalid_json", "not valid YAML"),
        (f"model: tiny\nhf_token: {_SECRET}\n", "missing_required_parameter", "training_file"),
        (f"stage: {_SECRET}\nmodel: {_SECRET}\n", "invalid_value", "mixes two forms"),
        ("a: " + "[" * 100_000, "invalid_json", "nested deeper than 64 levels"),
    ],
)
def test_yaml_that_is_no_job_is_refused_with_its_place(
    client: TestClient, text: str | bytes, code: str, words: str
) -> None:
    error = error_of(client, text)
    assert error["code"] == code
    assert words in error["message"]


def test_aliases_that_would_fill_the_memory_are_refused(client: TestClient) -> None:
    levels = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
    assert "more than 100000 values" in error_of(client, f"a0: &a0 [x]\n{levels}")["message"]


def test_the_limit_of_a_body_holds_for_yaml(client: TestClient, installation: Installation) -> None:
    text = "model: tiny\n#" + "x" * installation.settings.max_body_bytes
    assert post(client, text).status_code == 413
    with installation.database.reading() as session:
        assert session.query(Job).count() == 0


def test_only_a_job_may_be_yaml(client: TestClient, file_id: str) -> None:
    headers = {"Content-Type": "application/yaml"}
    answer = client.post(f"/v1/files/{file_id}/register", content=b"name: x\n", headers=headers)
    assert answer.status_code == 415
    assert "yaml" not in json.dumps(answer.json()["error"])
