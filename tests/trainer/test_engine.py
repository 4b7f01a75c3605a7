"""One step as an engine computes it: packed rows, the loss scale of fp16, a step that ran out of memory."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from luthier.spec import BaseModelRef, TrainSpec
from tests.trainer.conftest import make_settings
from trainer.data.batches import Batch
from trainer.engines import choose
from trainer.engines.trl import TrlEngine
from trainer.methods import make_trainable
from trainer.model import load_base, load_tokenizer, trainable
from trainer.placement import Placement
from trainer.schedules import build_scheduler

MakeEngine = Callable[..., TrlEngine]


@pytest.fixture
def make_engine(make_run, tmp_path: Path) -> MakeEngine:
    """`make_engine(**settings)`: an engine over the tiny model with LoRA in fp32."""

    def make(*, dtype: torch.dtype = torch.float32, **settings: object) -> TrlEngine:
        spec: TrainSpec = make_run(**{"method": "lora", "quantization": "none"} | settings).spec
        ref: BaseModelRef = spec.model
        device = "cuda" if torch.cuda.is_available() else "cpu"
        place = Placement(torch.device(device), dtype)
        torch.manual_seed(0)
        model = make_trainable(load_base(ref, spec.hyperparameters, place), spec, None)
        return TrlEngine(
            model, load_tokenizer(ref), spec.hyperparameters, place, tmp_path / "scratch", recompute=False
        )

    return make


def _packed(rows) -> Batch:
    """Rows one behind the other; the first token of a row is no target, it would follow another's last."""
    ids = [token for row, _ in rows for token in row]
    positions = [position for row, _ in rows for position in range(len(row))]
    labels = []
    for row, mask in rows:
        labels += [-100, *(t if m else -100 for t, m in zip(row[1:], mask[1:], strict=True))]
    named = {"input_ids": ids, "position_ids": positions, "labels": labels}
    return Batch(
        inputs={name: torch.tensor([values]) for name, values in named.items()},
        token_count=len(ids),
        target_count=sum(label != -100 for label in labels),
    )


def _alone(row) -> Batch:
    ids, mask = (torch.tensor([values]) for values in row)
    labels = ids.masked_fill(mask == 0, -100)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    return Batch(inputs, ids.numel(), int((labels[:, 1:] != -100).sum()))


def _change(engine: TrlEngine, batches) -> tuple[float, torch.Tensor]:
    """The loss of a step, and the gradient: what plain descent with rate 1 takes away."""
    parameters = trainable(engine.model).values()
    before = torch.cat([parameter.detach().flatten() for parameter in parameters])
    engine.optimizer = torch.optim.SGD(parameters, lr=1.0)
    engine.scheduler = build_scheduler(engine.optimizer, make_settings())
    result = engine.step(batches)
    return result.loss, before - torch.cat([parameter.detach().flatten() for parameter in parameters])


@pytest.mark.parametrize("recipe", [{}, {"method": "full"}], ids=["lora", "full"])
def test_packed_rows_do_not_see_each_other(make_engine, make_rows, recipe):
    """Loss and gradient of a packed batch are those of its rows alone, each weighted by its targets."""
    rows = make_rows(5)
    settings = {"max_grad_norm": 0.0} | recipe

    packed_loss, packed = _change(make_engine(**settings), [_packed(rows)])
    loss, alone = _change(make_engine(**settings), [_alone(row) for row in rows])

    assert packed_loss == pytest.approx(loss, abs=1e-5)
    assert torch.allclose(packed, alone, atol=1e-5)
    assert alone.abs().max() > 1e-3


def test_the_score_of_a_packed_batch_is_that_of_its_rows(make_engine, make_rows):
    engine, rows = make_engine(), make_rows(4)
    engine.model.eval()

    packed = engine.score(_packed(rows))
    scores = [(engine.score(batch), batch.target_count) for batch in map(_alone, rows)]

    count = sum(count for _, count in scores)
    assert packed.loss == pytest.approx(sum(score.loss * n for score, n in scores) / count, abs=1e-5)
    assert packed.accuracy == pytest.approx(sum(score.accuracy * n for score, n in scores) / count, abs=1e-6)


def test_a_gradient_beyond_fp16_lowers_the_scale_and_loses_no_rows(make_engine, make_rows):
    batches = [_alone(row) for row in make_rows(4)]
    calm, wild = (make_engine(dtype=torch.float16) for _ in range(2))
    calm.scaler.load_state_dict(calm.scaler.state_dict() | {"scale": 256.0})
    wild.scaler.load_state_dict(wild.scaler.state_dict() | {"scale": 2.0**30})

    expected, result = calm.step(batches), wild.step(batches)

    assert wild.scaler.get_scale() < 2.0**30
    assert result.loss == pytest.approx(expected.loss, abs=1e-6)
    assert result.grad_norm == pytest.approx(expected.grad_norm, rel=0.01)
    assert result.accuracy == expected.accuracy


def test_a_step_that_ran_out_of_memory_can_be_done_again(make_engine, make_rows, monkeypatch):
    batches = [_alone(row) for row in make_rows(4)]
    engine, fresh = make_engine(), make_engine()
    training_step, calls = engine._trainer.training_step, []

    def runs_out_at_the_third(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise torch.OutOfMemoryError
        return training_step(*arguments)

    monkeypatch.setattr(engine._trainer, "training_step", runs_out_at_the_third)
    with pytest.raises(torch.OutOfMemoryError):
        engine.step(batches)
    held = [parameter.grad for parameter in trainable(engine.model).values()]
    engine.recover()

    assert any(gradient is not None for gradient in held)
    assert all(parameter.grad is None for parameter in trainable(engine.model).values())
    assert engine.step(batches) == fresh.step(batches)


def test_the_choice_of_an_engine_gives_its_reason():
    auto, asked = (choose(make_settings(engine=name)) for name in ("auto", "trl"))

    assert (auto.name, asked.name) == ("trl", "trl")
    assert auto.reason.startswith("auto:")
    assert asked.reason == "asked for"
