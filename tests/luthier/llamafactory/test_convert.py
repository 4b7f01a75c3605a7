"""A LLaMA-Factory job as a whole: its defaults, its combinations, and all that can stop it."""

from typing import Any

import pytest

from luthier.errors import LuthierError
from luthier.llamafactory import convert, is_llamafactory
from luthier.spec import JobRequest
from luthier.yaml_body import parse
from tests.luthier.llamafactory.jobs import QLORA, TUTORIAL

LEAST = {"model_name_or_path": "tiny", "dataset": "rows"}


def qlora(**given: Any) -> dict[str, Any]:
    """The settings that arguments become."""
    return dict(convert(LEAST | given).request["qlora"])


def problems(**given: Any) -> list[str]:
    """What stops a job with these arguments, a line each."""
    with pytest.raises(LuthierError) as caught:
        convert(LEAST | given)
    return [detail["message"] for detail in caught.value.details]


def test_what_is_silent_has_that_systems_defaults() -> None:
    request = JobRequest.model_validate(convert(LEAST).with_files(["file-1"]))
    settings, asked = request.qlora, request.asked
    assert (asked.n_epochs, asked.batch_size, settings.gradient_accumulation) == (3, 8, 1)
    assert (settings.learning_rate, settings.lr_scheduler, settings.warmup_ratio) == (5e-5, "linear", 0.0)
    assert (settings.method, settings.r, settings.alpha, settings.dropout) == ("lora", 8, 16.0, 0.0)
    assert (settings.optimizer, settings.weight_decay, settings.max_grad_norm) == ("adamw", 0.0, 1.0)
    assert (settings.target_modules, settings.precision, settings.packing) == ("all-linear", "auto", False)
    assert (settings.logging_steps, settings.save_steps, request.seed) == (500, 500, 42)
    assert (request.dataset.style, request.dataset.on_bad_row) == ("llamafactory", "refuse")
    assert not request.dataset.holds_out_rows


def test_the_tutorials_file_converts() -> None:
    job = convert(parse(TUTORIAL))
    request = JobRequest.model_validate(job.with_files(["file-1", "file-2"]))
    assert (job.datasets, job.dataset_dir) == (["alpaca_zh", "custom_data"], "data")
    assert job.output_dir == "saves/qwen2.5-1.5b/lora/sft"
    assert request.training_files == {"file-1": 1.0, "file-2": 1.0}
    assert (request.qlora.precision, request.qlora.max_seq_length) == ("fp16", 1024)
    assert (request.dataset.template, request.dataset.validation_split) == ("qwen", 0.1)
    assert (request.qlora.eval_steps, request.qlora.lr_scheduler) == (500, "cosine")
    noted = [note for note in job.notes if "without effect" in note]
    assert {note.split()[0] for note in noted} == {
        "overwrite_cache",
        "preprocessing_num_workers",
        "plot_loss",
        "overwrite_output_dir",
        "per_device_eval_batch_size",
    }


