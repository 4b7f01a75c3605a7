"""LLaMA-Factory jobs through `luthier train`, on the tiny model: the tutorial's file and its flags."""

import hashlib
import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.luthier.llamafactory.jobs import TUTORIAL, TUTORIAL_FLAGS

PAIRS = [{"instruction": "翻译成英文", "input": f"第{n}课", "output": f"Lesson {n}."} for n in range(12)]
# The tiny model in the place of the tutorial's, and no half precision, which a CPU does not train in.
CHANGES = ("model_name_or_path=tiny", "fp16=false", "template=chatml")


@pytest.fixture
def folder(tmp_path: Path, data_dir: Path, model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as the tutorial's user has it, and the working folder."""
    monkeypatch.setenv("LUTHIER_MODEL_DIR", str(model_dir))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    index = {
        "alpaca_zh": {"file_name": "alpaca_zh.json"},
        "custom_data": {"file_name": "custom_data.json", "formatting": "alpaca"},
    }
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps(index))
    for name in index:
        text = json.dumps(PAIRS, ensure_ascii=False)
        (tmp_path / "data" / f"{name}.json").write_text(text, encoding="utf-8")
    (tmp_path / "lora_qwen_sft.yaml").write_text(TUTORIAL, encoding="utf-8")
    return tmp_path


@pytest.mark.full
def test_the_tutorials_file_trains_and_the_run_can_be_repeated(
    luthier: Callable[..., Any], folder: Path
) -> None:
    result = luthier("train", "lora_qwen_sft.yaml", *CHANGES, "--threads", 1)
    assert result.exit_code == 0, result.output
    assert "note: plot_loss is without effect" in result.output
    run = folder / "saves" / "qwen2.5-1.5b" / "lora" / "sft"
    manifest = json.loads((run / "artifacts" / "run.json").read_text())
    assert (run / "artifacts" / "adapter" / "adapter_config.json").is_file()
    assert [file["filename"] for file in manifest["data"]["files"]] == ["alpaca_zh.json", "custom_data.json"]

    (folder / "data").rename(folder / "elsewhere")
    saved = run / "artifacts" / "run.json"
    again = luthier("train", "--from-manifest", saved, "--data", folder / "elsewhere", "-o", folder / "again")
    assert again.exit_code == 0, again.output
    repeated = json.loads((folder / "again" / "artifacts" / "run.json").read_text())
    assert repeated["hyperparameters"] == manifest["hyperparameters"]
    assert repeated["results"]["train_loss_last"] == manifest["results"]["train_loss_last"]


@pytest.mark.full
def test_the_tutorials_flags_train(luthier: Callable[..., Any], folder: Path) -> None:
    result = luthier("train", *shlex.split(TUTORIAL_FLAGS), *CHANGES, "max_steps=2", "--threads", 1)
    assert result.exit_code == 0, result.output
    config = json.loads((folder / "output" / "artifacts" / "adapter" / "adapter_config.json").read_text())
    assert set(config["target_modules"]) == {"q_proj", "v_proj"}
    assert (config["r"], config["lora_alpha"]) == (8, 16)


def test_a_dry_run_shows_the_job_and_notes_and_leaves_nothing(
    luthier: Callable[..., Any], folder: Path
) -> None:
    before = set(folder.iterdir())
    result = luthier("train", "lora_qwen_sft.yaml", *CHANGES, "lora_rank=16", "--seed", "7", "--dry-run")
    assert result.exit_code == 0, result.output
    described = json.loads(result.stdout)
    assert described["job"]["qlora"]["r"] == 16
    assert described["job"]["seed"] == 7
    assert any(note.startswith("overwrite_cache is without effect") for note in described["notes"])
    assert described["output"] == "saves/qwen2.5-1.5b/lora/sft"
    assert set(folder.iterdir()) == before


def test_a_json_file_is_a_job_too(luthier: Callable[..., Any], folder: Path) -> None:
    body = {"model_name_or_path": "tiny", "dataset": "custom_data", "eval_dataset": "alpaca_zh"}
    (folder / "job.json").write_text(json.dumps(body))
    result = luthier("train", "job.json", "--dry-run")
    job = json.loads(result.stdout)["job"]
    assert job["training_file"] == str(folder / "data" / "custom_data.json")
    assert job["validation_file"] == str(folder / "data" / "alpaca_zh.json")


def test_a_dry_run_tells_what_the_job_would_cost(luthier: Callable[..., Any], folder: Path) -> None:
    result = luthier("train", "lora_qwen_sft.yaml", *CHANGES, "--dry-run")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["job"]["model"] == "tiny"
    lines = dict(re.findall(r"^([a-z ]+?)  +(\S.*?) *$", result.stderr, re.MULTILINE))
    assert (lines["rows"], lines["counted"]) == ("24", "exactly")
    assert {"steps", "memory", "time", "disk"} <= lines.keys()


