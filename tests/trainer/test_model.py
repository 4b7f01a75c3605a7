"""What a base model must be, and which adapters fit on it."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

from luthier.errors import ExitCode, JobFailure


def test_an_unknown_target_module_is_refused_with_the_valid_names(make_run):
    with pytest.raises(JobFailure) as failure:
        make_run(target_modules=["q_proj", "query"]).train()

    assert (failure.value.exit_code, failure.value.param) == (ExitCode.BAD_SPEC, "qlora.target_modules")
    assert "names query," in failure.value.message
    assert "down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj" in failure.value.message


def test_the_output_head_is_no_target_module(make_run):
    with pytest.raises(JobFailure, match="names lm_head"):
        make_run(target_modules=["lm_head"]).train()


def test_a_rank_beyond_the_smallest_side_is_refused(make_run):
    """k_proj and v_proj of the tiny model are 64 x 32."""
    with pytest.raises(JobFailure, match="set r to 32 or less") as failure:
        make_run(r=33).train()

    assert failure.value.param == "qlora.r"


def test_a_model_without_a_linear_layer_cannot_have_adapters(make_run, tiny, tmp_path):
    """GPT-2 multiplies by weights of a class of its own."""
    shutil.copytree(tiny, tmp_path / "gpt2")
    vocabulary = json.loads((tiny / "config.json").read_text())["vocab_size"]
    config = GPT2Config(vocab_size=vocabulary, n_embd=32, n_layer=1, n_head=2, n_positions=256)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")

    with pytest.raises(JobFailure, match="no linear layer") as failure:
        make_run(model=tmp_path / "gpt2", method="lora", quantization="none").train()

    assert (failure.value.exit_code, failure.value.param) == (ExitCode.BAD_SPEC, "qlora.method")


def test_only_the_named_modules_are_adapted(make_run):
    run = make_run(target_modules=["q_proj", "v_proj"], max_steps=1)

    run.train()

    names = load_file(run.artifacts / "adapter/adapter_model.safetensors")
    assert {name.split(".")[-3] for name in names} == {"q_proj", "v_proj"}


def test_a_missing_model_is_told_as_such(make_run, tmp_path):
    with pytest.raises(JobFailure) as failure:
        make_run(model=tmp_path / "nowhere").train()

    failed = (failure.value.exit_code, failure.value.code, failure.value.param)
    assert failed == (ExitCode.MISSING, "model_not_found", "model")


def test_a_model_without_safetensors_is_refused(make_run, tiny, tmp_path):
    folder = tmp_path / "pickled"
    shutil.copytree(tiny, folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()

    with pytest.raises(JobFailure) as failure:
        make_run(model=folder).train()

    assert (failure.value.exit_code, failure.value.code) == (ExitCode.MISSING, "model_load_failed")


def test_a_model_with_a_missing_weight_is_refused(make_run, tiny, tmp_path):
    folder = tmp_path / "partial"
    shutil.copytree(tiny, folder)
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.self_attn.v_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(JobFailure, match=r"lack model\.layers\.1\.self_attn\.v_proj"):
        make_run(model=folder).train()


def test_a_truncated_weight_file_is_refused(make_run, tiny, tmp_path):
    folder = tmp_path / "truncated"
    shutil.copytree(tiny, folder)
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])

    with pytest.raises(JobFailure) as failure:
        make_run(model=folder).train()

    assert failure.value.code == "model_load_failed"


@pytest.mark.parametrize(
    "key", ["auto_map", "_attn_implementation_internal", "attn_implementation", "quantization_config"]
)
def test_a_config_that_asks_for_more_than_weights_is_refused(make_run, tiny, tmp_path, edit_json, key):
    folder = tmp_path / "model"
    shutil.copytree(tiny, folder)
    edit_json(folder / "config.json", **{key: {"AutoModelForCausalLM": "someone/kernel"}})

    with pytest.raises(JobFailure, match="cannot be loaded") as failure:
        make_run(model=folder).train()

    assert failure.value.code == "model_load_failed"
