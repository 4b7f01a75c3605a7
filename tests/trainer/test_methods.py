"""What each method trains, and what it leaves: adapters over a base, or a model of its own."""

import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from luthier import artifacts
from luthier.errors import ExitCode, JobFailure
from trainer.versions import known_warnings_silenced

FULL = {"method": "full", "quantization": "none", "learning_rate": 1e-3}
LORA = {"method": "lora", "quantization": "none", "precision": "fp32"}


def _changed(before, after):
    """Names of the tensors of two files that differ."""
    left, right = load_file(before), load_file(after)
    assert left.keys() == right.keys()
    return {name for name in left if not torch.equal(left[name], right[name])}


@torch.no_grad()
def _loss(model, rows):
    """Mean loss over the targets of rows, by transformers' own loss."""
    losses, counts = [], []
    for ids, mask in rows:
        labels = [token if is_target else -100 for token, is_target in zip(ids, mask, strict=True)]
        losses.append(model(torch.tensor([ids]), labels=torch.tensor([labels])).loss.item())
        counts.append(sum(mask[1:]))
    return sum(loss * count for loss, count in zip(losses, counts, strict=True)) / sum(counts)


def test_full_fine_tuning_leaves_a_model_that_stock_transformers_loads(make_run, make_rows, tiny):
    held_out = make_rows(4, first=100)
    run = make_run(validation=held_out, precision="fp32", **FULL)
    ended = run.train()

    model = AutoModelForCausalLM.from_pretrained(run.artifacts / "model")
    tokenizer = AutoTokenizer.from_pretrained(run.artifacts / "model")

    assert run.losses[-1] < run.losses[0] - 0.1
    assert _loss(model, held_out) == pytest.approx(ended.result["eval_loss_last"], abs=1e-5)
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(tiny).chat_template
    changed = _changed(tiny / "model.safetensors", run.artifacts / "model/model.safetensors")
    assert changed == load_file(tiny / "model.safetensors").keys()
    assert not (run.artifacts / "adapter").exists()


def test_a_fine_tuned_model_has_the_config_of_its_base(make_run, tiny, tmp_path):
    run = make_run(max_steps=1, gradient_checkpointing=True, **FULL)
    run.train()

    for name in ("config.json", "generation_config.json"):
        before, after = (
            json.loads((folder / name).read_text()) for folder in (tiny, run.artifacts / "model")
        )
        assert after == before
    texts = [path.read_text() for path in (run.artifacts / "model").iterdir() if path.suffix == ".json"]
    assert not [text for text in texts if str(tmp_path.parent) in text]


def test_full_fine_tuning_says_so_in_its_plan_and_its_card(make_run):
    run = make_run(max_steps=1, **FULL)
    run.train()

    plan = run.events("plan_chosen")[0]
    card = (run.artifacts / "README.md").read_text()

    assert plan.trainable_parameter_count == plan.parameter_count
    assert "all weights" in plan.summary
    assert "library_name: transformers" in card
    assert "LoRA" not in card


def test_only_the_last_layers_are_trained_where_that_is_asked(make_run, tiny):
    run = make_run(trainable_layers=1, precision="bf16", **FULL)
    run.train()

    changed = _changed(tiny / "model.safetensors", run.artifacts / "model/model.safetensors")
    kept = load_file(run.checkpoint(4) / "model/trained.safetensors")

    # The tiny model is stored in fp32, and what is frozen has been rounded to the precision of the run.
    layers = {name.split(".layers.")[1][0] for name in kept}
    assert layers == {"1"}
    assert {tensor.dtype for tensor in kept.values()} == {torch.float32}
    assert {name for name in changed if ".layers.1." in name} == kept.keys()
    assert run.losses[-1] < run.losses[0]


def test_more_layers_than_there_are_are_refused(make_run):
    with pytest.raises(JobFailure, match="set trainable_layers to 2 or less") as failure:
        make_run(trainable_layers=3, **FULL).train()

    assert failure.value.param == "qlora.trainable_layers"


def test_a_model_that_was_stored_in_16_bit_is_left_in_16_bit(make_run, tiny, tmp_path):
    AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.bfloat16).save_pretrained(tmp_path / "half")
    AutoTokenizer.from_pretrained(tiny).save_pretrained(tmp_path / "half")
    run = make_run(model=tmp_path / "half", max_steps=2, **FULL)
    run.train()

    config = json.loads((run.artifacts / "model/config.json").read_text())

    stored = load_file(run.artifacts / "model/model.safetensors").values()
    masters = load_file(run.checkpoint(2) / "model/trained.safetensors").values()
    assert {tensor.dtype for tensor in stored} == {torch.bfloat16}
    assert config["dtype"] == "bfloat16"
    assert {tensor.dtype for tensor in masters} == {torch.float32}


def test_a_model_that_full_fine_tuning_made_can_be_trained_again(make_run):
    first = make_run(**FULL, precision="fp32")
    first.train()
    second = make_run(model=first.artifacts / "model", **FULL, precision="fp32")

    second.train()

    assert second.losses[0] < first.losses[0] - 0.1


