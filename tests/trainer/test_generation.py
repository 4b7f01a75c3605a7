"""Sample answers: of the model as it is, to held-out prompts, without a trace in the training."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

SAMPLES = {"count": 2, "max_new_tokens": 8}


def test_answers_come_before_at_evaluations_and_at_the_end(make_run):
    run = make_run(samples=SAMPLES, validation_split=0.25, max_steps=5, eval_steps=2)

    run.train()

    told = [(event.step, event.index) for event in run.events("sample_generated")]
    assert told == [(step, index) for step in (0, 2, 4, 5) for index in (0, 1)]


def test_of_many_evaluations_some_even_ones_have_answers(make_run):
    run = make_run(samples=SAMPLES | {"count": 1}, validation_split=0.25, max_steps=11, eval_steps=1)

    run.train()

    assert [event.step for event in run.events("sample_generated")] == [0, 3, 6, 9, 11]
    assert len(run.events("eval_logged")) == 12


def test_a_prompt_is_the_row_up_to_its_answer(make_run, make_rows):
    run = make_run(samples=SAMPLES, validation=make_rows(3, first=80), max_steps=1)

    run.train()

    sample = run.events("sample_generated")[0]
    assert sample.prompt.endswith("instrument 80?<|im_end|>\n<|im_start|>assistant\n")
    assert sample.reference == "Instrument 80 has 2 strings."


def test_without_a_validation_split_training_rows_are_taken_and_it_is_said(make_run):
    run = make_run(samples=SAMPLES, max_steps=1)

    run.train()

    assert "samples_from_training" in run.warnings()
    assert "instrument 0?" in run.events("sample_generated")[0].prompt


def test_samples_change_nothing(make_run, same):
    settings = {"dropout": 0.1, "max_steps": 5, "eval_steps": 2}
    without, with_samples = make_run(**settings), make_run(samples=SAMPLES, **settings)

    without.train()
    with_samples.train()

    assert same(with_samples.losses, without.losses)


def test_answers_before_training_are_the_base_models(make_run, make_rows, tiny):
    """Padding on the left changes nothing: stock transformers, one prompt at a time, says the same."""
    settings = {"precision": "fp32", "quantization": "none", "method": "lora", "device": "cpu"}
    run = make_run(samples=SAMPLES, validation=make_rows(4, first=80), max_steps=1, **settings)
    run.train()
    base, tokenizer = AutoModelForCausalLM.from_pretrained(tiny), AutoTokenizer.from_pretrained(tiny)

    for sample in run.events("sample_generated")[:2]:
        prompt = tokenizer(sample.prompt, return_tensors="pt", add_special_tokens=False)
        output = base.generate(**prompt, max_new_tokens=8, do_sample=False)
        text = tokenizer.decode(output[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
        assert sample.text == text.strip()


def test_the_result_shows_answers_before_and_after(make_run):
    run = make_run(samples=SAMPLES, validation_split=0.25, max_steps=30, learning_rate=2e-2)

    proof = run.train().result["proof"]

    assert proof["has_effect"]
    assert proof["b_norm"] > 0
    assert proof["weight_change_norm"] > 0
    assert proof["eval_loss_after"] < proof["eval_loss_before"]
    assert [sample["before"] != sample["after"] for sample in proof["samples"]] == [True, True]


def test_memory_that_runs_out_in_an_answer_does_not_end_the_run(make_run, monkeypatch):
    def fail(*_args, **_kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("trainer.generation.Generator.answers", fail)
    run = make_run(samples=SAMPLES, validation_split=0.25)

    assert run.train().outcome == "done"
    assert "samples_out_of_memory" in run.warnings()


@pytest.mark.parametrize("packing", [True, False])
def test_how_a_step_is_cut_does_not_change_its_loss(make_run, packing):
    settings = {"quantization": "none", "precision": "fp32", "max_steps": 2, "packing": packing}
    runs = [
        make_run(batch_size=size, gradient_accumulation=count, **settings) for size, count in [(8, 1), (2, 4)]
    ]

    for run in runs:
        run.train()

    assert runs[1].losses == pytest.approx(runs[0].losses, abs=1e-5)
