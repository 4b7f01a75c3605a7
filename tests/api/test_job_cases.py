"""The catalogue of bad jobs and calls is whole: each case has its answer here, or a test elsewhere.

A case is refused with 4xx and a code, at once, in a small body that repeats nothing of what was sent.
"""

import ast
import json
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from luthier.installation import Installation
from luthier.tables import Job

_URL = "/v1/fine_tuning/jobs"
_SECRET = "hf_SECRETSECRETSECRETSECRET"
_TESTS = Path(__file__).parents[1]
CASE_COUNT = 60

# What is put into a body that is right otherwise, and which code and field it is refused with.
BODIES: dict[str, tuple[dict[str, Any], str, str | None]] = {
    "J4 epochs 1e30": (
        {"hyperparameters": {"n_epochs": 10**18}},
        "invalid_value",
        "hyperparameters.n_epochs",
    ),
    "J4 epochs true": ({"hyperparameters": {"n_epochs": True}}, "invalid_type", "hyperparameters.n_epochs"),
    "J5 epochs twice": (
        {"qlora": {"epochs": 1}, "hyperparameters": {"n_epochs": 2}},
        "invalid_value",
        None,
    ),
    "J6 rank -8": ({"qlora": {"r": -8}}, "invalid_value", "qlora.r"),
    "J7 alpha 0": ({"qlora": {"alpha": 0}}, "invalid_value", "qlora.alpha"),
    "J7 dropout -0.1": ({"qlora": {"dropout": -0.1}}, "invalid_value", "qlora.dropout"),
    "J8 no modules": ({"qlora": {"target_modules": []}}, "invalid_value", "qlora.target_modules"),
    "J8 a regex": ({"qlora": {"target_modules": ["(a+)+$"]}}, "invalid_value", "qlora.target_modules.0"),
    "J8 10,000 modules": (
        {"qlora": {"target_modules": ["q_proj"] * 10_000}},
        "invalid_value",
        "qlora.target_modules",
    ),
    "J9 batch 0": ({"hyperparameters": {"batch_size": 0}}, "invalid_value", "hyperparameters.batch_size"),
    "J9 accumulation 1e9": (
        {"qlora": {"gradient_accumulation": 10**9}},
        "invalid_value",
        "qlora.gradient_accumulation",
    ),
    "J10 length 0": ({"qlora": {"max_seq_length": 0}}, "invalid_value", "qlora.max_seq_length"),
    "J11 warmup 1.5": ({"qlora": {"warmup_ratio": 1.5}}, "invalid_value", "qlora.warmup_ratio"),
    "J12 a seed in words": ({"seed": "x"}, "invalid_type", "seed"),
    "J15 an optimizer": ({"qlora": {"optimizer": "AdamW"}}, "invalid_value", "qlora.optimizer"),
    "J16 4 bits of all weights": (
        {"qlora": {"method": "full", "quantization": "nf4"}},
        "invalid_value",
        "qlora",
    ),
    "J18 gpus -1": ({"resources": {"gpus": -1}}, "invalid_value", "resources.gpus"),
    "J20 save_steps 0": ({"qlora": {"save_steps": 0}}, "invalid_value", "qlora.save_steps"),
    "J23 a file's place": ({"model": "~/m"}, "invalid_model", "model"),
    "J27 a revision": ({"revision": "../x"}, "unknown_parameter", "revision"),
    "J35 split 1": ({"dataset": {"validation_split": 1}}, "invalid_value", "dataset.validation_split"),
    "J35 split 1.5": ({"dataset": {"validation_split": 1.5}}, "invalid_value", "dataset.validation_split"),
    "J36 a name of dots": ({"name": "../x"}, "invalid_value", "name"),
    "J36 no name": ({"name": ""}, "invalid_value", "name"),
    "J36 a long name": ({"name": "x" * 5000}, "invalid_value", "name"),
    "J36 an emoji": ({"name": "\N{GRINNING FACE}"}, "invalid_value", "name"),
    "J37 args": ({"args": ["--x"]}, "unknown_parameter", "args"),
    "J38 env": ({"env": {"LD_PRELOAD": "/x.so"}}, "unknown_parameter", "env"),
    "J39 a token": ({"qlora": {"hf_token": _SECRET}}, "unknown_parameter", "qlora.hf_token"),
    "J41 an address to call": (
        {"webhook_url": "http://169.254.169.254/"},
        "unknown_parameter",
        "webhook_url",
    ),
    "J42 10,000 keys": ({"metadata": {str(n): "" for n in range(10_000)}}, "invalid_value", "metadata"),
    "J42 a long value": ({"metadata": {"k": "x" * 500_000}}, "invalid_value", "metadata.k"),
    "J43 resume_from": ({"resume_from": "ftckpt-1"}, "unknown_parameter", "resume_from"),
    "J44 priority 1e9": ({"priority": 10**9}, "invalid_value", "priority"),
    "J60 a comma": ({"qlora": {"learning_rate": "1,5e-4"}}, "invalid_type", "qlora.learning_rate"),
    "J60 percent": ({"qlora": {"warmup_ratio": "10%"}}, "invalid_type", "qlora.warmup_ratio"),
}