@pytest.mark.parametrize(
    "settings",
    [
        {**LORA, "use_rslora": True},
        {**LORA, "use_dora": True},
        {**LORA, "bias": "all"},
        {**LORA, "bias": "lora_only"},
        {**LORA, "init_lora_weights": "pissa"},
        {**LORA, "init_lora_weights": "pissa", "use_rslora": True, "alpha": 5.0},
    ],
    ids=lambda settings: "-".join(key for key in settings if key not in LORA),
)
def test_every_adapter_loads_in_stock_peft_over_the_original_base(make_run, make_rows, tiny, settings):
    """Its loss there, by transformers' own code, is the one that the run measured last."""
    held_out = make_rows(4, first=100)
    run = make_run(validation=held_out, **settings)
    ended = run.train()

    base = AutoModelForCausalLM.from_pretrained(tiny)
    with known_warnings_silenced():
        tuned = PeftModel.from_pretrained(base, run.artifacts / "adapter").eval()

    assert ended.result["eval_loss_last"] < ended.result["eval_loss_first"] - 0.05
    assert _loss(tuned, held_out) == pytest.approx(ended.result["eval_loss_last"], abs=2e-5)


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_biases_of_a_quantised_base_are_trained_in_fp32(make_run, quantization):
    run = make_run(bias="all", quantization=quantization, precision="bf16")
    run.train()

    tensors = load_file(run.artifacts / "adapter/adapter_model.safetensors")
    biases = [tensor for name, tensor in tensors.items() if name.endswith("bias")]

    assert len(biases) == 6
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert all(tensor.abs().max() > 0 for tensor in biases)


@pytest.mark.parametrize("quantization", ["nf4", "fp4"])
def test_dora_learns_on_a_quantised_base(make_run, quantization):
    run = make_run(use_dora=True, quantization=quantization)
    run.train()

    names = load_file(run.artifacts / "adapter/adapter_model.safetensors")

    assert run.losses[-1] < run.losses[0] - 0.1
    assert any("lora_magnitude_vector" in name for name in names)


def test_pissa_starts_as_the_base_and_with_its_principal_part(make_run, make_rows, tiny):
    """What B A leaves of W is what an exact decomposition leaves, but for the steps of the fast one."""
    plain, run = (make_run(**LORA, init_lora_weights=init, max_steps=1) for init in ("default", "pissa"))
    plain.train()
    run.train()

    saved = load_file(run.checkpoint(1) / "adapter/adapter_model.safetensors")
    name = "layers.1.self_attn.k_proj"
    a = saved[f"base_model.model.model.{name}.lora_A.weight"][8:]
    b = -saved[f"base_model.model.model.{name}.lora_B.weight"][:, 8:]
    weight = load_file(tiny / "model.safetensors")[f"model.{name}.weight"]

    left = torch.linalg.matrix_norm(weight - run.spec.hyperparameters.alpha / 8 * b @ a)
    assert left == pytest.approx(torch.linalg.svdvals(weight)[8:].norm().item(), rel=5e-3)
    assert run.losses[0] == pytest.approx(plain.losses[0], abs=1e-5)


@pytest.mark.parametrize(
    ("settings", "param"),
    [
        ({**LORA, "init_lora_weights": "pissa"}, "qlora.init_lora_weights"),
        ({"quantization": "int8"}, "qlora.use_dora"),
    ],
    ids=["pissa", "int8"],
)
def test_dora_is_refused_where_it_cannot_be(make_run, settings, param):
    with pytest.raises(JobFailure) as failure:
        make_run(use_dora=True, device="cpu", **settings).train()

    assert (failure.value.exit_code, failure.value.param) == (ExitCode.BAD_SPEC, param)


def test_training_goes_on_from_the_adapter_of_another_job(make_run):
    first = make_run(max_steps=6)
    first.train()
    second = make_run(adapter_from=first.artifacts / "adapter", max_steps=2)

    second.train()

    assert second.losses[0] < first.losses[0] - 0.1
    artifacts.verify(second.artifacts)


def test_a_resumed_run_does_not_start_from_that_adapter_again(make_run, same):
    first = make_run(max_steps=2)
    first.train()
    settings = {"adapter_from": first.artifacts / "adapter", "save_steps": 2}
    unbroken = make_run(**settings)
    unbroken.train()
    resumed = make_run(**settings, resume_from=unbroken.checkpoint(2))

    resumed.train()

    assert same(resumed.losses, unbroken.losses[2:])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"r": 4}, "r of the adapter is 8 and the job's is 4"),
        ({"alpha": 8.0}, "lora_alpha of the adapter is 16 and the job's is 8"),
        ({"target_modules": ["q_proj"]}, r"target_modules of the adapter is \['down_proj', .*\['q_proj'\]"),
        ({"use_dora": True}, "use_dora of the adapter is False and the job's is True"),
        ({"method": "full", "quantization": "none"}, "method 'full' cannot start from an adapter"),
    ],
    ids=["r", "alpha", "targets", "dora", "full"],
)
def test_an_adapter_of_other_settings_is_refused_with_both(make_run, settings, message):
    first = make_run(max_steps=1)
    first.train()

    with pytest.raises(JobFailure, match=message) as failure:
        make_run(adapter_from=first.artifacts / "adapter", **settings).train()

    assert (failure.value.exit_code, failure.value.param) == (ExitCode.BAD_SPEC, "model")


def test_a_broken_adapter_to_start_from_is_refused(make_run):
    first = make_run(max_steps=1)
    first.train()
    weights = first.artifacts / "adapter/adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])

    with pytest.raises(JobFailure, match="does not fit"):
        make_run(adapter_from=first.artifacts / "adapter").train()


def test_fp16_falls_back_to_fp32_on_a_cpu_and_says_so_once(make_run):
    run = make_run(precision="fp16", save_steps=1, max_steps=2, device="cpu")
    run.train()
    resumed = make_run(precision="fp16", max_steps=2, device="cpu", resume_from=run.checkpoint(1))
    resumed.train()

    warning = run.events("warning_raised")[0]
    assert resumed.warnings() == {}

    assert (warning.code, warning.data["used"]) == ("precision_unavailable", "fp32")
    assert run.events("plan_chosen")[0].precision == "fp32"
