"""The commands that look at data, on this machine and on a real server with real children."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
from safetensors.numpy import load_file

from luthier.cli.child_server import running_server
from luthier.keys import new_key

Luthier = Callable[..., Any]
KEY = new_key().text
_COLUMNS = "instruction=question,input=context,output=answer"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, model_dir: Path) -> Iterator[str]:
    """The address of a server with the tiny model, for all tests of this file."""
    folder = tmp_path_factory.mktemp("server")
    settings = {"LUTHIER_BOOTSTRAP_KEY": KEY, "LUTHIER_MODEL_DIR": str(model_dir)}
    with running_server(folder / "data", settings, folder / "log") as url:
        yield url


@pytest.fixture
def call(luthier: Luthier, server: str, model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Luthier:
    """`luthier` for a user of that server."""
    monkeypatch.setenv("LUTHIER_MODEL_DIR", str(model_dir))
    monkeypatch.setenv("LUTHIER_URL", server)
    monkeypatch.setenv("LUTHIER_API_KEY", KEY)
    return luthier


@pytest.fixture
def local(luthier: Luthier, model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Luthier:
    """`luthier` where there is no server."""
    monkeypatch.setenv("LUTHIER_MODEL_DIR", str(model_dir))
    return luthier


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Twelve chats."""
    turns = [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "A tuning fork."}]
    texts = [json.dumps({"messages": turns, "id": number}) for number in range(12)]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(text.replace("it?", f"it, {number}?") for number, text in enumerate(texts)))
    return path


@pytest.fixture
def qa(tmp_path: Path) -> Path:
    """Twelve questions with answers, in columns of their own."""
    pairs = [{"question": f"What is {number}?", "context": "", "answer": "A number."} for number in range(12)]
    path = tmp_path / "qa.jsonl"
    path.write_text("".join(f"{json.dumps(pair)}\n" for pair in pairs))
    return path


def test_check_tells_what_is_in_a_good_file(local: Luthier, rows: Path) -> None:
    result = local("files", "check", rows)
    assert (result.exit_code, "valid: 12 rows of chat" in result.output) == (0, True), result.output


def test_check_names_the_lines_of_a_bad_file(local: Luthier, rows: Path) -> None:
    with rows.open("a") as file:
        file.write("\n{broken\n")
    result = local("files", "check", rows)
    assert result.exit_code == 1
    assert re.search(r"^13 +json\.syntax +\w", result.output, re.MULTILINE), result.output


def test_check_shows_sizes_by_role(local: Luthier, rows: Path) -> None:
    output = local("files", "check", rows).output
    assert re.search(r"^turns +12 +2\.0", output, re.MULTILINE), output
    assert re.search(r"^characters, assistant +12 +14\.0 +14 +14 +14", output, re.MULTILINE), output


def test_check_tells_of_unknown_columns_once_and_what_to_do(local: Luthier, qa: Path) -> None:
    output = local("files", "check", qa).output
    assert len(re.findall("schema.unknown", output)) == 1
    assert re.search(r"^1, 2, 3, 4, 5 and 7 more +schema", output, re.MULTILINE), output
    assert "--columns instruction=...,output=..." in output


def test_check_against_a_validation_file_tells_of_rows_in_both(
    local: Luthier, rows: Path, tmp_path: Path
) -> None:
    held_out = tmp_path / "eval.jsonl"
    held_out.write_text(rows.read_text().splitlines()[2])
    report = json.loads(local("files", "check", rows, "--against", held_out, "--json").stdout)
    leaks = [warning for warning in report["warnings"] if warning["code"] == "split.leakage"]
    assert [(leak["count"], leak["lines"]) for leak in leaks] == [(1, [3])]


def test_check_for_a_model_counts_tokens(local: Luthier, rows: Path) -> None:
    result = local("files", "check", rows, "--model", "tiny", "--json")
    tokens = json.loads(result.stdout)["tokens"]
    assert (tokens["measured_row_count"], 0 < tokens["trained_token_count"] < tokens["token_count"]) == (
        12,
        True,
    )


