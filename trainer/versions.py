"""The calls that differ between versions of the libraries, so that no other file asks which one is there.

Holds for torch 2.11 to 2.13, transformers 5.17 to 5.23 and trl 1.15 to 1.16; trl 1.15 computes its loss with
Triton, which has no CPU, so there 1.16 is the oldest. Each function says what changed;
when a version is dropped, its branch goes.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from functools import partial
from importlib.metadata import version
from pathlib import Path

import bitsandbytes as bnb
import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel
from trl import SFTConfig, SFTTrainer

_REPORTED = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "bitsandbytes",
    "accelerate",
    "safetensors",
    "tokenizers",
)


def library_versions() -> dict[str, str]:
    """The versions that decide what a run computes."""
    return {name: version(name) for name in _REPORTED}


def cpu_computes_bf16() -> bool:
    """Whether oneDNN has bf16 kernels for this CPU; torch has no public name for the question.

    Without them (AVX2) a bf16 product took 17 to 70 times as long as one in fp32, with torch 2.13.
    """
    ask = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return ask is not None and bool(ask())


def can_train_on_cpu() -> bool:
    """Whether the installed trl computes its loss on a CPU: 1.15 does so with Triton alone."""
    return not version("trl").startswith("1.15.")


def step_config(folder: Path, *, batch_size: int, use_cpu: bool, seed: int) -> SFTConfig:
    """A configuration under which SFTTrainer only computes losses and gradients.

    Data, autocast, checkpointing of activations, optimizer, logs and saves are ours, so each of TRL's own is
    off. bf16 must be said, since its default is on and refuses to start without a GPU; the switch for
    activation checkpointing was renamed after transformers 5.17 and its old name warns.
    """
    names = {field.name for field in fields(SFTConfig)}
    checkpointing = (
        "activation_checkpointing" if "activation_checkpointing" in names else "gradient_checkpointing"
    )
    return SFTConfig(
        output_dir=str(folder),
        per_device_train_batch_size=batch_size,
        seed=seed,
        use_cpu=use_cpu,
        bf16=False,
        fp16=False,
        max_length=None,
        packing=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        dataloader_pin_memory=False,
        eval_strategy="no",
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **{checkpointing: False},
    )


def use_step_losses(trainer: SFTTrainer) -> None:
    """Tell the trainer that `compute_loss` has divided by the tokens of the whole step already.

    TRL always does; transformers 5.17 concludes it from the signature of the model, later ones ask for the
    second attribute. Models without keyword arguments would otherwise be scaled twice.
    """
    trainer.model_accepts_loss_kwargs = True
    trainer.loss_is_scaled_for_ga = True


def take_accuracies(trainer: SFTTrainer, mode: str) -> list[float]:
    """The mean token accuracy of each micro-batch since the last call; TRL gathers them for its own log."""
    metrics = trainer._metrics[mode]
    accuracies = list(metrics["mean_token_accuracy"])
    metrics.clear()
    return accuracies


def enable_activation_checkpointing(model: PeftModel | PreTrainedModel) -> None:
    """Recompute activations in the backward pass; the method was renamed after transformers 5.17."""
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable({"use_reentrant": False})
    else:
        model.gradient_checkpointing_enable({"use_reentrant": False})


def keep_trained_biases(model: nn.Module) -> None:
    """Add the trained biases of quantised layers ourselves.

    bitsandbytes 0.50 casts a bias to the type of the layer's input in place, so that one in fp32 is trained
    in bf16 from the first forward on, without a word.
    """
    for module in model.modules():
        quantised = isinstance(module, bnb.nn.Linear4bit | bnb.nn.Linear8bitLt)
        if quantised and module.bias is not None and module.bias.requires_grad:
            module.forward = partial(_with_own_bias, module, module.forward)


def _with_own_bias(
    module: nn.Linear, forward: Callable[[torch.Tensor], torch.Tensor], inputs: torch.Tensor
) -> torch.Tensor:
    bias, module.bias = module.bias, None
    try:
        product = forward(inputs)
    finally:
        module.bias = bias
    return product + bias.to(product.dtype)


@contextmanager
def known_warnings_silenced() -> Iterator[None]:
    """Hide the warnings that libraries provoke in each other, and only those.

    peft 0.21 asks a model for an attribute that transformers 5.23 has renamed; bitsandbytes 0.50 tells that
    paged optimizers are not paged on a CPU, where there is nothing to page out of.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        warnings.filterwarnings("ignore", "Paged optimizers are not supported on CPU", UserWarning)
        yield