def test_the_example_for_4_bits_converts() -> None:
    job = convert(parse(QLORA))
    request = JobRequest.model_validate(job.with_files(["file-1", "file-2"]))
    settings = request.qlora
    assert (settings.method, settings.quantization, settings.double_quant) == ("qlora", "nf4", True)
    assert (settings.r, settings.alpha, settings.precision) == (8, 16.0, "bf16")
    assert (request.asked.batch_size, settings.gradient_accumulation) == (1, 8)
    assert (request.dataset.template, request.dataset.max_samples) == ("qwen3_nothink", 1000)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"quantization_bit": 4, "quantization_type": "fp4"}, {"method": "qlora", "quantization": "fp4"}),
        ({"quantization_bit": 4, "double_quantization": False}, {"double_quant": False}),
        ({"quantization_bit": 8, "quantization_method": "BNB"}, {"method": "qlora", "quantization": "int8"}),
        ({"finetuning_type": "full"}, {"method": "full"}),
        ({"finetuning_type": "freeze"}, {"method": "full", "trainable_layers": 2}),
        ({"finetuning_type": "freeze", "freeze_trainable_layers": 5}, {"trainable_layers": 5}),
        ({"lr_scheduler_type": "constant", "warmup_ratio": 0.1}, {"warmup_steps": 0}),
        ({"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 9}, {"warmup_steps": 9}),
        ({"warmup_steps": 0.1}, {"warmup_ratio": 0.1}),
        ({"warmup_steps": 9, "warmup_ratio": 0.1}, {"warmup_steps": 9}),
        ({"lr_scheduler_type": "cosine_with_restarts"}, {"lr_scheduler": "cosine", "lr_restarts": 0}),
        (
            {"lr_scheduler_type": "cosine_with_restarts", "lr_scheduler_kwargs": '{"num_cycles": 3}'},
            {"lr_scheduler": "cosine", "lr_restarts": 2},
        ),
        (
            {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rate": 0.1}},
            {"lr_scheduler": "cosine", "min_lr_ratio": 0.1},
        ),
        (
            {
                "lr_scheduler_type": "cosine_with_min_lr",
                "lr_scheduler_kwargs": {"min_lr": 1e-5},
                "learning_rate": 1e-4,
            },
            {"min_lr_ratio": pytest.approx(0.1)},
        ),
        ({"val_size": 0.1, "eval_strategy": "steps"}, {"eval_steps": 500}),
        ({"val_size": 0.1, "eval_strategy": "steps", "logging_steps": 5}, {"eval_steps": 5}),
        ({"val_size": 0.1, "evaluation_strategy": "epoch"}, {"eval_steps": "epoch"}),
        ({"val_size": 0.1, "early_stopping_steps": 3}, {"early_stopping": {"patience": 3}}),
        (
            {"val_size": 0.1, "eval_strategy": "steps", "load_best_model_at_end": True},
            {"early_stopping": {"patience": 1000}},
        ),
        ({"val_size": 0.1, "load_best_model_at_end": True}, {"early_stopping": None}),
        ({"val_size": 0.1, "eval_strategy": "steps", "eval_steps": 0, "logging_steps": 5}, {"eval_steps": 5}),
        ({"val_size": 0.1, "eval_strategy": "steps", "eval_steps": 0.2}, {"eval_steps": 0.2}),
        ({"save_steps": 0.1, "logging_steps": "0.05"}, {"save_steps": 0.1, "logging_steps": 0.05}),
        ({"num_train_epochs": 1.5}, {"epochs": 1.5}),
        ({"num_train_epochs": 2.0}, {"epochs": None}),
        ({"max_steps": 50, "num_train_epochs": 0.5}, {"max_steps": 50}),
        ({"save_strategy": False}, {"save_steps": 10_000_000}),
    ],
)
def test_arguments_that_belong_together(given: dict[str, Any], expected: dict[str, Any]) -> None:
    settings = qlora(**given)
    assert {name: settings.get(name) for name in expected} == expected


def test_a_dataset_for_validation_and_one_that_comes_twice() -> None:
    job = convert(LEAST | {"dataset": ["a", "b", "a"], "eval_dataset": "c", "load_best_model_at_end": True})
    request = JobRequest.model_validate(job.with_files(["file-a", "file-b", "file-a"], "file-c"))
    assert request.training_files == {"file-a": 2.0, "file-b": 1.0}
    assert (job.eval_datasets, request.validation_file) == (["c"], "file-c")
    assert any(note.startswith("load_best_model_at_end: ") for note in job.notes)


@pytest.mark.parametrize(
    ("given", "note"),
    [
        ({"save_total_limit": 0}, "save_total_limit: the last 3 checkpoints are kept"),
        ({"val_size": 0.1, "early_stopping_steps": 3}, "early_stopping_steps: needs an eval_strategy"),
    ],
)
def test_what_is_done_otherwise_than_meant_is_noted(given: dict[str, Any], note: str) -> None:
    assert any(line.startswith(note) for line in convert(LEAST | given).notes)


def test_the_only_dataset_may_come_twice() -> None:
    body = convert(LEAST | {"dataset": "a,a"}).with_files(["file-a", "file-a"])
    assert JobRequest.model_validate(body).training_files == {"file-a": 2.0}


def test_everything_that_stops_a_job_is_told_at_once() -> None:
    found = problems(
        use_galore=True,
        lora_rnk=8,
        report_to=["wandb"],
        finetuning_type="oft",
        save_steps=2.5,
        quantization_bit=3,
        learning_rate="fast",
        stage="dpo",
    )
    assert {line.split("'")[1] for line in found} == {
        "use_galore",
        "lora_rnk",
        "report_to",
        "finetuning_type",
        "save_steps",
        "quantization_bit",
        "learning_rate",
        "stage",
    }
    assert "'lora_rnk': is no argument of LLaMA-Factory; did you mean 'lora_rank'?" in found


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"dataset": None}, "'dataset': is required"),
        ({"model_name_or_path": None}, "'model_name_or_path': is required"),
        ({"lora_rank": 5000}, "'lora_rank': input should be less than or equal to 1024"),
        ({"num_train_epochs": 99}, "'num_train_epochs': input should be less than or equal to 50"),
        ({"lora_target": "model.q-proj"}, "'lora_target': string should match"),
        ({"bf16": True, "fp16": True}, "'fp16': excludes bf16"),
        ({"mask_history": True, "train_on_prompt": True}, "'mask_history': excludes train_on_prompt"),
        ({"val_size": 0.1, "eval_dataset": "b"}, "'val_size': excludes eval_dataset"),
        ({"eval_dataset": "b,c"}, "'eval_dataset': takes one name"),
        ({"eval_strategy": "steps"}, "'eval_strategy': needs rows to evaluate"),
        ({"early_stopping_steps": 3}, "'early_stopping_steps': needs rows to evaluate"),
        ({"eval_strategy": "epoch", "val_size": 1.5}, "'val_size': takes a share below 1"),
        ({"save_steps": 1.5}, "'save_steps': takes a whole number of steps, or below 1 a share"),
        ({"logging_steps": 0}, "'logging_steps': input should be greater than or equal to 1"),
        ({"num_train_epochs": -1.5}, "'num_train_epochs': input should be greater than 0"),
        ({"num_train_epochs": 60.5}, "'num_train_epochs': input should be less than or equal to 50"),
        ({"finetuning_type": "full", "quantization_bit": 4}, "'quantization_bit': finetuning_type full"),
        ({"finetuning_type": "full", "use_dora": True}, "'use_dora': is for finetuning_type lora"),
        ({"finetuning_type": "freeze", "freeze_trainable_layers": -2}, "'freeze_trainable_layers': takes 1"),
        ({"quantization_bit": 4, "pissa_init": True}, "'pissa_init': splits the weights"),
        ({"quantization_method": "hqq"}, "'quantization_method': takes bnb"),
        ({"lr_scheduler_type": "polynomial"}, "'lr_scheduler_type': takes linear, cosine"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "needs min_lr or min_lr_rate"),
        (
            {"lr_scheduler_type": "cosine_with_restarts", "lr_scheduler_kwargs": {"num_cycles": 1.5}},
            "num_cycles takes whole numbers from 1, not 1.5",
        ),
        (
            {"lr_scheduler_type": "cosine_with_restarts", "lr_scheduler_kwargs": {"num_cycles": 0}},
            "num_cycles takes whole numbers from 1, not 0",
        ),
        ({"lr_scheduler_kwargs": {"power": 2}}, "'lr_scheduler_kwargs': 'power' is not understood"),
        ({"adapter_name_or_path": "saves/lora"}, "'adapter_name_or_path': takes the name of one model"),
        ({"resume_from_checkpoint": "saves/lora"}, "'resume_from_checkpoint': a server resumes"),
        ({"do_predict": True}, "'do_predict': predictions are not a part"),
        ({"deepspeed": "ds.json"}, "'deepspeed': a run has one GPU"),
    ],
)
def test_what_stops_a_job_has_its_reason(given: dict[str, Any], message: str) -> None:
    assert any(message in line for line in problems(**given))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_samples", 10**400),
        ("learning_rate", "9" * 400),
        ("warmup_ratio", float("nan")),
        ("lr_scheduler_kwargs", {"num_cycles": float("inf")}),
        ("lr_scheduler_kwargs", {"num_cycles": 10**400}),
    ],
)
def test_numbers_without_a_size_are_refused_by_name(name: str, value: object) -> None:
    [problem] = problems(**{"lr_scheduler_type": "cosine_with_restarts", name: value})
    assert problem.startswith(f"'{name}': expected ")
    assert len(problem) < 120