def test_rows_that_are_in_the_validation_file_too_are_counted(
    local: Luthier, rows: Path, tmp_path: Path
) -> None:
    held_out = tmp_path / "held-out.jsonl"
    held_out.write_text("\n".join(rows.read_text().splitlines()[:2]))
    result = local("files", "check", rows, "--against", held_out, "--json")
    leaked = {each["code"]: each["count"] for each in json.loads(result.stdout)["warnings"]}
    assert leaked["split.leakage"] == 2


def test_check_with_columns_reads_other_keys(local: Luthier, qa: Path) -> None:
    assert local("files", "check", qa).exit_code == 1
    assert local("files", "check", qa, "--columns", _COLUMNS).exit_code == 0


@pytest.mark.parametrize("told", ["instruction", "instruction=", "=a", "colour=red"])
def test_columns_that_are_no_mapping_are_misuse(local: Luthier, qa: Path, told: str) -> None:
    assert local("files", "check", qa, "--columns", told).exit_code == 2


def test_preview_of_a_path_puts_trained_tokens_in_brackets(local: Luthier, rows: Path) -> None:
    result = local("files", "preview", rows, "--model", "tiny", "--rows", 1)
    assert "[A tuning fork." in result.stdout, result.output
    assert "[What is it" not in result.stdout


def test_prepare_of_a_path_writes_alpaca_rows(local: Luthier, qa: Path, tmp_path: Path) -> None:
    result = local("files", "prepare", qa, "--columns", _COLUMNS, "-o", tmp_path / "out.jsonl")
    assert (result.exit_code, result.stdout) == (0, f"{tmp_path / 'out.jsonl'}\n"), result.output
    assert "12 rows of instruction, input and output" in result.stderr
    first = json.loads((tmp_path / "out.jsonl").read_text().splitlines()[0])
    assert (first["instruction"], first["output"]) == ("What is 0?", "A number.")


def test_upload_tells_what_is_in_the_file(call: Luthier, rows: Path) -> None:
    result = call("files", "upload", rows)
    assert "12 rows of chat" in result.stderr


def test_raw_questions_become_a_training_file_on_the_server(call: Luthier, qa: Path, tmp_path: Path) -> None:
    uploaded = call("files", "upload", qa)
    assert "luthier files prepare" in uploaded.stderr
    made = call("files", "prepare", uploaded.stdout.strip(), "--columns", _COLUMNS, "-o", tmp_path / "back")
    assert (made.exit_code, "12 rows of alpaca" in made.stderr) == (0, True), made.output
    assert len((tmp_path / "back").read_text().splitlines()) == 12


def test_server_previews_and_measures(call: Luthier, rows: Path) -> None:
    file_id = call("files", "upload", rows).stdout.strip()
    shown = call("files", "preview", file_id, "--model", "tiny", "--rows", 2)
    assert (shown.exit_code, shown.stdout.count("[A tuning fork.")) == (0, 2), shown.output
    report = call("files", "validation", file_id, "--model", "tiny")
    assert re.search(r"^rows measured +12 *$", report.stdout, re.MULTILINE), report.output


def test_a_file_is_registered_by_its_entry(call: Luthier, qa: Path, tmp_path: Path) -> None:
    columns = {"prompt": "question", "query": "context", "response": "answer"}
    info = tmp_path / "dataset_info.json"
    info.write_text(json.dumps({"qa": {"file_name": "qa.jsonl", "columns": columns}}))
    file_id = call("files", "upload", qa).stdout.strip()
    registered = call("files", "register", file_id, "--name", "qa", "--entry", info)
    assert registered.stdout == f"{file_id} is qa\n", registered.output
    assert json.loads(call("files", "get", file_id).stdout)["status"] == "processed"
    assert call("files", "unregister", file_id).exit_code == 0


