"""What a method trains: the one place that knows whether a run has adapters or trains the model itself.

A checkpoint and the artifacts of a run hold what was trained in a folder of its own, `adapter` or `model`.
"""

from pathlib import Path

from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from luthier.errors import ExitCode, JobFailure
from luthier.spec import BaseModelRef, Hyperparameters, TrainSpec
from trainer import adapters, whole_model

Model = PeftModel | PreTrainedModel

ADAPTER, MODEL = "adapter", "model"


def make_trainable(base: PreTrainedModel, spec: TrainSpec, checkpoint: Path | None) -> Model:
    """The base with what the spec's method trains, ready for its first step.

    Args:
        checkpoint: the folder that the run resumes from; its weights are not loaded yet, `load` does that.
    Raises:
        JobFailure: the settings do not fit the base, or the adapter to start from does not fit the settings.
    """
    settings = spec.hyperparameters
    if settings.method == "full":
        if spec.adapter_from is not None:
            raise JobFailure(
                "method 'full' cannot start from an adapter: merge it into its base first, or use method "
                "'lora' or 'qlora'",
                "invalid_spec",
                ExitCode.BAD_SPEC,
                "model",
            )
        return whole_model.unfreeze(base, settings)
    model = adapters.add_adapters(base, settings, checkpoint / ADAPTER if checkpoint else None)
    if spec.adapter_from is not None and checkpoint is None:
        adapters.start_from(model, Path(spec.adapter_from), settings)
    return model


def describe(settings: Hyperparameters) -> str:
    """What is trained, in a few words: 'LoRA r 16 on a nf4 base'."""
    if settings.method != "full":
        kind = "DoRA" if settings.use_dora else "LoRA"
        return f"{kind} r {settings.r} on {_base_of(settings)}"
    if settings.trainable_layers is None:
        return "all weights"
    return f"the last {settings.trainable_layers} layers"


def count_parameters(model: Model) -> tuple[int, int]:
    """How many parameters are trained, and how many there are; a quantised weight counts as what it means."""
    if isinstance(model, PeftModel):
        return model.get_nb_trainable_parameters()
    parameters: list[nn.Parameter] = list(model.parameters())
    trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    return trained, sum(parameter.numel() for parameter in parameters)


def save(model: Model, folder: Path, ref: BaseModelRef) -> None:
    """Write what was trained into a folder of a checkpoint, exact enough to go on from."""
    if isinstance(model, PeftModel):
        adapters.save_adapter(model, folder / ADAPTER, ref)
    else:
        whole_model.save_trained(model, folder / MODEL)


def load(model: Model, folder: Path) -> None:
    """Put back what `save` wrote.

    Raises:
        KeyError, RuntimeError: the tensors are not those of this model.
    """
    if isinstance(model, PeftModel):
        adapters.load_adapter(model, folder / ADAPTER)
    else:
        whole_model.load_trained(model, folder / MODEL)


def publish(model: Model, folder: Path, ref: BaseModelRef) -> Path:
    """Write what a user gets, and return its folder: stock PEFT's `adapter`, or a whole `model`."""
    if isinstance(model, PeftModel):
        adapters.save_adapter(model, folder / ADAPTER, ref)
        return folder / ADAPTER
    whole_model.publish(model, folder / MODEL, ref)
    return folder / MODEL


def _base_of(settings: Hyperparameters) -> str:
    return "an unquantised base" if settings.quantization == "none" else f"a base in {settings.quantization}"
