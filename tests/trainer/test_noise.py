"""Noise on the embeddings: how large, when, and over which length."""

import pytest
import torch

from trainer.noise import EmbeddingNoise, row_lengths

PADDED = {"attention_mask": torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0]])}
PACKED = {"position_ids": torch.tensor([[0, 1, 2, 3, 0, 0, 1]])}


def test_a_row_is_as_long_as_it_is_without_padding_and_alone():
    assert row_lengths(PADDED).tolist() == [[4], [1]]
    assert row_lengths(PACKED).tolist() == [[4, 4, 4, 4, 1, 2, 2]]


@pytest.mark.parametrize(
    ("inputs", "lengths"),
    [(PADDED, [[4] * 4, [1] * 4]), (PACKED, [[4, 4, 4, 4, 1, 2, 2]])],
    ids=["padded", "packed"],
)
def test_the_noise_fills_its_bounds_and_stays_within(inputs, lengths):
    """alpha / sqrt(length x width), of the paper's algorithm 1."""
    torch.manual_seed(0)
    embedding = torch.nn.Embedding(2, 1000)
    noise = EmbeddingNoise(embedding, alpha=5.0)
    noise.expect(inputs)
    ids = torch.zeros(len(lengths), len(lengths[0]), dtype=torch.int64)

    drawn = (embedding(ids) - embedding.weight[0]).abs().amax(dim=-1)

    bounds = 5.0 / (torch.tensor(lengths) * 1000.0).sqrt()
    assert (drawn <= bounds + 1e-6).all()
    assert (drawn >= 0.95 * bounds).all()


def test_noise_is_for_training_alone(make_run, make_rows):
    settings = {"validation": make_rows(4, first=100), "eval_steps": 100, "max_steps": 1}
    plain, noisy = make_run(**settings), make_run(**settings, neftune_alpha=15.0)

    plain.train()
    noisy.train()

    before = [run.events("eval_logged")[0].eval_loss for run in (plain, noisy)]
    assert before[0] == before[1]
    assert plain.losses != noisy.losses
