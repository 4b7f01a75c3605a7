"""What a finished run leaves for its user."""

import csv
import errno
import json
import subprocess
import sys

import pytest

from luthier import artifacts
from luthier.errors import ExitCode, JobFailure

LOADS_WITH_STOCK_PEFT = """
import json, sys
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
base = AutoModelForCausalLM.from_pretrained(sys.argv[1])
model = PeftModel.from_pretrained(base, sys.argv[2])
tokenizer = AutoTokenizer.from_pretrained(sys.argv[2])
print(json.dumps({
    "largest_b": max(float(p.abs().max()) for n, p in model.named_parameters() if "lora_B" in n),
    "prompt": tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False),
}))
"""


def test_a_finished_run_leaves_the_files_it_promises(make_run):
    run = make_run(validation_split=0.25, eval_steps=2)
    run.train()

    artifacts.verify(run.artifacts)
    paths = [path for path in run.artifacts.rglob("*") if path.is_file()]
    files = {path.relative_to(run.artifacts).as_posix() for path in paths}

    assert files == {
        "MANIFEST.json",
        "README.md",
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
        "adapter/chat_template.jinja",
        "adapter/tokenizer.json",
        "adapter/tokenizer_config.json",
        "all_results.json",
        "eval_results.json",
        "metrics.csv",
        "run.json",
        "train_results.json",
        "trainer_log.jsonl",
        "trainer_state.json",
        "training_eval_loss.png",
        "training_loss.png",
    }


def test_what_cannot_be_published_leaves_no_half(make_run, monkeypatch):
    def no_room(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("trainer.report.draw_losses", no_room)
    run = make_run()

    with pytest.raises(JobFailure) as failure:
        run.train()

    assert failure.value.exit_code == ExitCode.DISK_FULL
    assert not list(run.folder.glob("artifacts*"))


def test_no_file_names_a_path_of_the_machine(make_run, tmp_path):
    run = make_run()
    run.train()

    texts = [path for path in run.artifacts.rglob("*") if path.suffix in {".json", ".jsonl", ".md", ".csv"}]

    assert not [path for path in texts if str(tmp_path.parent) in path.read_text(encoding="utf-8")]
    config = json.loads((run.artifacts / "adapter/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "tiny"


def test_the_card_loads_a_local_base_from_a_folder(make_run):
    run = make_run()
    run.train()

    card = (run.artifacts / "README.md").read_text()

    assert 'from_pretrained("path/to/' in card
    assert "luthier models list --local" in card


def test_the_metrics_have_openais_header_and_a_row_for_each_logged_step(make_run):
    run = make_run(validation_split=0.25, eval_steps=2, logging_steps=2)
    run.train()

    lines = (run.artifacts / "metrics.csv").read_text().splitlines()
    rows = list(csv.DictReader(lines))

    assert lines[0].startswith("step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy,")
    assert [row["step"] for row in rows] == ["0", "2", "4"]
    assert [row["train_loss"] == "" for row in rows] == [True, False, False]
    assert all(float(value) >= 0 for row in rows for value in row.values() if value)


def test_the_other_forms_tell_the_same_numbers(make_run):
    run = make_run(validation_split=0.25)
    ended = run.train()

    log = [json.loads(line) for line in (run.artifacts / "trainer_log.jsonl").read_text().splitlines()]
    results = json.loads((run.artifacts / "all_results.json").read_text())
    manifest = json.loads((run.artifacts / "run.json").read_text())

    assert [line["loss"] for line in log if "loss" in line] == run.losses
    assert results["eval_loss"] == log[-2]["eval_loss"] == ended.result["eval_loss_last"]
    assert manifest["results"] == ended.result
    assert manifest["data"]["train"][0]["sha256"] == run.spec.data.train[0].sha256
    assert manifest["hyperparameters"]["r"] == run.spec.hyperparameters.r


@pytest.mark.full
def test_the_adapter_loads_with_stock_peft_in_a_fresh_process(make_run, tiny):
    run = make_run()
    run.train()

    command = [sys.executable, "-c", LOADS_WITH_STOCK_PEFT, str(tiny), str(run.artifacts / "adapter")]
    output = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    loaded = json.loads(output.splitlines()[-1])

    assert loaded["largest_b"] > 0
    assert loaded["prompt"] == "<|im_start|>user\nHi<|im_end|>\n"