def test_no_text_of_a_job_is_repeated() -> None:
    secret = "hf_SECRETSECRETSECRET"
    found = problems(
        hf_hub_token=secret, bf16=secret, learning_rate=secret, optim=secret, output_dir=[secret]
    )
    assert len(found) == 5
    assert secret not in " ".join(found)


def test_thousands_of_unknown_names_make_a_short_answer() -> None:
    with pytest.raises(LuthierError) as caught:
        convert(LEAST | {f"name_{n}": n for n in range(5000)})
    assert len(caught.value.message) < 16_000


@pytest.mark.parametrize(
    ("value", "thoughts"),
    [(True, None), ("true", None), (False, "remove"), ("false", "remove"), (None, "give")],
)
def test_what_becomes_of_thoughts_has_three_ways(value: object, thoughts: str | None) -> None:
    request = convert(LEAST | {"template": "qwen3", "enable_thinking": value}).request
    assert request["dataset"].get("thoughts") == thoughts


@pytest.mark.parametrize("given", [{}, {"template": None}])
def test_without_a_template_the_models_own_is_taken_apart(given: dict[str, Any]) -> None:
    request = JobRequest.model_validate(convert(LEAST | given).with_files(["file-1"]))
    assert (request.dataset.template, request.dataset.style) == (None, "llamafactory")


def test_the_form_of_a_job_is_seen_and_mixtures_are_refused() -> None:
    assert is_llamafactory({"model_name_or_path": "tiny"})
    assert is_llamafactory({"stage": "sft"})
    assert not is_llamafactory({"model": "tiny", "training_file": "file-1", "seed": 1})
    with pytest.raises(LuthierError, match=r"'stage' of LLaMA-Factory and 'model', 'qlora' of Luthier"):
        is_llamafactory({"stage": "sft", "model": "tiny", "qlora": {}})