def test_a_dry_run_of_a_job_that_would_fail_ends_with_1(luthier: Callable[..., Any], folder: Path) -> None:
    rows = [{"instruction": "a", "input": "", "output": "b"}, {"instruction": 7, "output": None}]
    (folder / "data" / "custom_data.json").write_text(json.dumps(rows))
    result = luthier("train", "lora_qwen_sft.yaml", *CHANGES, "--dry-run")
    assert result.exit_code == 1
    assert re.search(r"^problem: custom_data\.json: .*\(dataset\.files\)$", result.stderr, re.MULTILINE)


@pytest.mark.parametrize(
    ("words", "lines"),
    [
        (
            "lora_qwen_sft.yaml use_galore=true lora_rnk=4 --report_to wandb",
            ["'use_galore': GaLore is not there", "did you mean 'lora_rank'?", "'report_to': no exporter"],
        ),
        ("lora_qwen_sft.yaml dataset=alpaca_en", ["has no dataset 'alpaca_en'; did you mean 'alpaca_zh'?"]),
        ("lora_qwen_sft.yaml model=tiny", ["mixes two forms: 'model_name_or_path', 'stage'"]),
        ("nothing.yaml", ["there is no job file nothing.yaml"]),
        ("--learning_rate 1e-4", ["--learning_rate alone make no job"]),
        ("", ["give a job file"]),
    ],
)
def test_what_stops_a_job_is_told_line_by_line(
    luthier: Callable[..., Any], folder: Path, words: str, lines: list[str]
) -> None:
    result = luthier("train", *words.split())
    assert result.exit_code == 2
    for line in lines:
        assert line in result.output


def test_a_file_that_changed_since_a_run_is_told_with_both_hashes(
    luthier: Callable[..., Any], folder: Path, manifest: Path
) -> None:
    (folder / "rows.jsonl").write_text("changed")
    result = luthier("train", "--from-manifest", manifest, "--data", folder / "rows.jsonl")
    assert result.exit_code == 2
    assert "rows.jsonl has SHA-256 d67e2e94" in result.output
    assert f"trained on {'a' * 64}" in result.output


def test_a_manifest_without_its_files_asks_for_them(
    luthier: Callable[..., Any], folder: Path, manifest: Path
) -> None:
    result = luthier("train", "--from-manifest", manifest)
    assert result.exit_code == 2
    assert "rows.jsonl" in result.output
    assert "--data" in result.output


@pytest.fixture
def manifest(folder: Path) -> Path:
    """A manifest of a run that never was, on a file that is not here."""
    split = {"sha256": "b" * 64, "row_count": 1, "token_count": 9, "trained_token_count": 3}
    settings = {
        "method": "lora", "n_epochs": 1, "batch_size": 1, "gradient_accumulation": 1,
        "learning_rate_multiplier": 1.0, "learning_rate": 1e-4, "lr_scheduler": "linear", "warmup_steps": 0,
        "weight_decay": 0.0, "max_grad_norm": 1.0, "max_steps": 1, "eval_steps": 1, "save_steps": 1,
        "save_total_limit": 1, "logging_steps": 1, "r": 4, "alpha": 8.0, "dropout": 0.0,
        "target_modules": "all-linear", "use_rslora": False, "quantization": "none", "double_quant": True,
        "precision": "auto", "max_seq_length": 64, "gradient_checkpointing": "auto", "validation_split": 0.0,
        "seed": 1,
    }  # fmt: skip
    file = {"param": "training_file", "filename": "rows.jsonl", "sha256": "a" * 64}
    libraries = {"pydantic": "0.1", "no-such-library": "1.0"}
    body = {
        "job_id": "local", "run": 1, "finished_at": 1.0, "base_model": {"id": "tiny"},
        "data": {"files": [file], "train": [split]}, "seed": 1, "hyperparameters": settings,
        "engine": "transformers", "precision": "fp32", "seconds": {}, "results": {},
        "software": {
            "luthier_version": "0", "python_version": "3", "platform": "any", "libraries": libraries
        },
        "hardware": {
            "device": "cpu", "device_name": "any", "device_memory_bytes": 1, "cpu_count": 1, "memory_bytes": 1
        },
    }  # fmt: skip
    path = folder / "run.json"
    path.write_text(json.dumps(body))
    return path


def test_versions_that_differ_from_the_runs_are_told(
    luthier: Callable[..., Any], folder: Path, manifest: Path
) -> None:
    row = json.dumps({"prompt": "Q", "completion": "A"})
    (folder / "rows.jsonl").write_text(row)
    manifest.write_text(manifest.read_text().replace("a" * 64, hashlib.sha256(row.encode()).hexdigest()))
    result = luthier("train", "--from-manifest", manifest, "--data", folder, "--dry-run")
    assert result.exit_code == 0, result.output
    assert "pydantic was 0.1 in the run and is" in result.output
    assert "no-such-library was 1.0 in the run and is not installed now" in result.output
