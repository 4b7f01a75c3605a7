"""The client's commands against a real server: a file goes in, a job runs, and its results come home."""

import asyncio
import csv
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from luthier.cli import app
from luthier.cli.child_server import running_server
from luthier.cli.demo import job_body
from luthier.cli.snippets import as_curl, as_python
from luthier.client import AsyncClient, Client
from luthier.client import files as client_files
from luthier.client import uploads as client_uploads
from luthier.devices import Device
from luthier.keys import new_key
from tests.receivers import Receiver
from tests.waiting import wait_for

Luthier = Callable[..., Any]
KEY = new_key().text


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, model_dir: Path) -> Iterator[str]:
    """The address of a server for all tests of this file.

    It has the tiny model, and one that is damaged: its tokenizer has no token for unknown words.
    """
    folder = tmp_path_factory.mktemp("server")
    for name in ("tiny", "damaged"):
        shutil.copytree(model_dir / "tiny", folder / "models" / name)
    words = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "[UNK]"}
    (folder / "models" / "damaged" / "tokenizer.json").write_text(
        json.dumps({"version": "1.0", "added_tokens": [], "model": words})
    )
    settings = {
        "LUTHIER_BOOTSTRAP_KEY": KEY,
        "LUTHIER_MODEL_DIR": str(folder / "models"),
        "LUTHIER_WEBHOOK_ALLOW_PRIVATE": "127.0.0.0/8",
    }
    with running_server(folder / "data", settings, folder / "log") as url:
        yield url
    assert KEY not in (folder / "log").read_text(encoding="utf-8")


@pytest.fixture
def call(luthier: Luthier, server: str, monkeypatch: pytest.MonkeyPatch) -> Luthier:
    """`luthier` for a user of that server; what fails is an error of the test."""
    monkeypatch.setenv("LUTHIER_URL", server)
    monkeypatch.setenv("LUTHIER_API_KEY", KEY)

    def run(*arguments: object) -> Any:
        result = luthier(*arguments)
        assert result.exit_code == 0, result.output
        return result.stdout

    return run


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "rows.jsonl", "Tuning fork")