def test_an_estimate_submits_nothing(call: Luthier, rows: Path) -> None:
    file_id = call("files", "upload", rows).stdout.strip()
    arguments = ("--model", "tiny", "--training-file", file_id)
    told = call("jobs", "estimate", *arguments)
    assert re.search(r"^rows +12 *$", told.stdout, re.MULTILINE), told.output
    again = call("jobs", "create", *arguments, "--dry-run", "--json")
    assert json.loads(again.stdout)["examples"] == 12
    assert call("jobs", "list").stdout.count("ftjob-") == 0


@pytest.mark.full
def test_jobs_on_several_files_share_prepared_data(call: Luthier, rows: Path, qa: Path) -> None:
    first, second = (call("files", "upload", path).stdout.strip() for path in (rows, qa))
    made = call("files", "prepare", second, "--columns", _COLUMNS).stdout.strip()
    settings = ("--set", f'dataset.files=[{{"id": "{made}", "weight": 2.0}}]', "--set", "qlora.max_steps=1")
    settings += ("--set", "qlora.max_seq_length=64", "--set", "qlora.samples.count=0")
    for cached in ([], ["train-000", "train-001"]):
        job = call("jobs", "create", "--model", "tiny", "--training-file", first, *settings, "--follow")
        assert job.exit_code == 0, job.output
        events = json.loads(call("jobs", "events", job.stdout.split()[0], "--limit", 100, "--json").stdout)
        prepared = next(event for event in events["data"] if "Prepared" in event["message"])
        assert prepared["data"]["cached"] == cached


@pytest.mark.full
def test_a_job_of_a_server_is_repeated_from_its_manifest(call: Luthier, qa: Path, tmp_path: Path) -> None:
    settings = ("qlora.max_steps=3", "qlora.max_seq_length=64", "qlora.samples.count=0", "qlora.r=4")
    columns = '{"instruction": "question", "input": "context", "output": "answer"}'
    chosen = [f"--set={each}" for each in (*settings, f"dataset.columns={columns}", "dataset.train_on=last")]
    job = call("jobs", "create", "--model", "tiny", "--training-file", qa, *chosen, "--follow")
    assert job.exit_code == 0, job.output
    call("jobs", "download", job.stdout.split()[0], "-o", tmp_path / "job")
    told = json.loads((tmp_path / "job" / "run.json").read_text())
    assert [file["filename"] for file in told["data"]["files"]] == ["qa.jsonl"]

    again = ("--from-manifest", tmp_path / "job" / "run.json", "--data", qa, "-o", tmp_path / "again")
    repeated = call("train", *again, "--threads", 1)
    assert repeated.exit_code == 0, repeated.output
    result = json.loads((tmp_path / "again" / "artifacts" / "run.json").read_text())
    assert result["results"]["train_loss_last"] == told["results"]["train_loss_last"]
    assert result["data"]["rules"] == told["data"]["rules"]


@pytest.mark.full
def test_a_tuned_model_is_tuned_again_from_its_adapter(call: Luthier, rows: Path, tmp_path: Path) -> None:
    file_id = call("files", "upload", rows).stdout.strip()
    settings = (
        "--training-file",
        file_id,
        "--set",
        "qlora.max_seq_length=64",
        "--set",
        "qlora.samples.count=0",
    )
    first = call("jobs", "create", "--model", "tiny", *settings, "--set", "qlora.max_steps=3", "--follow")
    parent = json.loads(call("jobs", "get", first.stdout.split()[0]).stdout)
    again = (*settings, "--set", "qlora.max_steps=1", "--set", "qlora.learning_rate=1e-12")
    second = call("jobs", "create", "--model", parent["fine_tuned_model"], *again, "--follow")
    assert second.exit_code == 0, second.output
    adapters = []
    for job in (first, second):
        job_id = job.stdout.split()[0]
        call("jobs", "download", job_id, "--name", "adapter", "-o", tmp_path / job_id)
        adapters.append(load_file(tmp_path / job_id / "adapter" / "adapter_model.safetensors"))
    assert adapters[0].keys() == adapters[1].keys()
    for name, tensor in adapters[0].items():
        assert numpy.allclose(tensor, adapters[1][name], atol=1e-6), name
    assert any(tensor.any() for name, tensor in adapters[0].items() if "lora_B" in name)