# Calls: method, path, headers; and their status and code.
CALLS: dict[str, tuple[str, str, dict[str, str], int, str]] = {
    "J45 an empty key": ("POST", _URL, {"Idempotency-Key": ""}, 400, "invalid_value"),
    "J45 a long key": ("POST", _URL, {"Idempotency-Key": "x" * 256}, 400, "invalid_value"),
    "J45 a control character": ("POST", _URL, {"Idempotency-Key": "a\tb"}, 400, "invalid_value"),
    "J49 a long id": ("GET", f"{_URL}/{'x' * 10_000}", {}, 404, "fine_tune_not_found"),
    "J49 dots": ("GET", f"{_URL}/%2e%2e%2f", {}, 404, "not_found"),
    "J50 limit 1e9 behind nothing": ("GET", f"{_URL}?limit=1000000000&after=x", {}, 400, "invalid_value"),
    "J51 tail -1": ("GET", f"{_URL}/x/logs?tail=-1", {}, 400, "invalid_value"),
    "J51 offset -1": ("GET", f"{_URL}/x/logs?stream=true&offset=-1", {}, 400, "invalid_value"),
    "J52 a way out": ("GET", f"{_URL}/x/artifacts/..%2f..%2fetc/passwd", {}, 404, "fine_tune_not_found"),
    "J52 NUL": ("GET", f"{_URL}/x/artifacts/%00", {}, 400, "invalid_value"),
    "J53 a key in the query": (
        "GET",
        f"{_URL}?api_key={_SECRET}",
        {"Authorization": ""},
        401,
        "invalid_api_key",
    ),
    "J56 TRACE": ("TRACE", _URL, {}, 405, "method_not_allowed"),
    "J56 an override": ("GET", f"{_URL}/x", {"X-HTTP-Method-Override": "DELETE"}, 404, "fine_tune_not_found"),
    "J57 10,000 parameters": ("GET", f"{_URL}?" + "a=1&" * 10_000 + "limit=0", {}, 400, "invalid_value"),
}