def write_rows(path: Path, answer: str) -> Path:
    """Twelve chats."""
    pairs = [(f"What is number {n}?", f"{answer} {n}.") for n in range(12)]
    rows = [
        {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": told}]}
        for asked, told in pairs
    ]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def test_a_file_goes_there_and_back_and_away(
    call: Luthier, luthier: Luthier, rows: Path, tmp_path: Path
) -> None:
    file_id = call("files", "upload", rows).strip()
    assert re.search(rf"{file_id} +rows\.jsonl +1\.\d KiB +fine-tune +processed", call("files", "list"))
    assert json.loads(call("files", "get", file_id))["bytes"] == rows.stat().st_size
    call("files", "content", file_id, "-o", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == rows.read_bytes()
    call("files", "delete", file_id)
    gone = luthier("files", "get", file_id)
    assert gone.exit_code == 1
    assert re.search(
        r"error: No such File object: .*\(field id; code file_not_found; request \S+\)", gone.output
    )


def test_a_large_file_goes_in_parts(
    call: Luthier, server: str, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_files, "LARGE_BYTES", 1000)
    monkeypatch.setattr(client_uploads, "PART_BYTES", 500)
    file_id = call("files", "upload", rows).strip()
    call("files", "content", file_id, "-o", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == rows.read_bytes()
    with Client(server, KEY) as client:
        told = [line for line in client.audit_logs.list() if line.type == "upload.created"]
        assert len(told) == 1


def test_a_bad_file_is_refused_with_its_line(call: Luthier, luthier: Luthier, rows: Path) -> None:
    with rows.open("a") as file:
        file.write("{broken\n")
    result = luthier("files", "upload", rows)
    assert result.exit_code == 1
    assert "13" in result.output


@pytest.fixture(scope="module")
def watched(server: str, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What `jobs create --watch` printed of a small job, line by line; the first is its id."""
    folder = tmp_path_factory.mktemp("job")
    write_rows(folder / "rows.jsonl", "Tuning fork")
    (folder / "job.yaml").write_text(
        "model: tiny\ntraining_file: rows.jsonl\nseed: 1\nhyperparameters: {batch_size: 4}\n"
        "qlora: {r: 4, max_seq_length: 64, eval_steps: 2, logging_steps: 1}\n"
        "dataset: {validation_split: 0.3}\n"
    )
    asked = ["jobs", "create", "-f", str(folder / "job.yaml"), "--set", "qlora.max_steps=4", "--watch"]
    done = subprocess.run(
        [sys.executable, "-P", "-m", "luthier.cli", *asked],
        env=os.environ | {"LUTHIER_URL": server, "LUTHIER_API_KEY": KEY, "XDG_CONFIG_HOME": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_job_is_submitted_watched_and_brought_home(
    call: Luthier, watched: list[str], tmp_path: Path
) -> None:
    created, job_id = watched, watched[0]
    assert any(re.fullmatch(r"step 4/4  loss \d+\.\d+  .*tokens/s.*", line) for line in created)
    assert any(re.fullmatch(r"step \d/4  validation loss \d+\.\d+", line) for line in created)
    assert re.search(rf"{job_id} +succeeded +4/4", call("jobs", "list"))
    assert json.loads(call("jobs", "get", job_id))["qlora"]["max_steps"] == 4
    assert "The job has successfully completed" in call("jobs", "events", job_id)
    assert re.search(r"^4 +\d", call("jobs", "metrics", job_id), re.MULTILINE)
    assert "ckpt-step-4" in call("jobs", "checkpoints", job_id)
    assert re.search(r"^step \d: \d+ answers in", call("jobs", "logs", job_id), re.MULTILINE)

    call("jobs", "download", job_id, "-o", tmp_path / "home")
    listed = [line.split() for line in call("jobs", "artifacts", job_id).splitlines()[1:]]
    assert {name for name, *_ in listed} >= {"adapter/adapter_model.safetensors", "metrics.csv"}
    for name, *_, sha256 in listed:
        assert hashlib.sha256((tmp_path / "home" / name).read_bytes()).hexdigest() == sha256
    call("jobs", "download", job_id, "--tar", "-o", tmp_path / "all.tar")
    assert (tmp_path / "all.tar").stat().st_size > sum(int(size) for _, _, size, _ in listed)


def test_a_job_is_paused_moved_and_tried_again(call: Luthier, luthier: Luthier, rows: Path) -> None:
    asked = ("--model", "tiny", "--training-file", rows, "--set", "name=patient", "--set", "priority=3")
    job_id = call("jobs", "create", *asked).strip()
    # A job that waits is paused at once, one that runs after its step.
    call("jobs", "pause", job_id)
    paused = wait_for(lambda: _in_status(call, job_id, "paused"))
    assert (paused["name"], paused["priority"], paused["queue"]) == ("patient", 3, None)
    call("jobs", "prioritise", job_id, 5)
    call("jobs", "move", job_id, "front")
    assert json.loads(call("jobs", "get", job_id))["priority"] == 5
    assert luthier("jobs", "retry", job_id).exit_code == 1
    luthier("jobs", "cancel", job_id)
    again_id = call("jobs", "retry", job_id, "--from", "start").strip()
    again = json.loads(call("jobs", "get", again_id))
    assert (again["parent_job_id"], again["name"], again["priority"]) == (job_id, "patient", 5)
    call("jobs", "pause", again_id)
    wait_for(lambda: _in_status(call, again_id, "paused"))
    call("jobs", "resume", again_id)
    assert json.loads(call("jobs", "get", again_id))["status"] in ("queued", "running", "succeeded")
    luthier("jobs", "cancel", again_id)


def _in_status(call: Luthier, job_id: str, status: str) -> dict[str, Any] | None:
    """The job, where it has a status."""
    job: dict[str, Any] = json.loads(call("jobs", "get", job_id))
    return job if job["status"] == status else None


@pytest.mark.parametrize("runner", ["python", *(["curl"] if shutil.which("curl") else [])])
def test_what_the_demo_shows_can_be_run(call: Luthier, server: str, rows: Path, runner: str) -> None:
    body = job_body("", Device("cpu", "CPU"), None) | {"model": "tiny"}
    if runner == "python":
        command = [sys.executable, "-c", as_python(server, rows, body)]
    else:
        command = ["bash", "-c", as_curl(server, rows, body)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = re.search("ftjob-[A-Za-z0-9]+", done.stdout)
    assert found is not None
    assert json.loads(call("jobs", "get", found[0]))["qlora"]["r"] == body["qlora"]["r"]
    call("jobs", "cancel", found[0])


def test_a_waiting_job_is_cancelled_and_watching_it_says_so(
    call: Luthier, luthier: Luthier, rows: Path
) -> None:
    job_id = call("jobs", "create", "--model", "tiny", "--training-file", rows).strip()
    call("jobs", "cancel", job_id)
    for name in ("watch", "follow"):
        watched = luthier("jobs", name, job_id)
        assert (watched.exit_code, "the job was cancelled" in watched.output) == (5, True)


def test_what_a_job_did_is_shown_again(call: Luthier, watched: list[str]) -> None:
    job_id = watched[0]
    assert any(line.startswith("step 4/4  loss") for line in call("jobs", "watch", job_id).splitlines())
    followed = call("jobs", "events", job_id, "-f", "--limit", 100).splitlines()
    assert "Created fine-tuning job" in followed[0]
    assert "successfully completed" in followed[-1]
    assert call("jobs", "logs", job_id, "-f") == call("jobs", "logs", job_id)
    last = call("jobs", "logs", job_id).splitlines(True)[-1]
    assert (
        call("jobs", "logs", job_id, "--tail", 1) == call("jobs", "logs", job_id, "-f", "--tail", 1) == last
    )


def test_numbers_of_a_job_are_drawn_and_put_out(call: Luthier, luthier: Luthier, watched: list[str]) -> None:
    job_id = watched[0]
    drawn = call("jobs", "metrics", job_id, "--plot").splitlines()
    assert re.fullmatch(r"train_loss, last \d+\.\d+; ● eval_loss, last \d+\.\d+", drawn[0])
    assert sum("┤" in line for line in drawn) > 10
    assert any("●" in line for line in drawn[1:])
    table = list(csv.DictReader(call("jobs", "metrics", job_id, "-o", "csv").splitlines()))
    assert [row["step"] for row in table] == ["0", "1", "2", "3", "4"]
    assert (table[0]["train_loss"], float(table[1]["train_loss"]) > 0) == ("", True)
    only = call("jobs", "metrics", job_id, "--key", "grad_norm", "--from-step", 3).splitlines()
    assert (only[0].split(), len(only)) == (["STEP", "GRAD_NORM"], 3)
    unknown = luthier("jobs", "metrics", job_id, "--key", "los")
    assert (unknown.exit_code, "'los'. Supported: train_loss" in unknown.output) == (1, True)


def test_lists_are_put_out_for_programs(call: Luthier, watched: list[str]) -> None:
    job_id = watched[0]
    assert job_id in call("jobs", "list", "--status", "succeeded", "--all", "-o", "id").splitlines()
    lines = [json.loads(line) for line in call("jobs", "list", "--limit", 2, "-o", "jsonl").splitlines()]
    assert 0 < len(lines) <= 2
    assert lines[0]["object"] == "fine_tuning.job"
    found = csv.DictReader(call("jobs", "list", "--all", "-o", "csv").splitlines())
    assert {row["id"]: row["step"] for row in found}[job_id] == "4/4"
    steps = call("jobs", "checkpoints", job_id, "-o", "csv").splitlines()
    assert steps[0] == "model,step,created"
    assert call("jobs", "get", job_id, "-o", "id") == f"{job_id}\n"
    assert re.search(r"^qlora\.r +4 *$", call("jobs", "get", job_id, "-o", "table"), re.MULTILINE)
    assert call("models", "list", "-o", "id").splitlines()[:2] == ["damaged", "tiny"]
    assert json.loads(call("models", "get", "tiny"))["owned_by"] == "luthier"
    assert (
        json.loads(call("workers", "list", "-o", "jsonl").splitlines()[0])["object"] == "fine_tuning.worker"
    )


def test_a_job_is_cloned_named_compared_and_found(
    call: Luthier, luthier: Luthier, watched: list[str]
) -> None:
    job_id = watched[0]
    copied = call("jobs", "clone", job_id, "--set", "qlora.r=8", "--name", "copy").strip()
    call("jobs", "cancel", copied)
    told = json.loads(call("jobs", "get", copied))
    assert (told["qlora"]["r"], told["qlora"]["max_steps"], told["seed"]) == (8, 4, 1)
    differing = {
        row["field"]: (row[job_id], row[copied])
        for row in map(json.loads, call("jobs", "diff", job_id, copied, "-o", "jsonl").splitlines())
    }
    assert differing["qlora.r"] == (4, 8)
    assert differing["result.status"] == ("succeeded", "cancelled")
    assert "qlora.max_steps" not in differing
    assert "qlora.max_steps" in call("jobs", "diff", job_id, copied, "--all")
    assert luthier("jobs", "diff", job_id, job_id).exit_code == 2

    call("jobs", "rename", copied, "copy-2")
    call("jobs", "annotate", copied, "team=search", "owner=me")
    assert call("jobs", "annotate", copied, "owner=") == "team=search\n"
    assert call("jobs", "list", "--metadata", "team=search", "-o", "id") == f"{copied}\n"
    assert call("jobs", "list", "--name", "opy-2", "-o", "id") == f"{copied}\n"
    assert luthier("jobs", "delete", copied).exit_code == 2


def test_the_asynchronous_client_has_all_of_it_too(server: str, watched: list[str], tmp_path: Path) -> None:
    job_id = watched[0]

    async def look() -> tuple[list[str], list[str], list[Path]]:
        async with AsyncClient(server, KEY) as client:
            jobs = [job.id async for job in client.jobs.list(limit=1)]
            told = [event.message async for event in client.jobs.stream(job_id)]
            artifacts = await client.jobs.artifacts(job_id)
            # Both at once, over one client.
            home = await asyncio.gather(
                *(client.jobs.download(job_id, each, tmp_path) for each in artifacts[:2])
            )
            return jobs, told, home

    jobs, told, home = asyncio.run(look())
    assert job_id in jobs
    assert "Created fine-tuning job" in told[0]
    assert all(path.is_file() for path in home)


def test_ctrl_c_ends_the_watching_and_not_the_job(call: Luthier, rows: Path) -> None:
    job_id = call("jobs", "create", "--model", "tiny", "--training-file", rows).strip()
    call("jobs", "pause", job_id)
    wait_for(lambda: _in_status(call, job_id, "paused"))
    command = [sys.executable, "-P", "-m", "luthier.cli", "jobs", "watch", job_id]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watching:
        assert watching.stdout is not None
        assert any(line == "paused\n" for line in watching.stdout)
        watching.send_signal(signal.SIGINT)
        _, told = watching.communicate(timeout=60)
    assert watching.returncode == 130
    assert f"Attach again with: luthier jobs watch {job_id}" in told
    assert json.loads(call("jobs", "get", job_id))["status"] == "paused"
    call("jobs", "cancel", job_id)


def test_following_a_job_that_broke_shows_the_end_of_its_log(
    call: Luthier, luthier: Luthier, rows: Path
) -> None:
    file_id = call("files", "upload", rows).strip()
    arguments = ("--model", "damaged", "--training-file", file_id)
    followed = luthier("jobs", "create", *arguments, "--follow")
    assert followed.exit_code == 1
    _, _, log = followed.output.partition("The end of the job's log:\n")
    assert "Missing [UNK] token" in log
    assert followed.output.rstrip().endswith("(server_error)")


def test_a_wrong_setting_is_told_by_the_server(call: Luthier, luthier: Luthier, rows: Path) -> None:
    result = luthier("jobs", "create", "--model", "tiny", "--training-file", rows, "--set", "qlora.r=0")
    assert result.exit_code == 1
    assert "field qlora.r" in result.output
    settings = ("--set", "qlora.r=0", "--set", "qlora.rank=4")
    result = luthier("jobs", "create", "--model", "tiny", "--training-file", rows, *settings)
    assert "  Unknown parameter: 'qlora.rank'." in result.output


def test_a_file_is_sent_once_however_often_a_job_is_tried(
    call: Luthier, luthier: Luthier, rows: Path
) -> None:
    rows.write_text(rows.read_text().replace("Tuning fork", "Violin"))
    asked = ("--model", "tiny", "--training-file", rows)
    call("jobs", "estimate", *asked)
    luthier("jobs", "create", *asked, "--set", "qlora.r=0")
    job = json.loads(call("jobs", "create", *asked, "--json"))
    call("jobs", "cancel", job["id"])
    files = json.loads(call("files", "list", "--json"))["data"]
    assert [file["id"] for file in files if file["bytes"] == rows.stat().st_size] == [job["training_file"]]


def test_an_admin_makes_projects_keys_and_secrets_from_afar(
    call: Luthier, luthier: Luthier, monkeypatch: pytest.MonkeyPatch
) -> None:
    project_id = call("projects", "create", "--name", "afar", "--running-jobs", 2, "--remote").strip()
    call("projects", "limit", "afar", "--queued-jobs", 5, "--remote")
    rows = json.loads(call("projects", "list", "--remote", "-o", "json"))
    assert {row["id"]: row["quotas"] for row in rows}[project_id] == {"queued_jobs": 5}
    assert luthier("keys", "create", "--name", "ann", "--remote").exit_code == 2
    key = call("keys", "create", "--name", "ann", "--project", "afar", "--remote").strip()
    new = call("keys", "rotate", key[3:11], "--grace-hours", 0, "--remote").strip()
    assert re.search(rf"lk_{new[3:11]}_\.\.\. +ann +afar +read,write ", call("keys", "list", "--remote"))
    monkeypatch.setenv("LUTHIER_API_KEY", new)
    done = CliRunner().invoke(app, ["secrets", "set", "mine", "--remote"], input="hf_CanaryCanary\n")
    assert (done.exit_code, call("secrets", "list", "--remote", "-o", "id")) == (0, "mine\n")
    call("secrets", "delete", "mine", "--remote")
    monkeypatch.setenv("LUTHIER_API_KEY", KEY)
    call("keys", "revoke", new[3:11], "--remote")
    call("projects", "archive", "afar", "--yes", "--remote")


def test_models_of_the_server_are_listed(call: Luthier) -> None:
    assert re.search(r"^tiny +luthier ", call("models", "list"), re.MULTILINE)


def test_a_wrong_key_is_refused_and_never_shown(
    call: Luthier, luthier: Luthier, monkeypatch: pytest.MonkeyPatch
) -> None:
    stranger = new_key().text
    monkeypatch.setenv("LUTHIER_API_KEY", stranger)
    result = luthier("jobs", "list")
    assert result.exit_code == 4
    assert "invalid_api_key" in result.output
    assert stranger not in result.output


def test_a_llamafactory_file_becomes_a_job_with_its_datasets_registered(
    call: Luthier, luthier: Luthier, tmp_path: Path
) -> None:
    turns = [[{"who": "customer", "text": f"Say {n}."}, {"who": "agent", "text": f"{n}."}] for n in range(8)]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "pairs.json").write_text(json.dumps([{"conversations": turn} for turn in turns]))
    tags = {"role_tag": "who", "content_tag": "text", "user_tag": "customer", "assistant_tag": "agent"}
    index = {"pairs": {"file_name": "pairs.json", "formatting": "sharegpt", "tags": tags}}
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps(index))
    path = tmp_path / "lora.yaml"
    path.write_text(
        "model_name_or_path: tiny\ndataset: pairs\ncutoff_len: 64\nmax_steps: 1\nplot_loss: true\n"
    )

    first = json.loads(call("jobs", "create", "-f", path, "--json"))
    second = json.loads(call("jobs", "create", "-f", path, "--set", "lora_rank=4", "--json"))
    assert (first["dataset"]["style"], second["qlora"]["r"]) == ("llamafactory", 4)
    names = {
        file_id: json.loads(call("files", "get", file_id))["dataset_name"]
        for file_id in (first["training_file"], second["training_file"])
    }
    # The same content is sent once.
    assert names == {first["training_file"]: "pairs"}

    index["pairs"] = {"file_name": "pairs.json"}
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps(index))
    before = json.loads(call("files", "list", "--json"))
    assert luthier("jobs", "create", "-f", path).exit_code == 1
    assert json.loads(call("files", "list", "--json")) == before

    # Elsewhere there is no dataset_info.json: the server knows the name.
    path.rename(tmp_path / "data" / "alone.yaml")
    third = json.loads(call("jobs", "create", "-f", tmp_path / "data" / "alone.yaml", "--json"))
    assert third["training_file"] == second["training_file"]
    refused = luthier("jobs", "create", "-f", tmp_path / "data" / "alone.yaml", "--set", "use_galore=true")
    assert refused.exit_code == 1
    assert "'use_galore': GaLore is not there" in refused.output


def test_a_webhook_is_added_tried_told_of_a_job_and_deleted(
    call: Luthier, luthier: Luthier, rows: Path, receiver: Receiver
) -> None:
    made = json.loads(
        call("webhooks", "create", receiver.url, "--name", "ci", "--event", "created", "--json")
    )
    call("webhooks", "test", made["id"])
    assert receiver.messages[0].unwrap(made["signing_secret"]).type == "fine_tuning.job.succeeded"
    rotated = call("webhooks", "rotate", made["id"], "--keep-old").strip()
    job_id = call("jobs", "create", "--model", "tiny", "--training-file", rows).strip()
    wait_for(lambda: len(receiver.messages) == 2)
    told = receiver.messages[1].unwrap(rotated)
    assert (told.type, told.data.id) == ("fine_tuning.job.created", job_id)
    shown = wait_for(lambda: job_id in (log := call("webhooks", "deliveries", made["id"])) and log)
    assert re.search(r"created +ftjob-\w+ +1 +204 +\d+", shown)
    (row,) = json.loads(call("webhooks", "deliveries", made["id"], "--json"))["data"]
    call("webhooks", "redeliver", made["id"], row["id"])
    wait_for(lambda: receiver.ids[1:] == [row["event_id"]] * 2)
    receiver.status = 500
    assert luthier("webhooks", "test", made["id"]).exit_code == 1
    changed = json.loads(call("webhooks", "update", made["id"], "--status", "disabled", "--event", "failed"))
    assert (changed["status"], changed["event_types"]) == ("disabled", ["fine_tuning.job.failed"])
    assert re.search(rf"{made['id']} +ci +http://\S+ +failed +disabled \(asked\)", call("webhooks", "list"))
    assert json.loads(call("webhooks", "get", made["id"]))["name"] == "ci"
    call("webhooks", "delete", made["id"])
    assert luthier("webhooks", "get", made["id"]).exit_code == 1
    call("jobs", "cancel", job_id)


def test_a_model_and_then_its_job_are_deleted(call: Luthier, luthier: Luthier, watched: list[str]) -> None:
    job_id = watched[0]
    model = json.loads(call("jobs", "get", job_id))["fine_tuned_model"]
    call("models", "delete", model)
    assert model not in call("models", "list", "-o", "id").split()
    assert json.loads(call("jobs", "get", job_id))["status"] == "succeeded"
    call("jobs", "delete", job_id, "--yes")
    gone = luthier("jobs", "get", job_id)
    assert gone.exit_code == 1
    assert "code fine_tune_not_found" in gone.output
    assert job_id not in call("jobs", "list", "-o", "id")