# Those that have a test of their own: its file and its name.
ELSEWHERE = {
    "J1": ("api/test_bad_jobs.py", "test_a_bad_body_is_told_apart"),
    "J2": ("api/test_bad_jobs.py", "test_a_bad_field_is_named"),
    "J3": ("api/test_bad_jobs.py", "test_a_bad_field_is_named"),
    "J13": ("api/test_bad_jobs.py", "test_a_bad_field_is_named"),
    "J14": ("api/test_bad_jobs.py", "test_a_bad_body_is_told_apart"),
    "J21": ("api/test_bad_jobs.py", "test_a_bad_body_is_told_apart"),
    "J22": ("api/test_bad_jobs.py", "test_a_bad_body_is_told_apart"),
    "J24": ("api/test_bad_jobs.py", "test_a_model_name_is_no_path_and_no_address"),
    "J17": (
        "luthier/test_capacity.py",
        "test_a_job_that_no_known_device_has_memory_for_fails_with_what_to_change",
    ),
    "J25": ("luthier/test_models.py", "test_a_job_on_a_dangerous_folder_is_refused_at_once"),
    "J26": ("luthier/test_fetcher.py", "test_a_model_that_the_hub_does_not_show_is_named"),
    "J28": (
        "luthier/test_fetcher.py",
        "test_a_config_that_names_code_ends_the_pull_before_anything_else_is_taken",
    ),
    "J29": ("luthier/test_models.py", "test_weights_whose_header_does_not_fit_their_bytes_are_refused"),
    "J30": ("luthier/datasets/test_rendering.py", "test_templates_run_in_a_sandbox"),
    "J31": ("luthier/test_models.py", "test_a_model_that_training_cannot_use_is_refused"),
    "J32": (
        "luthier/datasets/test_rendering.py",
        "test_a_model_without_template_takes_prompts_with_completions_only",
    ),
    "J33": ("api/test_bad_jobs.py", "test_a_file_of_another_project_is_not_there"),
    "J40": ("api/test_secrets.py", "test_a_job_that_names_a_secret_which_its_project_lacks_is_refused"),
    "J46": ("api/test_control.py", "test_of_fifty_at_once_with_one_key_one_makes_a_job"),
    "J47": ("api/test_control.py", "test_too_many_jobs_are_refused_for_a_while"),
    "J48": ("api/test_jobs.py", "test_a_queued_job_is_cancelled_at_once_and_again_without_effect"),
    "J54": ("api/test_access.py", "test_files_and_jobs_of_another_project_are_not_there"),
    "J55": ("api/test_access.py", "test_metrics_are_open_to_this_machine_by_its_own_name_only"),
    "J59": ("luthier/test_capacity.py", "test_what_no_known_worker_could_run_is_refused_by_its_field"),
}
# What the API has no such setting for, or what another part of the service has to answer.
NOT_ASKED = {
    "J19": "there is no time limit of a job",
    "J34": "there is one method, and one form of rows for it",
    "J58": "there are no exports yet",
}


def _refusals(client: TestClient, requests: dict[str, Any]) -> dict[str, tuple[int, str]]:
    """Status and code of each answer; what holds for all of them is looked at on the way."""
    found = {}
    for case, request in requests.items():
        response = client.request(**request)
        assert len(response.content) < 64 * 1024, case
        assert _SECRET not in response.text, case
        assert "xxxxxxxxxx" * 10 not in response.text, case
        found[case] = (response.status_code, response.json()["error"]["code"])
    return found


def test_a_body_that_is_wrong_is_refused_by_its_field(
    client: TestClient, file_id: str, installation: Installation
) -> None:
    found = {}
    for case, (change, _, _) in BODIES.items():
        response = client.post(_URL, json={"model": "tiny", "training_file": file_id} | change)
        error = response.json()["error"]
        assert (response.status_code, len(response.content) < 64 * 1024) == (400, True), case
        assert _SECRET not in response.text, case
        assert "xxxxxxxxxx" * 10 not in response.text, case
        found[case] = (error["code"], error["param"])
    assert found == {case: (code, param) for case, (_, code, param) in BODIES.items()}
    with installation.database.reading() as session:
        assert session.query(Job).count() == 0


def test_a_call_that_is_wrong_is_refused(client: TestClient, file_id: str) -> None:
    body = json.dumps({"model": "tiny", "training_file": file_id}).encode()
    requests = {}
    for case, (method, url, headers, _, _) in CALLS.items():
        more = {"Content-Type": "application/json"} if method == "POST" else {}
        content = body if method == "POST" else None
        requests[case] = {"method": method, "url": url, "headers": headers | more, "content": content}
    assert _refusals(client, requests) == {
        case: (status, code) for case, (_, _, _, status, code) in CALLS.items()
    }


@pytest.mark.parametrize("case", ELSEWHERE)
def test_a_case_that_is_tested_elsewhere_has_that_test(case: str) -> None:
    name, test = ELSEWHERE[case]
    tree = ast.parse((_TESTS / name).read_text(encoding="utf-8"))
    assert test in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_every_case_has_an_answer() -> None:
    told = (*BODIES, *CALLS, *ELSEWHERE, *NOT_ASKED)
    numbers = {int(case.split()[0].removeprefix("J")) for case in told}
    assert sorted({*range(1, CASE_COUNT + 1)} - numbers) == []
